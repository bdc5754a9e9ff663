"""Export to ONNX at the end of a run."""

from __future__ import annotations

import os.path as osp
from importlib.util import find_spec

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch import nn

from ..modes import kept_modes


class ExportAtEnd:
    """Exports the last checkpoint that a run wrote.

    The checkpoint, not the model in memory: it is what ``mim test`` sees,
    with the weights of an EMA if there is one.

    Args:
        file (str, optional): The file to write, in the work directory unless
            absolute; None: no export.
        active (bool): Whether the run quantizes anything.

    Raises:
        TypeError: If ``file`` is not a path.
        ValueError: If it does not end in ``.onnx``, or nothing is quantized.
        ImportError: If onnx or onnxruntime is not installed.
    """

    def __init__(self, file: str | None, active: bool) -> None:
        self.file = file
        if file is None:
            return
        if not isinstance(file, str):
            raise TypeError('fpq.export: must be the path of the ONNX file to '
                            f'write, got {file!r}')
        if not file.endswith('.onnx'):
            raise ValueError('fpq.export: must end in .onnx, got '
                             f'{file!r}')
        if not active:
            raise ValueError('fpq.export: nothing to export, weight and '
                             'activation are float. Set export=None.')
        missing = [n for n in ('onnx', 'onnxruntime') if find_spec(n) is None]
        if missing:
            raise ImportError(f'fpq.export: needs {" and ".join(missing)}: '
                              "pip install 'fpq-openmmlab[export]'")

    def check(self, runner: Runner, model: nn.Module) -> None:
        """Refuse what could not be exported, before the training.

        The model is built as ONNX for two test images. All processes do
        that, since data sets meet while they are made.

        Raises:
            ValueError: If the model cannot be exported, there are no images
                to compare on, or no folder for the file.
        """
        if self.file is None:
            return
        folder = osp.dirname(osp.join(runner.work_dir, self.file))
        if not osp.isdir(folder):
            raise ValueError(f'fpq.export: no folder {folder!r}')
        from ..export.build import build_onnx
        from ..export.images import image_batches, ordered_images
        try:
            self._images = ordered_images(runner.cfg)
            example = next(image_batches(model, self._images, 2))[0]
            with kept_modes(model):
                build_onnx(model.eval(), example)
        except ValueError as error:
            raise ValueError(f'fpq.export: {error}') from error

    def run(self, runner: Runner) -> None:
        """Export, and log the summary.

        Raises:
            ParityError: If the exported model answers otherwise. The
                checkpoints stay.
        """
        if self.file is None or not is_main_process():
            return
        from ..export import export_checkpoint
        try:
            checkpoint = runner.message_hub.get_info('last_ckpt')
        except KeyError:
            runner.logger.warning('FPQ: not exported: the run has saved no '
                                  'checkpoint')
            return
        report = export_checkpoint(
            runner.cfg, checkpoint, osp.join(runner.work_dir, self.file),
            loader=self._images)
        runner.logger.info(f'FPQ exported {checkpoint}:\n{report}')
