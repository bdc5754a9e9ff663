"""A resume takes the last checkpoint that can be read, and says so."""

import os

import pytest
import torch
from runs import log_of, train

from fpq_plugin._compat.safe_loading import load_file

EPOCHS = {'train_cfg.max_epochs': 2}


@pytest.fixture
def backend():
    """It does not matter here."""
    return 'torch_ao'


@pytest.fixture
def left(fpq_config, tmp_path):
    """The work directory of two epochs."""
    train(fpq_config(**EPOCHS))
    return tmp_path / 'run'


def resume(fpq_config, checkpoint=None):
    cfg = fpq_config(resume=True, **{'train_cfg.max_epochs': 3})
    cfg.load_from = checkpoint and str(checkpoint)
    return train(cfg)


def cut(path, share=0.5):
    os.truncate(path, int(path.stat().st_size * share))


@pytest.mark.parametrize('share', [0, 0.3, 0.99])
def test_a_damaged_one_is_passed_over(left, fpq_config, share):
    cut(left / 'epoch_2.pth', share)
    resume(fpq_config)
    log = log_of(left)
    assert 'resumed epoch: 1,' in log
    assert "epoch_2.pth' is not a checkpoint" in log
    assert f'the run goes on from {left / "epoch_1.pth"}' in log
    assert load_file(str(left / 'epoch_3.pth'))['meta']['epoch'] == 3


@pytest.mark.parametrize('last', [None, '', '/moved/run/epoch_2.pth'])
def test_last_checkpoint_names_none(left, fpq_config, last):
    """Lost, emptied by a full disk, or of a moved work directory."""
    (left / 'last_checkpoint').unlink()
    if last is not None:
        (left / 'last_checkpoint').write_text(last)
    # Newer, but the moved one is the run's own.
    os.utime(left / ('epoch_1.pth' if last else 'epoch_2.pth'))
    resume(fpq_config)
    assert 'resumed epoch: 2,' in log_of(left)


def test_a_file_without_the_optimizer_is_none(left, fpq_config, fp):
    (left / 'last_checkpoint').unlink()
    for path in left.glob('epoch_*'):
        path.unlink()
    content = load_file(str(fp))
    del content['optimizer']
    torch.save(content, left / 'best.pth')
    with pytest.raises(ValueError, match='resume: there is no checkpoint in'):
        resume(fpq_config)


def test_all_damaged(left, fpq_config):
    for path in left.glob('epoch_*'):
        cut(path)
    with pytest.raises(ValueError, match="epoch_2.pth' is not.*damaged.* no "
                       'other checkpoint. Start the run without --resume'):
        resume(fpq_config)


def test_a_named_one_must_be_readable(left, fpq_config):
    cut(left / 'epoch_1.pth')
    with pytest.raises(ValueError, match="resume: .*epoch_1.pth' is not.*dam"
                       'aged.*Name another checkpoint'):
        resume(fpq_config, left / 'epoch_1.pth')
    with pytest.raises(ValueError, match='resume: no file .*epoch_9.pth'):
        resume(fpq_config, left / 'epoch_9.pth')


def test_parts_of_a_killed_run_are_removed(left, fpq_config):
    for name in ('epoch_1.pth.part', 'last_checkpoint.part', 'mine.part'):
        (left / name).write_text('half')
    resume(fpq_config)
    assert [p.name for p in left.glob('*.part')] == ['mine.part']


def test_a_damaged_teacher_says_what_to_set(left, fpq_config):
    teacher, = left.glob('fpq_teacher*')
    for share in (0.9, 0.5, 0.1):
        cut(teacher, share)
        with pytest.raises(ValueError, match='fpq.teacher .*is damaged.* Set '
                           'fpq.teacher to the full-precision checkpoint'):
            resume(fpq_config)


def test_a_new_run_replaces_a_damaged_teacher(left, fpq_config):
    teacher, = left.glob('fpq_teacher*')
    whole = load_file(str(teacher))['state_dict']
    cut(teacher)
    train(fpq_config(**EPOCHS))
    assert load_file(str(teacher))['state_dict'].keys() == whole.keys()
