"""What an export made, as a table."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import asdict, dataclass

from ..targets import STANDARD
from .images import OTHER_SIZES, WAY_OUT
from .kernel_report import Kernels
from .parity import Parity

# Times the float model's: below, it is noise.
NOTABLY_SLOWER = 1.05


@dataclass(frozen=True)
class ExportedLayer:
    """One quantized layer.

    Attributes:
        name (str): Its name in the model.
        weight_bits (int): Bits of the weight, 32 for float.
        activation_bits (int): Bits of the input, 32 for float.
        weights (int): Number of weights.
    """

    name: str
    weight_bits: int
    activation_bits: int
    weights: int


@dataclass(frozen=True)
class Latency:
    """Time of one call in the file's engine on the exporting machine's CPU.

    Attributes:
        batch (int): Images in the call.
        seconds (float): Of the exported model, median.
        float_seconds (float): Of the same model in full precision.
        unpacked_seconds (float, optional): Of the exported model with
            onnxruntime's ``session.disable_quant_qdq``, which makes weights
            float as the file is opened. Defaults to None, for another engine.
    """

    batch: int
    seconds: float
    float_seconds: float
    unpacked_seconds: float | None = None

    def ratio(self) -> float:
        """Below 1: the exported model is faster."""
        return self.seconds / self.float_seconds

    def unpacked_ratio(self) -> float | None:
        """The same with unpacked weights."""
        if self.unpacked_seconds is None:
            return None
        return self.unpacked_seconds / self.float_seconds

    def warning(self) -> str:
        """That it is slower than in full precision, '' if it is not."""
        if self.ratio() <= NOTABLY_SLOWER:
            return ''
        unpacked = self.unpacked_ratio()
        return (f'slower than in full precision: {self.ratio():.2f} times the '
                f'time with batches of {self.batch}') + (
            '' if unpacked is None else f' ({unpacked:.2f} unpacked, by '
            "session.disable_quant_qdq='1')")


@dataclass(frozen=True)
class ExportReport:
    """What an export made; ``str()`` draws it.

    Attributes:
        path (str): The file.
        size (int): Its bytes.
        float_size (int): Bytes of the full-precision model's file.
        opset (int, optional): Version of ONNX's standard operators, if it is
            an ONNX file.
        parity (Parity): How it answers against the trained model.
        latencies (tuple[Latency, ...]): One for each batch size.
        layers (tuple[ExportedLayer, ...]): The quantized layers.
        biases (tuple[tuple[str, str], ...]): Of each layer whose kernel takes
            a bias its name, and why the bias is float; '' for integers.
            Defaults to none.
        bias_reason (str): Why integer biases were given up, where they could
            have been. Defaults to ''.
        target (str): What is to take it, for messages.
        batch_size (int, optional): The only batch size that it takes.
            Defaults to None, any.
        late_joints (int): Tensors beside the layers that were quantized for
            the target after the training. Defaults to 0.
        joined (Parity, optional): How the trained model answers with them,
            against without. Defaults to None.
        kernels (Kernels, optional): What the engine computes on integers.
            Defaults to None, where it does not tell.
        lost_kernels (int): Layers that integer biases would have had computed
            on integers besides, where they were given up. Defaults to 0.
        moved_weights (int): Weights of -128 that are one step from it in the
            file, since the engine takes none, or a batch norm of negative
            gain has made them 128. Defaults to 0.
        unseen (str): What the comparison did not see, where the file is not
            run in what it is for. Defaults to ''.
    """

    path: str
    size: int
    float_size: int
    opset: int | None
    parity: Parity
    latencies: tuple[Latency, ...]
    layers: tuple[ExportedLayer, ...]
    biases: tuple[tuple[str, str], ...] = ()
    bias_reason: str = ''
    target: str = STANDARD.title
    batch_size: int | None = None
    late_joints: int = 0
    joined: Parity | None = None
    kernels: Kernels | None = None
    lost_kernels: int = 0
    moved_weights: int = 0
    unseen: str = ''

    def ratio(self) -> float:
        """Size over that of the full-precision model."""
        return self.size / self.float_size

    def bias_line(self) -> str:
        """How many biases are integers, and why the others are not."""
        reasons = Counter(reason for _, reason in self.biases if reason)
        kept = len(self.biases) - sum(reasons.values())
        text = f'integer biases: {kept} of {len(self.biases)} layers'
        if self.bias_reason:
            text += f', because with more of them {self.bias_reason}'
        if self.lost_kernels:
            text += f'; integer kernels that this costs: {self.lost_kernels}'
        if reasons:
            text += '; float because ' + ', '.join(
                f'{reason} ({number})' for reason, number in reasons.items())
        return text

    def joints_line(self) -> str:
        """What quantizing more than was trained costs."""
        text = (f'joints: {self.late_joints} tensors beside the layers were '
                f'quantized after the training, for {self.target}')
        if self.joined is None:
            return text
        told, equal = [], self.joined.equal()
        if self.joined.top1_trained is not None:
            told.append(f'top-1 {self.joined.top1_trained:.2f} % without '
                        f'them, {self.joined.top1_exported:.2f} % with them')
        if equal is not None:
            told.append(f'{equal:.2f} % of the classes stay')
        return text + ': ' * bool(told) + ', '.join(told)

    def warnings(self) -> list[str]:
        """What is worse than in full precision, or cannot be known."""
        found = [each.warning() for each in self.latencies if each.warning()]
        if found and self.kernels is not None and self.kernels.layers and (
                self.kernels.on_integers() == len(self.kernels.layers)):
            found.append(
                'all of its layers are on integers: what is left is the time '
                'of single kernels, which narrow layers and small images do '
                'not repay')
        elif found and self.target == STANDARD.title:
            found.append(
                'this file is for any runtime; --target onnxruntime (target= '
                'in Python and in the hook) makes one that onnxruntime '
                'computes on integers throughout')
        if self.kernels is not None and self.kernels.warning():
            found.append(self.kernels.warning())
        if not self.latencies:
            found.append(self.unseen or 'checked against the rules of '
                         f'{self.target}, and not run in it')
        if self.moved_weights:
            found.append(f'{self.moved_weights} weights of -128 are one step '
                         f'from it in the file, so that {self.target} '
                         'computes their layers on integers')
        if self.batch_size is not None:
            found.append(f'takes batches of {self.batch_size} alone')
        return found

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        return dict(
            path=self.path,
            target=self.target,
            batch_size=self.batch_size,
            integer_biases=dict(
                reason=self.bias_reason,
                lost_kernels=self.lost_kernels,
                layers={name: reason or 'integers'
                        for name, reason in self.biases}),
            integer_kernels=self.kernels and self.kernels.as_dict(),
            warnings=self.warnings(),
            size=self.size,
            float_size=self.float_size,
            size_ratio=self.ratio(),
            opset=self.opset,
            parity=self.parity.as_dict(),
            moved_weights=self.moved_weights,
            late_joints=self.late_joints,
            joined=self.joined and self.joined.as_dict(),
            latencies=[
                dict(
                    asdict(each),
                    ratio=each.ratio(),
                    unpacked_ratio=each.unpacked_ratio())
                for each in self.latencies
            ],
            layers=[asdict(layer) for layer in self.layers])

    def __str__(self) -> str:
        from rich import box
        from rich.console import Console
        from rich.table import Table

        layers = Table(box=box.SIMPLE)
        for title in ('layer', 'W bits', 'A bits', 'weights'):
            layers.add_column(title, no_wrap=True)
        for layer in self.layers:
            layers.add_row(layer.name, str(layer.weight_bits),
                           str(layer.activation_bits), str(layer.weights))
        figures = Table(box=box.SIMPLE)
        for title in ('', 'exported', 'full precision', 'ratio'):
            figures.add_column(title, no_wrap=True)
        for row in self._figures():
            figures.add_row(*row)
        out = io.StringIO()
        console = Console(file=out, width=400)
        console.print(layers)
        console.print(figures)
        console.print(self._parity(), highlight=False)
        if self.late_joints:
            console.print(self.joints_line(), highlight=False)
        if self.biases:
            console.print(self.bias_line(), highlight=False)
        if self.kernels is not None:
            console.print(self.kernels.line(), highlight=False)
        for warning in self.warnings():
            console.print(f'warning: {warning}', highlight=False)
        return '\n'.join(line.rstrip()
                         for line in out.getvalue().splitlines())

    def _figures(self) -> list[tuple[str, str, str, str]]:
        rows = [('file, kB', f'{self.size / 1000:.1f}',
                 f'{self.float_size / 1000:.1f}', f'{self.ratio():.3f}')]
        for each in self.latencies:
            full = f'{1000 * each.float_seconds:.2f}'
            for how, seconds, ratio in (
                ('', each.seconds, each.ratio()),
                (', unpacked', each.unpacked_seconds, each.unpacked_ratio())):
                if seconds is not None:
                    rows.append((f'ms, batch {each.batch}{how}',
                                 f'{1000 * seconds:.2f}', full,
                                 f'{ratio:.2f}'))
        return rows

    def _sizes(self) -> str:
        """Which batches were compared, where the file takes any."""
        if self.batch_size is not None or not self.parity.batches:
            return ''
        sizes = sorted({*OTHER_SIZES, *self.parity.batches})
        return (f' in batches of {", ".join(map(str, sizes))} (a model that '
                f'does something else from a larger size on: {WAY_OUT})')

    def _parity(self) -> str:
        parity = self.parity
        equal = parity.equal()
        late = ' with joints' if self.late_joints else ''
        text = (f'{self.path} answers as the trained model{late} on '
                f'{parity.images} images{self._sizes()}: '
                + ('' if equal is None else f'equal class {equal:.2f} %, ') +
                f'outputs differ by {parity.largest_difference:.2g} at most, '
                f'{parity.mean_difference:.2g} on average (spread '
                f'{parity.spread:.2g})' + (
                    f', of the {len(parity.outputs)} outputs the one that '
                    'does most' if parity.outputs else ''))
        if parity.top1_trained is not None:
            text += (f'; top-1 {parity.top1_exported:.2f} %, trained{late} '
                     f'{parity.top1_trained:.2f} %')
        return text
