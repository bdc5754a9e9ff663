"""An exported file by the config's test: as `mim test`, in the engine."""

import json

import numpy as np
import onnx
import pytest
import torch
from mmengine import Config
from runs import mim, train, write_config

from fpq_plugin import load_model
from fpq_plugin.cli import main
from fpq_plugin.export.formats import OpenedFile
from fpq_plugin.export.program import HAS_EXPORT
from fpq_plugin.openmmlab.checkpoints import build_model
from fpq_plugin.openmmlab.evaluation import (
    Evaluation,
    answered_by,
    evaluate_file,
    evaluator_of,
)
from fpq_plugin.openmmlab.export_run import (
    export_checkpoint,
    image_batches,
    ordered_images,
)


@pytest.fixture(scope='module')
def exported(trained, tmp_path_factory):
    """Config, checkpoint and file."""
    folder = tmp_path_factory.mktemp('exported')
    config, checkpoint = trained.pairs('epoch_1')
    export_checkpoint(config, checkpoint, folder / 'model.onnx')
    return config, checkpoint, folder / 'model.onnx'


def test_the_metric_is_that_of_mim_test(exported, tmp_path, capsys):
    config, checkpoint, file = exported
    main(['evaluate', config, str(file), '--checkpoint', checkpoint,
          '--json', str(tmp_path / 'it.json')])
    found = json.loads((tmp_path / 'it.json').read_text())
    text = mim('test', 'mmpretrain', config, '--checkpoint', checkpoint,
               '--work-dir', str(tmp_path), cwd=tmp_path)
    wanted = float(text.rpartition('accuracy/top1: ')[2].split()[0])
    assert found['trained']['accuracy/top1'] == pytest.approx(wanted, abs=1e-4)
    # One of 397 images.
    assert abs(found['differences']['accuracy/top1']) < 0.26
    assert found['images'] == 397
    printed = capsys.readouterr().out
    for part in ('accuracy/top1', f'{wanted:.4f}', 'difference',
                 f'{file} in onnxruntime, 397 images'):
        assert part in printed


def test_the_file_alone_answers(exported, trained):
    """Not the model: its weights are fresh ones."""
    config, checkpoint, file = exported
    found = evaluate_file(config, file)
    assert found.trained is None
    assert found.differences() == {}
    model = load_model(config, checkpoint)
    right = count = 0
    import onnxruntime
    session = onnxruntime.InferenceSession(file.read_bytes())
    batches = image_batches(model, ordered_images(model._config), 397)
    for images, labels in batches:
        scores, = session.run(None, {'input': images.numpy()})
        right += int((scores.argmax(1) == labels.numpy()).sum())
        count += len(labels)
    assert found.file['accuracy/top1'] == pytest.approx(100 * right / count)


def test_a_file_of_one_batch_size_gets_whole_batches(exported, tmp_path):
    config, checkpoint, file = exported
    one = tmp_path / 'of_30.onnx'
    export_checkpoint(config, checkpoint, one, batch_size=30)
    assert evaluate_file(config, one).file == evaluate_file(config, file).file


@pytest.mark.skipif(not HAS_EXPORT, reason='this torch has no .pt2 files')
def test_a_program_is_run_by_torch(exported, tmp_path):
    config, checkpoint, _ = exported
    for size in (None, 30):
        file = tmp_path / f'{size}.pt2'
        options = {} if size is None else {'batch_size': size}
        export_checkpoint(config, checkpoint, file, **options)
        found = evaluate_file(config, file, checkpoint)
        assert found.engine == 'torch'
        assert abs(found.differences()['accuracy/top1']) < 0.26
    with pytest.raises(ValueError, match="is run by 'torch', not by 'onnxru"):
        evaluate_file(config, file, engine='onnxruntime')


def test_executorch_runs_its_own_file(fpq_config, tmp_path):
    """Of one image at a time, trained with its joints."""
    pytest.importorskip('executorch')
    cfg = fpq_config(fpq__target='executorch', fpq__first_last_bits=7)
    train(cfg)
    file, checkpoint = tmp_path / 'model.pte', tmp_path / 'run/epoch_1.pth'
    report = export_checkpoint(cfg, str(checkpoint), file)
    assert report.moved_weights == 0
    assert report.kernels.on_integers() == len(report.kernels.layers) == 17
    found = evaluate_file(cfg, file, str(checkpoint))
    assert found.engine == 'ExecuTorch'
    assert abs(found.differences()['accuracy/top1']) < 0.26


def test_a_file_of_another_tool_is_taken(exported, tmp_path):
    """Of one input, by any name; the values count, not where they are from."""
    config, _, file = exported
    model = onnx.load(file)
    for node in model.graph.node:
        node.input[:] = ['pixels' if name == 'input' else name
                         for name in node.input]
    model.graph.input[0].name = 'pixels'
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'other.onnx')
    found = evaluate_file(config, tmp_path / 'other.onnx')
    assert found.file == evaluate_file(config, file).file
    model.graph.input.append(onnx.helper.make_tensor_value_info(
        'more', onnx.TensorProto.FLOAT, [1]))
    onnx.save(model, tmp_path / 'two.onnx')
    with pytest.raises(ValueError, match='has 2 inputs: one is taken'):
        evaluate_file(config, tmp_path / 'two.onnx')


def test_a_file_for_another_engine_is_run_in_float(exported, tmp_path):
    config, _, file = exported
    known = onnx.load(file)
    note, = (note for note in known.metadata_props
             if note.key == 'fpq.target')
    note.value = 'tensorrt'
    onnx.save(known, tmp_path / 'model.onnx')
    assert evaluate_file(config, tmp_path / 'model.onnx').engine == (
        'onnxruntime, in float: the file is for TensorRT')
    assert evaluate_file(config, tmp_path / 'model.onnx',
                         engine='onnxruntime').engine == 'onnxruntime'


def test_an_encodings_file_is_run_by_nothing(exported, tmp_path):
    (tmp_path / 'model.encodings').touch()
    with pytest.raises(ValueError, match='is run by nothing here'):
        evaluate_file(exported[0], tmp_path / 'model.encodings')


@pytest.mark.parametrize(('args', 'why'), [
    (['none.onnx'], "no file 'none.onnx'"),
    (['model.pth'], 'must end in'),
    (['{file}', '--engine', 'torch'],
     "is run by 'onnxruntime' or 'openvino', not by 'torch'"),
    (['{file}', '--json', 'nowhere/it.json'], '--json: no folder nowhere'),
])
def test_wrong_input_is_named(exported, tmp_path, monkeypatch, args, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'model.pth').touch()
    with pytest.raises(SystemExit, match=f'^fpq: error: .*{why}'):
        main(['evaluate', exported[0],
              *(arg.format(file=exported[2]) for arg in args)])


def test_a_config_without_a_test_is_refused(exported):
    config, _, file = exported
    cfg = Config.fromfile(config)
    cfg.test_dataloader = cfg.test_evaluator = None
    assert evaluate_file(cfg, file).images == 397  # those of val
    cfg.val_evaluator = None
    with pytest.raises(ValueError, match='no val_evaluator'):
        evaluate_file(cfg, file)


def test_metrics_of_any_form(exported):
    cfg = Config.fromfile(exported[0])
    build_model(cfg)  # sets the scope of names
    one = dict(type='Accuracy', topk=1)
    for form in (one, [one, dict(type='SingleLabelMetric')],
                 dict(type='Evaluator', metrics=[one]), dict(metrics=one)):
        cfg.test_evaluator = form
        assert evaluator_of(cfg).metrics


def test_a_model_without_a_head_is_refused():
    opened = OpenedFile(lambda x: x, 'onnxruntime')
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match='Sequential has no head'), \
            answered_by(model, opened):
        pass
    model.extract_feat, model.head = (lambda x: x), torch.nn.Identity()
    with pytest.raises(ValueError, match='the file was not asked'), \
            answered_by(model, opened):
        pass
    assert model.head(1) == 1  # as it was


def test_differences_are_the_file_less_the_model():
    found = Evaluation('m.onnx', 'it', 3, {'a': 2.0, 'b': 1.0}, {'a': 2.5})
    assert found.differences() == {'a': -0.5}
    assert found.as_dict()['differences'] == {'a': -0.5}
    assert '-0.5' in str(found)
    assert np.isclose(found.as_dict()['file']['b'], 1)


def test_the_config_need_not_be_quantized(trained, exported, tmp_path):
    """The file has all weights; `write_config` makes one of full precision."""
    config = tmp_path / 'full.py'
    write_config(config, 'fashion_mnist/resnet_fp.py')
    assert evaluate_file(str(config), exported[2]).file == evaluate_file(
        exported[0], exported[2]).file
