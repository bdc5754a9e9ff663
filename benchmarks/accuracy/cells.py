"""What a run of the accuracy benchmark is, and in which order they are run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SEEDS = (0, 1, 2)
BITS = ('w4a4', 'w2a4', 'w2a2')
# From a model to its epochs: of the teacher, and then of the student.
EPOCHS = dict(resnet=(40, 40), wide=(40, 40), mobilenet=(60, 15))
MODELS = tuple(EPOCHS)
# From a model to options of the hook that all its runs have. The observed
# range as it is makes MobileNetV2 diverge at W2A2.
SETTINGS: dict[str, dict] = dict(
    resnet={}, wide={}, mobilenet={'activation.observer': 'mse'})
ABLATION = ('lsq', 'sfp', 'csd', 'fpq')
RIVALS = ('kd', 'lsq_plus', 'pact', 'lsq_sam', 'torch_ao', 'weight_noise',
          'per_tensor', 'fpq_kd')
# From a method's name to its fragment in mm_configs/_base_/methods and the
# options of the hook that it changes.
METHODS: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in (*ABLATION, *RIVALS)},
    **{f'fpq p={p}': ('fpq', {'perturbation.p': p})
       for p in (0.3, 0.5, 0.7, 0.9, 1.0)},
    **{f'fpq lambda={weight}': ('fpq', {'distillation.loss_weight': weight})
       for weight in (0.1, 0.3, 3.0)},
    'fpq before': ('fpq', {'perturbation.where': 'before'}),
    'fpq sample': ('fpq', {'perturbation.granularity': 'sample'}),
    'fpq channel_sum': ('fpq', {'distillation.reduction': 'channel_sum'}),
    **{f'{name} scale_lr=0.1': (name, {'scale_lr_mult': 0.1})
       for name in ('lsq', 'fpq')},
    **{f'{name} observer={observer}':
       (name, {'activation.observer': observer})
       for observer in ('mse', 'min_max') for name in ('lsq', 'fpq')},
    'sfp p=0.5': ('sfp', {'perturbation.p': 0.5}),
    'fpq annealed': ('fpq', {}),
}


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
        teacher, student = EPOCHS[self.model]
        return teacher if self.method == 'fp' else student

    @property
    def teacher(self) -> Cell:
        """The full-precision run that this one starts from."""
        return Cell(self.model, 'fp', 'w32a32', self.seed)

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
    wide, thin, mobile = (('wide', ), ('resnet', ), ('mobilenet', ))
    yield from _cells(wide, ('lsq', 'fpq', 'csd', 'sfp'), ('w2a4', ))
    yield from _cells(wide, ('lsq', 'fpq'), ('w2a2', 'w4a4'))
    yield from _cells(wide, ('kd', 'lsq_plus', 'pact'), ('w2a4', ))
    yield from _cells(mobile, ('lsq', 'fpq', 'kd'), BITS)
    yield from _cells(thin, (*ABLATION, 'fpq lambda=0.1'), ('w2a4', ))
    sweep = [name for name in METHODS if name.startswith('fpq p=')]
    yield from _cells(wide, sweep, ('w2a4', ))
    yield from _cells(mobile, [f'{name} {option}' for name in ('lsq', 'fpq')
                               for option in ('observer=min_max',
                                              'scale_lr=0.1')], ('w2a2', ))
    methods = ('kd', 'lsq_plus', 'pact')
    yield from _cells(wide, methods, ('w2a2', 'w4a4'))
    yield from _cells(mobile, methods, BITS)
    # The open choices, where methods differ most.
    yield from _cells(wide, METHODS, ('w2a2', ))


def _cells(models: Iterable[str], methods: Iterable[str],
           bits: Iterable[str]) -> Iterator[Cell]:
    for model in models:
        for width in bits:
            for method in methods:
                for seed in SEEDS:
                    yield Cell(model, method, width, seed)
