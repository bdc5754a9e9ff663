"""mmengine's checkpoints load safely; nothing else gets in."""

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from fpq_plugin.compat import load_file


def test_a_checkpoint_with_mmengines_own_types_loads(tmp_path):
    buffer = HistoryBuffer()
    buffer.update(1.5)
    content = dict(
        state_dict=dict(w=torch.ones(2)),
        message_hub=dict(log=buffer, mean=np.float64(2.5),
                         counts=np.arange(3)))
    torch.save(content, tmp_path / 'c.pth')
    loaded = load_file(str(tmp_path / 'c.pth'))
    assert loaded['message_hub']['log'].current() == 1.5
    assert loaded['message_hub']['log'].mean() == 1.5
    assert loaded['message_hub']['counts'].tolist() == [0, 1, 2]


def test_a_multi_step_schedule_loads(tmp_path):
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    torch.save(dict(param_schedulers=[schedule.state_dict()]),
               tmp_path / 'c.pth')
    loaded, = load_file(str(tmp_path / 'c.pth'))['param_schedulers']
    assert loaded['milestones'] == schedule.milestones


class Attribute:
    """Pickles as ``getattr(owner, name)``."""

    def __init__(self, owner, name):
        self.what = owner, name

    def __reduce__(self):
        return getattr, self.what


@pytest.mark.parametrize('evil', [
    Attribute(HistoryBuffer, '__init__'),
    Attribute(np.ndarray, 'tofile'),
    Attribute(HistoryBuffer, '__globals__'),
])
def test_getattr_reaches_nothing_but_history_buffer(tmp_path, evil):
    torch.save(dict(state_dict=evil), tmp_path / 'c.pth')
    with pytest.raises(ValueError, match='read safely'):
        load_file(str(tmp_path / 'c.pth'))


def test_a_call_is_refused(tmp_path):

    class Evil:

        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'made'), )

    (tmp_path / 'c.pth').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match='read safely'):
        load_file(str(tmp_path / 'c.pth'))
    assert not (tmp_path / 'made').exists()


def test_no_file_and_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_file(str(tmp_path / 'none.pth'))
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='holds a list'):
        load_file(str(tmp_path / 'list.pth'))
