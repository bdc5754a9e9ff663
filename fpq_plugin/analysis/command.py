"""``fpq analyze CONFIG CHECKPOINT [CONFIG CHECKPOINT ...]``."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine import Config

from ..version import __version__
from .batches import SPLITS, build_loader, draw_batches
from .measuring import require_extras
from .study import StudySettings, run_study, study_layer
from .trained_models import load_trained_models

ACCURACY_IMAGES = 4
"""Images that answers are counted in, for each image analysed.

A forward pass each, where a trace takes a hundred: they cost little.
"""

_ANALYSIS = """\
Compare trained models, quantized or not: accuracy, size and latency, the
Hessian, stability under noise, features, and which layers to give more bits.
"""

_EPILOG = """\
example:
  fpq analyze resnet_fp.py work_dirs/resnet_fp/epoch_6.pth \\
      resnet_fpq_w4a4.py work_dirs/resnet_fpq_w4a4/epoch_4.pth --out analysis

what is written:
  report.html    one file with everything: open it in a browser
  analysis.json  all numbers
  *.png          the report's pictures

All models must have the layer of Figs. 3 and 4. Several checkpoints of one
config are drawn over epochs; what takes long is measured on the last. It
takes minutes for a small model; --images and --probes make it shorter, and
the error bars longer.
"""


def add_analyze(commands: Any) -> None:
    """Add ``analyze`` to the commands of ``fpq``.

    Args:
        commands: What ``add_subparsers`` of an ArgumentParser returned.
    """
    _add_arguments(
        commands.add_parser(
            'analyze', help='compare trained models in one report',
            description=_ANALYSIS, epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter))


def main_analysis(argv: list[str] | None = None) -> None:
    """Run ``python -m fpq_plugin.analysis``, which takes the same arguments.

    Args:
        argv (list[str], optional): Its arguments. Defaults to None, those
            of the process.
    """
    parser = argparse.ArgumentParser(
        prog='python -m fpq_plugin.analysis', description=_ANALYSIS,
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        sys.exit(f'error: {error}')


def run_analysis(args: argparse.Namespace) -> None:
    """Check everything, then measure, then write.

    Args:
        args (argparse.Namespace): The command's arguments.

    Raises:
        ValueError: If an argument, a file or the data is wrong.
        TypeError: If a model's inputs are not one tensor.
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
    models = load_trained_models(pairs, args.device)
    layer = study_layer(models, args.layer)
    loader = build_loader(models[0].config, args.split)
    batches = draw_batches(loader, args.images, args.seed, progress=True)
    split, answered = _draw_accuracy_batches(
        models[0].config, ACCURACY_IMAGES * args.images, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    study = run_study(models, batches,
                      StudySettings(args.probes, layer, args.seed), answered)
    study.update(
        command=command_line(args),
        split=args.split,
        accuracy_split=split,
        versions=dict(fpq=__version__, torch=torch.__version__),
        machine=f'{platform.machine()}, {torch.get_num_threads()} threads, '
        f'{args.device}',
        seconds=round(time.perf_counter() - start, 1))
    (args.out / 'analysis.json').write_text(json.dumps(study) + '\n')
    # After the JSON, so that no number is lost to a picture.
    from .analysis.report import draw_all, write_report
    pictures = draw_all(study, args.out)
    write_report(study, pictures, args.out / 'report.html')
    print(f'written: {args.out}/report.html, analysis.json and '
          f'{len(pictures)} PNGs')


def command_line(args: argparse.Namespace) -> str:
    """The command with all its options, to paste."""
    parts = ['fpq', 'analyze', *args.models]
    for name in ('out', 'split', 'images', 'probes', 'layer', 'seed',
                 'device'):
        if getattr(args, name) is not None:
            parts += [f'--{name}', str(getattr(args, name))]
    return shlex.join(parts)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_analysis)
    parser.add_argument('models', nargs='+', metavar='CONFIG CHECKPOINT',
                        help='a config and its checkpoint, as often as there '
                        'are models')
    parser.add_argument('--out', type=Path, default=Path('analysis'),
                        help='folder to write to (default: %(default)s)')
    parser.add_argument('--split', choices=list(SPLITS), default='train',
                        help='whose images and pipeline, of the first config '
                        '(default: %(default)s)')
    parser.add_argument('--images', type=_positive, default=512,
                        help='how many images; accuracy takes four times as '
                        'many of the validation set (default: %(default)s)')
    parser.add_argument('--probes', type=_positive, default=16,
                        help='random vectors of a Hessian trace (default: '
                        '%(default)s)')
    parser.add_argument('--layer', help='layer of Figs. 3 and 4 (default: '
                        'the middle one)')
    parser.add_argument('--seed', type=int, default=0,
                        help='seed of images, probes and noise (default: '
                        '%(default)s)')
    parser.add_argument('--device', default='cpu',
                        help='cpu, cuda, cuda:1 ... (default: %(default)s)')


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'must be an integer of 1 or more, got {text!r}')
    return int(text)


def _draw_accuracy_batches(config: Config, most: int,
                           seed: int) -> tuple[str | None, list[Any]]:
    """Images of the validation set, or of the test set, and its name."""
    split = next((s for s in ('val', 'test') if config.get(SPLITS[s])), None)
    if split is None:
        return None, []
    try:
        loader = build_loader(config, split)
        size = len(loader.dataset)
        return split, draw_batches(
            loader, min(most, size), seed, progress=True)
    except (ValueError, TypeError) as error:
        print(f'no accuracy: {error}', file=sys.stderr)
        return None, []
