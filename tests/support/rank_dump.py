"""Hook for the distributed tests: every rank writes its state."""

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS


@HOOKS.register_module()
class RankDump(Hook):
    """Saves ``rank<N>.pth`` in the work directory after training."""

    def after_train(self, runner):
        model = runner.model
        if is_model_wrapper(model):
            model = model.module
        torch.save(model.state_dict(),
                   f'{runner.work_dir}/rank{get_rank()}.pth')
