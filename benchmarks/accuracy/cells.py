"""What a run of the accuracy benchmark is, and in which order they are run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SEEDS = (0, 1, 2)
BITS = ('w4a4', 'w2a4', 'w2a2')
MODELS = ('resnet', 'mobilenet')
ABLATION = ('lsq', 'sfp', 'csd', 'fpq')
# From a method's name to its fragment in mm_configs/_base_/methods and the
# options of the hook that it changes.
METHODS: dict[str, tuple[str, dict]] = {
    **{name: (name, {}) for name in ABLATION},
    **{f'fpq p={p}': ('fpq', {'perturbation.p': p})
       for p in (0.3, 0.5, 0.7, 0.9, 1.0)},
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
    """All cells, the most telling first, all seeds of a cell in sequence."""
    yield from _cells(('resnet', ), ABLATION, ('w2a4', ))
    sweep = [name for name in METHODS if name.startswith('fpq p=')]
    yield from _cells(('resnet', ), sweep, ('w2a4', ))
    yield from _cells(('resnet', ), ('lsq', 'fpq'), ('w4a4', 'w2a2'))


def _cells(models: tuple[str, ...], methods: tuple[str, ...],
           bits: tuple[str, ...]) -> Iterator[Cell]:
    for model in models:
        for width in bits:
            for method in methods:
                for seed in SEEDS:
                    yield Cell(model, method, width, seed)
