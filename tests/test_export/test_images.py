"""Which images a file is compared on, and the bar that counts them."""

import io

import pytest
import torch
from rich.console import Console

from fpq_plugin.export.images import rebatched, some_images, with_progress


@pytest.mark.parametrize('terminal', [True, False])
def test_progress_is_drawn_on_a_terminal_alone(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    batches = [(torch.zeros(3, 2), None), (torch.zeros(2, 2), None)]
    assert list(with_progress(batches, 5, console)) == batches
    assert ('5/5' in out.getvalue()) == terminal
    assert bool(out.getvalue().strip()) == terminal


def test_the_bar_goes_when_the_comparison_is_given_up():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    batches = with_progress([(torch.zeros(3, 2), None)] * 2, 6, console)
    next(batches)
    hidden, shown = '\x1b[?25l', '\x1b[?25h'
    assert hidden in out.getvalue()
    assert shown not in out.getvalue()
    batches.close()
    assert shown in out.getvalue()


def test_images_come_again_if_there_are_too_few():
    x, y = torch.arange(3), torch.arange(3) + 10
    assert some_images(x, 5, first=2).tolist() == [2, 0, 1, 2, 0]
    batches = list(rebatched([(x, y)], 5))
    assert [inputs.tolist() for inputs, _ in batches] == [[0, 1, 2, 0, 1]]
    assert batches[0][1].tolist() == [10, 11, 12, 10, 11]
    batches = list(rebatched([(x, None), (x, None), (x[:1], None)], 2))
    assert [inputs.tolist() for inputs, _ in batches] == [
        [0, 1], [2, 0], [1, 2]]
    assert all(labels is None for _, labels in batches)
