"""CSD where rounding, changes or used graphs would spoil it; on two ranks."""

import pytest
import torch
import torch.multiprocessing as mp
from joint_rank import maps, rank_of_two
from reference import csd_64

from fpq_plugin import CSDLoss
from fpq_plugin.distillation import csd
from fpq_plugin.distillation.csd_function import joint_moments

# Where the mean of equal numbers is not always that number, in float32.
SIZES = [(3, 7, 7), (8, 5, 9), (31, 28, 28)]


def constants(generator):
    """Constant channels (6, ) of all magnitudes, both signs."""
    exponent = torch.randint(0, 16, (6, ), generator=generator).double()
    value = torch.randn(6, generator=generator, dtype=torch.float64)
    return (value * 10**exponent).float()


def constant_map(generator, size, memory_format=torch.contiguous_format):
    n, height, width = size
    value = constants(generator).view(1, -1, 1, 1)
    return value.expand(n, 6, height, width).contiguous(
        memory_format=memory_format)


# The compiled kernel adds so many in turn that squares no longer fit.
@pytest.mark.parametrize(('size', 'compiled'), [
    *((size, '0') for size in SIZES), ((50, 56, 56), '1')])
def test_two_constant_maps_are_alike(size, compiled, monkeypatch):
    monkeypatch.setenv('FPQ_COMPILE', compiled)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        student, teacher = (
            constant_map(generator, size, torch.channels_last)
            for _ in range(2))
        student.requires_grad_()
        loss = CSDLoss(reduction='sum')(student, teacher)
        loss.backward()
        assert loss.item() == 0
        assert not student.grad.any()


@pytest.mark.parametrize('constant', ['student', 'teacher'])
@pytest.mark.parametrize('size', SIZES)
def test_a_constant_map_has_no_covariance(size, constant):
    generator = torch.Generator().manual_seed(0)
    n, height, width = size
    for _ in range(10):
        student = torch.randn(n, 6, height, width, generator=generator)
        teacher = constant_map(generator, size)
        if constant == 'student':
            student, teacher = teacher, student
        own = student.clone().requires_grad_()
        ref = student.double().requires_grad_()
        loss = csd(own, teacher, (0, 2, 3), 1e-5)[1]
        expected = csd_64(ref, teacher.double(), (0, 2, 3), 1e-5)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        grad, = torch.autograd.grad(loss, own)
        grad_ref, = torch.autograd.grad(expected, ref)
        # A constant student's is eps^-1/2 of the teacher's rounding.
        assert (grad - grad_ref).norm() <= 1e-4 * grad_ref.norm() + 1e-5


@pytest.mark.parametrize('changed', ['student', 'teacher', 'passed on'])
def test_a_map_that_was_changed_in_place_is_refused(changed):
    student = torch.randn(4, 3, 2, 2, requires_grad=True) * 1
    teacher = torch.randn(4, 3, 2, 2)
    passed, loss = CSDLoss().attach(student, teacher)
    with torch.no_grad():
        {'student': student, 'teacher': teacher,
         'passed on': passed}[changed].mul_(2)
    with pytest.raises(RuntimeError, match='was changed in place before'):
        loss.backward()


def test_a_graph_can_be_used_again_if_it_was_kept():
    student = torch.randn(4, 3, 2, 2, requires_grad=True)
    loss = CSDLoss()(student, torch.randn(4, 3, 2, 2))
    first, = torch.autograd.grad(loss, student, retain_graph=True)
    second, = torch.autograd.grad(loss, student)
    assert torch.equal(first, second)
    assert first.any()


def test_both_gradients_arrive_in_one_pass():
    """That of the loss and that of what goes on with the map."""
    student = torch.randn(4, 3, 2, 2, requires_grad=True)
    teacher, after = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    passed, loss = CSDLoss().attach(student, teacher)
    grad, = torch.autograd.grad(loss + (passed * after).sum(), student)
    alone, = torch.autograd.grad(CSDLoss()(student, teacher), student)
    torch.testing.assert_close(grad, alone + after)
    passed, _ = CSDLoss().attach(student, teacher)
    grad, = torch.autograd.grad((passed * after).sum(), student)
    assert torch.equal(grad, after)


def test_loss_and_gradient_are_those_of_the_joint_batch(tmp_path):
    mp.start_processes(
        rank_of_two, (str(tmp_path), ), nprocs=2, start_method='spawn')
    parts = [torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1)]
    student, teacher = maps()
    student.requires_grad_()
    expected = csd_64(student, teacher, (0, 2, 3), 1e-5)
    grad, = torch.autograd.grad(expected, student)
    torch.testing.assert_close(parts[0][0] + parts[1][0], expected.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad)


def test_an_empty_share_of_the_joint_batch_is_waited_for():
    """A process without elements takes part in the collective."""
    empty = torch.empty(0, 4, 3, requires_grad=True)
    _, loss = csd(empty, torch.empty(0, 4, 3), (0, 2), 1e-5, joint=True)
    assert loss.item() == 0
    grad, = torch.autograd.grad(loss, empty)
    assert grad.shape == empty.shape


@pytest.mark.parametrize('dims', [(0, 2, 3), (2, 3)])
def test_a_graph_computes_the_same(dims, monkeypatch):
    student, teacher = torch.randn(2, 3, 4, 5, 5)
    student.requires_grad_()
    _, plain = csd(student, teacher, dims, 1e-5)
    monkeypatch.setattr(
        'fpq_plugin.distillation.csd_function.is_compiling', lambda: True)
    _, traced = csd(student, teacher, dims, 1e-5)
    torch.testing.assert_close(traced, plain)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, student)[0] for loss in (traced, plain)))


def test_torch_func_gets_the_same_gradients():
    student, teacher = torch.randn(2, 3, 4, 5, 5)
    _, loss = csd(student.requires_grad_(), teacher, (0, 2, 3), 1e-5)
    found = torch.func.grad(
        lambda s: csd(s, teacher, (0, 2, 3), 1e-5)[1])(student.detach())
    torch.testing.assert_close(
        found, torch.autograd.grad(loss, student)[0])


def test_one_element_in_all_is_its_own_mean():
    moments = tuple(torch.full((1, 3, 1), value)
                    for value in (2.0, 0.0, -1.0, 0.0, 0.0))
    assert all(map(torch.equal, joint_moments(moments, 1), moments))
