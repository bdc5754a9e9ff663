"""``python -m fpq_plugin.analysis``, the same as ``fpq analyze``."""

from .command import main

if __name__ == '__main__':
    main()
