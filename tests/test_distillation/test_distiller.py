"""The distiller: pairing, freedom from side effects, odd layers."""

import copy

import pytest
import torch
from reference import csd_64
from torch import nn
from torch.utils.checkpoint import checkpoint

from fpq_plugin import CSDLoss, Distiller, LogitKD, calibrate, convert
from fpq_plugin.distillation import with_share


def pair(model, **options):
    teacher = copy.deepcopy(model)
    convert(model, **options)
    return model, teacher


def record(model):
    """Lists that fill with each leaf layer's outputs, cloned, by name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            found[name] = []
            module.register_forward_hook(
                lambda m, a, out, name=name: found[name].append(
                    out.detach().clone()))
    return found


def test_loss_is_the_sum_of_the_literal_losses():
    model, teacher = pair(nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(4 * 16, 5)))
    x = torch.randn(8, 3, 8, 8)
    calibrate(model, [x])
    student_maps, teacher_maps = record(model), record(teacher)
    distiller = Distiller(model, teacher, CSDLoss(0.5, reduction='sum'))
    model(x)
    losses = distiller.layer_losses()
    assert list(losses) == ['0', '3', '6']
    for name, loss in losses.items():
        # The last map: layers overwritten in place make the teacher run
        # twice in the first forward.
        z_s, z_t = (maps[name][-1].double()
                    for maps in (student_maps, teacher_maps))
        axes = (0, ) if z_s.dim() == 2 else (0, 2, 3)
        expected = 0.5 * csd_64(z_s, z_t, axes, 1e-5)
        # float32 moments: an element's part is exact to some 1e-7.
        assert loss.item() == pytest.approx(
            expected.item(), abs=1e-6 * z_s.numel())
    assert distiller.loss().item() == pytest.approx(
        sum(loss.item() for loss in losses.values()), rel=1e-6)


def test_in_place_activation_after_a_layer_does_not_change_its_map():
    """conv -> ReLU(inplace) without a norm between: VGG, for one."""

    def run(inplace):
        torch.manual_seed(1)
        model, teacher = pair(nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(inplace=inplace),
            nn.Conv2d(6, 4, 3), nn.ReLU(inplace=inplace)))
        x = torch.randn(4, 3, 8, 8)
        calibrate(model, [x])
        distiller = Distiller(model, teacher, CSDLoss())
        model(x).sum()
        distiller.loss().backward()
        return distiller.loss(), [p.grad for p in model.parameters()]

    (loss, grads), (loss_ref, grads_ref) = run(True), run(False)
    assert torch.equal(loss, loss_ref)
    for grad, ref in zip(grads, grads_ref):
        assert torch.equal(grad, ref)


def test_calls_of_a_shared_layer_pair_in_order():

    class Pyramid(nn.Module):

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            return [self.head(x), self.head(x + 5), self.head(-x)]

    model, teacher = pair(Pyramid())
    x = torch.randn(32, 4)
    calibrate(model, [x])
    maps = record(model), record(teacher)
    distiller = Distiller(model, teacher, CSDLoss())
    model(x)
    expected = sum(
        csd_64(s.double(), t.double(), (0, ), 1e-5) / s.numel()
        for s, t in zip(maps[0]['head'], maps[1]['head']))
    assert distiller.loss().item() == pytest.approx(expected.item(), abs=1e-6)
    assert list(distiller.layer_losses()) == ['head']


def test_inert_in_eval_without_grad_and_after_detach():
    model, teacher = pair(nn.Sequential(nn.Linear(4, 4)))
    calls = []
    teacher.register_forward_hook(lambda *a: calls.append(1))
    distiller = Distiller(model, teacher, CSDLoss())
    x = torch.randn(8, 4)
    calibrate(model, [x])
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert calls == []
    with pytest.raises(RuntimeError, match='no layer was distilled'):
        distiller.loss()
    model(x)
    assert calls == [1]
    distiller.detach()
    model(x)
    assert calls == [1]
    assert not model._forward_hooks
    assert not teacher[0]._forward_hooks


def test_teacher_is_frozen_eval_and_no_part_of_the_student():
    model, teacher = pair(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5),
                                        nn.BatchNorm1d(4), nn.Linear(4, 2)))
    keys = set(model.state_dict())
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    distiller = Distiller(model, teacher, CSDLoss())
    model(torch.randn(8, 4))
    distiller.loss().backward()
    assert set(model.state_dict()) == keys
    assert not any(p.requires_grad or p.grad is not None
                   for p in teacher.parameters())
    assert all(torch.equal(v, before[k])
               for k, v in teacher.state_dict().items())
    assert id(teacher) not in {id(m) for m in model.modules()}


def test_layers_that_cannot_be_distilled_are_told_once():

    class Branch(nn.Module):

        def __init__(self):
            super().__init__()
            self.main, self.aux = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            if self.training:
                self.aux(x)
            return self.main(x)

    model, teacher = pair(Branch())
    told = []
    distiller = Distiller(model, teacher, CSDLoss(), warn=told.append)
    for _ in range(3):
        model(torch.randn(8, 4))
    assert told == ['distillation leaves out aux: the teacher did not call '
                    'it']
    assert list(distiller.layer_losses()) == ['main']


class Checkpointed(nn.Module):

    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        if self.reentrant is None:
            return self.second(x)
        return checkpoint(self.second, x, use_reentrant=self.reentrant)


def test_reentrant_checkpointing_is_told():
    model, teacher = pair(Checkpointed(True))
    told = []
    distiller = Distiller(model, teacher, CSDLoss(), warn=told.append)
    (model(torch.randn(8, 4)).sum() + distiller.loss()).backward()
    assert len(told) == 1
    assert 'second' in told[0]
    assert 'without gradient' in told[0]


def test_other_checkpointing_distils_as_without():
    grads = []
    for reentrant in (False, None):
        torch.manual_seed(1)
        model, teacher = pair(Checkpointed(reentrant))
        x = torch.randn(8, 4)
        calibrate(model, [x])
        distiller = Distiller(model, teacher, CSDLoss())
        (model(x).square().sum() + distiller.loss()).backward()
        grads.append([p.grad for p in model.parameters()])
        assert list(distiller.layer_losses()) == ['first', 'second']
    for one, two in zip(*grads):
        torch.testing.assert_close(one, two)


def test_an_in_place_dropout_of_the_student_alone():
    """The teacher in eval mode does not overwrite; the student does."""
    model, teacher = pair(nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5, inplace=True), nn.Linear(4, 2)))
    x = torch.randn(16, 4)
    calibrate(model, [x])
    told = []
    distiller = Distiller(model, teacher, CSDLoss(), warn=told.append)
    model(x)
    assert list(distiller.layer_losses()) == ['2']
    assert 'changed in place' in told[0]
    maps = record(model), record(teacher)
    model(x)
    expected = csd_64(maps[0]['0'][0].double(), maps[1]['0'][0].double(),
                      (0, ), 1e-5) / 64
    loss = distiller.layer_losses()['0']
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    distiller.loss().backward()
    assert len(told) == 1


def test_an_unconverted_student_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match='call convert'):
        Distiller(model, copy.deepcopy(model), CSDLoss())
    with pytest.raises(ValueError, match='call convert'):
        calibrate(model, [torch.randn(2, 4)])


def test_outputs_of_different_shape_name_the_layer():
    model, _ = pair(nn.Sequential(nn.Conv2d(3, 4, 3)))
    told = []
    distiller = Distiller(
        model, nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)), CSDLoss(),
        warn=told.append)
    for _ in range(2):
        model(torch.randn(2, 3, 8, 8))
    assert told == ['distillation leaves out 0: its output has shape (2, 4, '
                    "6, 6) and the teacher's (2, 4, 3, 3)"]
    assert list(distiller.left_out()) == ['0']
    assert not distiller.has_loss()


def test_calls_that_do_not_match_are_told_and_not_compared():

    class Repeat(nn.Module):

        def __init__(self, once, again):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.c, self.main = nn.Linear(4, 4), nn.Linear(4, 4)
            self.calls = dict(a=once, b=again, c=0 if once == 1 else 1)

        def forward(self, x):
            for name, times in self.calls.items():
                for _ in range(times):
                    getattr(self, name)(x)
            return self.main(x)

    model, _ = pair(Repeat(1, 2))
    told = []
    distiller = Distiller(model, Repeat(2, 1), CSDLoss(), warn=told.append)
    for _ in range(2):
        model(torch.randn(8, 4))
    assert list(distiller.layer_losses()) == ['main']
    assert distiller.left_out() == {
        'a': 'the student called it less often',
        'b': 'the teacher called it less often',
        'c': 'the student did not call it',
    }
    assert len(told) == 3


def test_a_teacher_without_the_layer_is_refused():
    model, _ = pair(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(ValueError, match='the teacher has no layer 1'):
        Distiller(model, nn.Sequential(nn.Linear(4, 4)), CSDLoss())


def test_a_quantized_teacher_is_refused():
    model, _ = pair(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match='the teacher is quantized'):
        Distiller(model, copy.deepcopy(model), CSDLoss())


def test_autocast_bfloat16_trains():
    model, teacher = pair(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                      nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)),
        perturbation=dict(p=1.0))
    x = torch.randn(8, 3, 8, 8)
    calibrate(model, [x])
    distiller = Distiller(model, teacher, CSDLoss())
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(x).square().mean() + distiller.loss()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.dtype is torch.float32 for p in model.parameters())


def test_the_mean_objective_by_its_formula():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = copy.deepcopy(student)
    convert(student)
    calibrate(student, [torch.randn(20, 4)])
    distiller = Distiller(student, teacher, [
        CSDLoss(loss_weight=2.0), LogitKD(loss_weight=0.5)])
    task = student(torch.randn(8, 4)).square().mean()
    expected = (task + distiller.loss()) / 3.5
    torch.testing.assert_close(distiller.mean_with(task), expected)


def small_pair():
    """A calibrated student, its teacher and an input."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    teacher = copy.deepcopy(student)
    convert(student)
    x = torch.randn(20, 4)
    calibrate(student, [x])
    return student, teacher, x


@pytest.mark.parametrize(('share', 'csd_part', 'kd_part'), [
    (0.0, 1.0, 0.0), (0.25, 0.8535534, 0.1464466), (0.5, 0.5, 0.5),
    (1.0, 0.0, 1.0)])
@pytest.mark.parametrize(('by', 'last'), [
    (1.0, 1000), (0.1, 100), (100, 100), (2000, 1000)])
def test_losses_fade_along_a_cosine(by, last, share, csd_part, kd_part):
    """By a share of a thousand iterations, or by some of them."""
    student, teacher, x = small_pair()

    def run(**fades):
        distiller = Distiller(
            copy.deepcopy(student), teacher,
            [CSDLoss(2.0, fades=fades.get('csd'), fades_by=by),
             LogitKD(3.0, fades=fades.get('kd'), fades_by=by)])
        distiller.set_progress(round(share * last), 1000)
        return distiller

    steady, fading = run(), run(csd='out', kd='in')
    values = []
    for distiller in (steady, fading):
        own = copy.deepcopy(student)
        distiller = Distiller(own, teacher, distiller.criteria)
        task = own(x).square().mean()
        values.append((distiller.losses(), distiller.loss(), task,
                       distiller.mean_with(task)))
    (plain, *_), (faded, total, task, mean) = values
    wanted = csd_part * plain['csd'], kd_part * plain['kd']
    torch.testing.assert_close((faded['csd'], faded['kd']), wanted)
    torch.testing.assert_close(total, sum(wanted))
    torch.testing.assert_close(
        mean, (task + sum(wanted)) / (1 + 2 * csd_part + 3 * kd_part))


@pytest.mark.parametrize(('fades', 'told'), [
    (None, False), (None, True), ('in', False), ('in', True)])
def test_a_loss_that_fades_wants_to_know_when(fades, told):
    student = nn.Sequential(nn.Linear(4, 3))
    teacher, said = copy.deepcopy(student), []
    convert(student)
    calibrate(student, [torch.randn(20, 4)])
    distiller = Distiller(student, teacher, LogitKD(fades=fades),
                          warn=said.append)
    for _ in range(2):
        if told:
            distiller.set_progress(5, 10)
        student(torch.randn(8, 4))
        distiller.loss()
    assert len(said) == (fades is not None and not told)
    assert all('Call distiller.set_progress' in text for text in said)


def test_a_loss_fades_in_or_out_or_not():
    with pytest.raises(ValueError, match="fades must be 'in', 'out' or None"):
        CSDLoss(fades='up')
    for by in (0, 0.0, 1.5, 1, -2, True, '1', None):
        with pytest.raises(ValueError, match='fades_by must be a share of .* '
                           rf'or a number of iterations, .* got {by!r}'):
            LogitKD(fades='in', fades_by=by)
    loss = CSDLoss(fades='out', fades_by=0.25)
    loss.set_progress(25, 200)
    assert loss.part.item() == pytest.approx(0.5)
    for over in (50, 120, 200):  # it stays gone
        loss.set_progress(over, 200)
        assert loss.part.item() == 0


@pytest.mark.parametrize('share', [0.25, 1.0])
def test_a_share_of_the_gradient_leaves_the_value(share):
    x = torch.tensor([1.7, -3.3], requires_grad=True)
    losses = dict(one=(x**2).sum(), two=[x[0] * 3, x[1]])
    for value in losses.values():
        found = with_share(value, share)
        for new, old in zip(*([v] if torch.is_tensor(v) else v
                              for v in (found, value))):
            assert torch.equal(new, old)
            wanted, = torch.autograd.grad(old, x, retain_graph=True)
            got, = torch.autograd.grad(new, x, retain_graph=True)
            torch.testing.assert_close(got, share * wanted)


def test_a_loss_that_has_faded_out_is_not_taken(monkeypatch):
    student, teacher, x = small_pair()
    whole = copy.deepcopy(student)
    calls = []
    attach = CSDLoss.attach
    monkeypatch.setattr(CSDLoss, 'attach', lambda self, *args: calls.append(
        1) or attach(self, *args))
    distiller = Distiller(student, teacher, [
        CSDLoss(fades='out', fades_by=0.5), LogitKD(fades='in', fades_by=0.5)])
    gradients = []
    for iteration, count in ((4, 2), (5, 0), (10, 0), (4, 2)):
        calls.clear()
        distiller.set_progress(iteration, 10)
        student.zero_grad()
        task = student(x).square().mean()
        losses = distiller.losses()
        assert len(calls) == count
        assert distiller.has_loss()
        assert list(losses) == ['csd', 'kd']
        assert (losses['csd'] > 0) == bool(count)
        torch.testing.assert_close(distiller.loss(), sum(losses.values()))
        distiller.mean_with(task).backward()
        gradients.append(student[0].weight.grad.clone())
    # As if it were taken with a weight of 0.
    both = Distiller(whole, teacher, [CSDLoss(0.0), LogitKD()])
    both.mean_with(whole(x).square().mean()).backward()
    assert torch.equal(whole[0].weight.grad, gradients[1])
    assert torch.equal(gradients[1], gradients[2])
    assert torch.equal(gradients[0], gradients[3])


def test_all_losses_may_fade_out():
    student, teacher, x = small_pair()
    called = []
    teacher.register_forward_pre_hook(lambda *args: called.append(1))
    distiller = Distiller(student, teacher, CSDLoss(fades='out'))
    distiller.set_progress(10, 10)
    task = student(x).square().mean()
    assert not called
    assert distiller.has_loss()
    assert distiller.loss() == 0
    assert distiller.losses() == {'csd': 0}
    assert torch.equal(distiller.mean_with(task), task)
    distiller.set_progress(5, 10)
    student(x)
    assert called
    assert distiller.loss() > 0
