"""Files that are written whole or not at all, whatever ends the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def whole_file(path: str | os.PathLike, way_out: str = '') -> Iterator[str]:
    """The name to write to; ``path`` gets it all, or stays as it is.

    A killed process leaves ``path.part``, which the next attempt overwrites.

    Args:
        path (str | os.PathLike): The file.
        way_out (str): What the user can do if it cannot be written.

    Yields:
        str: Another name in the same folder.

    Raises:
        OSError: If it cannot be written; the message names the file.
    """
    path = os.fspath(path)
    part = f'{path}.part'
    try:
        yield part
        # Else a power cut may leave the name without the content.
        with open(part, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            error.errno,
            f'{path!r} was not written: {why}. {way_out}'.strip()) from error
    finally:
        with suppress(OSError):
            os.unlink(part)
