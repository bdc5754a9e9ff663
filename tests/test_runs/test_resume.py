"""Kill and resume: the same run, to the bit."""

import shutil

import pytest
import torch
from mmengine import Config
from runs import log_of, scalars_of, train

from fpq_plugin._compat.files import load_file


def assert_same(one, two, where=''):
    """Equal to the bit, through dicts and lists."""
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key in one:
            assert_same(one[key], two[key], f'{where}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), where
        for i, pair in enumerate(zip(one, two)):
            assert_same(*pair, f'{where}[{i}]')
    else:
        assert one == two, where


def load(path):
    return load_file(str(path))


@pytest.fixture
def straight(fpq_config, tmp_path):
    """Work directory of two epochs in one go, all of SFP and CSD on."""
    train(fpq_config(folder='straight', **both()))
    return tmp_path / 'straight'


def both():
    return {'train_cfg.max_epochs': 2, 'fpq__perturbation': dict(p=0.5)}


@pytest.mark.parametrize('how', ['auto', 'checkpoint'])
def test_resumed_is_the_straight_run(straight, fpq_config, tmp_path, how):
    """--resume (load_from None) and --resume CKPT, in a fresh Runner."""
    part = tmp_path / 'resumed'
    source = straight / 'epoch_1.pth'
    if how == 'auto':
        part.mkdir()
        for name in ('epoch_1.pth', *(p.name for p in straight.glob('fpq*'))):
            shutil.copy(straight / name, part / name)
        (part / 'last_checkpoint').write_text(str(part / 'epoch_1.pth'))
        source = None
    cfg = fpq_config(folder='resumed', resume=True, **both())
    cfg.load_from = None if source is None else str(source)
    train(cfg)
    assert 'calibrates' not in log_of(part)
    assert 'FPQ: the teacher is' in log_of(part)
    ends = [load(folder / 'epoch_2.pth') for folder in (straight, part)]
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_same(ends[0][key], ends[1][key], key)
    metrics = [scalars_of(f, 'accuracy/top1')[-1] for f in (straight, part)]
    assert metrics[0] == metrics[1]


def test_the_teacher_is_found_beside_a_moved_checkpoint(straight, fpq_config,
                                                        tmp_path):
    moved = tmp_path / 'moved'
    shutil.move(straight, moved)
    cfg = fpq_config(folder='resumed', resume=True, **both())
    cfg.load_from = str(moved / 'epoch_1.pth')
    train(cfg)


def test_a_lost_or_changed_teacher_is_an_error(straight, fpq_config, fp):
    teacher, = straight.glob('fpq_teacher*')
    cfg = fpq_config(folder='resumed', resume=True, **both())
    cfg.load_from = str(straight / 'epoch_1.pth')
    state = load(teacher)
    state['state_dict']['backbone.conv1.weight'][0] += 1
    torch.save(state, teacher)
    with pytest.raises(ValueError, match='is not the teacher that the check'):
        train(cfg)
    teacher.unlink()
    with pytest.raises(ValueError, match='Set fpq.teacher to the full-preci'):
        train(cfg)
    cfg.default_hooks.fpq.teacher = str(fp)
    train(cfg)


def test_other_bits_are_refused(straight, fpq_config):
    before = {p: p.read_bytes() for p in straight.glob('*.pth')}
    cfg = fpq_config('fashion_mnist/resnet_fpq_w2a4.py', 'straight',
                     resume=True, **both())
    cfg.load_from = None
    with pytest.raises(ValueError,
                       match='quantized otherwise: backbone.layer1.0.conv1.'
                       'weight_quantizer: 4 bits in the checkpoint, 2 bits'):
        train(cfg)
    assert all(p.read_bytes() == old for p, old in before.items())


def test_starting_from_an_fpq_checkpoint_keeps_its_teacher(straight,
                                                           fpq_config,
                                                           tmp_path):
    """load_from a trained student: its scales, its teacher, new schedule."""
    cfg = fpq_config(folder='next')
    cfg.load_from = str(straight / 'epoch_2.pth')
    train(cfg)
    log = log_of(tmp_path / 'next')
    assert 'calibrates' not in log
    assert 'epoch_2.pth is a quantized model: training goes on from' in log
    assert 'FPQ: the teacher is' in log


def test_a_full_precision_checkpoint_is_not_what_is_resumed(straight,
                                                            fpq_config, fp):
    """resume and load_from stand in the config of a requeued job."""
    cfg = fpq_config(folder='straight', resume=True, **{
        **both(), 'train_cfg.max_epochs': 3})
    cfg.load_from = str(fp)
    assert train(cfg).epoch == 3
    log = log_of(straight)
    assert 'epoch_2.pth: load_from, ' in log
    assert 'resumed epoch: 2' in log


def test_resume_with_nothing_to_resume(fpq_config, tmp_path):
    cfg = fpq_config(resume=True)
    cfg.dump(tmp_path / 'dumped.py')
    cfg = Config.fromfile(str(tmp_path / 'dumped.py'))
    text = (tmp_path / 'dumped.py').read_text()
    (tmp_path / 'dumped.py').write_text(f'{text}\nload_from = None\n')
    cfg.load_from = None
    with pytest.raises(ValueError, match='resume: there is no checkpoint in'):
        train(cfg)


def test_resuming_a_baseline_keeps_the_student(fpq_config, fp, tmp_path):
    """LSQ with a teacher= (its start): --resume must not load it again."""
    lsq = dict(name='fashion_mnist/resnet_lsq_w4a4.py', fpq__teacher=str(fp),
               load_from=None, **{'train_cfg.max_epochs': 2})
    train(fpq_config(folder='straight', **lsq))
    cfg = fpq_config(folder='resumed', resume=True, **lsq)
    cfg.load_from = str(tmp_path / 'straight/epoch_1.pth')
    train(cfg)
    ends = [load(tmp_path / name / 'epoch_2.pth')['state_dict']
            for name in ('straight', 'resumed')]
    assert_same(*ends)


@pytest.mark.parametrize('resume', [True, False])
def test_a_baselines_weights_are_no_teacher(fpq_config, tmp_path, resume):
    """FPQ from an LSQ checkpoint: its latent weights are not the FP ones."""
    train(fpq_config('fashion_mnist/resnet_lsq_w4a4.py', 'lsq'))
    cfg = fpq_config(folder='fpq', resume=resume, fpq__preset='paper',
                     **{'train_cfg.max_epochs': 2})
    cfg.load_from = str(tmp_path / 'lsq/epoch_1.pth')
    with pytest.raises(ValueError, match='was trained without a teacher. Set'):
        train(cfg)
    assert not list((tmp_path / 'fpq').glob('fpq_teacher*'))
