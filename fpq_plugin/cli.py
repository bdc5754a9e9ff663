"""The command ``fpq``, also ``python -m fpq_plugin``: after the training."""

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

from .analysis.batches import SPLITS, build_loader, draw_batches
from .analysis.measuring import require_extras
from .analysis.study import StudySettings, run_study, study_layer
from .analysis.trained_models import load_trained_models
from .export.formats import format_of, known_endings, known_engines
from .export.parity import TOLERANCE, ParityError
from .openmmlab.evaluation import evaluate_file
from .openmmlab.export_run import IMAGES, export_checkpoint
from .targets import known_targets
from .version import __version__

# -- fpq export -----------------------------------------------------------

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
                      (in onnxruntime)
  Then how its answers compare with the trained model's: the share of equal
  classes, the differences of the outputs next to their spread (standard
  deviation), and top-1 of both if the data has labels. At last how many biases
  are integers, as 8-bit kernels need them, which layers have such kernels in
  onnxruntime, why the others do not, and what is worse than in full
  precision.
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
        '--target', choices=known_targets(),
        help='the engine that is to take the file (default: any)')
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
    format_of(args.out)
    if args.images < 1:
        raise ValueError(f'--images must be at least 1, got {args.images}')
    _require_folder('--out', Path(args.out))
    _require_folder('--json', args.json)
    options = dict(unsigned_weights=args.unsigned_weights,
                   target=args.target, batch_size=args.batch_size)
    # A format need not know what was not asked for.
    options = {name: value for name, value in options.items()
               if value is not None}
    try:
        report = export_checkpoint(args.config, args.checkpoint, args.out,
                                   args.images, args.tolerance, **options)
    except ParityError as error:
        # The command ends as over any other input that does not do.
        raise ValueError(str(error)) from error
    print(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report.as_dict(), indent=1) + '\n')


def _require_folder(option: str, file: Path | None) -> None:
    if file is not None and not file.parent.is_dir():
        raise FileNotFoundError(f'{option}: no folder {file.parent}')


# -- fpq evaluate ---------------------------------------------------------

_EVALUATE = """\
Test an exported file as "mim test" tests a checkpoint: the config's own test
data, pipeline and metric, with the answers of the engine.
"""
_EVALUATE_EPILOG = """\
example:
  fpq evaluate my_fpq_config.py model.onnx \\
      --checkpoint work_dirs/my_fpq_config/epoch_100.pth

what it prints:
  A line for each metric: the file's and, with --checkpoint, the trained
  model's and the difference.
"""


def add_evaluate(commands: Any) -> None:
    """Add ``evaluate`` to the commands of ``fpq``.

    Args:
        commands (argparse._SubParsersAction): The commands.
    """
    parser = commands.add_parser(
        'evaluate', help="an exported file, by the config's test",
        description=_EVALUATE, epilog=_EVALUATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', metavar='CONFIG',
                        help='the config of the training')
    parser.add_argument('file', metavar='FILE',
                        help='what "fpq export" wrote')
    parser.add_argument('--checkpoint', metavar='CHECKPOINT',
                        help='what the file was exported from, to be tested '
                        'beside it')
    parser.add_argument('--engine', choices=known_engines(),
                        help='what runs the file (default: the one that it '
                        'is for)')
    parser.add_argument('--json', metavar='FILE', type=Path,
                        help='write the figures here, too')
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Evaluate, and print the metrics.

    Args:
        args (argparse.Namespace): What the parser of :func:`add_evaluate`
            made.

    Raises:
        ValueError: If the file, the engine or the config does not do.
        ImportError: If a package is missing.
        FileNotFoundError: If a file or a folder is missing.
    """
    _require_folder('--json', args.json)
    found = evaluate_file(args.config, args.file, args.checkpoint,
                          args.engine)
    print(found)
    if args.json is not None:
        args.json.write_text(json.dumps(found.as_dict(), indent=1) + '\n')


# -- fpq analyze ----------------------------------------------------------

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


# -- fpq ------------------------------------------------------------------

COMMANDS = (add_export, add_evaluate, add_analyze)
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
