"""The accuracy benchmark: cells, statistics, runs that do not interfere."""

import argparse
import json
import math
import re
import statistics
import sys

import pytest
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from runs import ROOT
from scipy import stats

from fpq_plugin import FPQHook


@pytest.fixture(scope='module')
def bench():
    """The benchmark's modules, which are scripts beside each other."""
    folder = str(ROOT / 'benchmarks/accuracy')
    sys.path.insert(0, folder)
    try:
        import anneal  # noqa: F401, registers its hook
        import cells
        import grid
        import report
        import train
        yield argparse.Namespace(
            cells=cells, grid=grid, report=report, train=train)
    finally:
        sys.path.remove(folder)


def test_the_grid_has_the_papers_tables(bench):
    cells = set(bench.cells.grid())
    for seed in (0, 1, 2):
        for model in ('wide', 'mobilenet_slow_steps', 'resnet18',
                      'mobilenet_v2'):
            for bits in ('w4a4', 'w2a4', 'w2a2'):
                for method in ('lsq', 'lsq_plus', 'pact', 'kd', 'fpq'):
                    assert bench.cells.Cell(model, method, bits,
                                            seed) in cells
        for method in ('lsq', 'sfp', 'csd', 'fpq', 'fpq p=0.3', 'fpq p=1.0'):
            assert bench.cells.Cell('wide', method, 'w2a4', seed) in cells


def test_names_of_cells_are_read_back_and_checked(bench):
    for cell in bench.cells.grid():
        assert bench.cells.Cell.parse(str(cell)) == cell
    for text, message in (('resnet/fpq/w2a4', 'MODEL/METHOD'),
                          ('resnet/fpc/w2a4/0', "'fpc' is none of"),
                          ('resnet/fp/w2a4/0', 'w32a32')):
        with pytest.raises(ValueError, match=message):
            bench.cells.Cell.parse(text)


def test_every_cell_is_a_config_of_ours(bench, tmp_path):
    for cell in dict.fromkeys(bench.cells.grid()):
        if cell.seed == 0:
            cfg = bench.train.build_config(cell, tmp_path)
            assert cfg.load_from == str(
                bench.train.checkpoint(cell.teacher, tmp_path))
            hook = HOOKS.build(cfg.default_hooks.fpq)
            assert hook.recipe.weight['bits'] == int(cell.bits[1])


def test_the_interval_is_students(bench):
    differences = [0.3, -0.1, 0.8, 0.4]
    mean, margin = bench.report.paired(differences)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert mean - margin == pytest.approx(low)
    assert mean + margin == pytest.approx(high)
    assert bench.report.paired([0.3]) == (0.3, None)


def test_the_tables_are_those_of_the_runs(bench):
    folder = ROOT / 'benchmarks/accuracy/results'
    for name, text in bench.report.texts(
            bench.report.collect(folder / 'runs')).items():
        assert (folder / name).read_text() == text


def test_methods_side_by_side_are_of_one_set_of_seeds(bench):
    def row(method, **top1):
        tops = {int(seed[1]): value for seed, value in top1.items()}
        return bench.report.Row(method, tops, 0, None, None, None, None)

    group = [row(method, s1=1.0, s2=2.0, s3=3.0, s4=10.0)
             for method in ('fp', 'lsq', 'sfp_kd')]
    group.append(row('kd', s1=1.0, s2=2.0, s3=3.0, s4=30.0))
    place = ('resnet', 'w4a4')
    few = {place: [*group, row('fpq', s1=1.0, s2=2.0, s9=9.0)]}
    assert not bench.report.compared(few)
    group += [row('fpq', s1=2.0, s2=3.0, s3=4.0), row('pact', s4=10.0)]
    assert bench.report.compared({place: group}) == [place]
    rows = {row.method: row for row in bench.report.of_shared_seeds(group)}
    assert {name: statistics.fmean(row.top1.values())
            for name, row in rows.items()} == {
        'fp': 2.0, 'lsq': 2.0, 'kd': 2.0, 'sfp_kd': 2.0, 'fpq': 3.0}
    assert (rows['kd'].gain, rows['fpq'].gain) == (0, 1)


def test_a_method_with_a_failed_run_has_no_mean(bench):
    tops = {1: 1.0, 2: 2.0, 3: 3.0}
    group = [bench.report.Row(method, tops, 0, None, None, None, None)
             for method in ('fp', 'lsq', 'kd', 'fpq', 'sfp_kd')]
    group.append(bench.report.Row('pact', {1: 9.0, 2: 9.0}, 1, *[None] * 4))
    text = bench.report.summary({('resnet', 'w4a4'): group})
    assert '| `pact` | 1 of 3 failed |' in text
    assert '| `lsq` | **2.00** |' in text


def test_the_grid_makes_every_run(bench):
    cells = set(bench.cells.grid())
    for path in (ROOT / 'benchmarks/accuracy/results/runs').glob('*.json'):
        cell = bench.cells.Cell.parse(json.loads(path.read_text())['cell'])
        assert cell in cells or cell in {c.teacher for c in cells}, cell


def test_the_readmes_table_is_of_the_runs(bench):
    table = (ROOT / 'benchmarks/accuracy/results/short.md').read_text()
    assert table in (ROOT / 'README.md').read_text()
    found = bench.report.collect(ROOT / 'benchmarks/accuracy/results/runs')
    for method, words in bench.report.WORDS.items():
        line, = re.findall(rf'^\| {re.escape(words)} \|(.*)\|$', table, re.M)
        cells = [cell.strip() for cell in line.split('|')]
        for model in bench.report.SHOWN:
            for bits in ('w4a4', 'w2a4', 'w2a2'):
                tops = {r.method: r.top1 for r in found[model, bits]}
                seeds = set.intersection(
                    *(set(tops[m]) for m in bench.report.STYLES))
                assert len(seeds) == 3
                mean = statistics.fmean(tops[method][s] for s in seeds)
                assert cells.pop(0) == f'{mean:.2f}'
        assert not cells


def test_a_run_is_the_same_alone_and_after_others(bench, digits, tmp_path):
    def run(folder, *names):
        args = argparse.Namespace(
            out=tmp_path / folder, work=tmp_path / folder / 'work', epochs=1,
            channels_last=False, deadline=None)
        args.out.mkdir()
        records = []
        for name in ('resnet/fp/w32a32/1', *names):
            cell = bench.cells.Cell.parse(name)
            bench.grid.run(cell, args)
            path = args.out / f'{cell.key}.json'
            records.append(json.loads(path.read_text()))
            stamp = path.stat().st_mtime_ns
            bench.grid.run(cell, args)  # its record is there: kept
            assert path.stat().st_mtime_ns == stamp
        return records

    *_, alone = run('alone', 'resnet/fpq/w2a4/1')
    _, lsq, after = run('after', 'resnet/lsq/w2a4/1', 'resnet/fpq/w2a4/1')
    for key in ('cell', 'top1', 'loss', 'loss_csd'):
        assert alone[key] == after[key]
    assert lsq['loss_csd'] is None
    assert lsq['loss'] != after['loss']
    written = Config.fromfile(
        tmp_path / 'after/work/resnet-fpq-w2a4-1/config.py')
    assert written.default_hooks.fpq.weight.bits == 2
    rows = bench.report.collect(tmp_path / 'after')
    fp, plain, fpq = rows['resnet', 'w2a4']
    assert fpq.gain == pytest.approx(after['top1'] - lsq['top1'])
    assert not bench.report.of_enough_seeds(rows)
    assert (f'* resnet, W2A4, fpq: {after["top1"]:.2f} (seed 1)'
            in bench.report.texts(rows)['table.md'])


def test_runs_do_not_start_from_another_teacher_than_the_records(
        bench, digits, tmp_path):
    args = argparse.Namespace(out=tmp_path, work=tmp_path / 'work', epochs=1,
                              channels_last=True, deadline=None)
    teacher, student = map(bench.cells.Cell.parse, (
        'resnet/fp/w32a32/1', 'resnet/lsq/w4a4/1'))
    bench.grid.run(teacher, args)
    record = tmp_path / f'{teacher.key}.json'
    same = json.loads(record.read_text())
    assert same['channels_last']
    made = bench.train.checkpoint(teacher, args.work, args.epochs)
    old = {k: v for k, v in same.items() if k != 'weights'}
    for record_is, trained_again, kept in (
            (same, False, True), (same, True, True), (old, True, True),
            ({**old, 'top1': 12.5}, True, False),
            ({**same, 'weights': 'other'}, False, False)):
        if not made.exists():
            record.unlink()
            bench.grid.run(teacher, args)
        record.write_text(json.dumps(record_is))
        if trained_again:
            made.unlink()
        line = bench.grid.run(teacher, args)
        assert made.exists() == kept
        assert ('not the network of its record' in line) != kept
        assert json.loads(record.read_text()) == record_is
    assert 'its teacher is not there' in bench.grid.run(student, args)
    assert not (tmp_path / f'{student.key}.json').exists()


@pytest.mark.parametrize('what', ['p', 'loss_weight'])
def test_what_is_annealed_falls_to_0(bench, fpq_config, what):
    hook = dict(type='Anneal', what=what)
    runner = Runner.from_cfg(fpq_config(**{
        'custom_hooks': [hook],
        'default_hooks.fpq.preset': 'paper',
        'default_hooks.fpq.perturbation.p': 0.8}))
    losses = []

    class Look(Hook):

        def before_train(self, runner):
            losses.extend(
                loss for hook in runner.hooks if isinstance(hook, FPQHook)
                for loss in hook.session.distiller.criteria)

    runner.register_hook(Look())
    runner.train()
    if what == 'p':
        found = [m.p for m in runner.model.modules() if hasattr(m, 'p')]
    else:
        found = [loss.loss_weight for loss in losses]
    assert found
    # The cosine one iteration before its end.
    last = (1 + math.cos(math.pi * (1 - 1 / runner.max_iters))) / 2
    start = 0.8 if what == 'p' else 1.0
    assert found == pytest.approx([start * last] * len(found))
