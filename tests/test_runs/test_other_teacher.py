"""A teacher of another architecture: runs on the digits, through Runner."""

import json

import pytest
import torch
import torch.nn.functional as F
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from runs import config, log_of, train, write_config

from fpq_plugin import Distiller, FPQHook, LogitKD, Recipe, convert
from fpq_plugin._compat.files import load_file
from fpq_plugin.openmmlab.checkpoints import load_model
from fpq_plugin.openmmlab.teacher import full_precision_of

WIDE = {'model.backbone.base_channels': 12, 'model.backbone.stem_channels': 12,
        'model.head.in_channels': 48, 'train_cfg.max_epochs': 2}


@pytest.fixture(scope='module')
def wide(digits, tmp_path_factory):
    """Config and checkpoint of a wider ResNet in full precision."""
    folder = tmp_path_factory.mktemp('wide')
    name = 'fashion_mnist/resnet_fp.py'
    train(config(name, folder / 'run', **WIDE))
    path = write_config(folder / 'wide.py', name, **WIDE)
    return dict(config=str(path), checkpoint=str(folder / 'run/epoch_2.pth'))


def scalars(folder):
    path, = folder.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_student_learns_its_logits(wide, fpq_config, tmp_path):
    cfg = fpq_config(fpq__teacher=wide)
    runner = Runner.from_cfg(cfg)
    seen = []

    def look(module, args, output):
        if module.training:
            seen.append(output.detach().clone())

    teacher = load_model(wide['config'], wide['checkpoint'])
    inputs = []
    hook = next(h for h in runner.hooks if isinstance(h, FPQHook))
    start = hook.before_train_iter

    def before(runner, batch_idx, data_batch=None):
        start(runner, batch_idx, data_batch)
        if batch_idx == 0:
            inputs.append(runner.model.data_preprocessor(
                data_batch, False)['inputs'])
            runner.model.head.fc.register_forward_hook(look)

    hook.before_train_iter = before
    runner.train()
    with torch.no_grad():
        wanted = teacher(inputs[0], mode='tensor')
    own, other = (F.log_softmax(z.double() / 4, 1) for z in (seen[0], wanted))
    loss = 16 * 3.0 * (other.exp() * (other - own)).sum(1).mean()
    first = scalars(tmp_path / 'run')
    logged = next(row['loss_kd'] for row in first if 'loss_kd' in row)
    assert all('loss_csd' not in row for row in first)
    # The log's first row is the mean of five iterations.
    told = runner.message_hub.get_scalar('train/loss_kd').data[0][0]
    assert float(loss) == pytest.approx(float(told), rel=1e-4)
    assert logged > 0
    record = load_file(str(tmp_path / 'run/epoch_1.pth'))['meta']['fpq']
    assert record['teacher']['config'] == wide['config']
    # What a new run with other quantizers is to start from is another file.
    assert full_precision_of(record) == 'the full-precision checkpoint'
    assert f'the teacher is {wide["checkpoint"]}' in log_of(tmp_path / 'run')


def test_it_resumes_to_the_bit(wide, fpq_config, tmp_path):
    two = {'train_cfg.max_epochs': 2, 'param_scheduler.T_max': 2}
    train(fpq_config(folder='straight', fpq__teacher=wide, **two))
    cfg = fpq_config(fpq__teacher=wide, **two)

    class Stop(Hook):
        priority = 'LOWEST'

        def after_train_epoch(self, runner):
            if runner.epoch == 0 and not cfg.resume:
                raise KeyboardInterrupt

    runner = Runner.from_cfg(cfg)
    runner.register_hook(Stop())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    cfg.resume = True
    cfg.experiment_name = 'again'
    train(cfg)
    one, other = (load_file(str(tmp_path / name / 'epoch_2.pth'))['state_dict']
                  for name in ('straight', 'run'))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(('options', 'error', 'why'), [
    (dict(teacher=dict(config='a.py')), TypeError,
     'fpq.teacher.checkpoint: must be a path, got None'),
    (dict(teacher=dict(config='a.py', checkpoint='b', weights='c')),
     ValueError, 'weights'),
    (dict(teacher=['a.pth']), TypeError, 'fpq.teacher: must be the path'),
    (dict(preset='paper', teacher=dict(config='a.py', checkpoint='b')),
     ValueError, 'fpq.distillation: CSDLoss compares layers by their names'),
    (dict(distillation=[dict(type='LogitKD'), dict(type='CSDLoss')],
          teacher=dict(config='a.py', checkpoint='b')), ValueError,
     'fpq.distillation: CSDLoss'),
])
def test_wrong_options_are_named(options, error, why):
    with pytest.raises(error, match=why):
        Recipe(**options)


def test_the_preset_has_the_logits_alone():
    loss, = Recipe(teacher=dict(config='a.py', checkpoint='b.pth')).losses()
    assert isinstance(loss, LogitKD)
    assert loss.fades is None
    assert loss.loss_weight == 3.0


@pytest.mark.parametrize(('change', 'why'), [
    (dict(num_classes=7), 'head.fc has 7 outputs.*last layer has 10'),
    (dict(mean=[1.0]), r"data_preprocessor has \{'mean': \[1.0\]"),
    (dict(quantized=True), 'the model of the config is quantized'),
    (dict(checkpoint='none.pth'), 'fpq.teacher: .*none.pth'),
    (dict(config='none.py'), 'fpq.teacher: .*none.py'),
])
def test_an_unfit_teacher_stops_the_run_before_it_trains(
        wide, fpq_config, tmp_path, change, why):
    cfg = Config.fromfile(wide['config'])
    given = dict(wide)
    if 'num_classes' in change:
        cfg.model.head.num_classes = change['num_classes']
        cfg.data_preprocessor.num_classes = change['num_classes']
        model = load_file(wide['checkpoint'])
        state = model['state_dict']
        for name in ('weight', 'bias'):
            state[f'head.fc.{name}'] = state[f'head.fc.{name}'][:7]
        given['checkpoint'] = str(tmp_path / 'seven.pth')
        torch.save(model, given['checkpoint'])
    elif 'mean' in change:
        cfg.data_preprocessor.mean = change['mean']
    elif 'quantized' in change:
        cfg.default_hooks.fpq = dict(type='FPQHook')
    if 'checkpoint' in change or 'config' in change:
        given.update(change)
    else:
        given['config'] = str(tmp_path / 'changed.py')
        cfg.dump(given['config'])
    with pytest.raises(ValueError, match=why):
        train(fpq_config(fpq__teacher=given))
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_it_gives_the_student_no_weights(wide, fpq_config):
    cfg = fpq_config(fpq__teacher=wide)
    cfg.load_from = None
    with pytest.raises(ValueError, match='set load_from'):
        train(cfg)


def test_in_a_loop_of_ones_own():
    student = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(),
                                  torch.nn.Linear(6, 3))
    teacher = torch.nn.ModuleDict(dict(
        body=torch.nn.Linear(4, 9), last=torch.nn.Linear(9, 3)))
    teacher.forward = lambda x: teacher.last(teacher.body(x).relu())
    convert(student)
    student(torch.rand(8, 4))
    with pytest.raises(ValueError, match='CSDLoss compares layers by their'):
        Distiller(student, teacher, Recipe(preset='paper').losses(),
                  teacher_layer='last')
    with pytest.raises(ValueError, match='the teacher has no layer first'):
        Distiller(student, teacher, LogitKD(), teacher_layer='first')
    distiller = Distiller(student, teacher, LogitKD(), teacher_layer='last')
    x = torch.rand(8, 4)
    answer = student(x)
    assert torch.equal(distiller.loss(), LogitKD()(answer, teacher(x)))
