"""A progress bar that can be off."""

from __future__ import annotations

from mmengine.utils import ProgressBar


class Progress:
    """Counts steps of a measurement.

    Args:
        title (str): What is measured.
        total (int): Number of steps; 0 if nobody knows.
        shown (bool): Whether anything is printed.
    """

    def __init__(self, title: str, total: int, shown: bool) -> None:
        self._bar = None
        if shown:
            print(title, flush=True)
            self._bar = ProgressBar(total)

    def step(self) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.update()

    def end(self) -> None:
        """Close the line."""
        if self._bar is not None:
            self._bar.file.write('\n')
