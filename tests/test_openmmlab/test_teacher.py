"""What a run starts from and resumes; files that are whole or not there."""

import multiprocessing
import os
import re
import resource
from pathlib import Path

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner, save_checkpoint
from runs import train as train_digits
from small_runs import Three, config, start, train
from torch import nn

from fpq_plugin import load_model
from fpq_plugin._compat.files import load_file
from fpq_plugin.openmmlab.teacher import save_teacher

STILL = dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)))


def equal_to_start(runner, path):
    state = runner.model.state_dict()
    return all(torch.equal(state[key], value)
               for key, value in load_file(path)['state_dict'].items())


@pytest.mark.parametrize('source', ['load_from', 'file', 'teacher',
                                    'Pretrained', 'mmengine.Pretrained'])
def test_a_requeued_job_starts_and_then_resumes(tmp_path, source):
    """resume=True from the first start on, as clusters do."""
    path, more, options = start(tmp_path), {}, {}
    if source == 'load_from':
        more['load_from'] = path
    elif source == 'teacher':
        options['teacher'] = path
    elif source != 'file':
        more['model'] = dict(type='Three', init_cfg=dict(
            type=source, checkpoint=path))
    cfg = config(tmp_path, options, **STILL, **more)
    if source == 'file':  # what mim's train.py makes of --resume
        cfg.load_from = path
        cfg.dump(tmp_path / 'mine.py')
        cfg = Config.fromfile(str(tmp_path / 'mine.py'))
        cfg.load_from = None
    cfg.resume = True
    runner = train(cfg)
    assert equal_to_start(runner, path)
    assert runner.iter == 5
    cfg.train_cfg.max_epochs = 2
    cfg.experiment_name += '_again'
    again = Runner.from_cfg(cfg)
    again.train()
    assert again.iter == 10
    assert load_file(f'{cfg.work_dir}/epoch_2.pth')['meta']['iter'] == 10


def test_nothing_to_resume_and_nothing_to_start_from(tmp_path):
    with pytest.raises(ValueError, match='resume: there is no checkpoint in '
                       '.*, and nothing to start from either'):
        train(config(tmp_path, resume=True))


def test_the_advice_on_other_bits_works(tmp_path):
    """Following the message word by word ends in a run."""
    first = config(tmp_path, load_from=start(tmp_path))
    train(first)
    path = f'{first.work_dir}/epoch_1.pth'
    for resume in (True, False):
        cfg = config(tmp_path, dict(bits='w2a2'), load_from=path,
                     resume=resume)
        with pytest.raises(ValueError, match='mix.weight_quantizer: 4 bits in '
                           'the checkpoint, 2 bits in the config') as caught:
            train(cfg)
        given = re.search(
            r'start anew, without --resume and in another work directory, '
            r"with load_from='(.*)', its teacher", str(caught.value))
        fresh = config(tmp_path, dict(bits='w2a2'), run=f'fresh{resume}',
                       load_from=given[1])
        assert train(fresh).iter == 5


def broken(path, how):
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2] if how == 'half' else b'')


@pytest.mark.parametrize('how', ['half', 'empty', 'gone', 'note'])
def test_a_broken_last_checkpoint_is_named_with_the_last_good_one(tmp_path,
                                                                  how):
    cfg = config(tmp_path, load_from=start(tmp_path),
                 train_cfg=dict(by_epoch=True, max_epochs=3))
    train(cfg)
    work = Path(cfg.work_dir)
    last = work / 'epoch_3.pth'
    if how == 'gone':
        last.unlink()
    elif how == 'note':
        (work / 'last_checkpoint').write_text('')
    else:
        broken(last, how)
    good = work / f'epoch_{3 if how == "note" else 2}.pth'
    cfg = config(tmp_path, resume=True,
                 train_cfg=dict(by_epoch=True, max_epochs=4))
    named = 'last_checkpoint' if how in ('gone', 'note') else 'epoch_3.pth'
    with pytest.raises(ValueError, match=f'(?s){named}.*The last one there '
                       f'that is whole is .*{good.name}.*--resume') as caught:
        train(cfg)
    cfg = config(tmp_path, resume=True,
                 load_from=re.search(r'--resume (\S+)$', str(caught.value))[1],
                 train_cfg=dict(by_epoch=True, max_epochs=4))
    assert train(cfg).epoch == 4


def test_no_other_checkpoint_is_whole(tmp_path):
    cfg = config(tmp_path, load_from=start(tmp_path))
    train(cfg)
    broken(Path(cfg.work_dir, 'epoch_1.pth'), 'half')
    with pytest.raises(ValueError, match='There is no whole one beside it'):
        train(config(tmp_path, resume=True))


def save_many_times(folder):
    for _ in range(30):
        save_teacher(nn.Linear(2, 2), str(folder / 'teacher.pth'))


def test_half_a_teacher_is_named_with_the_mend(tmp_path):
    cfg = config(tmp_path, load_from=start(tmp_path))
    train(cfg)
    teacher, = Path(cfg.work_dir).glob('fpq_teacher*')
    broken(teacher, 'half')
    more = dict(resume=True, train_cfg=dict(by_epoch=True, max_epochs=2))
    with pytest.raises(ValueError, match=f'{teacher.name}.* is not a checkpo.*'
                       'Set fpq.teacher to the full-precision'):
        train(config(tmp_path, **more))
    train(config(tmp_path, dict(teacher=start(tmp_path)), **more))


def test_two_runs_that_write_one_teacher(tmp_path):
    """Whoever reads meanwhile sees a whole file."""
    save_teacher(nn.Linear(2, 2), str(tmp_path / 'teacher.pth'))
    context = multiprocessing.get_context('fork')
    writers = [context.Process(target=save_many_times, args=(tmp_path, ))
               for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(load_file(str(tmp_path / 'teacher.pth'))['state_dict']) == 2
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [p.name for p in tmp_path.iterdir()] == ['teacher.pth']


def test_a_half_written_teacher_is_written_anew(tmp_path):
    """One that a run of 0.1.0 was killed over."""
    cfg = config(tmp_path, load_from=start(tmp_path))
    train(cfg)
    teacher, = Path(cfg.work_dir).glob('fpq_teacher*')
    broken(teacher, 'half')
    train(config(tmp_path, load_from=start(tmp_path)))
    assert load_file(str(teacher))


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
        tmp_path, monkeypatch):
    path = tmp_path / 'epoch_1.pth'
    save_checkpoint(dict(state_dict={}, meta={}), str(path))
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='No space'):
        save_checkpoint(dict(state_dict={}, meta=dict(x=1)), str(path))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ['epoch_1.pth']


def test_a_teacher_that_cannot_be_written_is_named(tmp_path):
    """torch.save into a full file only says that a position is wrong."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match="teacher.pth' was not written: "):
            save_teacher(nn.Linear(200, 200), str(tmp_path / 'teacher.pth'))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('how', ['half', 'empty'])
def test_a_damaged_teacher_says_what_to_set(tmp_path, how):
    """And names no checkpoint to resume from, which has the same teacher."""
    path = start(tmp_path)
    cfg = config(tmp_path, load_from=path)
    train(cfg)
    teacher, = Path(cfg.work_dir).glob('fpq_teacher*')
    broken(teacher, how)
    more = dict(resume=True, train_cfg=dict(by_epoch=True, max_epochs=2))
    with pytest.raises(ValueError, match='fpq.teacher .*fpq_teacher.* is '
                       'damaged, or no file that torch.save wrote. Set fpq.te'
                       'acher to the full-precision checkpoint that the run'):
        train(config(tmp_path, **more))
    assert train(config(tmp_path, dict(teacher=path), **more)).epoch == 2


def test_parts_of_killed_runs_are_removed(tmp_path):
    work = tmp_path / 'run'
    work.mkdir()
    part = work / '.epoch_1.pth.0123456789ab.part'
    part.write_text('half')
    os.utime(part, (0, 0))
    train(config(tmp_path, load_from=start(tmp_path)))
    assert not part.exists()


@MODELS.register_module(force=True)
class Adapters(Three):
    """Its checkpoints leave out what is not trained, as LoRAModel's."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._register_state_dict_hook(self.leave_out)
        self.stem.requires_grad_(False)

    @staticmethod
    def leave_out(module, state, prefix, metadata):
        for key in [key for key in state if not key.startswith('head')]:
            state.pop(key)


def test_a_model_whose_checkpoints_leave_keys_out(tmp_path):
    path = start(tmp_path)  # with all keys, unlike the model's own
    cfg = config(tmp_path, model=dict(type='Adapters'), load_from=path)
    runner = train(cfg)
    model = load_model(cfg, f'{cfg.work_dir}/epoch_1.pth')
    x = torch.linspace(-1, 1, 32).view(8, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(x), runner.model.eval()(x))
    teacher, = Path(cfg.work_dir).glob('fpq_teacher*')
    full = load_file(path)['state_dict']
    kept = load_file(str(teacher))['state_dict']
    assert all(torch.equal(kept[key], full[key]) for key in full)
    cfg = config(tmp_path, model=dict(type='Adapters'), resume=True,
                 train_cfg=dict(by_epoch=True, max_epochs=2))
    assert train(cfg).iter == 10


def test_averages_of_a_part_are_refused(tmp_path):
    cfg = config(tmp_path, model=dict(type='Adapters'),
                 load_from=start(tmp_path),
                 custom_hooks=[dict(type='EMAHook')])
    with pytest.raises(ValueError, match='EMAHook: Adapters keeps stem.weig'):
        train(cfg)


def test_a_misspelt_type_gets_the_nearest_name(tmp_path):
    for options, near in (
            (dict(weight=dict(type='LSQFakeQuantise')), 'LSQFakeQuantize'),
            (dict(distillation=dict(type='CDSLoss')), 'CSDLoss'),
            (dict(perturbation=dict(type='StochasticFeaturPerturbation')),
             'StochasticFeaturePerturbation'),
            (dict(backend='brevitas', weight=dict(
                type='Int8WeightPerChanelFloat')),
             'Int8WeightPerChannelFloat')):
        with pytest.raises(ValueError, match=f'did you mean {near!r}'):
            Runner.from_cfg(config(tmp_path, options))


@pytest.mark.parametrize('content', [b'no pickle', b''])
def test_a_teacher_that_is_no_checkpoint(fpq_config, tmp_path, content):
    path = tmp_path / 'teacher.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='fpq.teacher: .* is not a checkpoin'):
        train_digits(fpq_config(fpq__teacher=str(path)))


def test_a_teacher_of_another_architecture_or_quantized(fpq_config, tmp_path,
                                                        fp):
    state = load_file(str(fp))['state_dict']
    other = {k.replace('layer3', 'layer4'): v for k, v in state.items()}
    torch.save(other, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='missing: backbone.layer3(.|\n)*not '
                       'in the model: backbone.layer4'):
        train_digits(fpq_config(fpq__teacher=str(tmp_path / 'other.pth')))
    train_digits(fpq_config(folder='student'))
    student = str(tmp_path / 'student/epoch_1.pth')
    with pytest.raises(ValueError, match='was trained with FPQ: its weights'):
        train_digits(fpq_config(fpq__teacher=student))


def test_code_in_a_teacher_file_is_not_run(fpq_config, tmp_path):

    class Evil:

        def __reduce__(self):
            return Path.touch, (tmp_path / 'ran', )

    torch.save(dict(state_dict=Evil()), tmp_path / 'evil.pth')
    with pytest.raises(ValueError, match='can be read safely'):
        train_digits(fpq_config(fpq__teacher=str(tmp_path / 'evil.pth')))
    assert not (tmp_path / 'ran').exists()
