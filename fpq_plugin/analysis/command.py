"""``python -m fpq_plugin.analysis CONFIG CHECKPOINT [CONFIG CHECKPOINT ..]``.

Compares trained models: the paper's Figs. 1 to 5, curvature, slices of the
loss, the table of layers. Writes PNGs, report.html and analysis.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path

import torch

from ..version import __version__
from .batches import SPLITS, build_loader, draw_batches
from .measuring import require_extras
from .study import StudySettings, run_study, study_layer
from .trained_models import load_trained_models


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv (list[str], optional): Its arguments. Defaults to None, those
            of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    try:
        analyse(args, f'python -m fpq_plugin.analysis {shlex.join(argv)}')
    except (ValueError, TypeError, ImportError) as error:
        sys.exit(f'error: {error}')


def analyse(args: argparse.Namespace, command: str) -> None:
    """Check everything, then measure, then write.

    Raises:
        ValueError: If an argument, a file or the data is wrong.
        ImportError: If a package is missing.
    """
    require_extras('curvlinops', 'matplotlib')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'--device {args.device}: {error}') from error
    if len(args.models) % 2:
        raise ValueError('give pairs CONFIG CHECKPOINT; the last one, '
                         f'{args.models[-1]!r}, has no partner')
    pairs = list(zip(args.models[::2], args.models[1::2]))
    subjects = load_trained_models(pairs, args.device)
    layer = study_layer(subjects, args.layer)
    loader = build_loader(subjects[0].config, args.split)
    batches = draw_batches(loader, args.images, args.seed, progress=True)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    study = run_study(subjects, batches,
                      StudySettings(args.probes, layer, args.seed))
    study.update(
        command=command,
        split=args.split,
        versions=dict(fpq=__version__, torch=torch.__version__),
        machine=f'{platform.machine()}, {torch.get_num_threads()} threads, '
        f'{args.device}',
        seconds=round(time.perf_counter() - start, 1))
    (args.out / 'analysis.json').write_text(json.dumps(study) + '\n')
    # After the JSON, so that no number is lost to a picture.
    from .report import draw_all, write_report
    pictures = draw_all(study, args.out)
    write_report(study, pictures, args.out / 'report.html')
    print(f'\nwritten: {args.out}/report.html, analysis.json and '
          f'{len(pictures)} PNGs')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m fpq_plugin.analysis',
        description='Compare trained models: Hessian, stability, features.')
    parser.add_argument('models', nargs='+', metavar='CONFIG CHECKPOINT',
                        help='a config and its checkpoint; several '
                        'checkpoints of one config are drawn over epochs')
    parser.add_argument('--out', type=Path, default=Path('analysis'),
                        help='folder to write to (default: %(default)s)')
    parser.add_argument('--split', choices=list(SPLITS), default='train',
                        help='whose data and pipeline, of the first config '
                        '(default: %(default)s)')
    parser.add_argument('--images', type=_positive, default=512,
                        help='how many images (default: %(default)s)')
    parser.add_argument('--probes', type=_positive, default=16,
                        help='probes of a trace (default: %(default)s)')
    parser.add_argument('--layer', help='layer of Figs. 3 and 4 (default: '
                        'the middle one)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cpu')
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError('must be 1 or more')
    return number


if __name__ == '__main__':
    main()
