"""Runs on two gloo ranks in DDP: what its reducer waits for."""

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn import functional as F
from toy_runs import At, ToyNet, on_gloo, on_ranks, toy_config

from fpq_plugin.param_groups import quantizer_parameters


class OnlyRead(ToyNet):
    """The weight of ``b`` is used without a call of ``b``."""

    def logits(self, x):
        x = F.linear(self.a(x).relu(), self.b.weight, self.b.bias)
        return self.c(x.relu())


def train(folder, model, wrapper, **more):
    """The state, the frozen parameters and the wrapper's options."""
    cfg = toy_config(folder, model, **on_gloo(**wrapper), **more)
    runner = Runner.from_cfg(cfg)
    places = []
    runner.register_hook(At(before_train_iter=lambda r: places.append(
        id(r.model))))
    runner.train()
    assert is_model_wrapper(runner.model)
    assert len(set(places)) == 1
    inner = runner.model.module
    assert not is_model_wrapper(inner)
    return (inner.state_dict(),
            [n for n, p in inner.named_parameters() if not p.requires_grad],
            runner.iter)


def only_read(folder, wrapper):
    first = train(folder, OnlyRead, wrapper)
    again = train(folder, OnlyRead, wrapper, resume=True, load_from=None,
                  train_cfg=dict(by_epoch=True, max_epochs=2))
    return first, again


def equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_layer_that_is_only_read(tmp_path):
    """Its quantizers are idle and frozen, in a resumed run too."""
    ranks = on_ranks(only_read, tmp_path, {})
    for (state, frozen, number), (end, still, iteration) in ranks:
        assert frozen == still == [
            'b.weight_quantizer.scale', 'b.input_quantizer.scale']
        assert (number, iteration) == (3, 6)
        assert not torch.equal(state['b.weight'], end['b.weight'])
    for number in (0, 1):
        equal(ranks[0][number][0], ranks[1][number][0])


OPTIONS = ('static_graph', 'find_unused_parameters',
           'gradient_as_bucket_view')


def with_each_option(folder):
    return [train(folder, ToyNet, wrapper, name=str(number))
            for number, wrapper in enumerate(
                [{}, *({option: True} for option in OPTIONS)])]


def test_options_of_the_wrapper_change_nothing(tmp_path):
    one, two = on_ranks(with_each_option, tmp_path)
    plain = one[0][0]
    assert one[0][1] == []
    assert sum(key.endswith('quantizer.scale') for key in plain) == 6
    for state, *_ in (*one, *two):
        equal(state, plain)


def test_in_one_process_idle_quantizers_are_frozen_too(tmp_path):
    runner = Runner.from_cfg(toy_config(tmp_path, OnlyRead))
    runner.train()
    assert {n: p.requires_grad
            for n, p in quantizer_parameters(runner.model).items()} == {
        f'{layer}.{part}_quantizer.scale': layer != 'b'
        for layer in 'abc' for part in ('weight', 'input')}
