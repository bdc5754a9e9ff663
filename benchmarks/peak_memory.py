"""Memory that one training step needs beyond model, teacher and kernels.

    python benchmarks/peak_memory.py resnet18-32 FPQ
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import torch
from models import MODELS, build
from variants import VARIANTS


def in_child(name: str, variant: str, threads: int, batch: int | None = None,
             pixels: int | None = None) -> float:
    """:func:`peak` in MiB, from a process of its own."""
    sizes = [f'--{key}={value}' for key, value in
             (('batch', batch), ('pixels', pixels)) if value]
    out = subprocess.run(
        [sys.executable, __file__, name, variant, f'--threads={threads}',
         *sizes], check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def peak(name: str, variant: str, batch: int | None = None,
         pixels: int | None = None) -> float:
    """Growth of resident (CPU) or allocated (GPU) memory in a step, MiB."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    step = VARIANTS[variant](*build(name, device, batch, pixels))
    step()
    if device == 'cuda':
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - base) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    base = _status('VmRSS')
    step()
    return (_status('VmHWM') - base) / 2**10


def _status(key: str) -> int:
    """A line of Linux's process status, in KiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines
                if line.startswith(key))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', choices=MODELS)
    parser.add_argument('variant', choices=VARIANTS)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--batch', type=int)
    parser.add_argument('--pixels', type=int)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(peak(args.model, args.variant, args.batch,
                          args.pixels)))
