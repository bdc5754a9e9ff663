"""What long runs meet: faults are injected, and each run is resumed.

    python benchmarks/fault_injection.py
    python benchmarks/fault_injection.py --only 'full disk' --seed 7

A run of three epochs on scikit-learn's digits is killed, starved or damaged,
and then resumed with ``--resume``. It must end with the final checkpoint of
the undisturbed run, bit for bit, or say in its last line which file or option
is wrong and what to do, and end so once that is done. Nothing half-written
may stand under a final name, and no finished checkpoint may be lost.

At least one case of each kind runs ``mim train`` as a user does; the others
start the same Runner in a process forked from one that has imported torch.
Full disks and folders that cannot be written need root (tmpfs, chattr);
without it they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / 'results'
RELEASE = ROOT / 'tests/data/release_0_1_0'
FAULT = 'FPQ_FAULT'
EPOCHS = 3
LAST = f'epoch_{EPOCHS}.pth'
LIMIT_S = 120

TINY = {
    'train_dataloader.dataset.pipeline': [dict(type='PackInputs')],
    'train_dataloader.dataset.indices': 300,
    'train_dataloader.batch_size': 100,
    'default_hooks.logger.interval': 1,
    'model.backbone.base_channels': 4,
    'model.backbone.stem_channels': 4,
    'model.head.in_channels': 16,
    'train_cfg.max_epochs': EPOCHS,
}
PERTURBED = {'default_hooks.fpq.perturbation.p': 0.5}
KEEP_ONE = {'default_hooks.checkpoint.max_keep_ckpts': 1}
BREVITAS = {'default_hooks.fpq.backend': 'brevitas'}
VARIANTS: dict[str, dict] = {
    'plain': {},
    'keep one': KEEP_ONE,
    'save best': {**KEEP_ONE, 'default_hooks.checkpoint.save_best': 'auto'},
    'average': {'custom_hooks': [dict(type='EMAHook')]},
    'brevitas': BREVITAS,
    'export': {'default_hooks.fpq.export': 'model.onnx'},
    'workers': {'train_dataloader.num_workers': 1,
                'train_dataloader.persistent_workers': True},
    'two ranks': {'train_dataloader.batch_size': 50},
    'old torch_ao': {},
    'old brevitas': BREVITAS,
}


# -- inside the process that meets the fault ------------------------------


def install_fault(fault: dict) -> None:
    """Arm the fault of the environment; imported by the run's config.

    ``do`` is 'kill', 'cut' (the kernel kills at byte ``bytes`` of a file),
    'refuse' (writes past byte ``bytes`` fail) or 'freeze' (the folder takes
    no new file), at the audit event ``at`` on a file named ``file``, for the
    ``count``-th time.
    """
    seen = 0

    def look(event: str, args: tuple) -> None:
        nonlocal seen
        if event != fault['at'] or os.getpid() != owner:
            return
        path = args[0] if event != 'os.rename' else args[1]
        if event == 'open' and not re.search('[wax]', str(args[1] or '')):
            return
        name = os.path.basename(os.fsdecode(path)) if isinstance(
            path, (str, bytes, os.PathLike)) else ''
        if event != 'os.remove':
            name = final_name(name)
        if fnmatch.fnmatch(name, fault['file']):
            seen += 1
            if seen == fault.get('count', 1):
                act(fault, os.path.dirname(os.fsdecode(path)))

    owner = os.getpid()
    sys.addaudithook(look)


def final_name(name: str) -> str:
    """The name that a file gets once it is whole."""
    return re.sub(r'^\.(.+)\.[0-9a-f]{12}\.part$', r'\1', name)


def act(fault: dict, folder: str) -> None:
    if fault['do'] == 'kill':
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault['do'] == 'freeze':
        subprocess.run(['chattr', '+i', folder], check=True)
    else:
        if fault['do'] == 'cut':
            # Python ignores it, so that a write past the limit is an error.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault['bytes'], hard))


if FAULT in os.environ and __name__ != '__main__':
    install_fault(json.loads(os.environ[FAULT]))


# -- starting runs --------------------------------------------------------


@dataclass
class Process:
    """A run that was started, by mim or by a fork, with its output."""

    pids: list[int]
    output: Path
    reap: Callable[[], int | None]

    @property
    def pid(self) -> int:
        return self.pids[0]

    def wait(self) -> int:
        """Its exit status; what hangs is ended."""
        end = time.monotonic() + LIMIT_S
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                self.wait()
                return 124
            time.sleep(0.01)
        return code

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self.reap()
        return self._code

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def said(self) -> list[str]:
        return [line for line in self.output.read_text(
            errors='replace').splitlines() if line.strip()]

    _code: int | None = field(default=None, init=False)


class Runs:
    """Starts the runs of all cases, in one temporary folder."""

    def __init__(self, folder: Path) -> None:
        from same_results import write_digits

        self.folder = folder
        self._number = 0
        write_digits(folder / 'data/fashion_mnist')
        os.environ.update(
            OMP_NUM_THREADS='1', FPQ_COMPILE='0',
            FPQ_DATA_ROOT=str(folder / 'data'),
            PYTHONPATH=os.pathsep.join([str(HERE), str(ROOT)]))
        for module in ('fpq_plugin', 'mmpretrain.apis', 'onnxruntime'):
            __import__(module)
        self.teacher = folder / 'fp' / LAST
        process = self.start(self.config('fp'), folder / 'fp')
        if process.wait():
            sys.exit('\n'.join(process.said()))

    def config(self, variant: str, **more: Any) -> Path:
        """The config file of a variant."""
        from mmengine import Config

        name = 'resnet_fp' if variant == 'fp' else 'resnet_fpq_w4a4'
        cfg = Config.fromfile(str(
            ROOT / f'mm_configs/fashion_mnist/{name}.py'))
        cfg.merge_from_dict(TINY)
        if variant != 'fp':
            cfg.load_from = str(self.teacher)
            cfg.merge_from_dict({**PERTURBED, **VARIANTS[variant], **more})
        cfg.custom_imports = dict(
            imports=['fpq_plugin', 'fault_injection'],
            allow_failed_imports=False)
        self._number += 1
        path = self.folder / f'config_{self._number}.py'
        cfg.dump(str(path))
        return path

    def start(self, config: Path, work: Path, resume: str | None = None,
              mim: bool = False, ranks: int = 1,
              fault: dict | None = None) -> Process:
        """Start a run; ``resume`` is 'auto' or a checkpoint."""
        self._number += 1
        output = self.folder / f'output_{self._number}.txt'
        env = {**os.environ, **({FAULT: json.dumps(fault)} if fault else {})}
        if mim:
            return _start_mim(config, work, resume, ranks, env, output)
        rank_envs = [{}] if ranks == 1 else _rank_envs(ranks)
        pids: list[int] = []
        for extra in rank_envs:
            pids.append(_fork(config, work, resume, {**env, **extra}, output,
                              group=pids[0] if pids else 0))
        return Process(pids, output, _reaper(pids))


def _start_mim(config: Path, work: Path, resume: str | None, ranks: int,
               env: dict, output: Path) -> Process:
    command = [sys.executable, '-m', 'mim', 'train', 'mmpretrain',
               str(config), '--work-dir', str(work)]
    if ranks > 1:
        command += ['--launcher', 'pytorch', '--gpus', str(ranks)]
    if resume is not None:
        command += ['--resume'] + ([resume] if resume != 'auto' else [])
    with output.open('wb') as file:
        started = subprocess.Popen(
            command, env=env, stdout=file, stderr=subprocess.STDOUT,
            cwd=output.parent, start_new_session=True)
    return Process([started.pid], output, started.poll)


def _rank_envs(ranks: int) -> list[dict]:
    import socket
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    return [dict(RANK=str(i), LOCAL_RANK=str(i), WORLD_SIZE=str(ranks),
                 MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
            for i in range(ranks)]


def _reaper(pids: list[int]) -> Callable[[], int | None]:
    codes: dict[int, int] = {}

    def reap() -> int | None:
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        return (max(codes.values(), key=abs)
                if len(codes) == len(pids) else None)

    return reap


def _fork(config: Path, work: Path, resume: str | None, env: dict,
          output: Path, group: int = 0) -> int:
    pid = os.fork()
    if pid:
        with suppress(OSError):
            os.setpgid(pid, group)
        return pid
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, group)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(env)
        _train(config, work, resume)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit(): this is a copy of the script.
        os._exit(code)


def _train(config: Path, work: Path, resume: str | None) -> None:
    """What mmpretrain's tools/train.py does."""
    import torch
    from mmengine import Config
    from mmengine.runner import Runner

    torch.set_num_threads(1)
    cfg = Config.fromfile(str(config))
    cfg.work_dir = str(work)
    cfg.launcher = 'pytorch' if 'RANK' in os.environ else 'none'
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    Runner.from_cfg(cfg).train()
    if 'RANK' in os.environ:
        torch.distributed.barrier()


# -- what a run left ------------------------------------------------------


def digest(path: Path) -> str:
    """Hash of all that a checkpoint holds for the training to go on."""
    import torch

    from fpq_plugin._compat.files import load_file

    found = hashlib.sha256()

    def add(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for name in value:
                add(value[name], f'{key}.{name}')
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                add(item, f'{key}[{i}]')
        else:
            found.update(key.encode())
            found.update(
                value.contiguous().numpy().tobytes()
                if isinstance(value, torch.Tensor) else repr(value).encode())

    content = load_file(str(path))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        add(content.get(key), key)
    return found.hexdigest()[:16]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    from fpq_plugin._compat.files import load_file

    try:
        if path.suffix == '.pth':
            load_file(str(path))
        elif path.suffix == '.onnx':
            import onnx
            onnx.checker.check_model(onnx.load(str(path)))
        elif path.name == 'last_checkpoint':
            return Path(path.read_text()).is_file()
    except Exception:
        return False
    return True


@dataclass
class Left:
    """What stands in a work directory after a fault."""

    whole: list[str]
    broken: list[str]
    parts: list[str]

    @classmethod
    def of(cls, work: Path) -> Left:
        files = sorted(p for p in work.glob('*') if p.is_file()
                       and p.suffix in ('.pth', '.onnx', '.part', ''))
        finals = [p for p in files if p.suffix != '.part']
        whole = [p.name for p in finals if is_whole(p)]
        return cls(whole, [p.name for p in finals if p.name not in whole],
                   [p.name for p in files if p.suffix == '.part'])

    def checkpoints(self) -> list[str]:
        return fnmatch.filter(self.whole, 'epoch_*.pth')

    def describe(self) -> str:
        text = ', '.join(self.checkpoints()) or 'no checkpoint'
        if self.parts:
            text += f'; part of {", ".join(map(final_name, self.parts))}'
        if self.broken:
            text += f'; broken: {", ".join(self.broken)}'
        return re.sub(r'(fpq_teacher)_\w+', r'\1', text)


WHOLE_ONE = (r"epoch_2.pth' is not a checkpoint.*damaged.*whole is "
             r'.*epoch_1.pth.*--resume \S*epoch_1.pth$')
NO_WHOLE_ONE = "epoch_1.pth' is not a checkpoint.*no whole one.*start anew"


# -- the cases ------------------------------------------------------------


@dataclass
class Case:
    """A fault: its kind and moment, and the run that it befalls."""

    kind: str
    moment: str
    variant: str = 'plain'
    mim: bool = False
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


@dataclass
class Reference:
    """The undisturbed run of a variant."""

    seconds: float
    sizes: dict[str, int]
    final: str
    export: str | None = None


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


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs and freeze a folder."""
    probe = folder / 'probe'
    probe.mkdir()
    commands = (['mount', '-t', 'tmpfs', 'tmpfs'], ['umount'],
                ['chattr', '+i'], ['chattr', '-i'])
    try:
        return not any(
            subprocess.run([*command, str(probe)], capture_output=True)
            .returncode for command in commands)
    except FileNotFoundError:
        return False


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
    for i, variant in enumerate(
            ['plain', 'plain', 'plain', 'brevitas', 'brevitas', 'average',
             'keep one', 'keep one', 'save best', 'export']):
        share = rng.uniform(0.3, 0.97)
        yield Case('kill at a random moment', f'{share:.0%} of the run',
                   variant, mim=i == 0, act=kill_after(share))

    kind = 'kill while a checkpoint is written'
    for i, (variant, name) in enumerate([
            ('plain', 'epoch_2.pth'), ('plain', 'epoch_1.pth'),
            ('keep one', 'epoch_2.pth'), ('keep one', LAST),
            ('brevitas', 'epoch_2.pth'), ('average', LAST)]):
        size = rng.randrange(checkpoint)
        yield Case(kind, f'byte {size:,} of {name}', variant, mim=i == 0,
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
    for i in range(3):
        size = rng.randrange(teacher)
        yield Case(kind, f'byte {size:,}', mim=i == 0,
                   fault=at('open', 'fpq_teacher_*.pth', 'cut', bytes=size))
    yield Case(kind, 'before it gets its name',
               fault=at('os.rename', 'fpq_teacher_*.pth'))
    yield Case(kind, 'seen', act=kill_when_seen('fpq_teacher_*', 0))

    kind = 'kill while the export is written'
    for i in range(2):
        size = rng.randrange(sizes['model.onnx'])
        yield Case(kind, f'byte {size:,}', 'export', mim=i == 0,
                   fault=at('open', 'model.onnx', 'cut', bytes=size))
    yield Case(kind, 'before it gets its name', 'export',
               fault=at('os.rename', 'model.onnx'))
    yield Case(kind, 'seen', 'export', act=kill_when_seen('model.onnx', 0))

    kind = 'a limit on file sizes'
    for i, size in enumerate((teacher // 2, (teacher + checkpoint) // 2)):
        yield Case(kind, f'{size:,} bytes', mim=i == 1,
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
                        'plain'][i], mim=i == 0,
                       prepare=full_disk(free), mend=release,
                       says='No space left')
        kind = 'read-only work directory'
        for mim in (True, False):
            yield Case(kind, 'from the start', mim=mim, prepare=read_only,
                       mend=release, says='Read-only file system')
        for name, variant in (('last_checkpoint', 'plain'),
                              ('epoch_2.pth', 'keep one'),
                              ('model.onnx', 'export')):
            yield Case(kind, f'from the writing of {name} on',
                       variant, fault=at('open', name, 'freeze'),
                       mend=release, says='not permitted.*')

    kind = 'truncated last checkpoint'
    for i in range(3):
        share = rng.uniform(0, 1)
        yield Case(kind, f'to {share:.0%}', mim=i == 0,
                   fault=at('open', LAST), refuses=WHOLE_ONE,
                   damage=truncate('epoch_2.pth', share),
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
    for backend, mim in (('torch_ao', True), ('brevitas', False)):
        size = rng.randrange(checkpoint)
        prepare = from_release(backend)
        yield Case(kind, f'then kill at byte {size:,} of {LAST}',
                   f'old {backend}', mim=mim, prepare=prepare,
                   fault=at('open', LAST, 'cut', bytes=size))
        yield Case(kind, 'then kill before epoch_2.pth', f'old {backend}',
                   prepare=prepare, fault=at('open', 'epoch_2.pth'))
    yield Case(kind, 'half of it', 'old torch_ao',
               prepare=from_release('torch_ao'),
               fault=at('open', 'epoch_2.pth'),
               damage=truncate('epoch_1.pth', 0.5),
               refuses=NO_WHOLE_ONE,
               may_break=('epoch_1.pth', 'last_checkpoint'), ends_as='plain')

    kind = 'a data loader worker dies'
    for i in range(3):
        delay = rng.uniform(0, 0.2)
        seen = f'epoch_{rng.randrange(1, EPOCHS)}.pth'
        yield Case(kind, f'{delay * 1e3:.0f} ms after {seen}', 'workers',
                   mim=i == 0, act=kill_part(seen, delay),
                   says='DataLoader worker')

    kind = 'one of two ranks dies'
    for i, mim in enumerate((True, False, False, False)):
        delay = rng.uniform(0, 0.3)
        seen = f'epoch_{rng.randrange(1, EPOCHS)}.pth'
        yield Case(kind, f'rank {i % 2}, {delay * 1e3:.0f} ms after {seen}',
                   'two ranks', mim=mim, act=kill_part(seen, delay, i % 2),
                   says='.')


# -- a case ---------------------------------------------------------------


class Checker:
    """Runs cases, and holds them against the undisturbed runs."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._references: dict[str, Reference] = {}
        self._configs: dict[str, Path] = {}

    def reference(self, variant: str) -> Reference:
        """The undisturbed run of a variant."""
        if variant not in self._references:
            work = self.runs.folder / f'reference {variant}'
            resume = None
            if variant.startswith('old '):
                from_release(variant.split()[1])(work)
                resume = 'auto'
            self._configs[variant] = self.runs.config(variant)
            started = time.monotonic()
            process = self.runs.start(
                self._configs[variant], work, resume,
                ranks=2 if variant == 'two ranks' else 1)
            if process.wait():
                sys.exit('\n'.join(process.said()[-30:]))
            sizes = {p.name: p.stat().st_size for p in work.glob('*.*')}
            sizes['teacher'] = next(
                p.stat().st_size for p in work.glob('fpq_teacher*'))
            self._references[variant] = Reference(
                time.monotonic() - started, sizes, digest(work / LAST),
                export_of(work))
        return self._references[variant]

    def check(self, case: Case, work: Path) -> dict:
        """Inject, resume, compare; a row of the table."""
        reference = self.reference(case.variant)
        started = time.monotonic()
        if case.prepare is not None:
            case.prepare(work)
        try:
            row = self._check(case, work, reference)
        finally:
            while os.path.ismount(work):
                subprocess.run(['umount', '-l', str(work)], check=True)
            if (case.fault or {}).get('do') == 'freeze':
                subprocess.run(['chattr', '-i', str(work)], check=True)
        return {**row, 'seconds': round(time.monotonic() - started, 1)}

    def _check(self, case: Case, work: Path, reference: Reference) -> dict:
        faults: list[str] = []
        old = case.variant.startswith('old ')
        process = self._start(case, work, 'auto' if old else None,
                              fault=case.fault)
        if case.act is not None:
            case.act(process, work, reference.seconds)
        code = process.wait()
        if code == 0:
            faults.append('the fault did not happen')
        if code == 124:
            faults.append('the run hung')
        said = cause(process) if case.says else ''
        if case.says and code and not re.search(case.says, said):
            faults.append(f'unclear error: {said}')
        saved = [int(n) for n in re.findall(
            r'Saving checkpoint at (\d+) epochs', '\n'.join(process.said()))]
        if case.mend is not None:
            case.mend(work)
        if case.damage is not None:
            case.damage(work)
        left = Left.of(work)
        for part in left.parts:
            # A resume an hour later; a part may be a living process's.
            os.utime(work / part, (0, 0))
        broken = [name for name in left.broken if not any(
            fnmatch.fnmatch(name, p) for p in case.may_break)]
        if broken:
            faults.append(f'broken: {", ".join(broken)}')
        finished = len(saved) > 1 or (old and saved)
        if finished and not left.checkpoints() and not case.may_break:
            faults.append('the last good checkpoint is gone')
        resume_said, outcome = self._resume(case, work, left, faults)
        if case.ends_as is not None:
            reference = self.reference(case.ends_as)
        if digest_of(work / LAST) != reference.final:
            faults.append('other bits than the undisturbed run')
        if export_of(work) != reference.export:
            faults.append('another export than the undisturbed run')
        if parts := Left.of(work).parts:
            faults.append(f'left behind: {", ".join(parts)}')
        return dict(
            kind=case.kind, moment=case.moment, run=case.variant,
            through='mim train' if case.mim else 'fork',
            left=left.describe(), run_said=said, resume_said=resume_said,
            outcome=f'FAULT: {"; ".join(faults)}' if faults else outcome,
            good=not faults)

    def _resume(self, case: Case, work: Path, left: Left,
                faults: list[str]) -> tuple[str, str]:
        """Resume; what the resume said, and how it came to the end."""
        resume = case.resume
        if resume != 'auto':
            resume = str(work / resume)
        process = self._start(case, work, resume)
        if process.wait() == 0:
            if case.refuses:
                faults.append('the resume did not refuse')
            said = went_on(process)
            return said, ('started anew of itself, same bits'
                          if 'nothing in' in said else 'resumed, same bits')
        said = cause(process)
        if not case.refuses or not re.search(case.refuses, said):
            faults.append(f'the resume failed: {said}')
            return said, ''
        named = re.search(r'--resume (\S+)$', said)
        anew = 'start anew' in said
        resume = named[1] if named else None if anew else 'auto'
        again = self._start(case, work, resume, way_out=case.way_out)
        if again.wait():
            faults.append(f'its way out failed: {cause(again)}')
        return said, ('clear error, started anew, same bits' if anew else
                      'clear error, way out taken, same bits')

    def _start(self, case: Case, work: Path, resume: str | None,
               fault: dict | None = None,
               way_out: dict | None = None) -> Process:
        config = self._configs[case.variant]
        if way_out:
            config = self.runs.config(case.variant, **{
                key: str(self.runs.teacher) if value == 'FP' else value
                for key, value in way_out.items()})
        return self.runs.start(config, work, resume, case.mim, case.ranks,
                               fault)


def export_of(work: Path) -> str | None:
    """Hash of the exported file, if there is one."""
    path = work / 'model.onnx'
    return (hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            if path.exists() else None)


def digest_of(path: Path) -> str | None:
    return digest(path) if path.is_file() and is_whole(path) else None


def cause(process: Process) -> str:
    """The last line of the error: what a user reads."""
    lines = [line for line in process.said() if re.match(
        r'(\w+\.)*\w*(Error|Exception|Interrupt)\b', line)
        and 'CalledProcess' not in line and 'ChildFailed' not in line]
    return lines[-1] if lines else (process.said() or [''])[-1]


def went_on(process: Process) -> str:
    """What a resume that ended well said."""
    text = '\n'.join(process.said())
    told = re.findall(r'FPQ: there is nothing in [^\n]*', text)
    epochs = re.findall(r'resumed epoch: \d+', text)
    return '; '.join([*dict.fromkeys(told), *epochs[-1:]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', nargs='+', metavar='KIND',
                        help='kinds that start so; the others\' rows stay')
    parser.add_argument('--fork', action='store_true',
                        help='no mim, nothing written; for a quick look')
    parser.add_argument('--out', type=Path, default=RESULTS)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='fpq_faults_') as folder:
        runs = Runs(Path(folder))
        checker = Checker(runs)
        sizes = {**checker.reference('plain').sizes, 'model.onnx':
                 checker.reference('export').sizes['model.onnx']}
        root = can_mount(Path(folder))
        chosen = [case for case in cases(random.Random(args.seed), sizes,
                                         root)
                  if not args.only or case.kind.startswith(
                      tuple(args.only))]
        rows = []
        for number, case in enumerate(chosen, 1):
            if args.fork:
                case = replace(case, mim=False)
            row = checker.check(case, Path(folder) / f'run_{number}')
            rows.append({key: str(value).replace(folder, '').strip()
                         if isinstance(value, str) else value
                         for key, value in row.items()})
            print(f'[{number}/{len(chosen)}] {row["kind"]}, {row["moment"]} '
                  f'({row["run"]}, {row["through"]}), {row["seconds"]} s: '
                  f'{row["outcome"]}', flush=True)
            for said in filter(None, (row['run_said'], row['resume_said'])):
                print(f'    {said}', flush=True)
    if not args.fork:
        kept, spent = earlier(args.out, args.only)
        write(args.out, [*kept, *rows], args.seed, root,
              spent + time.monotonic() - started)
    sys.exit(not all(row['good'] for row in rows))


def earlier(folder: Path, only: list[str] | None) -> tuple[list[dict], float]:
    """The rows of other kinds that an earlier run wrote, and its seconds."""
    path = folder / 'fault_injection.json'
    if not only or not path.exists():
        return [], 0
    report = json.loads(path.read_text())
    return [row for row in report['rows']
            if not row['kind'].startswith(tuple(only))], report['seconds']


def write(folder: Path, rows: list[dict], seed: int, root: bool,
          seconds: float) -> None:
    """The rows as JSON and as a Markdown table."""
    from machine import made_by

    rows = sorted(rows, key=lambda row: KINDS.index(row['kind']))
    report = dict(**made_by(threads=1), seed=seed, root=root,
                  seconds=round(seconds), rows=rows)
    (folder / 'fault_injection.json').write_text(
        json.dumps(report, indent=1) + '\n')
    good = sum(row['good'] for row in rows)
    mim = sum(row['through'] == 'mim train' for row in rows)
    lines = [
        f'{good} of {len(rows)} injections ended as they should, {mim} of '
        f'them through `mim train`; seed {seed}, {seconds / 60:.0f} minutes.',
        *([] if root else ['', 'Without root: no full disk, no read-only '
                           'work directory.']), '',
        '| kind | moment | run | left | the run said | the resume said | '
        'outcome |', '|---|---|---|---|---|---|---|']
    for row in rows:
        run = row['run'] + (' (mim)' if row['through'] != 'fork' else '')
        cells = (row['kind'], row['moment'], run, row['left'],
                 row['run_said'], row['resume_said'], row['outcome'])
        lines.append('| ' + ' | '.join(
            cell.replace('|', r'\|') for cell in cells) + ' |')
    (folder / 'fault_injection.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
