"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from uuid import uuid4


def write_whole(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that is there whole, or not at all, whatever happens.

    Two processes that write the same file do not disturb each other; the
    last one's stays. A link is followed; its folder is made if need be.

    Args:
        path (str | Path): The file.
        write (Callable): Writes the content into an open file.
    """
    target = Path(path).resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        with open(target, 'wb') as file:  # a device or a pipe
            write(file)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}.{uuid4().hex[:12]}.part')
    try:
        with open(part, 'xb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
