"""A quantized training and an export where torch.ao.quantization is gone.

Run as a script, with a backend and the file to write.
"""

import copy
import sys
from importlib.abc import MetaPathFinder

import torch
import torchvision  # noqa: F401 -- it imports torch.ao itself
from torch import nn

GONE = ('torch.ao.quantization', 'torch.quantization')


class Gone(MetaPathFinder):
    """Finds no torch.ao.quantization."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith(GONE):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


def hide():
    """Take torch.ao.quantization away from this process."""
    for name in list(sys.modules):
        if name.startswith(GONE):
            del sys.modules[name]
    vars(torch.ao).pop('quantization', None)
    vars(torch).pop('quantization', None)
    sys.meta_path.insert(0, Gone())


def refusal(run):
    """The message of the error that ``run`` raises."""
    try:
        run()
    except (ImportError, RuntimeError) as error:
        return str(error)
    raise AssertionError('not refused')


def main(backend, path):
    from exported_models import answers, net

    import fpq_plugin
    from fpq_plugin import Recipe
    from fpq_plugin.export import export_onnx, to_torch_int8

    torch.manual_seed(0)
    x, y = torch.randn(9, 3, 8, 8), torch.arange(9) % 5
    recipe = Recipe(bits='w4a4', backend=backend)
    model = net()
    teacher = copy.deepcopy(model)
    recipe.convert(model)
    fpq_plugin.calibrate(model, [x])
    distiller = fpq_plugin.Distiller(model, teacher, fpq_plugin.CSDLoss())
    optimizer = torch.optim.SGD(fpq_plugin.param_groups(model, lr=0.1))
    before = {name: value.clone() for name, value in model.named_parameters()}
    loss = nn.functional.cross_entropy(model.train()(x), y) + distiller.loss()
    loss.backward()
    optimizer.step()
    for name, value in model.named_parameters():
        assert not torch.equal(value, before[name]), name
    distiller.detach()
    export_onnx(model.eval(), path, [(x, y)])
    torch.testing.assert_close(answers(path, x), model(x).detach(),
                               rtol=0, atol=1e-4)
    quantizer = next(m for m in model.modules()
                     if isinstance(m, fpq_plugin.BaseFakeQuantize))
    quantizer.enable_observer()
    quantizer.disable_observer()
    quantizer.disable_fake_quant()
    assert torch.equal(quantizer(x), x)

    assert 'has no int8 layers' in refusal(lambda: to_torch_int8(model))
    if backend == 'torch_ao':
        message = refusal(lambda: fpq_plugin.convert(
            net(), weight=dict(type='TorchAOFakeQuantize')))
        assert message == (
            'weight: TorchAOFakeQuantize needs torch.ao.quantization, '
            f'which torch {torch.__version__} does not have: leave type out '
            "for the default one, or take another one, such as "
            "'LSQFakeQuantize'")


if __name__ == '__main__':
    hide()
    main(*sys.argv[1:])
