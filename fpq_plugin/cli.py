"""The command ``fpq``, also ``python -m fpq_plugin``."""

from __future__ import annotations

import argparse
import sys

from .version import __version__

COMMANDS = (add_export, add_analyze)
"""Each takes the parser's subcommands, adds one, and sets ``run`` on it."""
USER_ERRORS = (ValueError, TypeError, ImportError, FileNotFoundError)
"""What a wrong argument, file or installation raises."""


def main(argv: list[str] | None = None) -> None:
    """Run the command; a wrong argument or file ends without a traceback.

    Args:
        argv (list[str], optional): Its arguments. Defaults to None, those
            of the process.
    """
    parser = argparse.ArgumentParser(
        prog='fpq',
        description='Deploy and compare models that were trained with '
        'FPQHook. Training itself is "mim train".',
        epilog='fpq COMMAND --help has the options and an example.')
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(
        title='commands', metavar='COMMAND', required=True)
    for add_command in COMMANDS:
        add_command(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except USER_ERRORS as error:
        sys.exit(f'fpq: error: {error}')
