"""Export an FPQ checkpoint to ONNX QCDQ and hold it against the model.

Runs the model and the file in onnxruntime on the config's test set and prints
both top-1 figures, the images whose class differs and the logits' distance.
Checkpoints of either backend can be exported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from mmengine import Config
from mmengine.runner import Runner

from brevitas_adapters import export_qcdq
from fpq_plugin import load_model


def with_backend(config: str, backend: str) -> Config:
    """The config with its FPQHook set to ``backend``."""
    cfg = Config.fromfile(config)
    for hook in (cfg.get('default_hooks') or {}).values():
        if hook and 'FPQHook' in str(hook.get('type')):
            hook.backend = backend
    return cfg


def compare(config: str, checkpoint: str, path: Path) -> dict:
    """Export a checkpoint and run both models on the test set.

    Args:
        config (str): The config it was trained with.
        checkpoint (str): The checkpoint.
        path (Path): The ONNX file to write.

    Returns:
        dict: Top-1 (%) of both, number of images and of those whose class
        differs, largest and mean distance of a logit, and the logits' spread
        (standard deviation) to hold them against.
    """
    model = load_model(with_backend(config, 'brevitas'), checkpoint)
    loader = Runner.build_dataloader(model._config.test_dataloader)
    session, labels, ours, theirs = None, [], [], []
    for batch in loader:
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
        inputs = model.data_preprocessor(batch, False)['inputs']
        if session is None:
            export_qcdq(model, inputs, path)
            session = onnxruntime.InferenceSession(path)
        with torch.no_grad():
            ours.append(model(inputs).numpy())
        theirs.append(session.run(None, {'input': inputs.numpy()})[0])
    labels = np.array(labels)
    ours, theirs = np.concatenate(ours), np.concatenate(theirs)
    distance = np.abs(ours - theirs)
    return dict(
        images=len(labels),
        top1_torch=100 * float((ours.argmax(1) == labels).mean()),
        top1_onnx=100 * float((theirs.argmax(1) == labels).mean()),
        other_class=int((ours.argmax(1) != theirs.argmax(1)).sum()),
        images_with_equal_logits=int((distance.max(1) < 1e-4).sum()),
        largest_distance=float(distance.max()),
        mean_distance=float(distance.mean()),
        spread=float(ours.std()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('out', type=Path, help='the ONNX file to write')
    args = parser.parse_args()
    print(json.dumps(
        compare(args.config, args.checkpoint, args.out), indent=2))


if __name__ == '__main__':
    main()
