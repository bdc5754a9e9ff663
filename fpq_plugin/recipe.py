"""The recipe: every option, checked once, and what is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from .distillation import DistillationLoss
from .joints import (
    Joint,
    Placing,
    attach_joints,
    attach_safely,
    place_joints,
    watch_forward,
)
from .layer_table import LayerRow, LayerTable
from .layers import get_backend
from .optimizer_watch import look_at_optimizers
from .options import FLOAT_BITS, build, merge, refuse_unknown, resolve
from .plan import quantize
from .presets import CSD, KINDS, LOGITS, OF_PRESET, PRESETS
from .quantizers import Quantizer
from .recipe_checks import check_recipe
from .targets import Target, target_of


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized and trained: the options of FPQ.

    Made once, by :class:`~fpq_plugin.FPQHook` or
    :func:`~fpq_plugin.convert`, and checked as it is made. A dict is merged
    over the preset's where it names the same type, or none:
    ``perturbation=dict(p=0.3)`` changes the probability alone. One in
    ``distillation`` is the only loss then, and CSD if it names no type. A
    class as ``type`` counts as its name.

    Args:
        preset (str): What holds where an option is not given. 'paper' is the
            paper's to the letter: SFP with p = 0.1, CSD with lambda = 1.
            'recommended' learns steps in the logarithm, finds those of
            features by least squares, distills the layers in the first
            iterations and then the logits (in classifiers; CSD alone in
            other models), takes the mean of the losses, and sets batch norms
            anew: it holds at rates at which the paper's diverges. Defaults
            to 'recommended'.
        bits (str, optional): Bits of weights and activations at once, as
            'w4a4'; 32 leaves float. Defaults to None: those in ``weight``
            and ``activation``.
        backend (str): Whose quantizers and layers: 'torch_ao' or 'brevitas'
            (needs the extra of that name). Defaults to 'torch_ao'.
        weight (dict, optional): The weights' fake quantizer; None or
            ``bits=32``: float. Defaults to the preset's, 4 bits.
        activation (dict, optional): The activations' fake quantizer; None or
            ``bits=32``: float. Defaults to the preset's, 4 bits. With both
            off and no overrides nothing is quantized.
        perturbation (dict, optional): SFP; None: off. Defaults to the
            preset's.
        distillation (dict | list[dict], optional): The loss of the teacher's
            outputs, or several; None: off. Defaults to the preset's.
        objective (str, optional): How the task's loss and the distillation
            are joined: 'sum', equation (22), or 'mean', that divided by 1 +
            lambda, so that the gradient stays of the size that the learning
            rate was found for. The log has the undivided losses. Defaults to
            the preset's.
        teacher (str | dict, optional): Full-precision checkpoint of the
            teacher. ``dict(config=..., checkpoint=...)`` is a teacher of
            another architecture, a larger one say, for losses of the logits.
            Defaults to None: the full-precision weights that the run starts
            from; a resumed run finds them again in its work directory.
        calibration (dict): ``num_images``: training images that set the
            first steps and zero points. Defaults to 100.
        batch_norms (dict, optional): ``num_images``: training images whose
            statistics batch norms get before each validation and checkpoint,
            without noise; None: the running ones stay. Defaults to the
            preset's.
        first_last_bits (int, optional): Bits of the first and last quantized
            layer, and of all that predict in a detector's or segmentor's
            heads; None: no exception for them. Defaults to 8.
        skip (Sequence[str]): Name patterns of layers that stay float: names
            of layers or of modules that hold them, ``*`` allowed.
        overrides (Mapping[str, dict], optional): From name pattern to
            ``weight``, ``activation``, ``perturbation`` settings, merged
            over the others and over ``first_last_bits``; later patterns win.
        attention (dict, optional): Fake quantizers of the operands of
            attention's products of activations (q k^T and attn v). Defaults
            to None: float.
        target (str, optional): The engine that is to run the exported model:
            'onnxruntime', 'openvino', 'tensorrt' or 'executorch'. What it can
            do on integers beside the layers (sums, products, concatenations,
            pools) gets fake quantizers as well, which are trained like the
            others. Defaults to None: the layers alone.
        joints (dict): Their fake quantizers. Defaults to the preset's of
            activations, with 8 bits.
        distill_skip (Sequence[str]): Name patterns of layers that are
            quantized but not distilled.
        scale_lr_mult (float): Learning rate of the quantizers' parameters
            over that of the group they would be in. Defaults to 1.0.
        baselines (bool): Whether the training's first lines tell the
            validation's metric in full precision and after calibration
            alone, at the price of two validations. Defaults to True.
        export (str, optional): ONNX file to write at the end of training, in
            the work directory. Defaults to None.
        key (str): What messages put before an option's name. Defaults to
            'fpq'.

    Raises:
        TypeError: If an option is of a wrong type.
        ValueError: If an option is unknown or has a wrong value; the message
            has its full name, as ``fpq.weight.bits``.
        ImportError: If what the backend needs is not installed.

    Examples:
        >>> from torch import nn
        >>> from fpq_plugin.recipe import Recipe
        >>> recipe = Recipe(bits='w2a4', perturbation=dict(p=0.5))
        >>> recipe.weight['bits'], recipe.perturbation['p']
        (2, 0.5)
        >>> table = recipe.convert(nn.Sequential(nn.Linear(4, 2)))
    """

    preset: str = 'recommended'
    bits: str | None = None
    backend: str = 'torch_ao'
    weight: dict | None = OF_PRESET
    activation: dict | None = OF_PRESET
    perturbation: dict | None = OF_PRESET
    distillation: dict | Sequence[dict] | None = OF_PRESET
    objective: str = OF_PRESET
    teacher: str | Mapping[str, str] | None = None
    calibration: Mapping[str, Any] = field(
        default_factory=lambda: dict(num_images=100))
    batch_norms: Mapping[str, int] | None = OF_PRESET
    first_last_bits: int | None = 8
    skip: Sequence[str] = ()
    overrides: Mapping[str, dict] | None = None
    attention: dict | None = None
    target: str | None = None
    joints: dict = field(default_factory=dict)
    distill_skip: Sequence[str] = ()
    scale_lr_mult: float = 1.0
    baselines: bool = True
    export: str | None = None
    key: str = field(default='fpq', repr=False, compare=False)

    @classmethod
    def options(cls) -> list[str]:
        """Names of all options."""
        return [each.name for each in fields(cls) if each.name != 'key']

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Recipe:
        """The recipe of a config's options, refusing unknown ones."""
        refuse_unknown('fpq', options, cls.options())
        return cls(**options)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(
                f'{self.name_of("preset")}: must be '
                f'{" or ".join(map(repr, PRESETS))}, got {self.preset!r}')
        for part in KINDS:
            self._set(part, self._component(part))
        self._set('distillation', tuple(self._distillation()))
        self._set('attention', self._resolved('attention', self._with_preset(
            self.attention, 'activation')))
        self._set('joints', self._of_joints())
        for option in ('objective', 'batch_norms'):
            if getattr(self, option) is OF_PRESET:
                self._set(option, PRESETS[self.preset][option])
        check_recipe(self)

    def convert(self, model: nn.Module,
                skip: Sequence[str] = ()) -> LayerTable:
        """Quantize ``model`` in place.

        Args:
            model (nn.Module): The model, changed in place.
            skip (Sequence[str]): Patterns of further layers to leave out.

        Returns:
            LayerTable: One row for each layer with a weight of two or more
            axes.

        Raises:
            ValueError: If a pattern matches no layer, if the model is
                converted already, or if nothing is left to quantize. The
                model is as it was then.
        """
        look_at_optimizers()
        return quantize(model, self, skip)

    def find_joints(self, model: nn.Module, run: Callable[[], Any]
                    ) -> tuple[list[LayerRow], Placing]:
        """Give a converted model what the target wants beside the layers.

        Args:
            model (nn.Module): The model, changed in place.
            run (Callable): Runs its forward once, on any input; the answer.

        Returns:
            tuple: A row for each new quantizer; and the places, with what
            stays float.
        """
        seen = watch_forward(model, run)
        placing = place_joints(model, seen, target_of(self.target),
                               self.joints['bits'])
        return attach_safely(model, placing, self._build_joint, run,
                             seen.answer)

    def attach_joints(self, model: nn.Module,
                      joints: Iterable[Joint]) -> list[LayerRow]:
        """Give a converted model the quantizers of joints.

        Args:
            model (nn.Module): The model, changed in place.
            joints (Iterable[Joint]): Where :meth:`find_joints` found them.

        Returns:
            list[LayerRow]: A row for each.
        """
        return attach_joints(model, joints, self._build_joint)

    def _build_joint(self, name: str) -> Any:
        return build(f'{self.name_of("joints")} of {name}', self.joints)

    def name_of(self, option: str) -> str:
        """An option's full name, as messages have it."""
        return f'{self.key}.{option}' if self.key else option

    def default_type(self, part: str) -> str:
        """The type of a component whose dict names none."""
        preset = PRESETS[self.preset]
        return preset.get(part, preset['activation'])['type']

    def is_float(self) -> bool:
        """Whether nothing is quantized: weight and activation are off."""
        return not (self.weight or self.activation or self.overrides)

    def rules(self) -> Target:
        """The target's rules.

        Raises:
            ValueError: If there is no such target.
        """
        try:
            return target_of(self.target)
        except ValueError as error:
            raise ValueError(f'{self.name_of("target")}: {error}') from error

    def losses(self, has_logits: bool = True) -> list[DistillationLoss]:
        """The losses of ``distillation``, built anew.

        Args:
            has_logits (bool): Whether the model is a classifier. If not, the
                preset's are CSD alone. Defaults to True.
        """
        of_all = self.distillation or ()
        if self.distills_as_preset and not has_logits:
            of_all = [CSD] if of_all else ()
        return [build(self.name_of('distillation'), cfg) for cfg in of_all]

    def has_other_teacher(self) -> bool:
        """Whether the teacher is of another architecture."""
        return isinstance(self.teacher, Mapping)

    @property
    def distills_as_preset(self) -> bool:
        """Whether ``distillation`` is the preset's, untouched."""
        own = PRESETS[self.preset]['distillation']
        return list(self.distillation or ()) == (
            own if isinstance(own, list) else [own])

    def calibration_images(self) -> int:
        """How many training images set the first steps and zero points."""
        return self.calibration.get('num_images', 100)

    def batch_norm_images(self) -> int:
        """How many training images set batch norms; 0: none does."""
        if self.batch_norms is None:
            return 0
        return self.batch_norms.get('num_images', 1000)

    def describe(self) -> str:
        """The recipe in a line, for the log."""

        def text(cfg: dict | None) -> str:
            if cfg is None:
                return 'off'
            rest = [f'{k}={v!r}' for k, v in cfg.items() if k != 'type']
            return f'{cfg["type"]}({", ".join(rest)})'

        losses = ' + '.join(map(text, self.distillation or ())) or 'off'
        joined = f' ({self.objective})' if self.distillation else ''
        target = f', target {self.target!r}' if self.target else ''
        if self.batch_norms is not None:
            joined += f', batch norms of {self.batch_norm_images()} images'
        return (f'preset {self.preset!r}: weight {text(self.weight)}, '
                f'activation {text(self.activation)}, perturbation '
                f'{text(self.perturbation)}, distillation {losses}{joined}'
                f'{target}')

    def _set(self, option: str, value: Any) -> None:
        object.__setattr__(self, option, value)

    # -- what the preset and bits leave to say -----------------------------

    def _component(self, part: str) -> dict | None:
        given, base = getattr(self, part), PRESETS[self.preset][part]
        if given is OF_PRESET:
            given = dict(base)
            if part in self._bits():
                given['bits'] = self._bits()[part]
        elif part in self._bits():
            given = self._with_bits(part, given)
        return self._resolved(part, self._with_preset(given, part))

    def _with_preset(self, given: Any, part: str) -> Any:
        """``given`` over the preset's, but for the bits."""
        base = {k: v for k, v in PRESETS[self.preset][part].items()
                if k != 'bits'}
        return merge(base, given)

    def _bits(self) -> dict[str, int]:
        """Bits of weight and activation that ``bits`` asks for."""
        if self.bits is None:
            return {}
        found = re.fullmatch(r'w(\d+)a(\d+)', str(self.bits).lower())
        if not found:
            raise ValueError(f"{self.name_of('bits')}: must be as 'w4a4', got "
                             f'{self.bits!r}')
        return dict(zip(('weight', 'activation'), map(int, found.groups())))

    def _with_bits(self, part: str, given: Any) -> dict | None:
        if given is not None and not isinstance(given, Mapping):
            return given  # refused where its type is
        wanted = self._bits()[part]
        own = FLOAT_BITS if given is None else given.get('bits', wanted)
        if own != wanted:
            raise ValueError(
                f'{self.name_of("bits")}: {self.bits!r} contradicts '
                f'{self.name_of(part)}, which has {own} bits; give one of '
                'them')
        return None if given is None else {**given, 'bits': wanted}

    def _resolved(self, part: str, cfg: Any) -> dict | None:
        return resolve(self.name_of(part), cfg, self.default_type(part),
                       get_backend(self.backend).registry(part),
                       KINDS.get(part, Quantizer))

    def _of_joints(self) -> dict:
        if not isinstance(self.joints, Mapping):
            raise TypeError(f'{self.name_of("joints")}: must be a dict, got '
                            f'{self.joints!r}')
        if self.joints and self.target is None:
            raise ValueError(f'{self.name_of("joints")}: has a meaning with '
                             f'{self.name_of("target")} alone, which is None')
        own = {'bits': 8}
        if not self.rules().zero_points:
            own['symmetric'] = True
        found = self._resolved('joints', self._with_preset(
            {**own, **self.joints}, 'activation'))
        if found is None:
            raise ValueError(f'{self.name_of("joints")}: 32 bits are float; '
                             'leave out target instead')
        return found

    def _distillation(self) -> Iterator[dict]:
        given = self.distillation
        if given is OF_PRESET:
            given = PRESETS[self.preset]['distillation']
            if self.has_other_teacher() and self.preset != 'paper':
                given = [LOGITS]
        if not isinstance(given, (list, tuple)):
            given = [merge(CSD, given)]
        for each in given:
            cfg = resolve(self.name_of('distillation'), each, CSD['type'],
                          kind=DistillationLoss)
            if cfg is not None:
                yield cfg
