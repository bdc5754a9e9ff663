"""The name by which configs import :class:`SAMOptimWrapper`; ``sam`` extra."""

try:
    from .openmmlab.sam_optim_wrapper import SAMOptimWrapper
except ModuleNotFoundError as error:
    raise ImportError(
        f'SAMOptimWrapper needs a package that is not installed '
        f"({error.name}): pip install 'fpq-openmmlab[sam]'") from error

__all__ = ['SAMOptimWrapper']
