"""Two real processes standardize over their joint batch."""

import torch
import torch.multiprocessing as mp
from joint_rank import maps, rank_of_two
from reference import csd_64


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
