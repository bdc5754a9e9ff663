"""Would the teacher's forward be cheaper in another form?

Time of the forward with all maps kept, as CSD needs them, and the largest
change of a layer's CSD between a student and the teacher that the form
brings: as it is; in channels_last; with batch norms folded (exact for CSD
where their gain is positive); in bfloat16; through torch.compile.

    python benchmarks/teacher_forms.py --threads 2
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from machine import made_by
from models import MODELS, build
from timing import interleaved
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import fpq_plugin

Teacher = Callable[[], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', nargs='+', choices=MODELS,
                        default=['resnet18-32', 'mobilenet_v2-112'])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--out', type=Path,
                        default=Path(__file__).parent / 'results')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = made_by(args.threads)
    for name in args.models:
        report[name] = measure(name, args.repeats)
        for form, row in report[name].items():
            print(f'{name} {form}: {row["ms"]:.1f} ms, {row["ratio"]:.2f} x '
                  f'plain, CSD changes by up to {row["csd_change"]:.1e}')
    (args.out / 'teacher_forms.json').write_text(
        json.dumps(report, indent=2) + '\n')


def measure(name: str, repeats: int) -> dict:
    """Medians and changes of CSD, by form."""
    model, x, _ = build(name, 'cpu')
    with torch.no_grad():
        model(x)  # batch norm statistics
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    torch.manual_seed(1)
    student_maps = [m + 0.3 * m.std() * torch.randn_like(m)
                    for m in plain(teacher, x)()]
    forms = {kind.__name__: kind(copy.deepcopy(teacher), x) for kind in
             (plain, channels_last, folded, bfloat16, compiled)}
    csd = fpq_plugin.CSDLoss()
    losses = {form: [csd(s, t.float(), 1) for s, t in
                     zip(student_maps, run())] for form, run in forms.items()}
    for run in forms.values():
        run()  # torch.compile meets a list that is not empty
    times, _ = interleaved(forms, range(repeats))
    ms = {form: 1e3 * statistics.median(found)
          for form, found in times.items()}
    return {form: dict(
        ms=ms[form], ratio=ms[form] / ms['plain'],
        csd_change=max(abs(a / b - 1).item() for a, b in
                       zip(losses[form], losses['plain'])))
            for form in forms}


def plain(teacher: nn.Module, x: Tensor) -> Teacher:
    """As it is."""
    maps: list[Tensor] = []
    for layer in layers(teacher):
        layer.register_forward_hook(lambda *call: maps.append(call[2]))

    def run() -> list[Tensor]:
        maps.clear()
        with torch.no_grad():
            teacher(x)
        return list(maps)

    return run


def channels_last(teacher: nn.Module, x: Tensor) -> Teacher:
    """Weights and images in channels_last."""
    return plain(teacher.to(memory_format=torch.channels_last),
                 x.contiguous(memory_format=torch.channels_last))


def folded(teacher: nn.Module, x: Tensor) -> Teacher:
    """Batch norms in the convolutions before them; here all gains are > 0."""
    modules = list(teacher.named_modules())
    for (name, conv), (after, norm) in zip(modules, modules[1:]):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            teacher.set_submodule(name, fuse_conv_bn_eval(conv, norm))
            teacher.set_submodule(after, nn.Identity())
    for module in teacher.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6):
            module.inplace = False  # it would overwrite the maps now
    return plain(teacher, x)


def bfloat16(teacher: nn.Module, x: Tensor) -> Teacher:
    """Weights and images in bfloat16."""
    return plain(teacher.bfloat16(), x.bfloat16())


def compiled(teacher: nn.Module, x: Tensor) -> Teacher:
    """Through torch.compile, which fuses what follows a convolution."""
    return torch.compile(plain(teacher, x))


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers that would be quantized."""
    return [m for m in model.modules()
            if isinstance(m, nn.Conv2d | nn.Linear)]


if __name__ == '__main__':
    main()
