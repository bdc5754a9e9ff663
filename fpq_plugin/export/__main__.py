"""``python -m fpq_plugin.export``, as before there was ``fpq``."""

from .command import main

if __name__ == '__main__':
    main()
