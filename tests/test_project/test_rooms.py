"""The structure: imports run one way, without circles."""

import ast
from graphlib import TopologicalSorter

from runs import ROOT
from structure import arrows

PACKAGE = ROOT / 'fpq_plugin'
# From the bottom to the top; a room may import what stands below it.
FLOORS = [
    {'_compat', 'options', 'targets', 'version'},
    {'layers'},
    {'quantizers', 'perturbation', 'distillation'},
    {'add_joints', 'batch_norms', 'calibrate', 'convert', 'joints',
     'layer_table', 'optimizer_watch', 'param_groups', 'plan', 'presets',
     'recipe', 'recipe_checks', 'state'},
    {'export'},
    {'openmmlab'},
    {'analysis'},
    {'__init__', '__main__', 'backbones', 'cli', 'optim'},
]
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
# A public name of before: fpq_plugin.export.export_checkpoint, on demand.
LIFTS = {('export.__init__', 'openmmlab.export_run')}


def modules():
    """From a module's dotted name inside the package to its tree."""
    return {
        '.'.join(path.relative_to(PACKAGE).with_suffix('').parts):
        ast.parse(path.read_text())
        for path in PACKAGE.rglob('*.py')
    }


def room(name):
    # Other names of the commands.
    if name in ('analysis.__main__', 'export.__main__'):
        return 'cli'
    return name.split('.')[0]


def test_every_room_has_a_floor():
    assert {room(name) for name in modules()} == set(FLOOR)


def test_imports_run_downwards():
    wrong = {
        (name, target)
        for name, targets in arrows(PACKAGE).items() for target in targets
        if FLOOR[room(target)] > FLOOR[room(name)] or (
            FLOOR[room(target)] == FLOOR[room(name)] == 2
            and room(target) != room(name))
    }
    assert wrong == LIFTS


def test_no_circles():
    graph = arrows(PACKAGE)
    for name, target in LIFTS:
        graph[name].discard(target)
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) >= set(graph)


def test_runners_are_known_above_the_verbs_only():
    knowing = {
        name
        for name, tree in modules().items() for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or '').startswith('mmengine')
        and any(alias.name == 'Runner' for alias in node.names)
    }
    # The patches replace methods of it; they use none.
    assert {room(name) for name in knowing} == {
        'analysis', 'openmmlab', '_compat'}
    assert {name for name in knowing if room(name) == '_compat'} == {
        '_compat.patches'}
