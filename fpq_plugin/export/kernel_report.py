"""Which layers an engine computes on integers, for a report."""

from __future__ import annotations

from dataclasses import dataclass

# Layer names in a line; all of them are in the figures.
MOST_NAMES = 4


@dataclass(frozen=True)
class Kernels:
    """What an engine computes on integers.

    Attributes:
        layers (tuple[tuple[str, str], ...]): Of each layer with a quantized
            weight its name, and why it is computed in float; '' on integers.
        others (tuple[tuple[str, int], ...]): Kernels of integers besides,
            such as QLinearAdd, and how many there are.
        outside (tuple[tuple[str, int], ...]): Operations that the engine's
            kernels have no part in, and how many there are. Defaults to none.
        risky (int): Layers on integers of a width that onnxruntime 1.21 to
            1.24 computes wrongly on a processor with AMX. Defaults to 0.
    """

    layers: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, int], ...]
    outside: tuple[tuple[str, int], ...] = ()
    risky: int = 0

    def on_integers(self) -> int:
        """How many layers are computed on integers."""
        return sum(not reason for _, reason in self.layers)

    def line(self) -> str:
        """How many layers are, which are not and why, and what else is."""
        text = (f'integer kernels: {self.on_integers()} of '
                f'{len(self.layers)} layers')
        if self.others:
            text += ', ' + ', '.join(
                f'{number} {kind}' for kind, number in self.others)
        reasons: dict[str, list[str]] = {}
        for name, reason in self.layers:
            if reason:
                reasons.setdefault(reason, []).append(name)
        told = []
        for reason, names in reasons.items():
            shown = ', '.join(names[:MOST_NAMES]) + (
                ', ...' if len(names) > MOST_NAMES else '')
            told.append(f'{reason} ({len(names)}: {shown})')
        text += ('; float because ' * bool(told)) + ', '.join(told)
        if self.outside:
            text += '; not among the engine\'s kernels: ' + ', '.join(
                f'{number} {kind}' for kind, number in self.outside)
        return text

    def warning(self) -> str:
        """Which versions of onnxruntime do not compute the file right."""
        return '' if not self.risky else (
            f'onnxruntime 1.21 to 1.24 may compute {self.risky} of its layers '
            'wrongly on processors with AMX (Intel Xeon since 2023): run it '
            'in 1.25 or newer, or in 1.20')

    def as_dict(self) -> dict:
        """All figures, for JSON."""
        return dict(
            layers={name: reason or 'integers'
                    for name, reason in self.layers},
            others=dict(self.others),
            outside=dict(self.outside))
