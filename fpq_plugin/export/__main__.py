"""``python -m fpq_plugin.export``, the same as ``fpq export``."""

import sys

from ..cli import main

if __name__ == '__main__':
    main(['export', *sys.argv[1:]])
