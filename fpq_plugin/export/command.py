"""Export a trained FPQ checkpoint to ONNX that onnxruntime has run.

Compares the file with the trained model on test images, and prints bits,
sizes and times. Nothing is written if they do not agree.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..openmmlab.export_run import IMAGES, export_checkpoint
from .onnx_file import TOLERANCE
from .parity import ParityError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m fpq_plugin.export', description=__doc__)
    parser.add_argument('config', help='the config of the training')
    parser.add_argument('checkpoint')
    parser.add_argument('-o', '--out', required=True, help='the file to write')
    parser.add_argument(
        '--images', type=int, default=IMAGES,
        help='test images to compare on (default: %(default)s)')
    parser.add_argument(
        '--tolerance', type=float, default=TOLERANCE,
        help='%% of the classes that may differ (default: %(default)s)')
    parser.add_argument(
        '--unsigned-weights', action=argparse.BooleanOptionalAction,
        help='8-bit weights as uint8, right on every processor, or as int8 '
        '(default: uint8 where kernels for int8 saturate on this one)')
    parser.add_argument('--json', type=Path, help='write the figures here')
    args = parser.parse_args()
    if args.images < 1:
        parser.error(f'--images must be at least 1, got {args.images}')
    if args.json is not None and not args.json.parent.is_dir():
        parser.error(f'--json: no folder {args.json.parent}')
    try:
        report = export_checkpoint(args.config, args.checkpoint, args.out,
                                   args.images, args.tolerance,
                                   unsigned_weights=args.unsigned_weights)
    except (ValueError, FileNotFoundError, ParityError) as error:
        sys.exit(f'{parser.prog}: {error}')
    print(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_dict(), indent=1) + '\n')


if __name__ == '__main__':
    main()
