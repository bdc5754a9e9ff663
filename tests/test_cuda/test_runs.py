"""Whole runs on a GPU: in float32, with AMP, resumed, exported."""

import pytest
import torch
from exact_hessian import exact_hessian, small_batches, small_net
from runs import log_of, scalars_of, train, weights

from fpq_plugin import load_model
from fpq_plugin._compat.kernels import compile_report
from fpq_plugin.analysis import PlainBatch, hessian_trace

AMP = {
    'optim_wrapper.type': 'AmpOptimWrapper',
    'optim_wrapper.loss_scale': 'dynamic'
}


def accuracy(runner):
    return runner.message_hub.get_scalar('val/accuracy/top1').current()


@pytest.mark.parametrize('dtype', [None, 'float16', 'bfloat16'])
def test_a_run_learns(fpq_config, tmp_path, dtype):
    amp = {} if dtype is None else {**AMP, 'optim_wrapper.dtype': dtype}
    runner = train(fpq_config(**{'train_cfg.max_epochs': 2, **amp}))
    assert next(runner.model.parameters()).is_cuda
    assert compile_report().failure is None
    assert accuracy(runner) > 50
    for key, value in weights(tmp_path / 'run/epoch_2.pth').items():
        if value.is_floating_point():
            assert value.dtype is torch.float32, key
            assert torch.isfinite(value).all(), key
    losses = scalars_of(tmp_path / 'run', 'loss_csd')
    assert 0 < losses[-1] < losses[0]


def test_amp_distils_what_float32_distils(fpq_config, tmp_path):
    first = []
    for name, amp in (('float32', {}), ('half', AMP)):
        train(fpq_config(
            folder=name, fpq__perturbation=None,
            **{'default_hooks.logger.interval': 1, **amp}))
        first.append(scalars_of(tmp_path / name, 'loss_csd')[0])
    assert first[1] == pytest.approx(first[0], rel=0.02)


@pytest.mark.parametrize('amp', [{}, AMP], ids=['float32', 'half'])
def test_a_resumed_run_ends_near_the_straight_one(fpq_config, tmp_path, amp):
    straight = train(fpq_config(folder='straight',
                                **{'train_cfg.max_epochs': 3, **amp}))
    cfg = fpq_config(folder='resumed', **{'train_cfg.max_epochs': 3, **amp})
    cfg.resume, cfg.load_from = True, str(tmp_path / 'straight/epoch_1.pth')
    resumed = train(cfg)
    assert 'FPQ calibrates' in log_of(tmp_path / 'straight')
    assert 'FPQ calibrates' not in log_of(tmp_path / 'resumed')
    # cuDNN's sums differ from run to run.
    assert accuracy(resumed) == pytest.approx(accuracy(straight), abs=5)


def test_the_cpu_answers_as_the_gpu_did(fpq_config, tmp_path):
    cfg = fpq_config(**{'default_hooks.fpq.export': 'model.onnx'})
    runner = train(cfg)
    model = load_model(cfg, str(tmp_path / 'run/epoch_1.pth'), device='cpu')
    right = total = 0
    for batch in runner.val_dataloader:
        for sample in model.test_step(batch):
            right += int(sample.pred_label) == int(sample.gt_label)
            total += 1
    assert 100 * right / total == pytest.approx(accuracy(runner), abs=1)
    assert (tmp_path / 'run/model.onnx').stat().st_size > 10_000


@pytest.mark.parametrize('quantized', [False, True])
def test_the_hessian_is_the_cpus(quantized):
    exact = exact_hessian(small_net(quantized), small_batches())
    model = small_net(quantized).cuda()
    batches = [PlainBatch(b.inputs.cuda(), b.target.cuda())
               for b in small_batches()]
    found = hessian_trace(model, batches, probes=100)
    assert found.total.value == pytest.approx(
        exact.trace().item(), abs=4 * found.total.error)
