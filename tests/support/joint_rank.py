"""One of two processes that share a batch; importable where it is spawned."""

import os

import pytest
import torch
import torch.distributed as dist

from fpq_plugin import CSDLoss


def maps(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    student, teacher = (
        3 + torch.randn(7, 4, 5, 5, generator=generator, dtype=dtype)
        for _ in range(2))
    return student, teacher


def rank_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    student, teacher = maps()
    part = slice(0, 3) if rank == 0 else slice(3, 7)  # unequal shares
    own = student[part].clone().requires_grad_()
    loss = CSDLoss(sync=True, reduction='sum')(own, teacher[part])
    loss.backward()
    torch.save((loss.detach(), own.grad), f'{folder}/{rank}.pth')
    with pytest.raises(RuntimeError, match='differentiated once'):
        torch.autograd.grad(
            CSDLoss(sync=True)(own, teacher[part]), own, create_graph=True)
    dist.barrier()
    # Below torch 2.8 the group's end may wait for ever for a thread of its
    # own, which waits for the GIL.
    os._exit(0)
