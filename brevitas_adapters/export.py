"""A trained model as ONNX with QuantizeLinear, Clip, DequantizeLinear."""

from __future__ import annotations

import os

from brevitas.export import export_onnx_qcdq
from brevitas.export.onnx.standard.qcdq.manager import StdQCDQONNXManager
from torch import Tensor, nn

from fpq_plugin.calibrate import uninitialized
from fpq_plugin.state import first_few


def export_qcdq(model: nn.Module, example: Tensor,
                path: str | os.PathLike) -> None:
    """Export through Brevitas; runtimes such as onnxruntime take the file.

    Weights are stored as integers. SFP has no part in it. The batch size is
    free. The model's mode is as before when this returns.

    Args:
        model (nn.Module): A model of Brevitas's layers, of a tensor.
        example (Tensor): An input of the model.
        path (str | os.PathLike): The file to write.

    Raises:
        ValueError: If a quantizer has no step yet; the message names it.
    """
    missing = list(uninitialized(model))
    if missing:
        raise ValueError(f'not exported: no scales yet for '
                         f'{first_few(missing)}; calibrate the model, or load '
                         'a checkpoint trained with FPQ')
    training = model.training
    try:
        export_onnx_qcdq(
            model,
            args=example,
            export_path=os.fspath(path),
            # The dynamo exporter cannot store weights as integers.
            dynamo=False,
            opset_version=17,
            keep_initializers_as_inputs=False,
            input_names=['input'],
            output_names=['output'],
            dynamic_axes=dict(input={0: 'batch'}, output={0: 'batch'}))
    finally:
        # An error in the middle would leave the model in export mode.
        StdQCDQONNXManager.set_export_mode(model, enabled=False)
        model.train(training)
