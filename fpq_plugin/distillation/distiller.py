"""The run-time side of CSD: two models, one pass, layer by layer."""

from __future__ import annotations

import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._compat.versions import is_compiling
from ..layers import quantized_layers, unroute
from ..options import matches
from .compared import (
    WAY_OUT,
    Tally,
    frozen_layers,
    is_answer,
    layers_of,
    losses_of,
    refuse_uncalled,
    values_of,
)
from .losses import DistillationLoss


class Distiller:
    """Compares student and teacher layer by layer during one forward.

    A training forward of the student first runs the teacher on the same
    arguments; its maps wait by layer name and call for the student's. Each
    layer's loss is taken as its output appears; :meth:`loss` is the sum over
    the layers, L_CSD of equation (22), and over the training forwards since
    it was last called. No standardized map is stored.

    The teacher is kept in eval mode, without gradient, and is no submodule
    of anything: it is in no checkpoint, EMA copy or DDP bucket.

    Args:
        student (nn.Module): A converted model.
        teacher (nn.Module): The full-precision model with the same names.
        criterion (DistillationLoss | Sequence[DistillationLoss]): The loss
            of one layer, or several that are added up.
        run_teacher (Callable, optional): Called as ``run_teacher(teacher,
            args, kwargs)`` with the student's arguments. Defaults to None:
            ``teacher(*args, **kwargs)``.
        condition (Callable, optional): Called with the student's keyword
            arguments; False leaves that forward alone. Defaults to None.
        warn (Callable): Told once of each layer that cannot be distilled, and
            of losses that are never taken. Defaults to ``warnings.warn``.
        skip (Sequence[str]): Name patterns of layers that are not to be
            distilled.
        teacher_layer (str, optional): The layer of a teacher of another
            architecture that the student's is compared with, by losses of
            one layer. Defaults to None: layers of the same name.
        own_hooks (bool): Whether the student's forward begins and ends the
            comparison. False leaves :meth:`begin` and :meth:`end` to the
            caller, who has more to do around a forward. Defaults to True.

    Raises:
        ValueError: If the student has no quantized layer, the teacher lacks
            one of them or is quantized, a loss of one layer does not find
            it, or one of many layers has ``teacher_layer``.

    Examples:
        >>> import copy, torch, fpq_plugin
        >>> student = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> teacher = copy.deepcopy(student)
        >>> table = fpq_plugin.convert(student)
        >>> distiller = fpq_plugin.Distiller(student, teacher,
        ...                                  fpq_plugin.CSDLoss())
        >>> output = student(torch.randn(8, 4))
        >>> distiller.loss().backward()
    """

    def __init__(self,
                 student: nn.Module,
                 teacher: nn.Module,
                 criterion: DistillationLoss | Sequence[DistillationLoss],
                 run_teacher: Callable[[nn.Module, tuple, dict], Any]
                 | None = None,
                 condition: Callable[[dict], bool] | None = None,
                 warn: Callable[[str], Any] = warnings.warn,
                 skip: Sequence[str] = (),
                 teacher_layer: str | None = None,
                 own_hooks: bool = True) -> None:
        self.teacher = teacher
        self.criteria = ([criterion] if isinstance(criterion, nn.Module) else
                         list(criterion))
        self._run_teacher = run_teacher or _call
        self._condition = condition
        self._warn = warn
        self._active = False
        self._progress_told = False
        self._maps: dict[str, deque[tuple[Tensor, int]]] = defaultdict(deque)
        self._taken: list[tuple[tuple[str, str], Tensor, int, Tensor]] = []
        self._overwritten: set[str] = set()
        self._tally = Tally(warn)
        self._looked_at_answer = False
        self._unmatched: set[str] = set()

        fades: dict[str, tuple] = {}
        for each in self.criteria:
            how = each.fades, each.fades_by
            if fades.setdefault(each.label, how) != how:
                raise ValueError(
                    f'two losses of the label {each.label!r} fade '
                    'differently: give them the same fades')
        layers = quantized_layers(student)
        if not layers:
            raise ValueError('the student has no quantized layer: call '
                             'convert(student) first')
        skipped = {name: pattern for pattern in skip for name in layers
                   if matches(name, pattern)}
        self._left_out = {name: f'skip {pattern!r}'
                          for name, pattern in skipped.items()}
        self._criteria: dict[str, list[DistillationLoss]] = defaultdict(list)
        for each in self.criteria:
            for name in layers_of(each, list(layers), skipped):
                self._criteria[name].append(each)
            if teacher_layer is not None and not each.of_one_layer():
                raise ValueError(
                    f'{type(each).__name__} compares layers by their names, '
                    'which a teacher of another architecture does not share')
        self._live = self._not_over()
        known = frozen_layers(teacher, [teacher_layer] if teacher_layer
                              else self._criteria)
        self._handles = []
        if own_hooks:
            self._handles += [
                student.register_forward_pre_hook(
                    self.begin, with_kwargs=True),
                student.register_forward_hook(
                    lambda student, args, output: self.end(output),
                    always_call=True),
            ]
        for name in self._criteria:
            self._handles += [
                known[teacher_layer or name].register_forward_hook(
                    self._keep(name)),
                layers[name].register_forward_hook(self._compare(name)),
            ]

    def loss(self) -> Tensor:
        """The losses' sum in the training forwards since the last call.

        A scalar. Called again before the next forward, it answers the same.
        What has faded out counts 0, and is not taken any more.

        Raises:
            RuntimeError: If there was no such forward, or no layer was
                compared in it.
        """
        losses = list(self._weighed().values())
        return torch.stack(losses).sum() if losses else torch.zeros(())

    def mean_with(self, task_loss: Tensor) -> Tensor:
        """The objective: the mean of the task's loss and of :meth:`loss`.

        ``(L_task + sum_i lambda_i L_i) / (1 + sum_i lambda_i)``, with the
        ``loss_weight`` of each criterion. Equation (22) is the sum; divided,
        the gradient stays of the size that the learning rate was found for.

        Args:
            task_loss (Tensor): Scalar.

        Raises:
            RuntimeError: As :meth:`loss`.
        """
        return (task_loss + self.loss()) * self.task_share()

    def task_share(self) -> float | Tensor:
        """The task's share in :meth:`mean_with`, a number or a scalar."""
        weights = [(getattr(each, 'loss_weight', 1.0), each.part)
                   for each in self.criteria]
        return 1 / (1 + sum(weight if part is None else weight * part.clone()
                            for weight, part in weights))

    def set_progress(self, iteration: int, iterations: int) -> None:
        """Tell the losses how much of the training is over.

        Args:
            iteration (int): The iteration that begins, from 0.
            iterations (int): How many the training has.
        """
        self._progress_told = True
        over = [each.over for each in self.criteria]
        for each in self.criteria:
            each.set_progress(iteration, iterations)
        # Compiled graphs hold on to the dict.
        if over != [each.over for each in self.criteria]:
            self._live = self._not_over()

    def _not_over(self) -> dict[str, list[DistillationLoss]]:
        """The losses of each layer that have not faded out."""
        live = {name: [each for each in criteria if not each.over]
                for name, criteria in self._criteria.items()}
        return {name: each for name, each in live.items() if each}

    def _weighed(self) -> dict[tuple[str, str], Tensor]:
        """The losses by label and layer, those that fade by their part."""
        if not self._live:
            return {}
        if not self._progress_told and any(each.fades
                                           for each in self.criteria):
            self._progress_told = True
            self._warn('a loss of the distillation fades and set_progress '
                       'was not called: one that fades in counts nothing. '
                       'Call distiller.set_progress(step, steps) before '
                       'each forward')
        # Cloned: the next iteration's part may be set before the backward.
        parts = {each.label: each.part.clone() for each in self.criteria
                 if each.part is not None}
        return {key: loss * parts[key[0]] if key[0] in parts else loss
                for key, loss in self._tally.take().items()}

    def losses(self) -> dict[str, Tensor]:
        """Each criterion's part of :meth:`loss`, by its ``label``.

        Raises:
            RuntimeError: As :meth:`loss`.
        """
        parts = defaultdict(list)
        for (label, _), loss in self._weighed().items():
            parts[label].append(loss)
        over = {each.label: torch.zeros(()) for each in self.criteria
                if each.over}
        return over | {label: torch.stack(part).sum()
                       for label, part in parts.items()}

    def layer_losses(self, label: str | None = None) -> dict[str, Tensor]:
        """Each distilled layer's part of the last :meth:`loss`, by name.

        Losses that fade are whole here.

        Args:
            label (str, optional): Those of this loss alone. Defaults to
                None: of all.
        """
        return self._tally.by_layer(label)

    def left_out(self) -> dict[str, str]:
        """Names of layers that could not be distilled, with the reason."""
        return dict(self._left_out)

    def detach(self) -> None:
        """Remove all hooks and let the teacher and the losses go."""
        for handle in self._handles:
            handle.remove()
        self._tally.clear()
        self._maps.clear()
        unroute(self.teacher)
        del self.teacher

    def has_loss(self) -> bool:
        """Whether the last training forward compared all that it should.

        That is any layer, or none, if all losses have faded out.
        """
        return self._tally.any() or not self._live

    def begin(self, student: nn.Module, args: tuple, kwargs: dict) -> None:
        """Run the teacher, before a training forward of the student.

        Args:
            student (nn.Module): The student.
            args (tuple): Its positional arguments.
            kwargs (dict): Its keyword arguments.
        """
        if not student.training or not torch.is_grad_enabled() or (
                self._condition is not None and not self._condition(kwargs)):
            self._tally.pass_by()
            return
        self._tally.start()
        if not self._live:
            return
        self._active = True
        with torch.no_grad():
            self._run_teacher(self.teacher, args, kwargs)
            if self._find_overwritten():
                self._maps.clear()
                self._run_teacher(self.teacher, args, kwargs)
        try:
            for name, criteria in self._live.items():
                if not self._maps[name]:
                    refuse_uncalled(criteria, name, 'teacher')
        except RuntimeError:
            self.end(None)
            raise

    def end(self, output: Any) -> None:
        """Take the losses, after a forward of the student.

        Args:
            output (Any): What it returned; None: it raised an error.
        """
        taken, self._taken = self._taken, []
        active, self._active = self._active, False
        more = {name for name, maps in self._maps.items() if maps}
        self._maps.clear()
        if not active or output is None:
            return
        called = {name for (_, name), *_ in taken}
        for name in more:
            if name not in called and name not in self._left_out:
                refuse_uncalled(self._live[name], name, 'student')
            self._leave_out(name, 'the student called it less often'
                            if name in called else
                            'the student did not call it')
        self._look_at_answer(taken, output)
        unmatched = self._unmatched | more
        self._unmatched.clear()
        for key, output, version, loss in taken:
            name = key[1]
            if name in unmatched:
                continue
            if _version(output) != version:
                self._overwritten.add(name)
                self._leave_out(
                    name, 'its output was changed in place after it; from '
                    'the next iteration on it is cloned')
                continue
            self._tally.add(*key, loss)

    def _look_at_answer(self, taken: Sequence[tuple], output: Any) -> None:
        """Tell of logits that were guessed, and that are not returned."""
        if self._looked_at_answer or is_compiling():
            return
        self._looked_at_answer = True
        for each in self.criteria:
            of_it = [(name, values) for (label, name), values, *_ in taken
                     if label == each.label and each in self._criteria[name]]
            if not each.last_layer_only or each.layer is not None or any(
                    is_answer(values, output) for _, values in of_it):
                continue
            for name in dict.fromkeys(name for name, _ in of_it):
                self._warn(
                    f'{type(each).__name__} compares the output of {name}, '
                    'which is not what the model returns. If these are not '
                    f'the logits, {WAY_OUT}. If they are, name it as well')

    def _find_overwritten(self) -> bool:
        """Whether new layers turned up whose output is changed in place.

        An in-place activation right after a layer would let the teacher's
        map change under us; such layers' maps are cloned from then on.
        """
        found = {
            name
            for name, maps in self._maps.items()
            if any(_version(output) != version for output, version in maps)
        }
        self._overwritten |= found
        return bool(found)

    def _keep(self, name: str) -> Callable:

        def keep(layer: nn.Module, args: tuple, output: Tensor) -> None:
            if self._active and name in self._live:
                output = values_of(output)
                # Traced, a change in place is not to be seen; Inductor drops
                # the copies that are not needed.
                if name in self._overwritten or is_compiling():
                    output = output.clone()
                self._maps[name].append((output, _version(output)))

        return keep

    def _compare(self, name: str) -> Callable:

        def compare(layer: nn.Module, args: tuple,
                    output: Any) -> Tensor | None:
            if not self._active or name not in self._live:
                return None
            if not torch.is_grad_enabled():
                self._leave_out(name, 'it runs without gradient (no_grad, or '
                                'reentrant activation checkpointing)')
                return None
            if not self._maps[name]:
                self._unmatched.add(name)
                called = any(key[1] == name for key, *_ in self._taken)
                self._leave_out(name, 'the teacher called it less often'
                                if called else 'the teacher did not call it')
                return None
            teacher_map, _ = self._maps[name].popleft()
            values = values_of(output)
            if values.shape != teacher_map.shape:
                self._unmatched.add(name)
                self._leave_out(
                    name, f'its output has shape {tuple(values.shape)} and '
                    f"the teacher's {tuple(teacher_map.shape)}")
                return None
            out, values, losses = losses_of(
                self._live[name], layer, output, teacher_map,
                name in self._overwritten)
            self._taken += [((each.label, name), values, _version(values),
                             loss) for each, loss in losses]
            return out

        return compare

    def _leave_out(self, name: str, why: str) -> None:
        if name not in self._left_out:
            self._left_out[name] = why
            self._warn(f'distillation leaves out {name}: {why}')


def _version(output: Tensor) -> int:
    """Counts changes in place; in a traced graph a value has none."""
    return 0 if is_compiling() else output._version


def _call(teacher: nn.Module, args: tuple, kwargs: dict) -> Any:
    return teacher(*args, **kwargs)
