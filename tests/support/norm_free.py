"""A backbone without batch statistics, for the distributed tests."""

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn


@MODELS.register_module()
class NormFreeNet(BaseModule):
    """Three convolutions on (N, 1, 8, 8); a tuple of one (N, 16, 2, 2)."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return (torch.relu(self.conv3(x)), )
