"""Options where nobody reads them are an error, with the key and the mend."""

import re
from pathlib import Path

import pytest
from mmengine import Config
from mmengine.runner import Runner
from runs import CONFIGS
from runs import config as digits_config
from small_runs import config, start

from fpq_plugin import FPQHook
from fpq_plugin.openmmlab.config_checks import recipe_of, refuse_unread

FRAGMENT = """
fpq = dict(type='FPQHook', weight=dict(type='LogLSQFakeQuantize', bits=4),
           perturbation=dict(p=0.3), skip=[])
"""
HOOK = 'default_hooks = dict(fpq=_base_.fpq)\n'


@pytest.fixture
def runner_of(tmp_path):
    """The Runner of a config file on a fragment and a run."""

    def make(lines, *options):
        base = config(tmp_path, load_from=start(tmp_path))
        base.pop('default_hooks')
        base.dump(tmp_path / 'base.py')
        (tmp_path / 'fragment.py').write_text(FRAGMENT)
        path = tmp_path / 'mine.py'
        bases = re.search(r'bases = (.*)', lines)
        bases = bases[1] if bases else "['base.py', 'fragment.py']"
        path.write_text(f'_base_ = {bases}\n'
                        + re.sub('bases = .*', '', lines))
        cfg = Config.fromfile(str(path))
        cfg.merge_from_dict(dict(options))
        return Runner.from_cfg(cfg)

    return make


PLAIN = ("bases = ['base.py']\n"
         "default_hooks = dict(fpq=dict(type='FPQHook', bits='w4a4'))\n")


@pytest.mark.parametrize(('lines', 'options', 'message'), [
    ("custom_hooks = [dict(type='FPQHook')]", [],
     r"fpq.perturbation: {'p': 0.3} at the top level of the config is not "
     r'read, the hook has its own options in custom_hooks\[0\]. Put it there: '
     r'--cfg-options custom_hooks.0.perturbation='),
    ("default_hooks = dict(fpq=dict(type='FPQHook', weight=dict(bits=2)))",
     [], "fpq.perturbation: {'p': 0.3} at the top"),
    (HOOK + "custom_hooks = [dict(type='FPQHook')]", [],
     r'custom_hooks\[0\]: a second FPQHook, beside default_hooks.fpq'),
    ("default_hooks = dict(fpq=_base_.fpq, mine=dict(type='FPQHook'))", [],
     'default_hooks.mine: a second FPQHook, beside default_hooks.fpq'),
    (HOOK, [('fpq.weight.bits', 2)],
     'fpq.weight.bits: 2 at the top .*--cfg-options default_hooks.fpq.weight'
     '.bits='),
    (HOOK, [('fpq.skip', ['head'])], r"fpq.skip: \['head'\] at the top"),
    (HOOK, [('fpq.wieght', 2)], "fpq: unknown option 'wieght'. Did you"),
    (HOOK + 'fpq = dict(perturbation=None)', [],
     'fpq.perturbation: None at the top'),
    (HOOK + 'fpq = None', [], 'fpq: None at the top level turns nothing off'),
    (PLAIN + 'fpq = dict(perturbation=None)', [],
     'fpq.perturbation: None at the top'),
    (PLAIN, [('fpq.weight.bits', 2)], 'fpq.weight: .*2.* at the top'),
    (PLAIN + "skip = ['head']", [],
     'skip: nobody reads it at the top level of the config. Set default_hook'),
    (PLAIN, [('perturbation', None)], 'perturbation: nobody reads it'),
    (PLAIN, [('bits', 'w2a2')], 'bits: nobody reads it'),
    ("bases = ['base.py']\nfpq = dict(bits='w4a4')", [],
     'fpq.bits: nobody reads it, the config has no FPQHook'),
    ('', [], 'default_hooks.fpq: missing'),
])
@pytest.mark.parametrize('run', ['train', 'val', 'test'])
def test_options_that_nobody_reads_are_refused(runner_of, lines, options,
                                               message, run):
    runner = runner_of(lines, *options)
    with pytest.raises(ValueError, match=message):
        getattr(runner, run)()
    assert not hasattr(runner.model.stem, 'weight_quantizer')


@pytest.mark.parametrize(('lines', 'options', 'bits'), [
    (HOOK, [], 4),
    ('default_hooks = dict(fpq=dict(_base_.fpq, weight=dict(bits=2)))', [],
     2),
    ('default_hooks = dict(fpq=dict(_base_.fpq, perturbation=None))', [], 4),
    ('custom_hooks = [_base_.fpq]', [], 4),
    (HOOK, [('default_hooks.fpq.weight.bits', 2)], 2),
    (HOOK, [('fpq.weight.bits', 2), ('default_hooks.fpq.weight.bits', 2)], 2),
    ("default_hooks = dict(fpq=dict(type='FPQHook', "
     'perturbation=dict(p=0.3)))', [], 4),
    (PLAIN, [], 4),
    ("bases = ['base.py']\nbits = 'w4a4'\n"
     "default_hooks = dict(fpq=dict(type='FPQHook', bits=bits))", [], 4),
    ("bases = ['base.py']\nbits, preset = 'w4a4', 'paper'\n"
     'weight = dict(bits=4, per_channel=False)\n'
     "default_hooks = dict(fpq=dict(type='FPQHook', preset=preset, bits=bits,"
     'weight=weight, perturbation=dict(p=0.3)))', [], 4),
    (PLAIN.replace('bits=', "preset='paper', bits=") + "bits = 'w4a4'", [],
     4),
    (PLAIN + "teacher = dict(type='Three')\nweight = 0.5", [], 4),
    (PLAIN + "fpq = dict(type='MyOwn')", [], 4),
])
def test_what_is_read_trains(runner_of, lines, options, bits):
    runner = runner_of(lines, *options)
    runner.train()
    assert runner.model.mix.weight_quantizer.num_bits == bits
    again = Config.fromstring(runner.cfg.pretty_text, '.py')
    again.work_dir += '_again'
    Runner.from_cfg(again).train()


@pytest.mark.parametrize('name', ['fpq', 'fpq_w4a4'])
def test_a_config_without_a_file_tells_nothing(name):
    """What the hook has of its preset was hardly set on purpose."""
    used = Config.fromfile(str(CONFIGS / f'_base_/{name}.py')).fpq.to_dict()
    fpq = {**used, 'weight': dict(used['weight'], bits=2)}
    cfg = Config(dict(fpq=fpq, default_hooks=dict(fpq=used)))
    used.pop('type')
    with pytest.raises(ValueError, match='^fpq.weight.bits: 2 at the top'):
        refuse_unread(cfg, 'default_hooks.fpq', used)


def test_a_second_hook_that_was_registered(runner_of):
    runner = runner_of(PLAIN)
    runner.register_hook(FPQHook())
    with pytest.raises(ValueError, match='Runner.register_hook: a second'):
        runner.train()


def test_a_recipe_of_two_hooks_is_refused(tmp_path):
    cfg = config(tmp_path, custom_hooks=[dict(type='FPQHook')])
    with pytest.raises(ValueError, match='a second FPQHook'):
        recipe_of(cfg)


NEW_STYLE = """
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.model import PretrainedInit
from small_runs import Points, Three
from torch.optim import SGD
from fpq_plugin import (CSDLoss, FPQHook, LSQFakeQuantize,
                        StochasticFeaturePerturbation)
model = dict(type=Three,
             init_cfg=dict(type=PretrainedInit, checkpoint={path!r}))
work_dir = {work!r}
train_dataloader = dict(dataset=dict(type=Points), batch_size=24,
                        sampler=dict(type=DefaultSampler),
                        collate_fn=dict(type=default_collate))
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.01))
experiment_name = 'new_style'
lsq = dict(type=LSQFakeQuantize, bits=4)
default_hooks = dict(fpq=dict(
    type=FPQHook, weight=lsq, activation=lsq,
    perturbation=dict(type=StochasticFeaturePerturbation, p=0.3),
    distillation=dict(type=CSDLoss), calibration=dict(num_images=16),
    overrides=dict(mix=dict(weight=dict(type=LSQFakeQuantize, bits=3)))))
"""


def test_classes_where_names_are_expected(tmp_path):
    path = tmp_path / 'new_style.py'
    path.write_text(NEW_STYLE.format(path=start(tmp_path),
                                     work=str(tmp_path / 'run')))
    cfg = Config.fromfile(str(path), lazy_import=True)
    recipe = recipe_of(cfg)
    assert recipe.perturbation['p'] == 0.3
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.model.mix.weight_quantizer.num_bits == 3


def test_a_hook_says_on_purpose_what_a_fragment_turned_off(tmp_path):
    """A fragment says perturbation=None, the hook on it the base's value."""
    path = tmp_path / 'mine.py'
    bases = [str(CONFIGS / '_base_' / name) for name in (
        'fashion_mnist.py', 'methods/lsq_plus.py')]
    path.write_text(
        f'_base_ = {bases}\n'
        'default_hooks = dict(fpq=dict(_base_.fpq, perturbation=dict(\n'
        "    type='StochasticFeaturePerturbation', p=0.1)))\n")
    cfg = Config.fromfile(str(path))
    hook = cfg.default_hooks.fpq
    options = {k: v for k, v in hook.items() if k != 'type'}
    refuse_unread(cfg, 'default_hooks.fpq', options)
    # The other way round nobody reads it.
    path.write_text(
        f'_base_ = {bases}\n'
        'fpq = dict(perturbation=dict(_delete_=True, p=0.5))\n'
        'default_hooks = dict(fpq=_base_.fpq)\n')
    cfg = Config.fromfile(str(path))
    hook = cfg.default_hooks.fpq
    with pytest.raises(ValueError, match=r'^fpq\.perturbation'):
        refuse_unread(cfg, 'default_hooks.fpq', {
            k: v for k, v in hook.items() if k != 'type'})


def test_a_fragment_without_its_hook_is_refused(digits, tmp_path):
    path = tmp_path / 'mine.py'
    bases = [str(CONFIGS / '_base_' / name) for name in (
        'fashion_mnist.py', 'resnet_fashion_mnist.py', 'fashion_mnist_6e.py',
        'fpq_w4a4.py')]

    def runner_of(lines):
        path.write_text(f'_base_ = {bases}\n{lines}\n')
        return Runner.from_cfg(digits_config(str(path), tmp_path / 'run'))

    for lines in ('', "fpq = dict(type='fpq_plugin.FPQHook')"):
        for run in ('train', 'val', 'test'):
            with pytest.raises(ValueError, match='default_hooks.fpq: missing'):
                getattr(runner_of(lines), run)()
    off = '_base_.fpq.update(weight=None, activation=None)\n'
    for lines in (off + 'default_hooks = dict(fpq=_base_.fpq)',
                  off + 'default_hooks = dict(mine=_base_.fpq)',
                  off + 'custom_hooks = [_base_.fpq]', 'fpq = None',
                  "fpq = dict(_delete_=True, type='MyOwn')",
                  'fpq = dict(_delete_=True, type=5)'):
        runner_of(lines).val()
    runner = runner_of('')
    runner.register_hook(FPQHook(weight=None, activation=None))
    runner.val()


def test_a_top_level_fpq_that_is_not_read_is_refused(fpq_config, tmp_path):
    """The file's own `fpq = ...` does not reach `_base_.fpq`."""
    path = tmp_path / 'mine.py'
    base = CONFIGS / 'fashion_mnist/resnet_fp.py'
    path.write_text(
        f"_base_ = ['{base.with_name('resnet_fpq_w4a4.py')}']\n"
        'fpq = dict(perturbation=dict(p=0.7))\n')
    bare = fpq_config(str(path), 'bare')
    bare.default_hooks.fpq = dict(type='FPQHook')
    for cfg in (fpq_config(str(path)), bare):
        with pytest.raises(ValueError, match='fpq.perturbation.*0.7.* is not '
                           'read.*default_hooks.fpq.perturbation'):
            Runner.from_cfg(cfg).train()
        assert not list(Path(cfg.work_dir).glob('epoch_*'))


def test_the_shipped_configs_are_read(fpq_config):
    for name in ('resnet_lsq_w4a4', 'resnet_fpq_w2a2', 'vit_fpq_w4a4'):
        cfg = fpq_config(f'fashion_mnist/{name}.py')
        refuse_unread(cfg, 'default_hooks.fpq', {
            key: value for key, value in cfg.default_hooks.fpq.items()
            if key != 'type'})
