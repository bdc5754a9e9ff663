"""The layers that predict are found in heads, and have the last one's bits."""

import pytest
from torch import nn

from fpq_plugin import convert


def block(channels=4):
    """As mmcv's ConvModule: a convolution, norm and activation."""
    module = nn.Module()
    module.conv = nn.Conv2d(channels, channels, 1)
    module.bn, module.activate = nn.BatchNorm2d(channels), nn.ReLU()
    return module


class Head(nn.Module):
    """Towers of blocks, and bare layers behind them."""

    def __init__(self, **bare):
        super().__init__()
        self.cls_convs = nn.ModuleList([block(), block()])
        for name, module in bare.items():
            setattr(self, name, module)


def bare():
    return nn.Conv2d(4, 4, 1)


class Detector(nn.Module):

    def __init__(self, further=None, **heads):
        super().__init__()
        self.backbone = nn.Sequential(bare(), bare())
        for name, head in heads.items():
            setattr(self, name, head)
        self.further = further


def predicting(**heads):
    table = convert(Detector(**heads))
    assert {row.weight_bits for row in table} == {4, 8}
    assert table[0].why == 'first layer'
    assert all((row.weight_bits, row.activation_bits) == (8, 8)
               for row in table if row.why != 'default')
    return [row.name for row in table if row.why == 'predicting layer']


def test_all_that_predict_in_every_form():
    head = Head(
        reg=bare(), by_level=nn.ModuleList([bare(), bare()]),
        branch=nn.Sequential(bare(), nn.ReLU(), bare()),
        ssd=nn.ModuleList([nn.Sequential(block(), bare())]))
    assert predicting(bbox_head=head) == [
        'bbox_head.reg', 'bbox_head.by_level.0', 'bbox_head.by_level.1',
        'bbox_head.branch.2', 'bbox_head.ssd.0.1']


def test_inner_layers_of_two_stages_do_not():
    second = Head(shared_fcs=nn.ModuleList([nn.Linear(4, 4)]),
                  fc_cls=nn.Linear(4, 4), fc_reg=nn.Linear(4, 4))
    stages = nn.Module()
    stages.bbox_head = nn.ModuleList([second])
    stages.mask_head = Head(upsample=nn.ConvTranspose2d(4, 4, 2),
                            conv_logits=bare())
    assert predicting(rpn_head=Head(rpn_conv=bare(), rpn_cls=bare()),
                      roi_head=stages) == [
        'rpn_head.rpn_cls', 'roi_head.bbox_head.0.fc_cls',
        'roi_head.bbox_head.0.fc_reg', 'roi_head.mask_head.conv_logits']


@pytest.mark.parametrize('heads', [
    dict(head=Head(fc=nn.Linear(4, 4))),  # a classifier's
    dict(out_head=nn.Conv2d(4, 4, 1)),  # itself a layer
    {}])
def test_elsewhere_the_last_is_the_last(heads):
    table = convert(Detector(nn.Linear(4, 4), **heads))
    assert [row.why for row in table if row.weight_bits == 8] == [
        'first layer', 'last layer']
    assert table[-1].weight_bits == 8


def test_a_classifier_behind_a_head_keeps_its_bits():
    table = convert(Detector(nn.Linear(4, 4), aux_head=Head(cls=bare())))
    assert [(row.name, row.why) for row in table if row.weight_bits == 8] == [
        ('backbone.0', 'first layer'), ('aux_head.cls', 'predicting layer'),
        ('further', 'last layer')]


def test_options_go_before():
    heads = dict(bbox_head=Head(cls=bare(), reg=bare()))
    two = dict(weight=dict(bits=2))
    rows = {row.name: row for row in convert(
        Detector(**heads), overrides={'bbox_head.cls': two},
        skip=['bbox_head.reg'])}
    assert rows['bbox_head.cls'].weight_bits == 2
    assert rows['bbox_head.reg'].weight_bits == 32
    heads = dict(bbox_head=Head(cls=bare()))
    table = convert(Detector(**heads), first_last_bits=None)
    assert {row.weight_bits for row in table} == {4}
