"""The backends' seam: one import direction, one run whoever quantizes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import scalars_of, train, weights


def python(code):
    return subprocess.run([sys.executable, '-c', code], text=True,
                          capture_output=True)


def test_the_core_does_not_import_brevitas():
    done = python('import sys, fpq_plugin\n'
                  'fpq_plugin.FPQHook()\n'
                  'print([m for m in sys.modules if "brevitas" in m])')
    assert done.stdout.endswith('[]\n'), done


def test_without_brevitas_the_error_names_the_extra():
    done = python('import sys, fpq_plugin\n'
                  'sys.modules["brevitas"] = None\n'
                  'fpq_plugin.FPQHook(backend="brevitas")')
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: backend: 'brevitas' needs a package that is not "
        "installed (brevitas): pip install 'fpq-openmmlab[brevitas]'")


@pytest.mark.parametrize('backend', ['brevitas'], indirect=True)
@pytest.mark.parametrize('p', [0.0, 0.5])
def test_both_give_the_same_epoch(fpq_config, p):
    """Same seed: losses, weights, scales, accuracy; SFP's draws too."""
    folders = []
    for backend in ('torch_ao', 'brevitas'):
        cfg = fpq_config(folder=backend, fpq__backend=backend,
                         fpq__perturbation=dict(p=p),
                         **{'default_hooks.logger.interval': 1})
        train(cfg)
        folders.append(Path(cfg.work_dir))
    for key in ('loss', 'loss_csd', 'accuracy/top1'):
        one, two = (scalars_of(folder, key) for folder in folders)
        assert len(one) == (1 if 'top1' in key else 14)
        assert one == pytest.approx(two, rel=1e-5), key
    one, two = (weights(folder / 'epoch_1.pth') for folder in folders)
    assert list(one) == list(two)
    for key, value in one.items():
        torch.testing.assert_close(
            value, two[key], rtol=1e-4, atol=1e-6, msg=key)
