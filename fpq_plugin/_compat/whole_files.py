"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
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

    Raises:
        OSError: If it cannot be written; the message names the file.
    """
    target = Path(path).resolve()
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        with open(target, 'wb') as file:  # a device or a pipe
            write(file)
        return
    part = target.with_name(f'.{target.name}.{uuid4().hex[:12]}.part')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, 'xb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except OSError as error:
        raise OSError(
            error.errno,
            f'{str(path)!r} was not written: {error.strerror or error}. What '
            'was saved before is whole: mend that, and go on') from error
    finally:
        with suppress(OSError):
            part.unlink()


# A part that nobody has written to for so many seconds is a killed process's.
FORSAKEN_S = 3600


def remove_parts(folder: str | Path) -> None:
    """Remove what killed processes left of files that they were writing.

    Args:
        folder (str | Path): Where they wrote.
    """
    for part in Path(folder).glob(f'.*.{"[0-9a-f]" * 12}.part'):
        # Another process may be as quick.
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > FORSAKEN_S:
                part.unlink()
