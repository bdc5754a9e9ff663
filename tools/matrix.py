"""The table of environments: makes each with tox, tests it, runs the demo.

Times are of a fresh environment, with whatever pip has in its cache. Each
environment's row goes into docs/results/matrix.json as it is done, and from
there into docs/matrix.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'docs/results/matrix.json'
PAGE = ROOT / 'docs/matrix.md'
MARKS = '<!-- rows -->\n', '<!-- end of rows -->\n'
HEAD = ('| environment | Python | torch | torchvision | numpy | install, s | '
        'tests passed | failed | skipped | tests, s | '
        'demo FP / LSQ / FPQ, % | demo, s |')
VERSIONS = """
import json, platform
from importlib.metadata import version
found = {name: version(name) for name in ('torch', 'torchvision', 'numpy')}
print(json.dumps(dict(python=platform.python_version(), **found)))
"""


def timed(*command: str | Path, **options) -> tuple[int, int]:
    """Run a command; its exit code and seconds."""
    print('\n$', *command, flush=True)
    start = time.time()
    code = subprocess.run([*map(str, command)], cwd=ROOT, **options).returncode
    return code, round(time.time() - start)


def counts(report: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, from JUnit XML."""
    suite = ElementTree.parse(report).getroot().find('testsuite')
    total, skipped, failed = (
        int(suite.get('tests')), int(suite.get('skipped')),
        int(suite.get('failures')) + int(suite.get('errors')))
    return dict(passed=total - failed - skipped, failed=failed,
                skipped=skipped)


def row(environment: str, data: Path, tests: list[str]) -> dict:
    """Make the environment, test it, run the demo; its row."""
    tox = [sys.executable, '-m', 'tox', 'run', '-e', environment]
    found: dict = dict(environment=environment, commit=subprocess.check_output(
        ['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, text=True).strip())
    code, found['install_s'] = timed(*tox, '--recreate', '--notest')
    if code:
        sys.exit(f'{environment} cannot be installed')
    python = ROOT / '.tox' / environment / 'bin/python'
    found.update(json.loads(subprocess.check_output([python, '-c', VERSIONS])))

    out = ROOT / 'work_dirs/matrix' / environment
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    report = out / 'tests.xml'
    _, found['tests_s'] = timed(*tox, '--skip-pkg-install', '--',
                                f'--junitxml={report}', *tests)
    found.update(counts(report))

    code, found['demo_s'] = timed(
        python, 'tools/demo.py', '--data', data, '--out', out / 'demo',
        '--epochs', '1', '--images', '12000',
        env={**os.environ, 'OMP_NUM_THREADS': '1'})
    found['demo'] = None if code else {
        r['method']: r['top1'] for r in
        json.loads((out / 'demo/results.json').read_text())['rows']}
    return found


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [HEAD, '|' + '---|' * (HEAD.count('|') - 1)]
    for r in rows:
        demo = 'failed' if r['demo'] is None else ' / '.join(
            f'{top1:.2f}' for top1 in r['demo'].values())
        lines.append(
            f'| `{r["environment"]}` | {r["python"]} | {r["torch"]} | '
            f'{r["torchvision"]} | {r["numpy"]} | {r["install_s"]} | '
            f'{r["passed"]} | {r["failed"]} | {r["skipped"]} | '
            f'{r["tests_s"]} | {demo} | {r["demo_s"]} |')
    return '\n'.join(lines) + '\n'


def render(rows: list[dict], page: str) -> str:
    """The page with the rows between its marks."""
    before, rest = page.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return before + MARKS[0] + '\n' + table(rows) + '\n' + MARKS[1] + after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('environments', nargs='+', help='names in tox.ini')
    parser.add_argument('--data', type=Path, default=Path('data'),
                        help='folder that holds fashion_mnist/')
    parser.add_argument('--tests', nargs='*', default=[],
                        help='files to test; nothing is written then')
    args = parser.parse_args()
    for environment in args.environments:
        new = row(environment, args.data.resolve(), args.tests)
        print(table([new]))
        if args.tests:
            continue
        rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
        rows = sorted(
            [r for r in rows if r['environment'] != environment] + [new],
            key=lambda r: [int(part) for part in r['torch'].split('+')[
                0].split('.')])
        RESULTS.write_text(json.dumps(rows, indent=1) + '\n')
        PAGE.write_text(render(rows, PAGE.read_text()))


if __name__ == '__main__':
    main()
