"""The numbers of a study are those of the functions."""

import pytest
import torch
from torch import nn

import fpq_plugin
from fpq_plugin import load_model
from fpq_plugin.analysis import hessian_trace, mean_loss
from fpq_plugin.analysis.batches import (
    build_loader,
    draw_batches,
    preprocessed,
)
from fpq_plugin.analysis.study import bits_label, study_layer
from fpq_plugin.analysis.trained_models import TrainedModel

NAIVE = 'W4A4 without training (of full)'


def test_what_is_measured_of_which_model(analysed, trained):
    study = analysed.study
    assert study['layer'] == trained.layer
    assert study['images'] == 12
    models = study['models']
    assert list(models) == ['full', 'quantized epoch_1', 'quantized epoch_2']
    assert [m['epoch'] for m in models.values()] == [3, 1, 2]
    # Everything of each run's last checkpoint, some of the others.
    assert ['layers' in m for m in models.values()] == [True, False, True]
    assert all(m['latency_ms'] > 0 for m in models.values())
    assert set(study['features']['channels']) == {'full', 'quantized', NAIVE}
    assert list(study['untrained']) == [NAIVE]


def test_the_rows_of_layers(analysed, trained):
    models = analysed.study['models']
    rows = {r['name']: r for r in models['quantized epoch_2']['layers']}
    assert rows[trained.layer]['weight_bits'] == 4
    assert rows['head.fc']['weight_bits'] == 8
    assert rows['head.fc']['weights'] == 32 * 10
    assert rows[trained.layer]['sqnr']['output'] > 0
    assert all(r['sqnr'] is None for r in models['full']['layers'])


def test_the_numbers_are_those_of_the_functions(analysed, trained):
    model = load_model(*trained.pairs('epoch_2'))
    loader = build_loader(trained.config('full'), 'train')
    batches = preprocessed(
        model, draw_batches(loader, 12, 0, progress=False))
    found = analysed.study['models']['quantized epoch_2']
    assert found['loss'] == pytest.approx(mean_loss(model, batches), 1e-5)
    trace = hessian_trace(model, batches, 4)
    assert found['trace']['value'] == pytest.approx(trace.total.value, 1e-4)


def test_accuracy_is_that_of_four_times_as_many_test_images(analysed,
                                                            trained):
    loader = build_loader(trained.config('full'), 'val')
    raw = draw_batches(loader, 48, 0, progress=False)
    for name, label in (('full', 'full'), ('epoch_1', 'quantized epoch_1')):
        model = load_model(*trained.pairs(name))
        with torch.no_grad():
            right = [
                int(answer.pred_label) == int(answer.gt_label)
                for batch in raw for answer in model.val_step(batch)
            ]
        assert len(right) == 48
        found = analysed.study['models'][label]
        assert found['accuracy']['value'] == pytest.approx(
            100 * sum(right) / 48, 1e-4)


def test_sizes_are_those_of_the_table_of_layers(analysed, trained):
    model = load_model(*trained.pairs('full'))
    table = fpq_plugin.convert(model)
    models = analysed.study['models']
    assert models['quantized epoch_1']['kilobytes'] == pytest.approx(
        table.weight_bytes() / 1000, 1e-5)
    assert analysed.study['untrained'][NAIVE]['kilobytes'] == (
        models['quantized epoch_1']['kilobytes'])
    floats = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert models['full']['kilobytes'] == pytest.approx(
        floats * 4 / 1000, 1e-5)


def test_the_label_has_the_bits_of_most_layers():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    assert bits_label(model) == 'W32A32'
    fpq_plugin.convert(model, weight=dict(bits=2), activation=dict(bits=3),
                       overrides={'1': dict(weight=dict(bits=5))})
    assert bits_label(model) == 'W2A3'


def test_the_studied_layer_is_the_middle_one():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    trained = [TrainedModel('a', 1, None, ('', ''), model, 'a')]
    assert study_layer(trained, None) == '2'
    assert study_layer(trained, '3') == '3'
    with pytest.raises(ValueError, match=r"--layer: the pattern '9'.*"):
        study_layer(trained, '9')
