"""The ways out: `untie`, `retie`, and what a tied attribute does when somebody writes to it."""

import copy
import pickle

import pytest
import torch
from corpus import CASES, Case
from snapshot import refused
from stack import Stack
from torch import nn
from torch.nn.utils import parametrize

import tied


@pytest.fixture
def model() -> Stack:
    made = Stack()
    tied.tie(made, {"decoder.weight": "encoder.weight.T", "head.weight": "2 * embed.weight"})
    return made


# -- untie --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_untie_restores_class_order_and_outputs(case: Case) -> None:
    model, plain = case.build(), case.build()
    tied.tie(model, case.target, case.source)
    before = model(case.inputs()).detach()
    assert [str(t) for t in tied.untie(model)] == [f"{case.target} = {case.source}"]
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all("_tied" not in module.__dict__ for module in model.modules())
    assert tied.ties(model) == ()
    torch.testing.assert_close(model(case.inputs()).detach(), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [["weight", "bias"], ["bias", "weight"]])
def test_parameters_return_to_their_places(order: list[str]) -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.MultiheadAttention(4, 2)})
    names = [n for n, _ in model.named_parameters()]
    for name in order:
        tied.tie(model, f"b.in_proj_{name}", f"a.in_proj_{name}")
    for name in ["weight", "bias"]:
        tied.untie(model, f"b.in_proj_{name}")
    assert [n for n, _ in model.named_parameters()] == names


def test_untie_one_of_two(model: Stack) -> None:
    assert [str(t) for t in tied.untie(model, "decoder.weight")] == ["decoder.weight = encoder.weight.T"]
    assert [str(t) for t in tied.ties(model)] == ["head.weight = 2 * embed.weight"]
    nn.init.zeros_(model.encoder.weight)
    assert model.decoder.weight.abs().sum() > 0


def test_untie_below_a_module() -> None:
    model = Stack()
    tied.tie(model, "layers.*.mlp", "layers.0.mlp")
    assert len(tied.untie(model, "layers[1]")) == 2
    assert {t.address[1] for t in tied.ties(model)} == {"2"}


def test_untie_an_untied_model_does_nothing() -> None:
    assert tied.untie(Stack()) == ()


def test_untie_what_is_not_tied(model: Stack) -> None:
    message = """
untie(model, 'encoder.weight')
  'encoder.weight' is not tied.
  found:    an ordinary parameter or module
  expected: the target of a tie
  fix:      list the ties with tied.ties(model)
The model was not changed."""
    with refused(model, tied.KindError, message):
        tied.untie(model, "encoder.weight")
    with refused(model, tied.AddressError):
        tied.untie(model, "encodr.weight")


def test_untie_keeps_requires_grad(model: Stack) -> None:
    model.encoder.weight.requires_grad_(False)
    tied.untie(model)
    assert not model.decoder.weight.requires_grad
    assert model.head.weight.requires_grad


def test_a_shallow_copy_is_untied_by_itself(model: Stack) -> None:
    twin = copy.copy(model.decoder)
    holder = nn.ModuleDict({"encoder": model.encoder, "decoder": twin})
    tied.untie(holder)
    assert type(twin.weight) is nn.Parameter
    assert type(model.decoder.weight) is not nn.Parameter
    assert [n for n, _ in model.decoder.named_parameters()] == ["bias"]


# -- writing to a target ------------------------------------------------------------------------------


def test_assignment_is_refused(model: Stack) -> None:
    message = """
'decoder.weight' is tied and owns no memory, so it cannot be set or deleted.
  found:    decoder.weight = encoder.weight.T; Parameter was assigned
  expected: an assignment to the source
  fix:      assign to the source, or give the attribute a Parameter of its own: tied.untie(model, 'decoder.weight')
The model was not changed."""
    with refused(model, tied.WriteError, message):
        model.decoder.weight = nn.Parameter(torch.zeros(6, 4))
    for value in (torch.zeros(6, 4), None, 3, nn.Parameter(model.encoder.weight.t())):
        with refused(model, tied.WriteError):
            model.decoder.weight = value
    with refused(model, tied.WriteError):
        del model.decoder.weight
    with refused(model, tied.WriteError):
        model.decoder.register_parameter("weight", nn.Parameter(torch.zeros(6, 4)))
    with refused(model, tied.WriteError):
        model.decoder.register_buffer("weight", torch.zeros(6, 4))


def test_assigning_the_source_itself_is_nothing_to_do() -> None:
    """What `tie_weights` of transformers does after every load."""
    model = Stack()
    tied.tie(model, "head.weight", "embed.weight")
    model.head.weight = model.embed.weight
    assert [str(t) for t in tied.ties(model)] == ["head.weight = embed.weight"]


def test_other_attributes_of_the_target_are_free(model: Stack) -> None:
    model.decoder.bias = nn.Parameter(torch.ones(6))
    model.decoder.note = "hello"
    del model.decoder.note
    assert model.decoder.bias.sum() == 6


def test_writes_pass_through_a_view(model: Stack) -> None:
    nn.init.constant_(model.decoder.weight, 3.0)
    assert torch.equal(model.encoder.weight, torch.full((4, 6), 3.0))
    with torch.no_grad():
        model.decoder.weight += 1
        model.decoder.weight[0, 0] = 9
    model.decoder.weight.data.mul_(2)
    assert model.encoder.weight[0, 0] == 18
    assert model.encoder.weight[1, 1] == 8


def test_writes_reach_the_source_of_a_computed_weight(model: Stack) -> None:
    nn.init.normal_(model.head.weight)
    torch.testing.assert_close(model.head.weight.detach(), 2 * model.embed.weight.detach())
    model.head.weight.data.fill_(4.0)
    assert torch.equal(model.embed.weight, torch.full((9, 4), 2.0))
    model.head.weight.data = torch.full((9, 4), 4.0)
    with torch.no_grad():
        model.head.weight += 2
        model.head.weight[0] = 10
    assert model.embed.weight[0, 0] == 5
    assert model.embed.weight[1, 0] == 3


def test_a_write_that_no_source_gives_is_refused() -> None:
    model = Stack()
    tied.tie(model, "decoder.weight", "theta[:4].expand(6, 4).flip(0)")
    with refused(model, tied.InverseError):
        nn.init.normal_(model.decoder.weight)
    nn.init.zeros_(model.decoder.weight)
    assert torch.equal(model.theta[:4], torch.zeros(4))


def test_a_write_where_gradients_are_recorded_is_refused(model: Stack) -> None:
    message = """
A tied weight that is computed cannot be changed by .mul_() where gradients are recorded.
  found:    an in-place write to a tensor that a tie computes
  expected: a write under torch.no_grad(), which reaches the source
  fix:      with torch.no_grad(): ... or write to the source
The model was not changed."""
    with refused(model, tied.WriteError, message):
        model.head.weight.mul_(2)


def test_a_computed_weight_copies_and_pickles_as_a_plain_tensor(model: Stack) -> None:
    weight = model.head.weight
    assert type(weight * 1) is torch.Tensor
    assert type(pickle.loads(pickle.dumps(weight))) is torch.Tensor
    assert type(copy.deepcopy(weight.detach())) is torch.Tensor


def test_freezing_the_module_freezes_the_source(model: Stack) -> None:
    model.decoder.requires_grad_(False)
    assert not model.encoder.weight.requires_grad
    assert model.encoder.bias.requires_grad
    model.decoder.requires_grad_(True)
    assert model.encoder.weight.requires_grad


# -- retie --------------------------------------------------------------------------------------------


def test_retie_finds_nothing_in_a_sound_model(model: Stack) -> None:
    assert tied.retie(model) == ()


def test_retie_puts_back_what_was_overwritten(model: Stack) -> None:
    model.decoder._parameters["weight"] = nn.Parameter(torch.zeros(6, 4))
    message = """
retie(model, keep=None)
  'decoder.weight' was given a value of its own that differs from its source's.
  found:    decoder.weight = encoder.weight.T does not hold
  expected: the name of the value to keep
  fix:      retie(model, keep="source") or retie(model, keep="target")
The model was not changed."""
    with refused(model, tied.ConflictError, message):
        tied.retie(model)
    twin = copy.deepcopy(model)
    source = model.encoder.weight.detach().clone()
    assert [str(m) for m in tied.retie(model, keep="source")] == [
        "decoder.weight: a tensor of its own, with other values; kept source"
    ]
    assert torch.equal(model.decoder.weight, source.t())
    assert "weight" not in dict(model.decoder.named_parameters())
    assert [str(m) for m in tied.retie(twin, keep="target")] == [
        "decoder.weight: a tensor of its own, with other values; kept target"
    ]
    assert torch.equal(twin.encoder.weight, torch.zeros(4, 6))


def test_a_winner_must_be_known(model: Stack) -> None:
    with refused(model, tied.ConflictError):
        tied.retie(model, keep="bogus")
    with refused(model, tied.ConflictError):
        tied.load_state_dict(model, {}, keep="bogus")


def test_retie_equal_values_needs_no_winner(model: Stack) -> None:
    model.decoder._parameters["weight"] = nn.Parameter(model.encoder.weight.detach().t().clone())
    assert [m.kept for m in tied.retie(model)] == ["both"]


def test_retie_puts_back_a_reset_class(model: Stack) -> None:
    model.decoder.__class__ = nn.Linear
    assert [str(m) for m in tied.retie(model)] == ["decoder.weight: the class of its module was reset; kept both"]
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())


# -- the class that a tied module gets ----------------------------------------------------------------


def test_the_class_is_made_once_and_makes_ordinary_modules(model: Stack) -> None:
    other = Stack()
    tied.tie(other, "decoder.weight", "encoder.weight.T")
    assert type(model.decoder) is type(other.decoder)
    fresh = type(model.decoder)(4, 6)
    assert [n for n, _ in fresh.named_parameters()] == ["weight", "bias"]
    assert isinstance(fresh.weight, nn.Parameter)
    assert not hasattr(nn.Linear, "_tied_base")


def test_the_class_can_be_subclassed(model: Stack) -> None:
    class Mine(type(model.decoder)):  # type: ignore[misc]
        pass

    globals()["Mine"], Mine.__qualname__ = Mine, "Mine"
    tiable = nn.ModuleDict({"a": nn.Linear(6, 4), "b": Mine(4, 6)})
    tied.tie(tiable, "b.weight", "a.weight.T")
    for twin in (copy.deepcopy(tiable), pickle.loads(pickle.dumps(tiable))):
        assert type(twin["b"]) is Mine
        assert torch.equal(twin["b"].weight, twin["a"].weight.t())
    mine = Mine(4, 6)
    assert mine(torch.zeros(2, 4)).shape == (2, 6)
    mine.weight = nn.Parameter(torch.ones(6, 4))
    assert mine.weight.sum() == 24


def test_retie_puts_back_a_replaced_module(model: Stack) -> None:
    """No module remembers the tie but its home, copies of the home included."""
    model = copy.deepcopy(model)
    model.decoder = nn.Linear(4, 6)
    assert [str(t) for t in tied.ties(model)] == ["head.weight = 2 * embed.weight"]
    with refused(model, tied.ConflictError):
        tied.retie(model)
    fresh = model.decoder.weight.detach().clone()
    assert [str(m) for m in tied.retie(model, keep="target")] == [
        "decoder.weight: its module was replaced, with other values; kept target"
    ]
    assert torch.equal(model.encoder.weight, fresh.t())
    assert tied.retie(model) == ()


def test_retie_forgets_what_was_untied(model: Stack) -> None:
    tied.untie(model)
    assert tied.retie(model) == ()


def test_retie_of_a_replacement_that_does_not_fit(model: Stack) -> None:
    model.decoder = nn.Linear(4, 7)
    with refused(model, tied.ShapeError):
        tied.retie(model, keep="source")


def test_retie_lets_go_of_what_is_gone(model: Stack) -> None:
    del model.decoder
    assert tied.retie(model) == ()


def test_retie_takes_plain_sharing_back(model: Stack) -> None:
    """What transformers does after it has replaced embedding and head."""
    other = Stack()
    tied.tie(other, "head.weight", "embed.weight")
    other.embed, other.head = nn.Embedding(12, 4), nn.Linear(4, 12, bias=False)
    other.head.weight = other.embed.weight
    assert [m.kept for m in tied.retie(other)] == ["both"]
    assert [str(t) for t in tied.ties(other)] == ["head.weight = embed.weight"]


# -- the text of a target -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_target_is_the_text_that_torch_and_untie_take(case: Case) -> None:
    model = case.build()
    tied.tie(model, case.target, case.source)
    for tie in tied.ties(model):
        held = model.get_submodule(tie.target.rpartition(".")[0])
        assert torch.equal(getattr(held, tie.target.rpartition(".")[2]), tie.source.value(sources(model, tie)))
        if tie.target in dict(case.build().named_parameters()):
            assert torch.equal(model.get_parameter(tie.target), tie.source.value(sources(model, tie)))
        tied.untie(model, tie.target)
    assert tied.ties(model) == ()


def sources(model: nn.Module, tie: tied.Tie) -> dict[tuple[str, ...], torch.Tensor]:
    return {a: getattr(model.get_submodule(".".join(a[:-1])), a[-1]) for a in tie.source.sources()}


def test_a_target_in_a_list_that_is_the_model() -> None:
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    (tie,) = tied.tie(model, "1.weight", "0.weight")
    assert tie.target == "1.weight"
    assert model.get_parameter(tie.target) is model[0].weight
    assert tied.untie(model, tie.target) == (tie,)


# -- under a parametrization ----------------------------------------------------------------------------


class Minus(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


def test_what_was_untied_under_a_parametrization_is_plain_again() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "decoder": nn.Linear(4, 6)})
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    parametrize.register_parametrization(model.decoder, "bias", Minus())
    twin = copy.deepcopy(model)
    tied.untie(model)
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.T), "the copy had the same class, and is tied still"
    with torch.no_grad():
        twin.encoder.weight.add_(1)
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.T)
    for each in (model, twin):
        parametrize.remove_parametrizations(each.decoder, "bias")
    assert type(model.decoder) is nn.Linear
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.T)
