"""A run that meets a fault: how it is started, and what it leaves.

A config that imports this module arms the fault that the environment names
(:data:`FAULT`). ``fault_injection.py`` says which faults, and holds what is
left against the undisturbed run.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
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
PAPER = {'default_hooks.fpq.preset': 'paper'}
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
    # Release 0.1.0 knew that preset alone.
    'paper': PAPER,
    'old torch_ao': PAPER,
    'old brevitas': {**PAPER, **BREVITAS},
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


if FAULT in os.environ:
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
            imports=['fpq_plugin', 'faulted_run'],
            allow_failed_imports=False)
        self._number += 1
        path = self.folder / f'config_{self._number}.py'
        cfg.dump(str(path))
        return path

    def start(self, config: Path, work: Path, resume: str | None = None,
              ranks: int = 1, mim: bool = False,
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
        # The fork has this module, so that the config imports nothing.
        if FAULT in env:
            install_fault(json.loads(env[FAULT]))
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
