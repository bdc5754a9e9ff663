"""Config and checkpoint to a file: the command, and the hook's option."""

import json
import subprocess
import sys

import onnx
import pytest
import torch
from runs import log_of, mim, train, write_config

from fpq_plugin import FPQHook, load_model
from fpq_plugin.cli import main
from fpq_plugin.export import formats
from fpq_plugin.export.program import HAS_EXPORT
from fpq_plugin.openmmlab.export_run import (
    export_checkpoint,
    image_batches,
    ordered_images,
)


def export(*args):
    return subprocess.run(
        [sys.executable, '-m', 'fpq_plugin.export', *map(str, args)],
        capture_output=True, text=True)


def test_a_run_exports_at_its_end(fpq_config, tmp_path):
    """And the command makes the same file of the checkpoint."""
    cfg = fpq_config(fpq__export='model.onnx')
    train(cfg)
    made = tmp_path / 'run/model.onnx'
    notes = {p.key: p.value for p in onnx.load(made).metadata_props}
    assert notes['fpq.checkpoint'] == 'epoch_1.pth'
    assert 'FPQ exported' in log_of(tmp_path / 'run')
    assert 'equal class 100.00 %' in log_of(tmp_path / 'run')

    cfg.dump(str(tmp_path / 'config.py'))
    done = export(tmp_path / 'config.py', tmp_path / 'run/epoch_1.pth', '-o',
                  tmp_path / 'again.onnx', '--json', tmp_path / 'again.json')
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'ms, batch 32, unpacked' in done.stdout
    figures = json.loads((tmp_path / 'again.json').read_text())
    assert figures['parity']['images'] == 397
    assert figures['parity']['equal'] == 100
    # A value that rounds the other way moves an output by a step.
    assert figures['parity']['mean_difference'] < 1e-4
    assert figures['size_ratio'] < 0.3
    first, second = (onnx.load(p).graph for p in (made,
                                                  tmp_path / 'again.onnx'))
    assert first == second

    done = export(tmp_path / 'config.py', tmp_path / 'run/epoch_1.pth', '-o',
                  tmp_path / 'unsigned.onnx', '--unsigned-weights')
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = {tensor.data_type for tensor in onnx.load(
        tmp_path / 'unsigned.onnx').graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds
    assert onnx.TensorProto.INT8 not in kinds

    command = ['export', str(tmp_path / 'config.py'),
               str(tmp_path / 'run/epoch_1.pth'), '-o',
               str(tmp_path / 'more.onnx')]
    with pytest.raises(SystemExit, match='TensorRT takes 8-bit integers '
                       'around 0(.|\n)*symmetric=True'):
        main([*command, '--target', 'tensorrt'])
    assert not (tmp_path / 'more.onnx').exists()
    main([*command, '--batch-size', '32'])
    notes = {p.key: p.value
             for p in onnx.load(tmp_path / 'more.onnx').metadata_props}
    assert notes['fpq.batch_size'] == '32'

    if HAS_EXPORT:
        command[4] = str(tmp_path / 'model.pt2')
        main(command)
        program = torch.export.load(command[4])
        assert torch.int8 in {
            value.dtype for value in program.state_dict.values()}


@pytest.mark.slow
def test_top1_is_that_of_mim_test(digits, fp, tmp_path):
    path = write_config(
        tmp_path / 'mine.py', 'fashion_mnist/resnet_fpq_w2a2.py', **{
            'load_from': str(fp), 'train_cfg.max_epochs': 1})
    mim('train', 'mmpretrain', path, '--work-dir', tmp_path / 'run',
        cwd=tmp_path, FPQ_COMPILE='0')
    trained = tmp_path / 'run/epoch_1.pth'
    out = mim('test', 'mmpretrain', path, '--checkpoint', trained,
              '--work-dir', tmp_path / 'test', cwd=tmp_path)
    report = export_checkpoint(str(path), str(trained), tmp_path / 'it.onnx')
    wanted = float(out.split('accuracy/top1: ')[1].split()[0])
    assert report.parity.top1_exported == pytest.approx(wanted, abs=1e-3)
    assert report.opset == 21


def test_bad_input_is_told_and_nothing_written(fpq_config, fp, tmp_path):
    cfg = fpq_config()
    cfg.dump(str(tmp_path / 'config.py'))
    out = tmp_path / 'model.onnx'
    for checkpoint, why in ((fp, 'is of a full-precision model'),
                            (tmp_path / 'no.pth', 'no file')):
        with pytest.raises(SystemExit, match=why):
            main(['export', str(tmp_path / 'config.py'), str(checkpoint),
                  '-o', str(out)])
    assert not out.exists()


def test_options_that_cannot_work_are_refused():
    with pytest.raises(TypeError, match='fpq.export: must be the path'):
        FPQHook(export=True)
    with pytest.raises(ValueError, match='fpq.export: the file must end in'):
        FPQHook(export='model.pth')
    with pytest.raises(ValueError, match='fpq.export: nothing to export'):
        FPQHook(weight=None, activation=None, export='model.onnx')


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(formats, 'find_spec',
                        lambda name: None if name == 'onnx_ir' else 1)
    with pytest.raises(ImportError, match=r'fpq.export: ONNX needs onnx_ir: '
                       r"pip install 'fpq-openmmlab\[export\]'"):
        FPQHook(export='model.onnx')


def test_a_missing_folder_stops_before_the_training(fpq_config, tmp_path):
    with pytest.raises(ValueError, match='fpq.export: no folder .*nowhere'):
        train(fpq_config(fpq__export='nowhere/model.onnx'))
    assert not list((tmp_path / 'run').glob('epoch_*.pth'))


def test_images_are_the_first_of_the_test_set(fpq_config):
    cfg = fpq_config()
    train(cfg)
    model = load_model(cfg, f'{cfg.work_dir}/epoch_1.pth')
    batches = list(image_batches(model, ordered_images(cfg), 260))
    assert [len(images) for images, _ in batches] == [250, 10]
    assert [len(labels) for _, labels in batches] == [250, 10]
