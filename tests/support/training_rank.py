"""One of two processes that train a quantized model under DDP."""

import os
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import brevitas_adapters  # noqa: F401
from fpq_plugin import CSDLoss, calibrate, convert

KINDS = {
    'lsq': ('torch_ao', 'LSQFakeQuantize', 'LSQFakeQuantize'),
    'lsq_plus': ('torch_ao', 'LSQPlusFakeQuantize', 'LSQPlusFakeQuantize'),
    'pact': ('torch_ao', 'DoReFaFakeQuantize', 'PACTFakeQuantize'),
    'torch_ao': ('torch_ao', 'TorchAOFakeQuantize', 'TorchAOFakeQuantize'),
    'brevitas': ('brevitas', 'LSQFakeQuantize', 'LSQFakeQuantize'),
    'parameters': ('brevitas', 'Int8WeightPerTensorFloat',
                   'ShiftedUint8ActPerTensorFloat'),
    'statistics': ('brevitas', 'Int8WeightPerChannelFloat',
                   'Int8ActPerTensorFloatBatchQuant1d'),
}


def converted(kind):
    backend, weight, activation = KINDS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    convert(model, backend=backend, weight=dict(type=weight, bits=8),
            activation=dict(type=activation, bits=8))
    return model


def shares(step):
    """Both ranks' inputs of a step; rank 1 starts from zeros, and once has
    nothing."""
    generator = torch.Generator().manual_seed(step)
    one = torch.randn(6, 1, 4, generator=generator)
    two = 3 * torch.randn(6, 1, 4, generator=generator)
    return one, {0: 0 * two, 2: two[:0]}.get(step, two)


def train(kind, rank, zeros):
    model = converted(kind)
    calibrate(model, [torch.zeros(3, 1, 4) if zeros else shares(9)[0]],
              warn=lambda text: None)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01)
    for step in range(4):
        x = shares(step)[rank]
        if len(x) == 0 and 'BatchQuant' in KINDS[kind][2]:
            x = shares(1)[rank]
        wrapped(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {k: v.clone() for k, v in model.state_dict().items()}


def joint_csd(rank):
    """CSD over a joint batch of which rank 1 has nothing."""
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 5, 4, 3)
    own = student[:5 * (1 - rank)].clone().requires_grad_()
    loss = CSDLoss(sync=True)(own, teacher[:len(own)], 1)
    loss.backward()
    return loss.detach(), own.grad


def train_on_two_ranks(rank, folder):
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    out = {(kind, zeros): train(kind, rank, zeros)
           for kind in KINDS for zeros in (False, True)}
    out['csd'] = joint_csd(rank)
    torch.save(out, f'{folder}/{rank}.pth')
    dist.barrier()
    os._exit(0)  # as joint_rank
