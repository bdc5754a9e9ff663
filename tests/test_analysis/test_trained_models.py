"""Loading the models of an analysis, their names, and the untrained one."""

import torch
from torch import nn

from fpq_plugin import load_model
from fpq_plugin.analysis import naive_quantization
from fpq_plugin.analysis.batches import (
    build_loader,
    draw_batches,
    preprocessed,
)
from fpq_plugin.analysis.trained_models import (
    TrainedModel,
    last_checkpoints,
    load_trained_models,
)
from fpq_plugin.state import float_state


def test_checkpoints_of_one_config_are_one_run(trained):
    pairs = trained.pairs('full', 'epoch_1', 'epoch_2')
    models = load_trained_models(list(zip(pairs[::2], pairs[1::2])))
    assert [(m.run, m.label, m.epoch, m.is_quantized()) for m in models] == [
        ('full', 'full', 3, False),
        ('quantized', 'quantized epoch_1', 1, True),
        ('quantized', 'quantized epoch_2', 2, True)]
    assert not any(m.model.training for m in models)
    assert last_checkpoints(models) == [models[0], models[2]]


def test_the_last_checkpoint_is_that_of_the_highest_epoch():
    a, b, c = (TrainedModel(run, epoch, None, ('', ''), nn.Identity(), '')
               for run, epoch in (('x', 9), ('y', None), ('x', 10)))
    assert last_checkpoints([c, b, a]) == [c, b]


def test_configs_of_one_name_are_told_apart(trained, tmp_path):
    other = tmp_path / 'full.py'
    other.write_bytes((trained.folder / 'full.py').read_bytes())
    full = trained.pairs('full')
    models = load_trained_models([tuple(full), (str(other), full[1])])
    assert [m.run for m in models] == [
        str(trained.folder / 'full'), str(tmp_path / 'full')]
    assert [m.run for m in load_trained_models([tuple(full)])] == ['full']


def test_a_full_precision_config_is_loaded_as_it_was_saved(trained):
    model = load_model(*trained.pairs('full'))
    saved = torch.load(trained.folder / 'full.pth', weights_only=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved['state_dict'][key])


def test_naive_is_calibrated_only(trained):
    full = load_model(*trained.pairs('full'))
    cfg = trained.config('quantized')
    batches = preprocessed(
        full, draw_batches(build_loader(cfg, 'train'), 40, 0, False))
    naive = naive_quantization(full, cfg, batches)
    assert not hasattr(full.backbone.conv1, 'weight_quantizer')
    assert naive.backbone.conv1.weight_quantizer.is_initialized()
    for key, value in full.state_dict().items():
        assert torch.equal(float_state(naive)[key], value)
