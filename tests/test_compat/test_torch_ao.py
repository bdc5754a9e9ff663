"""Where torch.ao.quantization is gone all else works as before."""

import os
import subprocess
import sys

import pytest
from runs import ROOT
from torch.ao.quantization import FakeQuantizeBase

from fpq_plugin import LSQFakeQuantize


def test_where_it_exists_fake_quantizers_are_of_its_class():
    assert issubclass(LSQFakeQuantize, FakeQuantizeBase)


@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_without_it_a_model_is_converted_trained_and_exported(
        backend, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/support/without_torch_ao.py', backend,
         tmp_path / 'model.onnx'], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
