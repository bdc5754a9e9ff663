"""What is built holds the configs, and works without the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from mmengine import Config
from runs import CONFIGS, ROOT, mim_command, write_config

import mm_configs


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Folder with the sdist, and the wheel made from it."""
    folder = tmp_path_factory.mktemp('dist')
    done = subprocess.run(
        [sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder,
         ROOT],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def sources():
    """Files that an installation needs, relative to the checkout."""
    packages = [ROOT / p for p in ('fpq_plugin', 'brevitas_adapters',
                                   'mm_configs')]
    files = [f for p in packages for f in p.rglob('*.py')]
    files += [p / 'py.typed' for p in packages[:2]]
    return {f.relative_to(ROOT).as_posix() for f in files}


def test_wheel_and_sdist_hold_every_module_and_config(built):
    wheel, = built.glob('*.whl')
    held = set(zipfile.ZipFile(wheel).namelist())
    assert len(sources()) > 150
    assert sources() <= held
    assert {name.split('/')[0] for name in held - sources()} == {
        wheel.name.removesuffix('-py3-none-any.whl') + '.dist-info'}
    sdist, = built.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        held = {name.partition('/')[2] for name in archive.getnames()}
    assert sources() <= held
    assert {'CHANGELOG.md', 'CITATION.cff', 'LICENSE', 'tests/support/runs.py',
            'requirements/py311-torch212.txt'} <= held


def test_extras(built):
    wheel, = built.glob('*.whl')
    files = zipfile.ZipFile(wheel)
    path, = (n for n in files.namelist() if n.endswith('/METADATA'))
    extras = message_from_bytes(files.read(path)).get_all('Provides-Extra')
    assert {'mmpretrain', 'brevitas', 'analysis', 'export', 'openvino',
            'executorch', 'sam', 'docs', 'dev'} == set(extras)


def test_every_config_has_a_name():
    assert len(mm_configs.names()) > 80
    for name in mm_configs.names():
        assert Path(mm_configs.path(name)) == CONFIGS / name
    with pytest.raises(FileNotFoundError, match='-m mm_configs'):
        mm_configs.path('none.py')


def test_a_users_config_inherits_by_name(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "_base_ = ['mmpretrain::resnet/resnet50_8xb32_in1k.py',\n"
        "          __import__('mm_configs').path('_base_/fpq_w2a4.py')]\n"
        'default_hooks = dict(fpq=_base_.fpq)\n')
    fpq = Config.fromfile(str(path)).default_hooks.fpq
    assert (fpq.weight.bits, fpq.activation.bits) == (2, 4)


@pytest.fixture
def installed(built, tmp_path):
    """Runs a command in an environment that has the wheel, far from here.

    The other packages are this environment's; ours is not seen there, since
    a path that a .pth file adds has no .pth files of its own.
    """
    environment, folder = tmp_path / 'environment', tmp_path / 'else where'
    kept = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run([sys.executable, '-m', 'venv', environment], check=True)
    python = environment / 'bin/python'
    wheel, = built.glob('*.whl')
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', '--no-deps',
                    wheel], check=True, env=kept)
    packages, = environment.glob('lib/*/site-packages')
    outer = dict.fromkeys(
        [sysconfig.get_path('purelib'),
         str(Path(pytest.__file__).parents[1])])
    (packages / 'outer.pth').write_text('\n'.join(outer))
    folder.mkdir()

    def run(*command):
        done = subprocess.run(
            [python, *map(str, command)], cwd=folder, env=kept,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    run.folder = folder
    run.packages = packages
    return run


@pytest.mark.slow
def test_the_wheel_trains_through_mim_without_the_checkout(installed, fp):
    where = installed(
        '-c', 'import fpq_plugin, brevitas_adapters, mm_configs as m;'
        'print(fpq_plugin.__file__, brevitas_adapters.__file__, m.__file__)')
    assert where.count(str(installed.packages)) == 3

    ours = installed('-m', 'mm_configs',
                     'fashion_mnist/resnet_fpq_w4a4.py').strip()
    assert ours.startswith(str(installed.packages))
    mim = mim_command()[1:]
    crop = 'train_dataloader.dataset.pipeline.0.crop_size=8'
    installed(*mim, 'train', 'mmpretrain', ours, '--work-dir', 'by_path',
              '--cfg-options', 'train_cfg.max_epochs=1', crop,
              'train_dataloader.dataset.indices=300',
              'model.backbone.base_channels=8',
              'model.backbone.stem_channels=8', 'model.head.in_channels=32',
              f'load_from={fp}')
    assert (installed.folder / 'by_path/epoch_1.pth').exists()

    name = 'fashion_mnist/resnet_fpq_w2a4.py'
    mine = write_config(installed.folder / 'mine.py', name, **{
        'train_cfg.max_epochs': 1, 'load_from': str(fp),
        'default_hooks.fpq.backend': 'brevitas'})
    mine.write_text(mine.read_text().replace(
        repr(str(CONFIGS / name)), f"__import__('mm_configs').path('{name}')"))
    assert str(ROOT) not in mine.read_text()
    installed(*mim, 'train', 'mmpretrain', 'mine.py')
    saved = 'work_dirs/mine/epoch_1.pth'
    out = installed(*mim, 'test', 'mmpretrain', 'mine.py', '--checkpoint',
                    saved)
    assert 'accuracy/top1' in out
