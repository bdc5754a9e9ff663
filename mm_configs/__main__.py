"""Print the path of one installed config, or the names of all."""

import sys

from . import names, path

if len(sys.argv) > 2:
    sys.exit('usage: python -m mm_configs [NAME]')
try:
    print('\n'.join(names()) if len(sys.argv) == 1 else path(sys.argv[1]))
except FileNotFoundError as error:
    sys.exit(str(error))
