"""Settings of every test: threads, seeds, hypothesis."""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import fpq_plugin  # noqa: E402, F401

torch.set_num_threads(1)
settings.register_profile(
    'fpq',
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('fpq')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
