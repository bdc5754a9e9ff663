"""A file's ending says what writes it."""

import subprocess
import sys

import pytest
import torch
from exported_models import net, quantized

from fpq_plugin import FPQHook
from fpq_plugin.export import Target, register_target, targets
from fpq_plugin.export.onnx_file import ONNX, export_onnx
from fpq_plugin.export.targets import known_endings, target_of


@pytest.fixture
def engine(monkeypatch):
    """A target of two endings that needs a package which is not there."""
    monkeypatch.setattr(targets, '_TARGETS', dict(targets._TARGETS))
    return register_target(Target(
        name='Engine', endings=('.engine', '.plan'),
        packages=('torch', 'no_such_package'), extra='engine',
        check=lambda model, example: None, write=export_onnx))


def test_the_ending_finds_the_target(engine, tmp_path):
    assert target_of('model.onnx') is ONNX
    assert target_of(tmp_path / 'model.v2.plan') is engine
    assert known_endings() == '.encodings or .engine or .onnx or .plan or .pt2'
    for path in ('model.pth', 'onnx'):
        with pytest.raises(ValueError, match='.onnx or .plan or .pt2, got '
                           f"'{path}'"):
            target_of(path)


def test_an_ending_has_one_target(engine):
    with pytest.raises(ValueError, match='.onnx is the ending of ONNX'):
        register_target(Target('Other', ('.other', '.onnx'), (), '',
                               ONNX.check, ONNX.write))
    assert '.other' not in known_endings()


def test_missing_packages_are_named_with_the_extra(engine):
    with pytest.raises(ImportError, match='Engine needs no_such_package: pip '
                       r"install 'fpq-openmmlab\[engine\]'"):
        engine.require_packages()
    ONNX.require_packages()


def test_the_hook_takes_any_target(engine):
    with pytest.raises(ImportError, match='fpq.export: Engine needs'):
        FPQHook(export='model.engine')


def test_what_onnx_lacks_is_found_before_a_run(engine):
    x = torch.randn(5, 3, 8, 8)
    ONNX.check(quantized(net(), x), x[:2])
    with pytest.raises(ValueError, match='no fake quantizer'):
        ONNX.check(net().eval(), x[:2])


def test_without_onnx_all_but_the_export_works():
    """And that says what to install."""
    code = (
        'import sys\n'
        "for name in ('onnx', 'onnx_ir', 'onnxruntime'):\n"
        '    sys.modules[name] = None\n'
        'import torch\n'
        'from fpq_plugin import FPQHook\n'
        'from fpq_plugin.export import export_onnx, targets, to_torch_int8\n'
        'import fpq_plugin.cli\n'
        'FPQHook()\n'
        'targets.find_spec = lambda name: None\n'
        "export_onnx(torch.nn.Linear(2, 2), 'model.onnx', [])\n")
    run = subprocess.run([sys.executable, '-c', code], capture_output=True,
                         text=True)
    assert run.stderr.strip().splitlines()[-1] == (
        'ImportError: ONNX needs onnx, onnx_ir, onnxruntime: pip install '
        "'fpq-openmmlab[export]'")
