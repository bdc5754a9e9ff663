"""``fpq export``: from a config and a checkpoint to a file that was run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..openmmlab.export_run import IMAGES, export_checkpoint
from .engines import ONNXRUNTIME, known_engines
from .parity import TOLERANCE, ParityError
from .targets import known_endings, target_of

_EXPORT = """\
Export a checkpoint that was trained with FPQHook to a file with integer
weights. The file is run and compared with the trained model on the first
images of the config's test data. Nothing is written if they do not agree.
"""
_EXPORT_EPILOG = """\
example:
  fpq export my_fpq_config.py work_dirs/my_fpq_config/epoch_100.pth \\
      -o model.onnx --json model.json

what it prints:
  One line for each quantized layer:
    W bits, A bits    bits of its weight and of its input, 32 for float
    weights           how many weights it has
  Then the file against that of the same model in full precision. A ratio
  below 1 is smaller, or faster:
    file, kB          its size, in 1000 bytes
    ms, batch N       one call with N images on this machine's CPU, median
    ..., unpacked     the same with weights made float as the file is opened,
                      which is faster where a layer has no integer kernel
  Then how its answers compare with the trained model's: the share of equal
  classes, the differences of the outputs next to their spread (standard
  deviation), and top-1 of both if the data has labels. At last how many biases
  are integers, as 8-bit kernels need them, why the others are not, and what is
  worse than in full precision.
"""


def add_export(commands: Any) -> None:
    """Add ``export`` to the commands of ``fpq``.

    Args:
        commands (argparse._SubParsersAction): The commands. The new one's
            ``run`` takes its parsed arguments.
    """
    parser = commands.add_parser(
        'export', help='a checkpoint to a file with integer weights',
        description=_EXPORT, epilog=_EXPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG',
                        help='the config of the training')
    parser.add_argument('checkpoint', metavar='CHECKPOINT',
                        help='what the training saved, a path or a URL')
    parser.add_argument(
        '-o', '--out', metavar='FILE', required=True,
        help=f'the file to write, its ending says what: {known_endings()}')
    parser.add_argument(
        '--images', metavar='N', type=int, default=IMAGES,
        help='images of the test data to compare on (default: %(default)s)')
    parser.add_argument(
        '--tolerance', metavar='PERCENT', type=float, default=TOLERANCE,
        help='points of top-1 that may be lost; without labels, ten times '
        'this share of the classes may differ (default: %(default)s)')
    parser.add_argument(
        '--engine', choices=known_engines(), default=ONNXRUNTIME.name,
        help='what is to take the file (default: %(default)s)')
    parser.add_argument(
        '--batch-size', metavar='N', type=int,
        help='make a file for batches of N images alone (default: any)')
    parser.add_argument(
        '--unsigned-weights', action=argparse.BooleanOptionalAction,
        help='8-bit weights as uint8, right on every processor, or as int8 '
        '(default: uint8 where kernels for int8 saturate on this one)')
    parser.add_argument('--json', metavar='FILE', type=Path,
                        help='write the figures here, too')
    parser.set_defaults(run=run_export)


def run_export(args: argparse.Namespace) -> None:
    """Export, and print what came out.

    Args:
        args (argparse.Namespace): What the parser of :func:`add_export`
            made.

    Raises:
        ValueError: If an argument is wrong, the model cannot be exported, or
            the exported one answers otherwise.
        ImportError: If a package is missing.
        FileNotFoundError: If a file or a folder is missing.
    """
    target_of(args.out)
    if args.images < 1:
        raise ValueError(f'--images must be at least 1, got {args.images}')
    for option, file in (('--out', Path(args.out)), ('--json', args.json)):
        if file is not None and not file.parent.is_dir():
            raise FileNotFoundError(f'{option}: no folder {file.parent}')
    options = dict(unsigned_weights=args.unsigned_weights,
                   engine=args.engine, batch_size=args.batch_size)
    # A target need not know what was not asked for.
    options = {name: value for name, value in options.items()
               if value not in (None, ONNXRUNTIME.name)}
    try:
        report = export_checkpoint(args.config, args.checkpoint, args.out,
                                   args.images, args.tolerance, **options)
    except ParityError as error:
        # The command ends as over any other input that does not do.
        raise ValueError(str(error)) from error
    print(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_dict(), indent=1) + '\n')
