"""What checkpoints say of their quantizers, and what is made of it."""

import io
import re

import pytest
import torch
from mmengine.runner.checkpoint import get_state_dict, load_state_dict
from torch import nn

from fpq_plugin import LSQFakeQuantize, calibrate, convert
from fpq_plugin.quantizers import describe, differences
from fpq_plugin.state import (
    _by_keys,
    bare_state,
    complete_state,
    dropped_keys,
    refuse_other_quantization,
    refuse_unlike_part,
    stored_quantizers,
)

LSQ = dict(weight=dict(bits=4), activation=dict(bits=4))
OTHERS = {
    'DoReFa': (dict(weight=dict(type='DoReFaFakeQuantize', bits=4)),
               'LSQFakeQuantize .*; DoReFaFakeQuantize|LSQFakeQuantize'),
    'PACT': (dict(activation=dict(type='PACTFakeQuantize', bits=4)),
             'PACTFakeQuantize'),
    'LSQ+': (dict(activation=dict(type='LSQPlusFakeQuantize', bits=4)),
             'LSQPlusFakeQuantize'),
    'torch.ao': (dict(weight=dict(type='TorchAOFakeQuantize', bits=4)),
                 'TorchAOFakeQuantize'),
    'per tensor': (dict(weight=dict(bits=4, per_channel=False)),
                   'per channel.* in the checkpoint, per tensor'),
    'symmetric': (dict(activation=dict(bits=4, symmetric=True)),
                  'asymmetric, unsigned in the checkpoint, symmetric, signed'),
    'signed': (dict(activation=dict(bits=4, signed=True)),
               'unsigned in the checkpoint, signed in'),
    'bits': (dict(weight=dict(bits=2)), '4 bits in the checkpoint, 2 bits'),
}
X = torch.linspace(-1, 2, 16).view(4, 4)


def converted(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8),
                          nn.Linear(8, 2))
    convert(model, **{**LSQ, **options}, first_last_bits=None)
    calibrate(model, [X])
    return model.eval()


def through_a_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(('other', 'message'), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize('state_of', [nn.Module.state_dict, get_state_dict])
def test_other_quantizers_are_refused(other, message, state_of):
    saved = through_a_file(dict(state_dict=state_of(converted())))
    model = converted(**other)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        refuse_other_quantization(
            model, bare_state(saved), 'it', 'Mend it.',
            stored_quantizers(saved))
    with pytest.raises(ValueError, match='otherwise than the model to fill'):
        load_state_dict(model, saved['state_dict'])
    with pytest.raises(RuntimeError, match=r'\d\.\w+_quantizer|0.weight'):
        model.load_state_dict(saved['state_dict'], strict=False)
    quantizers = {key for key in before if '_quantizer' in key}
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in quantizers
               if key.startswith('0.weight'))


@pytest.mark.parametrize('kind', ['PACT', 'LSQ+', 'torch.ao', 'per tensor',
                                  'bits'])
def test_keys_and_shapes_tell_where_nothing_is_described(kind):
    """As in checkpoints of release 0.1.0."""
    state = dict(converted().state_dict())
    other, _ = OTHERS[kind]
    with pytest.raises(ValueError, match='quantized otherwise: 0.'):
        refuse_other_quantization(converted(**other), state, 'it', '')
    refuse_other_quantization(converted(), state, 'it', '')


@pytest.mark.parametrize('described', [True, False])
@pytest.mark.parametrize('backend', ['torch_ao', 'brevitas'])
def test_the_way_out_of_the_former_default_is_told(described, backend):
    """``scale`` of LSQ, as 0.1.0 wrote it, for the ``log_scale`` of now."""
    lsq = dict(type='LSQFakeQuantize', bits=4)
    model = converted(backend=backend)
    old = converted(weight=lsq, activation=lsq, backend=backend)
    saved = old.state_dict() if described else dict(old.state_dict())
    assert '0.weight_quantizer.scale' in saved
    told = (r"LSQFakeQuantize was the default once and is "
            r"preset='paper' now")
    with pytest.raises(ValueError, match=f'otherwise: .*{told}. Mend it'):
        refuse_other_quantization(model, saved, 'it', 'Mend it.',
                                  stored_quantizers(dict(state_dict=saved)))
    with pytest.raises(ValueError, match=f'model to fill: .*{told}. Convert'):
        load_state_dict(model, saved)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=told + r'.*\.convert\(model'):
            model.load_state_dict(saved, strict=strict)
    refuse_other_quantization(old, saved, 'it', '')
    # Others were no default.
    saved = converted(weight=dict(type='DoReFaFakeQuantize', bits=4),
                      activation=None).state_dict()
    with pytest.raises(ValueError, match='DoReFa(?!(.|\n)*preset)'):
        refuse_other_quantization(model, saved, 'it', '',
                                  stored_quantizers(dict(state_dict=saved)))


@pytest.mark.parametrize('same', [
    {}, dict(perturbation=dict(p=0.5)), dict(backend='brevitas'),
    dict(weight=dict(bits=4, observer='mse'))])
def test_what_changes_no_number_is_let_through(same):
    saved = converted().state_dict()
    model = converted(**same)
    load_state_dict(model, saved, strict=True)
    model.load_state_dict(saved)
    torch.testing.assert_close(model(X), converted()(X))


class Powers(LSQFakeQuantize):
    """A user's quantizer, with an option of its own."""

    def __init__(self, base=2, **kwargs):
        super().__init__(**kwargs)
        self.base = base


def test_a_users_quantizer_is_described_by_its_options():
    two, three = (describe(Powers(base=base)) for base in (2, 3))
    assert two == dict(type='Powers', bits=8, per_channel=False,
                       symmetric=False, signed=False, narrow_range=False,
                       base=2)
    assert differences(two, three) == ('base=2', 'base=3')
    assert differences(dict(bits=8), three) is None


def test_what_was_stored_before_narrow_ranges_had_none():
    narrow = describe(LSQFakeQuantize(symmetric=True, narrow_range=True))
    old = {key: value for key, value in narrow.items()
           if key != 'narrow_range'}
    assert differences(old, narrow) == ('narrow_range=False',
                                        'narrow_range=True')
    assert differences(old, {**narrow, 'narrow_range': False}) is None
    # As of a state dict whose metadata is lost.
    assert differences({}, narrow) is None
    assert differences(dict(bits=8), narrow) is None


def test_weights_of_fpq_do_not_go_into_a_float_model():
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8),
                          nn.Linear(8, 2))
    saved = converted().state_dict()
    before = [p.clone() for p in plain.parameters()]
    with pytest.raises(ValueError, match='latent weights(.|\n)*load_model'):
        load_state_dict(plain, saved)
    assert all(map(torch.equal, before, plain.parameters()))
    part = {key.removeprefix('2.'): value for key, value in saved.items()
            if key.startswith('2.')}
    with pytest.raises(ValueError, match='latent weights'):
        load_state_dict(nn.Sequential(plain[2])[0], {
            'weight': part['weight'],
            **{f'x.{key}': value for key, value in part.items()
               if 'quantizer' in key}})


def test_a_part_of_a_state_fills_a_part():
    """As init_cfg with a prefix does; float weights fill anything."""
    saved, model = converted().state_dict(), converted()
    load_state_dict(model, {key: value for key, value in saved.items()
                            if key.startswith('0.')})
    load_state_dict(model, {'2.weight': saved['2.weight']})
    skipped = converted(skip=['0'])
    with pytest.raises(ValueError, match='0.weight_quantizer: 4 bits in the '
                       'checkpoint, float in the model'):
        load_state_dict(skipped, saved)
    with pytest.raises(ValueError, match='0.weight_quantizer: float in the '
                       'checkpoint, 4 bits in the model'):
        load_state_dict(model, skipped.state_dict())


def test_a_part_with_a_shared_quantizers_second_name_is_known():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    convert(model)
    model[2].input_quantizer = model[1].input_quantizer
    calibrate(model, [X])
    key = '2.input_quantizer.'
    part = {name: value for name, value in model.state_dict().items()
            if name.startswith(key)}
    assert part
    refuse_unlike_part(model, part)


def drop(module, state, prefix, metadata):
    for key in [key for key in state if 'weight' in key]:
        state.pop(key)


def rename(module, state, prefix, metadata):
    for key in list(state):
        state[f'old.{key}'] = state.pop(key)


@pytest.mark.parametrize('hook', [drop, rename])
def test_hooks_that_drop_or_rename_keys_are_made_up_for(hook):
    model, whole = converted(), converted().state_dict()
    model._register_state_dict_hook(hook)
    assert not whole.keys() <= model.state_dict().keys()
    state = complete_state(model)
    assert whole.keys() <= state.keys()
    assert all(torch.equal(whole[key], state[key]) for key in whole)


def test_a_tied_weight_has_each_of_its_names():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    state = model.state_dict()
    del state['1.weight']
    assert dropped_keys(model, state) == ['1.weight']
    assert dropped_keys(model, model.state_dict()) == []


def test_what_is_put_back_is_no_parameter():
    model = converted()
    model._register_state_dict_hook(drop)
    assert not any(value.requires_grad
                   for value in complete_state(model).values())


@pytest.mark.parametrize(('given', 'needed', 'told'), [
    ((1, ), (8, ), 'per tensor'), ((8, ), (1, ), r'per channel \(8 steps\)'),
    ((), (8, ), 'per tensor')])
def test_shapes_tell_how_many_steps_there_are(given, needed, told):
    own = LSQFakeQuantize(bits=4, per_channel=needed != (1, ),
                          num_channels=needed[0])
    state = {f'w.{key}': torch.zeros(given) if value.shape == needed
             else value for key, value in own.state_dict().items()}
    stored, here = _by_keys('w', own, state)
    assert re.fullmatch(told, stored)
    assert here == ('per tensor' if needed == (1, )
                    else 'per channel (8 steps)')


def test_a_step_in_the_logarithm_is_told_by_its_key():
    own = LSQFakeQuantize(bits=4)
    state = {f'w.{key.replace("scale", "log_scale")}': value
             for key, value in own.state_dict().items()}
    stored, here = _by_keys('w', own, state)
    assert stored.startswith('LogLSQFakeQuantize (with ')
    assert here.startswith('LSQFakeQuantize (with ')
