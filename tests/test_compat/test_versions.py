"""mmengine's checkpoints load; versions that cannot work are refused."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires, version

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from runs import ROOT

from fpq_plugin._compat.files import load_file
from fpq_plugin._compat.versions import RANGES, refuse_unfit, unfit


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


def test_no_file_and_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_file(str(tmp_path / 'none.pth'))
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='holds a list'):
        load_file(str(tmp_path / 'list.pth'))


@pytest.mark.parametrize(('versions', 'reason'), [
    (dict(torch='2.0.1'), "torch 2.0.1: pip install 'torch>=2.1'"),
    (dict(torch='2.12.1', mmengine='0.10.4'), "'mmengine>=0.10.7'"),
    (dict(brevitas='0.12.0'), "brevitas 0.12.0: pip install 'brevitas>=0.13."),
    (dict(brevitas='0.14.0'), "'brevitas>=0.13.4,<0.14'"),
    (dict(torch='2.1.2', numpy='2.1.0'), "pip install 'numpy<2'"),
])
def test_versions_that_cannot_work_are_named_with_those_that_do(versions,
                                                                reason):
    assert reason in unfit(versions)


@pytest.mark.parametrize('versions', [
    dict(torch='2.1.2', mmengine='0.10.7', numpy='1.26.4'),
    dict(torch='2.1.0+cu118'),
    dict(torch='2.3.0', numpy='2.0.0'),
    dict(torch='2.12.1+cu130', mmengine='0.10.7', numpy='2.4.6'),
])
def test_versions_that_work(versions):
    assert unfit(versions) is None


def test_the_installed_versions_are_looked_up(monkeypatch):
    refuse_unfit('torch', 'mmengine', 'brevitas')
    monkeypatch.setitem(RANGES, 'mmengine', ('99', None))
    with pytest.raises(ImportError, match=version('mmengine')):
        refuse_unfit('torch', 'mmengine')


def test_a_torchvision_of_another_torch_is_named(tmp_path):
    package = tmp_path / 'torchvision'
    package.mkdir()
    (package / '__init__.py').write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, '-c', 'import fpq_plugin'], cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True)
    page = (ROOT / 'docs/stacks.md').read_text()
    message, = re.findall('^torchvision 0.28.0 .*$', page, re.MULTILINE)
    assert done.stderr.splitlines()[-1] == 'ImportError: ' + message.replace(
        '0.28.0', version('torchvision')).replace(
            '2.13.0+cpu', torch.__version__)


def test_the_page_of_bad_stacks_quotes_the_code():
    text = (ROOT / 'docs/stacks.md').read_text()
    rows = re.findall(r'^\| (\w.* \d.*?) \| `(.*)` \|$', text, re.MULTILINE)
    assert len(rows) >= 5
    for versions, message in rows:
        assert unfit(dict(part.split(' ') for part in versions.split(', '))
                     ) == message


def test_the_package_asks_for_the_same_versions():
    declared = requires('fpq-openmmlab')
    for name, (low, high) in RANGES.items():
        found = {re.split('[; ]', line)[0] for line in declared
                 if re.match(rf'{name}[<>=]', line)}
        parts, = (set(line.removeprefix(name).split(',')) for line in found)
        assert parts == {f'>={low}'} | ({f'<{high}'} if high else set())
