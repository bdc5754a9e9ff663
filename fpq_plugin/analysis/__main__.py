"""``python -m fpq_plugin.analysis``, the same as ``fpq analyze``."""

from ..cli import main_analysis

if __name__ == '__main__':
    main_analysis()
