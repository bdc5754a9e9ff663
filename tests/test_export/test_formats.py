"""A file's ending says what writes it."""

import subprocess
import sys

import pytest
import torch
from exported_models import net, quantized

from fpq_plugin import FPQHook
from fpq_plugin.export import FileFormat, formats, register_format
from fpq_plugin.export.formats import format_of, known_endings
from fpq_plugin.export.onnx_file import ONNX, export_onnx
from fpq_plugin.export.program import HAS_EXPORT


@pytest.fixture
def mine(monkeypatch):
    """A format of two endings that needs a package which is not there."""
    monkeypatch.setattr(formats, '_FORMATS', dict(formats._FORMATS))
    return register_format(FileFormat(
        name='Mine', endings=('.mine', '.plan'),
        packages=('torch', 'no_such_package'), extra='mine',
        check=lambda model, example: None, write=export_onnx))


def test_the_ending_finds_the_format(mine, tmp_path):
    assert format_of('model.onnx') is ONNX
    assert format_of(tmp_path / 'model.v2.plan') is mine
    assert known_endings() == (
        '.encodings or .mine or .onnx or .plan or .pt2 or .pte')
    for path in ('model.pth', 'onnx'):
        with pytest.raises(ValueError, match='.onnx or .plan or .pt2 or .pte, '
                           f"got '{path}'"):
            format_of(path)


def test_an_ending_has_one_format(mine):
    with pytest.raises(ValueError, match='.onnx is the ending of ONNX'):
        register_format(FileFormat('Other', ('.other', '.onnx'), (), '',
                               ONNX.check, ONNX.write))
    assert '.other' not in known_endings()


def test_missing_packages_are_named_with_the_extra(mine):
    with pytest.raises(ImportError, match='Mine needs no_such_package: pip '
                       r"install 'fpq-openmmlab\[mine\]'"):
        mine.require_packages()
    ONNX.require_packages()


def test_the_hook_takes_any_format(mine):
    with pytest.raises(ImportError, match='fpq.export: Mine needs'):
        FPQHook(export='model.mine')


def test_what_onnx_lacks_is_found_before_a_run(mine):
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
        'from fpq_plugin.export import export_onnx, formats, to_torch_int8\n'
        'import fpq_plugin.cli\n'
        'FPQHook()\n'
        'formats.find_spec = lambda name: None\n'
        "export_onnx(torch.nn.Linear(2, 2), 'model.onnx', [])\n")
    run = subprocess.run([sys.executable, '-c', code], capture_output=True,
                         text=True)
    assert run.stderr.strip().splitlines()[-1] == (
        'ImportError: ONNX needs onnx, onnx_ir, onnxruntime: pip install '
        "'fpq-openmmlab[export]'")


def test_a_file_is_for_the_engine_that_takes_it():
    pte, pt2 = format_of('model.pte'), format_of('model.pt2')
    # What was trained for an engine is for it, where it takes the file.
    assert pte.target_for('executorch') == 'executorch'
    assert pt2.target_for('executorch') == 'executorch'
    assert ONNX.target_for('onnxruntime') == 'onnxruntime'
    for trained_for in (None, 'onnxruntime'):
        assert pte.target_for(trained_for) == 'executorch'
        assert pt2.target_for(trained_for) is None
    assert ONNX.target_for('executorch') is None
    assert ONNX.target_for(None) is None


def test_a_file_that_the_engine_does_not_take_is_refused(tmp_path):
    x = torch.randn(5, 3, 8, 8)
    for name, target, endings in (
            ('model.onnx', 'executorch', '.pte or .pt2'),
            *([('model.pt2', 'tensorrt', '.onnx')] if HAS_EXPORT else [])):
        with pytest.raises(ValueError, match=f'takes {endings}, and the file '
                           f'is {name}: .* leave the target out'):
            format_of(name).write(quantized(net(), x), tmp_path / name,
                                  [(x, None)], target=target)
        assert not (tmp_path / name).exists()
