"""Do the tests notice? A sample of wrong versions of the arithmetic.

    python benchmarks/mutants.py
    python benchmarks/mutants.py --modules lsq csd_function --number 40

A mutant is a module with one change: another operator, comparison, number or
truth value, a negated condition, a lost keyword, statement or result. A
seeded sample of all that the operators below can make is tested, each against
its module's tests in a copy of this tree: first the quick ones, and the rest
if those do not notice. What survives is an untested line, or is equivalent:
``EQUIVALENT`` says why.

Processes are forked from one that has imported torch, so that a mutant costs
the tests' time alone.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / 'results'
LIMIT_S = 900

LAYERS = ['test_layers/test_quantized_layer.py']
EXPORT = ['test_export/test_lowering.py', 'test_export/test_onnx_file.py',
          'test_export/test_build.py', 'test_export/test_features.py',
          'test_export/test_torch_int8.py', 'test_export/test_runtime.py']
ACCUMULATION = ['test_openmmlab/test_fpq_hook.py::'
                'test_accumulation_equals_the_large_batch']
# From a module to its quick tests, and to those for what they leave alive.
TESTS: dict[str, tuple[list[str], list[str]]] = {
    'quantizers/fake_quantize_function.py': (
        ['test_quantizers/test_lsq.py'],
        ['test_quantizers', 'test_compat/test_kernels.py']),
    'quantizers/lsq.py': (
        ['test_quantizers/test_lsq.py',
         'test_quantizers/test_fake_quantize_function.py'],
        ['test_quantizers', *ACCUMULATION]),
    'quantizers/base_fake_quantize.py': (
        ['test_quantizers/test_base_fake_quantize.py',
         'test_quantizers/test_lsq.py'],
        ['test_quantizers', *LAYERS, 'test_calibrate.py', *EXPORT]),
    'quantizers/grid.py': (
        ['test_quantizers/test_base_fake_quantize.py',
         'test_export/test_integers.py'],
        ['test_quantizers', 'test_calibrate.py', *EXPORT]),
    'quantizers/pact_dorefa.py': (
        ['test_quantizers/test_pact_dorefa.py',
         'test_quantizers/test_fake_quantize_function.py'],
        ['test_quantizers', 'test_param_groups.py']),
    'perturbation.py': (['test_perturbation.py'], LAYERS),
    'distillation/losses.py': (
        ['test_distillation/test_losses.py'], ['test_distillation']),
    'distillation/csd_function.py': (
        ['test_distillation/test_losses.py',
         'test_distillation/test_csd_function.py'],
        ['test_distillation', 'test_compat/test_kernels.py']),
    'calibrate.py': (
        ['test_calibrate.py'],
        ['test_openmmlab/test_calibration.py', *LAYERS]),
    'state.py': (
        ['test_state.py'],
        ['test_openmmlab/test_teacher.py',
         'test_openmmlab/test_checkpoints.py']),
    'export/integers.py': (
        ['test_export/test_integers.py', 'test_export/test_filling.py'],
        EXPORT),
    'export/lowering.py': (['test_export/test_lowering.py'], EXPORT),
    'export/features.py': (['test_export/test_features.py'], EXPORT),
    'export/filling.py': (['test_export/test_filling.py'], EXPORT),
    'export/folding.py': (
        ['test_export/test_folding.py'],
        ['test_export/test_padding.py', 'test_joints/test_biases.py',
         *EXPORT]),
    'joints/biases.py': (
        ['test_joints/test_biases.py'],
        ['test_joints/test_attaching.py', 'test_export/test_folding.py',
         'test_openmmlab/test_joints_of_run.py']),
}
# Why a survivor computes the same: by its module and its change.
EQUIVALENT: dict[str, dict[str, str]] = {
    'quantizers/fake_quantize_function.py': {
        '_memory_format: x.is_contiguous(memory_format=torch.channels_last)'
        '  ->  x.is_contiguous()':
        'the same values by the plain kernel, which is slower',
        '_rows_to_sum: scale.numel() > 1 or not _has_many_processors(x)'
        '  ->  scale.numel() > 1 and (not _has_many_processors(x))':
        'the same sum in more rows, which is slower on a CPU',
        '_has_many_processors: return x.is_cuda  ->  return None':
        'both are false on a CPU; tests/test_cuda tells them apart',
        '_run: kernel is _gradients  ->  kernel is not _gradients':
        'the same sums in another number of rows, which is slower',
        'FakeQuantizeFunction.backward: 6  ->  7':
        'autograd takes a None too many',
        '_gradients: grad_step.to(scale.dtype) * _sign(scale)  ->  '
        'grad_step.to(scale.dtype) / _sign(scale)': 'the sign is 1 or -1',
        '_run: 1  ->  0': 'what is repeated once is the same',
    },
    'quantizers/grid.py': {
        ': 16  ->  17': 'how many elements speak for a row: so many, or more',
    },
    'calibrate.py': {
        ': 1000  ->  999': 'after how many batches a loader may have no end',
    },
    'quantizers/base_fake_quantize.py': {
        'BaseFakeQuantize._tell_of_negative: '
        'warnings.warn(\'all observed values are negative and will become 0, '
        'the least value of symmetric=True with signed=False:   ->  '
        'warnings.warn(\'all observed values are negative and will become 0, '
        'the least value of symmetric=True with signed=False: ':
        'the warning names another line',
        'BaseFakeQuantize._fix_channels: 1  ->  2':
        'the tensors have one element, and [:2] of them is [:1]',
    },
    'perturbation.py': {
        'StochasticFeaturePerturbation._perturbed: is_compiling() and '
        'HAS_CUSTOM_OPS  ->  is_compiling() or HAS_CUSTOM_OPS':
        'the same noise by way of the custom operator, which is slower',
        'StochasticFeaturePerturbation.set_clock: 0  ->  1':
        'the first call counts from 0 anew',
        'StochasticFeaturePerturbation._draw: torch.rand(shape, '
        'generator=generator) < self.p  ->  torch.rand(shape, '
        'generator=generator) <= self.p': 'one draw in 2^24 is p itself',
    },
    'distillation/losses.py': {
        'CSDLoss.attach: get_world_size() > 1  ->  get_world_size() >= 1':
        'the joint batch of one process is its own',
        'CSDLoss.attach: len(dims) > 1  ->  len(dims) >= 1':
        'the maps of a tensor of two axes are one sample, whose space is the '
        'batch',
    },
    'distillation/csd_function.py': {
        '_moments.mean: True  ->  False':
        '(C, 1) broadcasts as (1, C, 1) does',
        'CSDFunction.backward: 5  ->  6': 'autograd takes a None too many',
        '_as_maps: maps.is_contiguous() or maps.mT.is_contiguous()  ->  '
        'maps.is_contiguous() and maps.mT.is_contiguous()':
        'a copy in another order of memory has the same values',
        'joint_moments: mean_t - joint_t  ->  mean_t + joint_t':
        'the difference is 2 joint_t sum w (mean_s - joint_s), which is 0',
    },
    'export/lowering.py': {
        'lower_features: 0  ->  -1': 'the node has one output',
        '_seen_by: 0  ->  -1': 'a quantizer has one argument',
        'layer_of: 2  ->  3': 'a bias has no mark',
    },
    'export/folding.py': {
        ': 256  ->  255': 'where integers are tried; the comparison decides',
        ': 30  ->  29': 'room for sums either way',
        '_bias_integers: 127  ->  126': 'no type ends at 126',
        'fold_batch_norm: 0  ->  -1': 'the node has one output',
        'lower_biases: 1  ->  2':
        'a bias is read by the nodes that read its weight',
    },
    'export/integers.py': {
        'IntegerGrid.may_saturate: 2 ** 15 - 1  ->  2 ** 15 + 1':
        '510 times an integer is never between the two',
        'IntegerGrid: 255  ->  254': '32767 // 508 is 64, as 32767 // 510 is',
        'integer_grid: 1  ->  2':
        'numpy takes any negative size for the unknown one',
    },
    'export/features.py': {
        'lower_features: 0  ->  -1': 'the node has one output',
        '_move_integers: 0  ->  -1': 'the node has one output',
        '_move_integers: move.replace_input_with(0, dequantize.inputs[0])  ->'
        '  pass': 'the shape of floats is that of their integers',
        '_move_integers: 3  ->  4': 'a Pad that names no axes pads all',
    },
    'joints/biases.py': {
        ': 30  ->  31': 'room for sums either way',
        'rounded_biases: False  ->  True': 'a trace has no gradients',
    },
}


# -- making mutants -------------------------------------------------------

COMPARISONS: dict[type, list[type]] = {
    ast.Lt: [ast.LtE, ast.GtE], ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE], ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq], ast.NotEq: [ast.Eq],
    ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
    ast.In: [ast.NotIn], ast.NotIn: [ast.In],
}
OPERATORS: dict[type, list[type]] = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div],
    ast.Div: [ast.Mult], ast.FloorDiv: [ast.Mult], ast.Mod: [ast.Mult],
    ast.Pow: [ast.Mult], ast.BitAnd: [ast.BitOr], ast.BitOr: [ast.BitAnd],
    ast.BitXor: [ast.BitAnd], ast.LShift: [ast.RShift],
    ast.RShift: [ast.LShift],
}


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for op in COMPARISONS[type(node.ops[0])]:
            yield ast.Compare(node.left, [op()], node.comparators)
    elif isinstance(node, ast.BinOp):
        for op in OPERATORS.get(type(node.op), []):
            yield ast.BinOp(node.left, op(), node.right)
    elif isinstance(node, ast.AugAssign):
        for op in OPERATORS.get(type(node.op), []):
            yield ast.AugAssign(node.target, op(), node.value)
        yield ast.Pass()
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield ast.BoolOp(other(), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _other_constants(node.value))
    elif isinstance(node, ast.Return) and node.value is not None:
        if not isinstance(node.value, ast.Constant):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.If):
        yield ast.If(_negated(node.test), node.body, node.orelse)
    elif isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg is not None:
                rest = [k for k in node.keywords if k is not keyword]
                yield ast.Call(node.func, node.args, rest)
    elif isinstance(node, ast.Raise) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()


def _other_constants(value: object) -> list:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    return []


def _negated(test: ast.expr) -> ast.expr:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    return ast.UnaryOp(ast.Not(), test)


# Texts, and types that annotations alone use.
SKIPPED_FUNCTIONS = ('extra_repr', '__repr__', 'describe')


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """The nodes that may change, each with the function it is in."""

    def walk(node: ast.AST, where: str) -> Iterator[tuple[ast.AST, str]]:
        yield node, where
        if isinstance(node, (ast.JoinedStr, ast.Raise, ast.Import)):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            where = f'{where}.{node.name}'.lstrip('.')
        for name, value in ast.iter_fields(node):
            if name in ('annotation', 'returns', 'decorator_list'):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_text(child):
                    yield from walk(child, where)

    return walk(tree, '')


def _is_text(node: ast.AST) -> bool:
    """Whether it is a docstring, a text's function or a type's name."""
    if isinstance(node, ast.FunctionDef):
        return node.name in SKIPPED_FUNCTIONS
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return (isinstance(node, ast.Assign) and node.col_offset == 0
            and isinstance(node.value, ast.Subscript))


@dataclass(frozen=True)
class Mutant:
    """One change: the n-th variant of the n-th place of a module."""

    module: str
    place: int
    variant: int
    function: str
    line: int
    change: str

    def source(self, original: str) -> str:
        """The changed module."""
        tree = ast.parse(original)
        node = list(places(tree))[self.place][0]
        new = list(variants(node))[self.variant]

        class Swap(ast.NodeTransformer):

            def visit(self, visited: ast.AST) -> ast.AST:
                return new if visited is node else self.generic_visit(visited)

        return ast.unparse(ast.fix_missing_locations(Swap().visit(tree)))


def mutants_of(module: str) -> Iterator[Mutant]:
    """All mutants of a module."""
    tree = ast.parse((ROOT / 'fpq_plugin' / module).read_text())
    for i, (node, function) in enumerate(places(tree)):
        for j, new in enumerate(variants(node)):
            before, after = _text(node), _text(new)
            yield Mutant(module, i, j, function, node.lineno,
                         f'{before}  ->  {after}')


def _text(node: ast.AST) -> str:
    """A node in one short line; of a condition, the condition."""
    if isinstance(node, ast.If):
        return f'if {ast.unparse(node.test)}'
    text = ast.unparse(ast.fix_missing_locations(node))
    return ' '.join(text.split())[:120]


# -- testing them ---------------------------------------------------------


@dataclass
class Result:
    """What became of a mutant."""

    mutant: Mutant
    killed: bool
    by: str
    seconds: float
    why: str = ''


class Tree:
    """A copy of this tree, in which mutants are tested."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / 'tree'
        self._output = folder / 'output.txt'
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(
            '.git', '*.pyc', 'results', 'work_dirs', 'data'), symlinks=True)
        # The release's checkpoints are named as the data sets are.
        shutil.copytree(ROOT / 'tests/data', self.root / 'tests/data',
                        dirs_exist_ok=True)
        os.environ.update(OMP_NUM_THREADS='1', FPQ_COMPILE='0',
                          PYTHONPATH=str(self.root))
        sys.path.insert(0, str(self.root))
        for name in ('torch', 'mmengine.runner', 'mmpretrain', 'hypothesis',
                     'pytest', 'sklearn.datasets', 'brevitas.nn', 'onnx_ir',
                     'onnxruntime'):
            __import__(name)
        assert 'fpq_plugin' not in sys.modules

    def run(self, tests: list[str], cpu_s: float | None = None
            ) -> tuple[int, str, float]:
        """Run test files; exit status, the first failure, CPU seconds."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        pid = os.fork()
        if not pid:
            self._child(tests, cpu_s)
        end = time.monotonic() + LIMIT_S
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.02)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = (after.ru_utime + after.ru_stime - before.ru_utime
                 - before.ru_stime)
        text = self._output.read_text(errors='replace')
        found = re.search(r'^(?:FAILED|ERROR) (\S+)', text, re.M)
        code = os.waitstatus_to_exitcode(status)
        by = (found[1] if found else 'a time limit' if code < 0 else
              'its import')
        return code, by.replace('tests/', ''), spent

    def _child(self, tests: list[str], cpu_s: float | None) -> None:
        try:
            os.setpgid(0, 0)
            if cpu_s is not None:
                resource.setrlimit(resource.RLIMIT_CPU,
                                   (int(cpu_s), int(cpu_s) + 5))
            output = os.open(self._output,
                             os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(output, number)
            os.chdir(self.root)
            import pytest
            code = int(pytest.main([
                '-x', '-q', '-p', 'no:cacheprovider', '-W', 'ignore',
                '--show-capture=no', '--tb=line',
                *(f'tests/{test}' for test in tests)]))
        except BaseException as error:
            print(repr(error))
            code = 99
        sys.stdout.flush()
        os._exit(code)

    def write(self, module: str, source: str) -> None:
        path = self.root / 'fpq_plugin' / module
        path.write_text(source)
        for cached in (path.parent / '__pycache__').glob(
                f'{path.stem}.*.pyc'):
            cached.unlink()


def examine(tree: Tree, mutant: Mutant, base: dict[str, list[float]]
            ) -> Result:
    """Test a mutant, the quick tests first."""
    original = (ROOT / 'fpq_plugin' / mutant.module).read_text()
    tree.write(mutant.module, mutant.source(original))
    total = 0.0
    try:
        for tests, seconds in zip(TESTS[mutant.module], base[mutant.module]):
            code, by, spent = tree.run(tests, 3 * seconds + 20)
            total += spent
            if code:
                return Result(mutant, True, by, round(total, 1))
    finally:
        tree.write(mutant.module, original)
    why = EQUIVALENT.get(mutant.module, {}).get(
        f'{mutant.function}: {mutant.change}', '')
    return Result(mutant, False, '', round(total, 1), why)


def baseline(tree: Tree, modules: list[str]) -> dict[str, list[float]]:
    """CPU seconds of each module's tests, which must pass."""
    known: dict[tuple[str, ...], float] = {}
    for module in modules:
        for tests in map(tuple, TESTS[module]):
            if tests not in known:
                code, by, known[tests] = tree.run(list(tests))
                if code:
                    sys.exit(f'without a mutant {by} fails')
                print(f'{known[tests]:6.1f} s  {" ".join(tests)}', flush=True)
    return {module: [known[tuple(tests)] for tests in TESTS[module]]
            for module in modules}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--number', type=int, default=220)
    parser.add_argument('--modules', nargs='+', metavar='MODULE')
    parser.add_argument('--again', type=Path, metavar='JSON',
                        help='what survived in an earlier result, or has no '
                        'row there')
    parser.add_argument('--out', type=Path, default=RESULTS, metavar='FOLDER')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    modules = [module for module in TESTS if not args.modules
               or Path(module).stem in args.modules]
    every = [mutant for module in modules for mutant in mutants_of(module)]
    chosen = random.Random(args.seed).sample(
        every, min(args.number, len(every)))
    earlier: list[dict] = []
    if args.again is not None:
        earlier = json.loads(args.again.read_text())['mutants']
        chosen, earlier = _left(every, chosen, earlier)
        modules = [m for m in modules if any(c.module == m for c in chosen)]
    chosen.sort(key=lambda mutant: (modules.index(mutant.module),
                                    mutant.line))
    print(f'{len(chosen)} of {len(every)} mutants', flush=True)
    with tempfile.TemporaryDirectory(prefix='fpq_mutants_') as folder:
        tree = Tree(Path(folder))
        base = baseline(tree, modules)
        rows = list(earlier)
        for number, mutant in enumerate(chosen, 1):
            result = examine(tree, mutant, base)
            print(f'[{number}/{len(chosen)}] {_line(result)}', flush=True)
            rows.append(_row(result))
            write(args.out, rows, len(every), args.seed)
    sys.exit(any(not row['killed'] and not row['why'] for row in rows))


def _left(every: list[Mutant], sample: list[Mutant], earlier: list[dict]
          ) -> tuple[list[Mutant], list[dict]]:
    """The mutants that are to be tested, and the rows that stay.

    To be tested are those of the sample without a row, and the survivors.
    """
    key = ('module', 'function', 'change')
    rows = Counter(tuple(row[k] for k in key) for row in earlier)
    alive = Counter(tuple(row[k] for k in key) for row in earlier
                    if not row['killed'])
    chosen = []
    for mutant in every:
        name = tuple(getattr(mutant, k) for k in key)
        new = mutant in sample and not rows[name]
        rows[name] -= rows[name] > 0
        if new or alive[name]:
            alive[name] -= alive[name] > 0
            chosen.append(mutant)
    return chosen, [row for row in earlier if row['killed']]


def _row(result: Result) -> dict:
    mutant = asdict(result.mutant)
    return dict(
        **{k: mutant[k] for k in ('module', 'function', 'line', 'change')},
        killed=result.killed, by=result.by, why=result.why,
        seconds=result.seconds)


def _line(result: Result) -> str:
    mutant = result.mutant
    end = (f'killed by {result.by}' if result.killed else
           f'equivalent: {result.why}' if result.why else 'SURVIVED')
    return (f'{mutant.module}:{mutant.line} {mutant.function}: '
            f'{mutant.change}: {end} ({result.seconds} s)')


def write(folder: Path, rows: list[dict], possible: int, seed: int) -> None:
    """The rows as JSON and, by module, as a Markdown table."""
    from machine import made_by

    order = list(TESTS)
    rows = sorted(rows, key=lambda r: (order.index(r['module']), r['line']))
    killed = sum(row['killed'] for row in rows)
    explained = sum(bool(row['why']) for row in rows)
    report = dict(**made_by(threads=1), seed=seed, possible=possible,
                  tested=len(rows), killed=killed, equivalent=explained,
                  cpu_seconds=round(sum(row['seconds'] for row in rows)),
                  mutants=rows)
    (folder / 'mutants.json').write_text(json.dumps(report, indent=1) + '\n')
    lines = [
        f'{len(rows)} of {possible} possible mutants, seed {seed}: {killed} '
        f'killed, {explained} equivalent, '
        f'{len(rows) - killed - explained} alive.', '',
        '| module | mutants | killed | equivalent | alive |',
        '|---|---|---|---|---|']
    for module in order:
        own = [row for row in rows if row['module'] == module]
        if own:
            counts = (len(own), sum(r['killed'] for r in own),
                      sum(bool(r['why']) for r in own))
            lines.append(f'| `{module}` | {counts[0]} | {counts[1]} | '
                         f'{counts[2]} | {counts[0] - sum(counts[1:])} |')
    left = [row for row in rows if not row['killed']]
    if left:
        lines += ['', '| not killed | change | why |', '|---|---|---|']
    for row in left:
        cells = (f'`{row["module"]}` {row["function"]}',
                 f'`{row["change"]}`', row['why'] or 'alive')
        lines.append('| ' + ' | '.join(
            cell.replace('|', r'\|') for cell in cells) + ' |')
    (folder / 'mutants.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    main()
