"""What full precision and calibration alone reach stands beside the result."""

import math
import re

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmengine.runner import Runner
from runs import config, log_of, scalars_of, train, weights
from toy_runs import toy_config

from fpq_plugin.openmmlab.baselines import Baselines


def figures(log):
    """Those of the last line that has three."""
    return [float(x) for x in re.findall(
        r'FPQ: accuracy/top1: (\S+) in full precision, (\S+) after '
        r'calibration alone, (\S+) trained', log)[-1]]


def top1_of(name, work_dir, checkpoint, **more):
    """Top-1 by the Runner's own test."""
    cfg = config(name, work_dir, load_from=str(checkpoint), **more)
    return Runner.from_cfg(cfg).test()['accuracy/top1']


def test_the_three_figures_are_those_of_the_runs(fpq_config, fp, tmp_path,
                                                 backend):
    cfg = fpq_config('fashion_mnist/resnet_lsq_w4a4.py',
                     **{'train_cfg.max_epochs': 2})
    train(cfg)
    full, calibrated, trained = figures(log_of(tmp_path / 'run'))
    assert full == pytest.approx(top1_of(
        'fashion_mnist/resnet_fp.py', tmp_path / 'fp', fp), abs=0.01)
    assert trained == pytest.approx(
        scalars_of(tmp_path / 'run', 'accuracy/top1')[-1], abs=0.01)
    # A run at rate 0 is the calibrated model.
    still = fpq_config('fashion_mnist/resnet_lsq_w4a4.py', 'still',
                       **{'optim_wrapper.optimizer.lr': 0.0})
    still.model.backbone.norm_eval = True
    train(still)
    assert calibrated == pytest.approx(
        scalars_of(tmp_path / 'still', 'accuracy/top1')[-1], abs=0.01)

    # A resumed run has them from the checkpoint, and validates no more.
    saved = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    assert saved['meta']['fpq']['baselines'] == dict(
        metric='accuracy/top1', rule='greater',
        full_precision=pytest.approx(full, abs=0.01),
        calibrated=pytest.approx(calibrated, abs=0.01))
    cfg.update(resume=True, load_from=str(tmp_path / 'run/epoch_1.pth'),
               work_dir=str(tmp_path / 'resumed'))
    cfg.experiment_name += '_resumed'
    train(cfg)
    log = log_of(tmp_path / 'resumed')
    assert figures(log) == [full, calibrated, trained]
    assert 'validates the model' not in log


@pytest.mark.parametrize('backend', ['torch_ao'])
def test_the_training_is_as_without(fpq_config, tmp_path):
    """In every bit."""
    for on in (True, False):
        train(fpq_config(folder=str(on), fpq__baselines=on))
    assert 'calibration alone' not in log_of(tmp_path / 'False')
    one, other = (weights(tmp_path / f'{on}/epoch_1.pth')
                  for on in (True, False))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize('backend', ['torch_ao'])
def test_a_run_that_diverges_says_so(fpq_config, tmp_path):
    train(fpq_config('fashion_mnist/resnet_lsq_w4a4.py', **{
        'optim_wrapper.optimizer.lr': 1.0,
        'train_cfg.max_epochs': 2}))
    log = log_of(tmp_path / 'run')
    assert 'SGD has a learning rate of 1, which is one of training from ' \
        'scratch' in log
    assert log.count('worse than without any training') == 1
    assert log.count('The training has diverged') == 1 or \
        'the training has diverged' in log


@pytest.mark.parametrize('backend', ['torch_ao'])
def test_a_model_that_needs_no_training_is_told(fpq_config, tmp_path):
    train(fpq_config(
        fpq__weight=dict(bits=8), fpq__activation=dict(bits=8)))
    log = log_of(tmp_path / 'run')
    assert 'calibration alone is as good as full precision' in log
    assert 'from scratch' not in log


@METRICS.register_module()
class Words(BaseMetric):
    """Gives no number."""

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return dict(word='fine')


@pytest.mark.parametrize('more', [{}, dict(
    val_dataloader=dict(dataset=dict(type='Numbers'), batch_size=8,
                        sampler=dict(type='DefaultSampler', shuffle=False),
                        collate_fn=dict(type='default_collate')),
    val_cfg=dict(), val_evaluator=dict(type='Words'))])
def test_without_a_figure_nothing_is_said(tmp_path, more):
    runner = Runner.from_cfg(toy_config(tmp_path, **more, log_level='INFO'))
    runner.train()
    log = log_of(tmp_path / 'run')
    assert ('the config has no validation' in log) == (not more)
    assert ('the validation gives no number' in log) == bool(more)
    assert 'in full precision,' not in log
    with pytest.raises(TypeError, match='fpq.baselines: must be True or'):
        Runner.from_cfg(toy_config(tmp_path, fpq=dict(baselines=1)))


class Log:
    """A runner's logger that keeps its lines."""

    def __init__(self):
        self.lines = []
        self.logger = self

    def info(self, text):
        self.lines.append(text)

    warning = info


@pytest.mark.parametrize(('rule', 'best', 'start', 'end', 'told'), [
    ('greater', 80.0, 70.0, 79.0, ''),
    ('greater', 80.0, 70.0, 60.0, 'worse than without any training'),
    ('greater', 80.0, 10.0, 9.4, 'the training has diverged'),
    ('greater', 80.0, 70.0, math.nan, 'the training has diverged'),
    ('less', 1.0, 3.0, 1.2, ''),
    ('less', 1.0, 1.2, 3.0, 'worse than without any training'),
    ('less', 1.0, 1.2, 3.0, 'the training has diverged'),
    (None, 1.0, 1.2, 3.0, ''),
    ('greater', 0.37, None, 0.36, ''),
    ('greater', 0.37, None, 0.1, 'the training has diverged'),
])
def test_what_is_worse_is_told(rule, best, start, end, told):
    baselines, log = Baselines(), Log()
    baselines.scores = dict(metric='m', rule=rule, full_precision=best,
                            calibrated=start)
    baselines.validated(log, dict(m=torch.tensor(end), word='x'))
    baselines.tell_end(log)
    text = ' '.join(log.lines)
    assert f'{best:.4g} in full precision' in text
    assert ('no value after calibration' in text) == (start is None)
    if told:
        assert told in text
    else:
        assert 'worse' not in text
        assert 'diverged' not in text
