"""tox loads this by itself: pyenv's Pythons are found, whichever is active.

A shim as ``python3.10`` runs only if that version is switched on, in a folder
or globally; tox would skip the environment.
"""

import os
from pathlib import Path

_ROOT = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
_FOUND = sorted(path.name for path in _ROOT.glob('versions/3.*'))
if _FOUND:
    os.environ.setdefault('PYENV_ROOT', str(_ROOT))
    os.environ.setdefault('PYENV_VERSION', ':'.join(reversed(_FOUND)))
