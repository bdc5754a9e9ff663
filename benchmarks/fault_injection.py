"""What long runs meet: faults are injected, and each run is resumed.

    python benchmarks/fault_injection.py
    python benchmarks/fault_injection.py --only 'full disk' --seed 7

A run of three epochs on scikit-learn's digits is killed, starved or damaged,
and then resumed with ``--resume``. It must end with the final checkpoint of
the undisturbed run, bit for bit, or say in its last line which file or option
is wrong and what to do, and end so once that is done. Nothing half-written
may stand under a final name, and no finished checkpoint may be lost.

Each run and resume is a ``mim train`` of its own, as a user's; ``--fork``, for
a quick look, starts the same Runner in a process forked from one that has
imported torch. Full disks and folders that cannot be written need root (tmpfs,
chattr); without it they are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fault_cases import KINDS, Case, cases, from_release
from faulted_run import LAST, Left, Process, Runs, digest, is_whole

RESULTS = Path(__file__).resolve().parent / 'results'


@dataclass
class Reference:
    """The undisturbed run of a variant."""

    seconds: float
    sizes: dict[str, int]
    final: str
    export: str | None = None


class Checker:
    """Runs cases, and holds them against the undisturbed runs."""

    def __init__(self, runs: Runs, mim: bool) -> None:
        self.runs, self.mim = runs, mim
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
                2 if variant == 'two ranks' else 1)
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
        return self.runs.start(config, work, resume, case.ranks, self.mim,
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
        checker = Checker(runs, mim=not args.fork)
        sizes = {**checker.reference('plain').sizes, 'model.onnx':
                 checker.reference('export').sizes['model.onnx']}
        root = can_mount(Path(folder))
        chosen = [case for case in cases(random.Random(args.seed), sizes,
                                         root)
                  if not args.only or case.kind.startswith(
                      tuple(args.only))]
        rows = []
        for number, case in enumerate(chosen, 1):
            row = checker.check(case, Path(folder) / f'run_{number}')
            rows.append({key: str(value).replace(folder, '').strip()
                         if isinstance(value, str) else value
                         for key, value in row.items()})
            print(f'[{number}/{len(chosen)}] {row["kind"]}, {row["moment"]} '
                  f'({row["run"]}), {row["seconds"]} s: '
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
    lines = [
        f'{good} of {len(rows)} injections ended as they should, all through '
        f'`mim train`; seed {seed}, {seconds / 60:.0f} minutes.',
        *([] if root else ['', 'Without root: no full disk, no read-only '
                           'work directory.']), '',
        '| kind | moment | run | left | the run said | the resume said | '
        'outcome |', '|---|---|---|---|---|---|---|']
    for row in rows:
        cells = (row['kind'], row['moment'], row['run'], row['left'],
                 row['run_said'], row['resume_said'], row['outcome'])
        lines.append('| ' + ' | '.join(
            cell.replace('|', r'\|') for cell in cells) + ' |')
    (folder / 'fault_injection.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
