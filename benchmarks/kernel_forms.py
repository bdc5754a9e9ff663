"""Fake quantization as plain torch, by torch.compile, and as our kernel.

    python benchmarks/kernel_forms.py

Microseconds of one call, medians of interleaved calls, one thread. The
kernel calls Inductor's function itself, through private imports;
``torch.compile`` is the documented way to the same code.
"""

from __future__ import annotations

import statistics
import time

import torch

from fpq_plugin._compat.kernels import constant
from fpq_plugin.quantizers.fake_quantize_function import _quantize

CALLS = 300


def main() -> None:
    torch.set_num_threads(1)
    documented = torch.compile(_quantize.plain, dynamic=True, fullgraph=True)
    forms = {'plain': _quantize.plain, 'torch.compile': documented,
             'kernel': _quantize}
    print(f'{"elements":>9}' + ''.join(f'{name:>15}' for name in forms))
    for elements in (2**9, 2**12, 2**16, 2**20):
        x = torch.randn(1, elements)
        args = (x, torch.full((1, 1), 0.1),
                torch.zeros(1, 1, dtype=torch.int32),
                *(constant(end, x.device) for end in (-8.0, 7.0)))
        times: dict[str, list[float]] = {name: [] for name in forms}
        with torch.no_grad():
            for number in range(CALLS + 3):
                for name, form in forms.items():
                    start = time.perf_counter()
                    form(*args)
                    if number > 2:
                        times[name].append(time.perf_counter() - start)
        print(f'{elements:9}' + ''.join(
            f'{1e6 * statistics.median(each):15.1f}'
            for each in times.values()))


if __name__ == '__main__':
    main()
