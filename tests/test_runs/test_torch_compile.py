"""The student inside torch.compile: one graph, the same numbers."""

import copy
from pathlib import Path

import pytest
import torch
from runs import scalars_of, train
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fpq_plugin
from fpq_plugin._compat.versions import HAS_CUSTOM_OPS
from fpq_plugin.convert import noise_clock

pytestmark = pytest.mark.skipif(
    not HAS_CUSTOM_OPS, reason='needs torch.library.custom_op (2.4)')


def student_of(model, x, where='after', target=None):
    student = copy.deepcopy(model)
    fpq_plugin.convert(student, perturbation=dict(p=0.5, where=where))
    if target is not None:
        table = fpq_plugin.add_joints(student, x, target)
        assert len(table) == 3
    fpq_plugin.calibrate(student, [x])
    distiller = fpq_plugin.Distiller(student, copy.deepcopy(model),
                                     fpq_plugin.CSDLoss())
    return student.train(), distiller


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8),
        nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Hardswish(),
        nn.AvgPool2d(1), nn.Flatten(), nn.Linear(8 * 36, 10))


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.mark.parametrize('target', [None, 'onnxruntime'])
def test_the_graph_has_no_break(model, target):
    x = torch.randn(4, 3, 8, 8)
    student, _ = student_of(model, x, target=target)
    report = torch._dynamo.explain(student)(x)
    assert report.graph_break_count == 0, report.break_reasons
    assert report.graph_count == 1


@pytest.mark.parametrize(('where', 'target'), [
    ('after', None), ('before', None), ('after', 'onnxruntime')])
def test_compiled_steps_equal_eager_ones(model, where, target):
    batches = torch.randn(4, 4, 3, 8, 8)

    def run(wrap):
        student, distiller = student_of(model, batches[0], where, target)
        call, found = wrap(student), []
        for i, x in enumerate(batches):
            noise_clock(student).start_iteration(i)
            loss = call(x).square().mean() + distiller.loss()
            student.zero_grad()
            loss.backward()
            found.append([loss.detach(),
                          *(p.grad.clone() for p in student.parameters())])
        return found

    eager = run(lambda student: student)
    traced = run(lambda student: torch.compile(
        student, backend='aot_eager', fullgraph=True))
    torch.testing.assert_close(traced, eager, rtol=1e-3, atol=1e-4)
    assert not torch.equal(eager[0][0], eager[1][0])


def test_losses_that_fade_compile_once_more_when_they_are_over(model):
    x = torch.randn(4, 3, 8, 8)
    student = copy.deepcopy(model)
    fpq_plugin.convert(student)
    fpq_plugin.calibrate(student, [x])
    distiller = fpq_plugin.Distiller(student, copy.deepcopy(model), [
        fpq_plugin.CSDLoss(fades='out', fades_by=0.5),
        fpq_plugin.LogitKD(fades='in', fades_by=0.5)])
    counter = CompileCounterWithBackend('aot_eager')
    compiled, counts = torch.compile(student.train(), backend=counter), []
    for iteration in (0, 1, 3, 5, 8, 10):
        distiller.set_progress(iteration, 10)
        compiled(x)
        distiller.loss().backward()
        counts.append(counter.frame_count)
    # The second forward is the first after losses were taken.
    assert counts == [1, 2, 2, 3, 3, 3]


def test_a_copy_draws_from_its_own_clock(model):
    x = torch.randn(4, 3, 8, 8)
    student, _ = student_of(model, x)
    twin = copy.deepcopy(student)
    numbers = [m._number for s in (student, twin) for m in s.modules()
               if isinstance(m, fpq_plugin.StochasticFeaturePerturbation)]
    assert len(set(numbers)) == len(numbers) == 6


# Dynamo cannot trace Brevitas's layers.
@pytest.mark.slow
@pytest.mark.parametrize('backend', ['torch_ao'])
def test_a_compiled_run_logs_what_a_plain_one_does(fpq_config):
    """MMEngine's ``compile`` option, which compiles ``train_step``."""
    plain = fpq_config(folder='plain')
    traced = fpq_config(folder='traced')
    traced.compile = dict(backend='aot_eager')
    losses = []
    for cfg in (plain, traced):
        cfg.default_hooks.logger.interval = 1
        train(cfg)
        losses.append([scalars_of(Path(cfg.work_dir), key)[:3]
                       for key in ('loss', 'loss_csd')])
    torch.testing.assert_close(*losses, rtol=2e-2, atol=1e-3)
