"""The results of step_time.py, of all models side by side, in Markdown.

    python benchmarks/step_table.py

Writes ``results/step_time.md``, of CPUs, and ``step_time_cuda.md``.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'


def table(reports: list[dict]) -> str:
    """A column for each report: time over FP, over the floor, peak MiB."""
    lines = ['| step | ' + ' | '.join(head(r) for r in reports) + ' |',
             '|---|' + '---|' * len(reports)]
    variants = dict.fromkeys(v for r in reports for v in r['variants'])
    for variant in variants:
        lines.append(f'| {variant} | ' + ' | '.join(
            entry(r['variants'].get(variant)) for r in reports) + ' |')
    lines += ['', 'Each entry: time over the full-precision step / over the '
              'floor, peak memory in MiB.', '']
    for r in reports:
        for variant, row in r['variants'].items():
            if 'refused' in row:
                why = row['refused'].splitlines()[0][:160]
                lines.append(f'* {variant}, {r["model"]}: {why}')
    lines += [f'* {r["model"]}: `{r["command"]}`, {r["device"]}, torch '
              f'{r["torch"]}, {r["repeats"]} repetitions' for r in reports]
    return '\n'.join(lines) + '\n'


def head(report: dict) -> str:
    """Model, batch and threads, and what 1.00 x is."""
    ms = report['variants']['FP']['ms']
    keep = ', memory kept' if report['keep_memory'] else ''
    return (f'{report["model"]}, batch {report["batch"][0]}, '
            f'{report["threads"]} threads{keep} (FP {ms:.0f} ms)')


def entry(row: dict | None) -> str:
    """One variant on one model."""
    if row is None:
        return ''
    if 'refused' in row:
        return 'refused'
    floor = f'{row["to_floor"]:.2f}' if 'to_floor' in row else '-'
    return f'{row["to_fp"]:.2f} / {floor}, {row["peak_mib"]:.0f}'


if __name__ == '__main__':
    paths = sorted(RESULTS.glob('step_time_*.json'))
    for kind, chosen in (
            ('', [p for p in paths if not p.stem.endswith('_cuda')]),
            ('_cuda', [p for p in paths if p.stem.endswith('_cuda')])):
        text = table([json.loads(path.read_text()) for path in chosen])
        (RESULTS / f'step_time{kind}.md').write_text(text)
        print(text)
