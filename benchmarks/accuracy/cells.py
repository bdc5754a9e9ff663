"""What a run of the accuracy benchmark is, and in which order they are run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setup:
    """A model and how it is trained.

    Attributes:
        file (str): The model's file in mm_configs/_base_.
        teacher_epochs (int): Epochs in full precision.
        epochs (int): Epochs of each quantized run.
        hook (dict): Options of the hook that all its runs have.
        config (dict): Options of the config that all its runs have.
        teacher (str, optional): The model whose full-precision runs are the
            teachers. Defaults to None: its own.
    """

    file: str
    teacher_epochs: int = 40
    epochs: int = 40
    hook: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    teacher: str | None = None


_WIDE = 'resnet_wide_fashion_mnist.py'
_HALF = 'mobilenet_v2_half_fashion_mnist.py'
# The observed range as it is makes MobileNetV2 diverge at W2A2.
_MSE = {'activation.observer': 'mse'}
MODELS = dict(
    resnet=Setup('resnet_thin_fashion_mnist.py'),
    wide=Setup(_WIDE),
    mobilenet=Setup(_HALF, 60, 15, _MSE),
    # One thing otherwise than in mobilenet, or in wide.
    mobilenet_slow_steps=Setup(
        _HALF, epochs=15, hook={**_MSE, 'scale_lr_mult': 0.1},
        teacher='mobilenet'),
    mobilenet_clipped=Setup(
        _HALF, epochs=15, hook=_MSE, teacher='mobilenet',
        config={'optim_wrapper.clip_grad': dict(max_norm=1.0)}),
    wide_weak_teacher=Setup(_WIDE, teacher_epochs=3),
    wide_160_epochs=Setup(_WIDE, epochs=160, teacher='wide'),
    wide_5000_images=Setup(
        _WIDE, config={'train_dataloader.dataset.indices': 5000}),
    # Of the usual width: for a GPU.
    resnet18=Setup('resnet18_fashion_mnist.py'),
    mobilenet_v2=Setup('mobilenet_v2_full_fashion_mnist.py', 60, 40,
                       {**_MSE, 'scale_lr_mult': 0.1}),
)
SEEDS = (0, 1, 2)
BITS = ('w4a4', 'w2a4', 'w2a2')
ABLATION = ('lsq', 'sfp', 'csd', 'fpq')
RIVALS = ('kd', 'lsq_plus', 'pact', 'lsq_sam', 'torch_ao', 'weight_noise',
          'per_tensor', 'fpq_kd', 'sfp_kd')
# From a method's name to its fragment in mm_configs/_base_/methods and the
# options of the hook that it changes.
METHODS: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in (*ABLATION, *RIVALS)},
    **{f'fpq p={p}': ('fpq', {'perturbation.p': p})
       for p in (0.3, 0.5, 0.7, 0.9, 1.0)},
    **{f'fpq lambda={weight}': ('fpq', {'distillation.loss_weight': weight})
       for weight in (0.1, 0.3)},
    'fpq before': ('fpq', {'perturbation.where': 'before'}),
    'fpq sample': ('fpq', {'perturbation.granularity': 'sample'}),
    'fpq channel_sum': ('fpq', {'distillation.reduction': 'channel_sum'}),
    **{f'{name} scale_lr=0.1': (name, {'scale_lr_mult': 0.1})
       for name in ('lsq', 'fpq')},
    **{f'{name} observer={observer}':
       (name, {'activation.observer': observer})
       for observer in ('mse', 'min_max') for name in ('lsq', 'fpq')},
    'sfp p=0.5': ('sfp', {'perturbation.p': 0.5}),
    'fpq lambda annealed': ('fpq', {}),
    'fpq p annealed': ('fpq', {'perturbation.p': 1.0}),
    'fpq eps=0.01': ('fpq', {'distillation.eps': 0.01}),
    # The ResNets' first stages are not distilled.
    'fpq last stage': ('fpq', {'distill_skip': [
        'backbone.conv1', 'backbone.layer1', 'backbone.layer2']}),
}
METHODS['recommended'] = 'recommended', {}
# CSD has given way to the logits after a share of the training, or after as
# many iterations; batch norms keep their running statistics.
METHODS.update({
    f'recommended by={by}': ('recommended', {
        'batch_norms': None,
        'distillation': [
            dict(type='CSDLoss', fades='out', fades_by=by),
            dict(type='LogitKD', loss_weight=3.0, fades='in', fades_by=by)]})
    for by in (1.0, 0.25, 0.1, 64, 100)})
METHODS['recommended, logits alone'] = 'recommended', {
    'distillation': dict(type='LogitKD', loss_weight=3.0)}
_SFP = {'_delete_': True, 'type': 'StochasticFeaturePerturbation'}


def _mix(csd: float, kd: float, p: float,
         reduction: str = 'mean') -> tuple[str, tuple[str, dict]]:
    """Weights of the two distillations, and noise: a method and its name."""
    name = f'csd={csd} kd={kd} p={p}'
    if reduction != 'mean':
        name += f' {reduction}'
    if not csd:
        return name, ('kd', {
            'distillation.loss_weight': kd,
            'perturbation': {**_SFP, 'p': p} if p else None})
    loss = '' if not kd else '.0'
    options = {f'distillation{loss}.loss_weight': csd,
               f'distillation{loss}.reduction': reduction,
               'perturbation.p': p}
    if not kd:
        return name, ('fpq', options)
    return name, ('fpq_kd', {**options, 'distillation.1.loss_weight': kd})


# How strong the distillation, on which outputs, with how much noise.
MIXES = dict(_mix(*each) for each in (
    (0, 1, 0.1), (0, 1, 0.5), (0, 1, 1.0), (0, 3, 0), (0, 3, 1.0), (0, 10, 0),
    (0, 10, 0.5), (0, 30, 0.5),
    (3, 0, 0.1), (3, 0, 0.5), (10, 0, 0.1), (10, 0, 0.5), (30, 0, 0.1),
    (0.1, 1, 0.1), (0.3, 1, 0.1), (3, 1, 0.1), (1, 1, 0.5), (1, 1, 1.0),
    (1, 3, 0.5), (3, 3, 0.5), (1, 10, 0.5),
    *((*each, 'channel_sum') for each in (
        (0.1, 0, 0.1), (0.3, 0, 0.1), (0.3, 0, 0.5), (1, 0, 0.5), (3, 0, 0.1),
        (1, 0, 1.0), (0.3, 3, 0.5), (1, 3, 0.5), (1, 3, 0.1)))))
METHODS.update(MIXES)
# From a method to what falls to 0 in its runs.
ANNEALED = {'fpq lambda annealed': 'loss_weight', 'fpq p annealed': 'p'}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        model (str): One of MODELS.
        method (str): 'fp', or one of METHODS.
        bits (str): One of BITS; 'w32a32' for 'fp'.
        seed (int): Seed of weights, order and noise; the teacher of a run
            is the full-precision run of its seed.
    """

    model: str
    method: str
    bits: str
    seed: int

    def __str__(self) -> str:
        return f'{self.model}/{self.method}/{self.bits}/{self.seed}'

    @property
    def key(self) -> str:
        """The name of its files."""
        return str(self).replace('/', '-').replace(' ', '_')

    @property
    def epochs(self) -> int:
        """Epochs of the run."""
        setup = MODELS[self.model]
        return setup.teacher_epochs if self.method == 'fp' else setup.epochs

    @property
    def teacher(self) -> Cell:
        """The full-precision run that this one starts from."""
        model = MODELS[self.model].teacher or self.model
        return Cell(model, 'fp', 'w32a32', self.seed)

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read ``MODEL/METHOD/BITS/SEED``.

        Raises:
            ValueError: If a part is unknown; the message names it.
        """
        parts = text.split('/')
        if len(parts) != 4 or not parts[3].isdigit():
            raise ValueError(f'{text!r} is not MODEL/METHOD/BITS/SEED')
        cell = cls(*parts[:3], int(parts[3]))
        known = ((cell.model, MODELS), (cell.method, ('fp', *METHODS)),
                 (cell.bits, ('w32a32', *BITS)))
        for part, names in known:
            if part not in names:
                raise ValueError(
                    f'{text!r}: {part!r} is none of {", ".join(names)}')
        if (cell.method == 'fp') != (cell.bits == 'w32a32'):
            raise ValueError(f"{text!r}: w32a32 is method fp's, and only its")
        return cell


def grid() -> Iterator[Cell]:
    """All cells, the most telling first, all seeds of a cell in sequence.

    A cell may come twice: the second time its record is there.
    """
    paper = ('lsq', 'fpq', 'kd', 'csd', 'lsq_plus', 'pact')
    strong = ('sfp_kd', 'csd=10 kd=0 p=0.5', 'csd=0 kd=3 p=0', 'fpq_kd',
              'csd=0 kd=10 p=0.5', 'csd=3 kd=3 p=0.5')
    first = (*paper[:3], *strong[:3])
    sweep = [name for name in METHODS if name.startswith('fpq p=')]
    small = ('wide', 'mobilenet_slow_steps')
    for methods in (first, (*paper, *strong)):
        for model in (*small, 'resnet18', 'mobilenet_v2'):
            yield from _cells(model, methods, BITS)
    for model in ('wide', 'resnet18'):
        yield from _cells(model, (*ABLATION, *sweep), ('w2a4', ))
    yield from _cells('resnet', (*paper, *strong, 'sfp', 'fpq lambda=0.1'),
                      BITS)
    for model in ('resnet', *small, 'mobilenet', 'resnet18', 'mobilenet_v2'):
        yield from _cells(model, ('recommended', ), BITS)
    yield from _cells('mobilenet', (*paper[:3], 'sfp_kd'), BITS)
    for model in ('resnet', 'wide', 'mobilenet'):
        yield from _cells(model, [name for name in METHODS if
                                  name.startswith('recommended')], BITS)
    # More seeds, on another processor: there 0 to 2 give other networks.
    yield from _cells('resnet', first, ('w4a4', ), (3, 4, 5))
    yield from _cells('resnet18', first, BITS[1:], (3, 4, 5))
    yield from _cells('resnet18', (*first, 'lsq_plus', 'pact'), ('w2a4', ),
                      (6, 7, 8))
    yield from _cells('mobilenet_v2', first, BITS[1:], (3, 4, 5))
    # Seed 4 diverges.
    yield from _cells('mobilenet_v2', first, ('w2a2', ), (6, ))
    # The open choices, where methods differ most.
    yield from _cells('wide', METHODS, ('w2a2', ))
    for model in ('mobilenet', 'mobilenet_clipped', 'mobilenet_slow_steps'):
        yield from _cells(model, (*first, 'csd=10 kd=0 p=0.1'), ('w2a2', ))
    for model in ('resnet', 'mobilenet'):
        yield from _cells(model, (
            'csd=10 kd=0 p=0.1', 'fpq channel_sum', 'fpq_kd',
            'csd=0.3 kd=3 p=0.5 channel_sum'), ('w2a2', ))
    yield from _cells('wide', ('lsq_sam', ), BITS)
    yield from _cells('mobilenet', [f'{name} observer=min_max'
                                    for name in ('lsq', 'fpq')], ('w2a2', ))
    for model in ('wide_weak_teacher', 'wide_5000_images', 'wide_160_epochs'):
        yield from _cells(model, first, ('w2a2', ))
    yield from _cells('resnet18', (*ABLATION, *RIVALS), BITS)
    yield from _cells('mobilenet_v2', ABLATION, BITS)


def _cells(model: str, methods: Iterable[str], bits: Iterable[str],
           seeds: Iterable[int] = SEEDS) -> Iterator[Cell]:
    for width in bits:
        for method in methods:
            for seed in seeds:
                yield Cell(model, method, width, seed)
