"""Two real processes: one state, also of what is observed, not learned."""

import pytest
import torch
import torch.multiprocessing as mp
from training_rank import KINDS, converted, shares, train_on_two_ranks

from fpq_plugin import CSDLoss, calibrate


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    mp.start_processes(
        train_on_two_ranks, (str(folder), ), nprocs=2, start_method='spawn')
    return [torch.load(folder / f'{rank}.pth') for rank in (0, 1)]


@pytest.mark.parametrize('zeros', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_the_ranks_states_are_equal(ranks, kind, zeros):
    one, two = (rank[kind, zeros] for rank in ranks)
    assert list(one) == list(two)
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
        assert torch.isfinite(value.float()).all(), key
    stages = [int(v) for k, v in one.items() if k.endswith('.initialized')]
    assert set(stages) == {1}


@pytest.mark.parametrize('kind', ['lsq', 'pact', 'brevitas'])
def test_after_zeros_the_range_is_that_of_the_joint_batch(ranks, kind):
    """By the zero point, which stays as it was set."""
    model = converted(kind)
    calibrate(model, [torch.cat(shares(0))])
    key = '0.input_quantizer.zero_point'
    assert torch.equal(ranks[1][kind, True][key], model.state_dict()[key])


def test_torch_ao_follows_the_joint_range(ranks):
    state = ranks[1]['torch_ao', False]
    calibrated = shares(9)[0]
    low, high = calibrated.min(), calibrated.max()
    for step in range(4):
        joint = torch.cat(shares(step))
        low = low + 0.01 * (joint.min() - low)
        high = high + 0.01 * (joint.max() - high)
    observer = '0.input_quantizer.fake.activation_post_process.'
    torch.testing.assert_close(state[f'{observer}min_val'], low)
    torch.testing.assert_close(state[f'{observer}max_val'], high)
    torch.testing.assert_close(
        state['0.input_quantizer.fake.scale'].squeeze(), (high - low) / 255)


def test_running_statistics_count_all_batches(ranks):
    state = ranks[0]['statistics', False]
    stats = '0.input_quantizer.scaling_impl_runtime_stats'
    assert int(state[f'{stats}_counter']) == 5
    assert 0 < float(state[f'{stats}_running_stats']) < 10


def test_a_rank_without_maps_takes_part_in_the_joint_csd(ranks):
    torch.manual_seed(3)
    student, teacher = torch.randn(2, 5, 4, 3)
    student.requires_grad_()
    expected = CSDLoss()(student, teacher, 1)
    expected.backward()
    (loss, grad), (nothing, none) = (rank['csd'] for rank in ranks)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grad, student.grad)
    assert nothing == 0
    assert none.shape == (0, 4, 3)
