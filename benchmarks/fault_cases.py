"""The faults that fault_injection.py injects, and when each one strikes."""

from __future__ import annotations

import fnmatch
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faulted_run import EPOCHS, LAST, ROOT, Process, final_name

RELEASE = ROOT / 'tests/data/release_0_1_0'
WHOLE_ONE = (r"epoch_2.pth' is not a checkpoint.*damaged.*whole is "
             r'.*epoch_1.pth.*--resume \S*epoch_1.pth$')
NO_WHOLE_ONE = "epoch_1.pth' is not a checkpoint.*no whole one.*start anew"


@dataclass
class Case:
    """A fault: its kind and moment, and the run that it befalls."""

    kind: str
    moment: str
    variant: str = 'plain'
    fault: dict | None = None
    act: Callable[[Process, Path, float], None] | None = None
    # Before the run, after it, and before the resume.
    prepare: Callable[[Path], None] | None = None
    mend: Callable[[Path], None] | None = None
    # What to break after a run that ended well, and how to resume then.
    damage: Callable[[Path], None] | None = None
    resume: str = 'auto'
    # The run ends by an error of its own, which must name this.
    says: str | None = None
    # The resume must refuse with this, and end well with these options.
    refuses: str | None = None
    way_out: dict = field(default_factory=dict)
    may_break: tuple[str, ...] = ()
    # Another variant, if the way out is to start that one anew.
    ends_as: str | None = None

    @property
    def ranks(self) -> int:
        return 2 if self.variant == 'two ranks' else 1


def at(event: str, file: str, do: str = 'kill', **more: Any) -> dict:
    return dict(at=event, file=file, do=do, **more)


def kill_after(share: float) -> Callable:

    def act(process: Process, work: Path, seconds: float) -> None:
        # A start through mim is mostly imports; the work begins with a log.
        _await(process, work, '*')
        end = time.monotonic() + share * seconds
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.001)
        process.kill()

    return act


def kill_when_seen(pattern: str, delay: float) -> Callable:

    def act(process: Process, work: Path, seconds: float) -> None:
        _await(process, work, pattern)
        time.sleep(delay)
        process.kill()

    return act


def _await(process: Process, work: Path, pattern: str) -> None:
    while process.poll() is None:
        names = map(final_name, os.listdir(work)) if work.is_dir() else []
        if fnmatch.filter(names, pattern):
            return
        time.sleep(2e-4)


def kill_part(seen: str, delay: float, rank: int | None = None) -> Callable:
    """Kill one process of a run: a rank, or the data loader's worker."""

    def act(process: Process, work: Path, seconds: float) -> None:
        _await(process, work, seen)
        time.sleep(delay)
        below = list(_descendants(process.pid))
        if rank is None:
            # The last of a line: mim, train.py, the worker.
            victims = below[-1:]
        elif len(process.pids) > 1:
            victims = [process.pids[rank]]
        else:
            victims = [pid for pid in below if f'RANK={rank}' in
                       _proc(pid, 'environ').split('\0')][-1:]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    return act


def _proc(pid: int, name: str) -> str:
    try:
        return Path(f'/proc/{pid}/{name}').read_text(errors='replace')
    except OSError:
        return ''


def _descendants(pid: int) -> Iterator[int]:
    """The processes below one, each before those below it."""
    for child in _proc(pid, f'task/{pid}/children').split():
        yield int(child)
        yield from _descendants(int(child))


def truncate(name: str, share: float) -> Callable[[Path], None]:

    def damage(work: Path) -> None:
        path, = work.glob(name)
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def full_disk(free: int) -> Callable[[Path], None]:
    """A disk of its own with ``free`` bytes left."""

    def prepare(work: Path) -> None:
        size = 16 << 20
        work.mkdir()
        subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs',
                        str(work)], check=True)
        (work / 'filler').write_bytes(bytes(size - free))

    return prepare


def read_only(work: Path) -> None:
    work.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', str(work)],
                   check=True)


def release(work: Path) -> None:
    if (work / 'filler').exists():
        (work / 'filler').unlink()
    elif os.path.ismount(work):
        subprocess.run(['mount', '-o', 'remount,rw', str(work)], check=True)
    else:
        subprocess.run(['chattr', '-i', str(work)], check=True)


def from_release(backend: str) -> Callable[[Path], None]:
    """A work directory that release 0.1.0 left after an epoch."""

    def prepare(work: Path) -> None:
        work.mkdir()
        for name in ('epoch_1.pth', 'fpq_teacher_*.pth'):
            for path in (RELEASE / backend).glob(name):
                shutil.copy(path, work)
        (work / 'last_checkpoint').write_text(str(work / 'epoch_1.pth'))

    return prepare


KINDS = [
    'kill at a random moment',
    'kill while a checkpoint is written',
    "kill while the teacher's file is written",
    'kill while the export is written',
    'a limit on file sizes',
    'full disk',
    'read-only work directory',
    'truncated last checkpoint',
    'checkpoint of release 0.1.0',
    'a data loader worker dies',
    'one of two ranks dies',
]


def cases(rng: random.Random, sizes: dict[str, int],
          root: bool) -> Iterator[Case]:
    """All cases; ``sizes`` are those of the undisturbed run's files."""
    checkpoint, teacher = sizes[LAST], sizes['teacher']
    for variant in ['plain', 'plain', 'plain', 'brevitas', 'brevitas',
                    'average', 'keep one', 'keep one', 'save best', 'export']:
        share = rng.uniform(0.3, 0.97)
        yield Case('kill at a random moment', f'{share:.0%} of the run',
                   variant, act=kill_after(share))

    kind = 'kill while a checkpoint is written'
    for variant, name in [
            ('plain', 'epoch_2.pth'), ('plain', 'epoch_1.pth'),
            ('keep one', 'epoch_2.pth'), ('keep one', LAST),
            ('brevitas', 'epoch_2.pth'), ('average', LAST)]:
        size = rng.randrange(checkpoint)
        yield Case(kind, f'byte {size:,} of {name}', variant,
                   fault=at('open', name, 'cut', bytes=size))
    size = rng.randrange(checkpoint)
    yield Case(kind, f'byte {size:,} of epoch_1.pth, saved again',
               'save best',
               fault=at('open', 'epoch_1.pth', 'cut', bytes=size, count=2))
    size = rng.randrange(teacher)
    yield Case(kind, f'byte {size:,} of best_*.pth', 'save best',
               fault=at('open', 'best_*.pth', 'cut', bytes=size))
    yield Case(kind, 'before epoch_1.pth gets its name', 'keep one',
               fault=at('os.rename', 'epoch_1.pth'))
    yield Case(kind, f'before {LAST} gets its name', 'keep one',
               fault=at('os.rename', LAST))
    yield Case(kind, 'at the removal of epoch_1.pth', 'keep one',
               fault=at('os.remove', 'epoch_1.pth'))
    for name, number in (('first', 1), ('second', 2)):
        yield Case(kind, f'{name} last_checkpoint, opened',
                   fault=at('open', 'last_checkpoint', count=number))
        yield Case(kind, f'{name} last_checkpoint, 0 bytes',
                   fault=at('open', 'last_checkpoint', 'cut', bytes=0,
                            count=number))
    for name in ('epoch_2.pth', LAST):
        delay = rng.uniform(0, 0.004)
        yield Case(kind, f'{name} seen, {delay * 1e3:.1f} ms later',
                   'keep one', act=kill_when_seen(name, delay))

    kind = "kill while the teacher's file is written"
    for _ in range(3):
        size = rng.randrange(teacher)
        yield Case(kind, f'byte {size:,}',
                   fault=at('open', 'fpq_teacher_*.pth', 'cut', bytes=size))
    yield Case(kind, 'before it gets its name',
               fault=at('os.rename', 'fpq_teacher_*.pth'))
    yield Case(kind, 'seen', act=kill_when_seen('fpq_teacher_*', 0))

    kind = 'kill while the export is written'
    for _ in range(2):
        size = rng.randrange(sizes['model.onnx'])
        yield Case(kind, f'byte {size:,}', 'export',
                   fault=at('open', 'model.onnx', 'cut', bytes=size))
    yield Case(kind, 'before it gets its name', 'export',
               fault=at('os.rename', 'model.onnx'))
    yield Case(kind, 'seen', 'export', act=kill_when_seen('model.onnx', 0))

    kind = 'a limit on file sizes'
    for i, size in enumerate((teacher // 2, (teacher + checkpoint) // 2)):
        yield Case(kind, f'{size:,} bytes',
                   fault=at('open', 'fpq_teacher_*.pth' if not i else
                            'epoch_2.pth', 'refuse', bytes=size),
                   says=f'{"epoch_2" if i else "fpq_teacher"}.*was not '
                   'written: File too large')

    if root:
        kind = 'full disk'
        for i in range(6):
            free = rng.randrange(1, teacher + 3 * checkpoint)
            yield Case(kind, f'{free:,} bytes free',
                       ['plain', 'plain', 'keep one', 'save best', 'export',
                        'plain'][i], prepare=full_disk(free), mend=release,
                       says='No space left')
        kind = 'read-only work directory'
        for variant in ('plain', 'average'):
            yield Case(kind, 'from the start', variant, prepare=read_only,
                       mend=release, says='Read-only file system')
        for name, variant in (('last_checkpoint', 'plain'),
                              ('epoch_2.pth', 'keep one'),
                              ('model.onnx', 'export')):
            yield Case(kind, f'from the writing of {name} on',
                       variant, fault=at('open', name, 'freeze'),
                       mend=release, says='not permitted.*')

    kind = 'truncated last checkpoint'
    for _ in range(3):
        share = rng.uniform(0, 1)
        yield Case(kind, f'to {share:.0%}', fault=at('open', LAST),
                   refuses=WHOLE_ONE, damage=truncate('epoch_2.pth', share),
                   may_break=('epoch_2.pth', ))
    yield Case(kind, 'to 0 bytes', 'brevitas', fault=at('open', LAST),
               damage=truncate('epoch_2.pth', 0), refuses=WHOLE_ONE,
               may_break=('epoch_2.pth', ))
    yield Case(kind, 'half of it, which --resume names',
               fault=at('open', LAST), damage=truncate('epoch_2.pth', 0.5),
               resume='epoch_2.pth', refuses=WHOLE_ONE,
               may_break=('epoch_2.pth', ))
    yield Case(kind, 'the only one, half', fault=at('open', 'epoch_2.pth'),
               damage=truncate('epoch_1.pth', 0.5),
               refuses=NO_WHOLE_ONE,
               may_break=('epoch_1.pth', 'last_checkpoint'))
    yield Case(kind, "half of the teacher's file",
               fault=at('open', LAST), damage=truncate('fpq_teacher*', 0.5),
               refuses='fpq.teacher.*damaged.*torch.save wrote. Set fpq',
               way_out={'default_hooks.fpq.teacher': 'FP'},
               may_break=('fpq_teacher*', ))

    kind = 'checkpoint of release 0.1.0'
    for backend in ('torch_ao', 'brevitas'):
        size = rng.randrange(checkpoint)
        prepare = from_release(backend)
        yield Case(kind, f'then kill at byte {size:,} of {LAST}',
                   f'old {backend}', prepare=prepare,
                   fault=at('open', LAST, 'cut', bytes=size))
        yield Case(kind, 'then kill before epoch_2.pth', f'old {backend}',
                   prepare=prepare, fault=at('open', 'epoch_2.pth'))
    yield Case(kind, 'half of it', 'old torch_ao',
               prepare=from_release('torch_ao'),
               fault=at('open', 'epoch_2.pth'),
               damage=truncate('epoch_1.pth', 0.5),
               refuses=NO_WHOLE_ONE,
               may_break=('epoch_1.pth', 'last_checkpoint'), ends_as='paper')

    kind = 'a data loader worker dies'
    for _ in range(3):
        delay = rng.uniform(0, 0.2)
        seen = f'epoch_{rng.randrange(1, EPOCHS)}.pth'
        yield Case(kind, f'{delay * 1e3:.0f} ms after {seen}', 'workers',
                   act=kill_part(seen, delay), says='DataLoader worker')

    kind = 'one of two ranks dies'
    for i in range(4):
        delay = rng.uniform(0, 0.3)
        seen = f'epoch_{rng.randrange(1, EPOCHS)}.pth'
        yield Case(kind, f'rank {i % 2}, {delay * 1e3:.0f} ms after {seen}',
                   'two ranks', act=kill_part(seen, delay, i % 2),
                   says='.')
