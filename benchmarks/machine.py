"""What a result file says of the machine and the command that made it."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import torch


def device_name() -> str:
    """Name of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    found = re.search('model name.*: (.*)',
                      info.read_text() if info.exists() else '')
    return found[1] if found else platform.processor()


def made_by(threads: int) -> dict:
    """Command, machine and versions, for a result file."""
    words = ['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]]
    return dict(
        command=' '.join(f'"{w}"' if ' ' in w else w for w in words),
        device=device_name(), cpus=os.cpu_count(), threads=threads,
        torch=torch.__version__)
