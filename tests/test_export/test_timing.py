"""Files are timed in turn."""

import time

import torch

from fpq_plugin.export.timing import latencies


def test_latencies_are_of_each_in_turn():
    called = []

    def run(name, seconds):
        def wait(x):
            called.append(name)
            time.sleep(seconds)
        return wait

    slow, quick = latencies([run('slow', 0.02), run('quick', 0)],
                            torch.zeros(1), repeats=3)
    assert slow >= 0.02
    assert quick < 0.02
    # Three calls before the first that counts.
    assert called == 6 * ['slow', 'quick']
