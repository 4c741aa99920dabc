"""`EMA` is the mean of the weights that a model has had."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import tied
from tied.nn import EMA, TiedAutoencoder


def student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(TiedAutoencoder((4, 3), "tanh"), nn.BatchNorm1d(4)).double()


def trained(model: nn.Module, teacher: EMA, steps: int):
    """Train, update the teacher after each step, and return the state dicts after each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = []
    for step in range(steps):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x - teacher(x)).square().mean().backward()
        optimizer.step()
        teacher.update(model)
        history.append(copy.deepcopy(model.state_dict()))
    return history


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_closed_form(decay):
    model = student()
    teacher = EMA(model, decay).eval()
    history = trained(model, teacher, 12)
    weights = torch.tensor([decay**age for age in reversed(range(12))], dtype=torch.float64)
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point():
            past = torch.stack([state[name] for state in history], -1)
            torch.testing.assert_close(value, (past * weights).sum(-1) / weights.sum(), rtol=0, atol=1e-12)


def test_without_correction_the_start_counts():
    model = student()
    start = copy.deepcopy(model.state_dict())
    teacher = EMA(model, 0.9, debias=False)
    history = trained(model, teacher, 12)
    for name, parameter in teacher.module.named_parameters():
        expected = 0.9**12 * start[name] + sum(0.1 * 0.9 ** (11 - n) * state[name] for n, state in enumerate(history))
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-12)


def test_the_first_update_copies():
    model, other = student(), student(seed=1)
    teacher = EMA(model, 0.999)
    teacher.update(other)
    for name, value in other.state_dict().items():
        assert torch.equal(teacher.module.state_dict()[name], value)


@pytest.mark.parametrize("buffers", ["average", "copy", "own"])
def test_buffers(buffers):
    model = student()
    teacher = EMA(model, 0.5, buffers=buffers).eval()
    history = trained(model, teacher, 3)
    means = [state["1.running_mean"] for state in history]
    expected = {
        "average": (means[0] / 4 + means[1] / 2 + means[2]) / 1.75,
        "copy": means[2],
        "own": torch.zeros(4, dtype=torch.float64),
    }[buffers]
    torch.testing.assert_close(teacher.module[1].running_mean, expected, rtol=0, atol=1e-12)
    assert teacher.module[1].num_batches_tracked == (0 if buffers == "own" else 3)
    weights = [state["0.encoder.0.weight"] for state in history]
    average = (weights[0] / 4 + weights[1] / 2 + weights[2]) / 1.75
    torch.testing.assert_close(teacher.module[0].encoder[0].weight.data, average, rtol=0, atol=1e-12)


def test_no_gradient_either_way():
    model = student()
    teacher = EMA(model)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_ties_hold_in_the_teacher():
    model = student()
    teacher = EMA(model, 0.9)
    trained(model, teacher, 3)
    inner = teacher.module[0]
    assert torch.equal(inner.decoder[0].weight, inner.encoder[0].weight.t())
    assert [str(tie) for tie in tied.ties(teacher)] == ["module.0.decoder.0.weight = module.0.encoder.0.weight.T"]
    assert len(list(teacher.parameters())) == len(list(model.parameters()))
    before = model[0].encoder[0].weight.detach().clone()
    with torch.no_grad():
        inner.decoder[0].weight.zero_()
    assert torch.equal(model[0].encoder[0].weight, before)


def test_plain_sharing_and_computed_weights():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    parametrizations.weight_norm(model["c"])
    teacher = EMA(model, 0.5)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        teacher.update(model)
    assert teacher.module["a"].weight is teacher.module["b"].weight
    torch.testing.assert_close(teacher.module["a"].weight, model["a"].weight - (0 * 4 + 1 * 2 + 2 * 1) / 7)


def test_a_part_whose_source_lies_outside():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    tied.tie(model, "head.weight", "embed.weight")
    teacher = EMA(model["head"], 0.5)
    with torch.no_grad():
        model["embed"].weight.fill_(3)
    teacher.update(model["head"])
    assert (teacher.module.weight == 3).all()


def test_a_tie_declared_later_is_followed():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    teacher = EMA(model, 0.5)
    tied.tie(model, "b.weight", "2 * a.weight.T")
    teacher.update(model)
    assert torch.equal(teacher.module["b"].weight, 2 * model["a"].weight.t())
    assert type(teacher.module["b"].weight) is nn.Parameter


def test_the_count_is_in_the_state_dict():
    model = student()
    teacher = EMA(model, 0.9)
    history = trained(model, teacher, 3)
    resumed = EMA(student(seed=5), 0.9)
    resumed.load_state_dict(teacher.state_dict())
    assert int(resumed.updates) == 3
    for each in (teacher, resumed):
        each.update(model)
    for one, other in zip(teacher.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(history) == 3


def test_a_copy_holds_no_student_and_goes_its_own_way():
    model = student()
    teacher = EMA(model, 0.5)
    twin = copy.deepcopy(teacher)
    assert sum(1 for _ in twin.modules()) == 1 + sum(1 for _ in model.modules())
    twin.update(student(seed=1))
    twin.update(student(seed=2))
    assert int(teacher.updates) == 0
    assert not torch.equal(twin.module[0].encoder[0].weight, teacher.module[0].encoder[0].weight)


def test_half_precision_students_have_a_teacher_in_single():
    model = nn.Linear(3, 3).bfloat16()
    teacher = EMA(model, 0.999, dtype=torch.float32)
    for _ in range(4):
        with torch.no_grad():
            model.weight.fill_(1)
        teacher.update(model)
    assert teacher.module.weight.dtype == torch.float32
    torch.testing.assert_close(teacher.module.weight, torch.ones(3, 3))
    assert teacher(torch.zeros(2, 3)).dtype == torch.float32


def test_integer_and_complex_parameters():
    model = nn.Module()
    model.count = nn.Parameter(torch.tensor([4]), requires_grad=False)
    model.wave = nn.Parameter(torch.tensor([1 + 1j]))
    teacher = EMA(model, 0.5)
    for value in (1j, 3j):
        with torch.no_grad():
            model.wave.fill_(value)
            model.count.add_(1)
        teacher.update(model)
    assert teacher.module.count.item() == 6
    torch.testing.assert_close(teacher.module.wave.data, torch.tensor([(1j + 2 * 3j) / 3]))


def test_modes_and_arguments():
    class Shifted(nn.Module):
        def forward(self, x, *, shift):
            return x + shift, self.training

    teacher = EMA(Shifted())
    assert teacher(1, shift=2) == (3, True)
    assert teacher.eval()(1, shift=2) == (3, False)
    assert EMA(Shifted().eval())(1, shift=2)[1] is False


def test_compiled_students_and_a_decay_that_changes():
    model = nn.Linear(3, 3)
    teacher = EMA(torch.compile(model, backend="eager"), 0.5)
    teacher.update(torch.compile(model, backend="eager"))
    teacher.decay = 0.0
    with torch.no_grad():
        model.weight.fill_(7)
    teacher.update(model)
    assert (teacher.module.weight == 7).all()
    assert repr(teacher).splitlines()[1].strip() == "decay=0.0, debias=True, buffers='average'"


UNLIKE = """\
EMA.update(ModuleDict)
  The model is not built like the teacher.
  found:    '{0}': a name or a shape that only one of them has
  expected: the model that was copied, with the ties that it had then
  fix:      make the EMA after all ties; pass the model itself, not a wrapper such as DistributedDataParallel
The model was not changed."""

DECAY = """\
EMA(Linear, decay=1.0)
  The decay is outside its range.
  found:    decay=1.0
  expected: a number from 0 to less than 1
  fix:      decay=0.999
The model was not changed."""

DIGITS = """\
EMA(Linear, decay=0.999)
  'weight' has too few digits: steps of 1 - decay would be lost to rounding.
  found:    torch.bfloat16 and decay=0.999
  expected: 1 - decay of at least 5e-01
  fix:      EMA(model, dtype=torch.float32), which follows a model in half precision
The model was not changed."""

WORD = """\
EMA(Linear, decay=0.999)
  There is no such way to treat buffers.
  found:    buffers='mean'
  expected: 'average', 'copy' or 'own'
  fix:      buffers='average'
The model was not changed."""


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: EMA(nn.Linear(3, 3), 1.0), tied.ShapeError, DECAY),
        (lambda: EMA(nn.Linear(3, 3), -0.1), tied.ShapeError, "decay=-0.1"),
        (lambda: EMA(nn.Linear(3, 3).bfloat16()), tied.DtypeError, DIGITS),
        (lambda: EMA(nn.Linear(3, 3).half(), 0.95), tied.DtypeError, "torch.float16"),
        (lambda: EMA(nn.Linear(3, 3), buffers="mean"), tied.KindError, WORD),
        (lambda: EMA(3), tied.KindError, "Only modules"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message if message.endswith("changed.") else message in str(caught.value)


def parts(**kinds) -> nn.ModuleDict:
    return nn.ModuleDict(kinds)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (parts(a=nn.Linear(3, 3), b=nn.Linear(3, 3), c=nn.Linear(2, 2)), "c.bias"),
        (parts(a=nn.Linear(3, 3), b=nn.Linear(3, 4)), "b.weight"),
        (parts(a=nn.Linear(3, 3), b=nn.Linear(3, 3, bias=False)), "b.bias"),
        (parts(a=nn.Linear(3, 3)), "b.weight"),
    ],
)
def test_models_that_are_not_alike(other, name):
    teacher = EMA(parts(a=nn.Linear(3, 3), b=nn.Linear(3, 3)))
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(tied.ShapeError) as caught:
        teacher.update(other)
    assert f"found:    '{name}'" in str(caught.value)
    if name == "c.bias":
        assert str(caught.value) == UNLIKE.format(name)
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_student_that_was_untied_is_refused():
    model = student()
    teacher = EMA(model)
    tied.untie(model)
    with pytest.raises(tied.ShapeError):
        teacher.update(model)


def test_a_decay_set_outside_its_range():
    model = nn.Linear(3, 3)
    teacher = EMA(model)
    teacher.decay = 1.5
    with pytest.raises(tied.ShapeError):
        teacher.update(model)


def test_digits_are_counted_again_after_a_change_of_dtype():
    model = nn.Linear(3, 3)
    teacher = EMA(model).bfloat16()
    with pytest.raises(tied.DtypeError):
        teacher.update(model)
