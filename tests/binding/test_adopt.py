"""Adopting what plain torch shares, exporting it again, and guarding it."""

import copy
from collections.abc import Callable

import pytest
import torch
from snapshot import refused
from stack import Stack
from torch import nn

import tied


def names(model: nn.Module) -> list[str]:
    return [str(tie) for tie in tied.ties(model)]


@pytest.fixture
def model() -> Stack:
    return Stack()


# -- adopt --------------------------------------------------------------------------------------------


def test_adopts_one_tensor_in_several_slots(model: Stack) -> None:
    model.head.weight = model.embed.weight
    model.layers[2].mlp.weight = model.layers[1].mlp.weight = model.layers[0].mlp.weight
    before = {name: id(p) for name, p in model.named_parameters()}
    assert [str(t) for t in tied.adopt(model)] == names(model)
    assert names(model) == [
        "head.weight = embed.weight",
        "layers.1.mlp.weight = layers.0.mlp.weight",
        "layers.2.mlp.weight = layers.0.mlp.weight",
    ]
    assert {name: id(p) for name, p in model.named_parameters()} == before
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert model.head.weight is model.embed.weight, "what assign=True cuts in plain torch"


def test_adopts_a_shared_module_as_it_is(model: Stack) -> None:
    """One module under two names is one slot: nothing to declare."""
    model.layers[1] = model.layers[0]
    assert tied.adopt(model) == ()


def test_adopts_shared_buffers() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    model["b"].running_mean = model["a"].running_mean
    assert [str(t) for t in tied.adopt(model)] == ["b.running_mean = a.running_mean"]
    model.double()
    assert model["b"].running_mean is model["a"].running_mean


def test_adopts_on_meta() -> None:
    with torch.device("meta"):
        model = Stack()
        model.head.weight = model.embed.weight
    tied.adopt(model, half_tied=True, equal=True)
    model.to_empty(device="cpu")
    assert model.head.weight is model.embed.weight


def test_half_tied_only_where_asked(model: Stack) -> None:
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())
    model.head.weight = nn.Parameter(model.embed.weight)
    assert tied.adopt(model) == ()
    made = tied.adopt(model, half_tied=True)
    assert [str(t) for t in made] == ["decoder.weight = encoder.weight.T", "head.weight = embed.weight"]


def test_half_tied_rows(model: Stack) -> None:
    model.part = nn.Linear(4, 3, bias=False)
    model.part.weight = nn.Parameter(model.embed.weight[2:5])
    assert [str(t) for t in tied.adopt(model, half_tied=True)] == ["part.weight = embed.weight[2:5]"]
    assert torch.equal(model.part.weight, model.embed.weight[2:5])


def test_disjoint_views_of_one_memory_share_nothing() -> None:
    """An LSTM's flat buffer."""
    whole = torch.randn(6, 4)
    model = nn.ParameterList([nn.Parameter(whole[:3]), nn.Parameter(whole[3:])])
    assert tied.adopt(model, half_tied=True) == ()


def test_an_odd_overlap_is_an_error() -> None:
    whole = torch.randn(6, 4)
    model = nn.ParameterList([nn.Parameter(whole[:4]), nn.Parameter(whole[2:])])
    with refused(model, tied.ConflictError):
        tied.adopt(model, half_tied=True)


def test_equal_copies_only_where_asked(model: Stack) -> None:
    model.decoder.weight.data = model.encoder.weight.detach().t().clone()
    assert tied.adopt(model, half_tied=True) == ()
    assert [str(t) for t in tied.adopt(model, equal=True)] == ["decoder.weight = encoder.weight.T"]


def test_equal_constants_are_no_copies() -> None:
    model = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))
    assert tied.adopt(model, equal=True) == ()


def test_adopts_nothing_twice(model: Stack) -> None:
    model.head.weight = model.embed.weight
    tied.adopt(model)
    assert tied.adopt(model, half_tied=True, equal=True) == ()


def test_lazy_and_scripted_models() -> None:
    lazy = nn.ModuleDict({"a": nn.LazyLinear(3), "b": nn.LazyLinear(3)})
    assert tied.adopt(lazy) == ()
    lazy["b"].weight = lazy["a"].weight
    with pytest.raises(tied.KindError, match="has no shape yet"):
        tied.adopt(lazy)


@pytest.mark.filterwarnings("ignore")  # scripting is deprecated
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(1, 3))])
def test_scripted_models_are_refused(make) -> None:
    scripted = make(nn.Linear(3, 4))
    assert tied.ties(scripted) == ()
    for call in (tied.adopt, tied.retie, tied.untie, tied.alias, tied.guard):
        with pytest.raises(tied.KindError, match="Only modules of Python code can be tied"):
            call(scripted)


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_is_left_alone_unless_it_shares() -> None:
    model = nn.ModuleDict({"part": torch.jit.script(nn.Linear(3, 4)), "a": nn.Linear(3, 4), "b": nn.Linear(3, 4)})
    model["b"].weight = model["a"].weight
    assert [str(tie) for tie in tied.adopt(model)] == ["b.weight = a.weight"]
    assert tied.retie(model) == ()
    model["b"].bias = model["part"].bias
    with pytest.raises(tied.KindError) as error:
        tied.adopt(model)
    assert str(error.value) == (
        "adopt(model, half_tied=False, equal=False)\n"
        "  'b.bias' is shared with a scripted module, which cannot be tied.\n"
        "  found:    the same tensor at 'part.bias', in a RecursiveScriptModule\n"
        "  expected: modules of Python code\n"
        "  fix:      adopt the model before a part of it is scripted\n"
        "The model was not changed."
    )
    with pytest.raises(tied.AddressError):
        tied.tie(model, "a.bias", "part.bias")


def test_an_optimizer_from_before_goes_on_training_what_was_adopted(model: Stack) -> None:
    """The first slot keeps its Parameter, so the optimizer holds it; the half-tied one gets no gradient any more."""
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    reference = torch.optim.AdamW([model.embed.weight], lr=0.1)
    tied.adopt(model, half_tied=True)
    assert any(p is model.embed.weight for p in optimizer.param_groups[0]["params"])
    before = model.embed.weight.detach().clone()
    (model.head.weight * 2).sum().backward()
    with pytest.warns(tied.TieWarning, match="does not have any more, since head.weight = embed.weight"):
        optimizer.step()
    stepped = model.embed.weight.detach().clone()
    with torch.no_grad():
        model.embed.weight.copy_(before)
    reference.step()
    assert torch.equal(stepped, model.embed.weight)
    assert model.head.weight is model.embed.weight


# -- alias --------------------------------------------------------------------------------------------


def test_alias_and_back(model: Stack) -> None:
    tied.tie(model, {"head.weight": "embed.weight", "decoder.weight": "encoder.weight.T"})
    before = names(model)
    assert [str(t) for t in tied.alias(model)] == ["head.weight = embed.weight"]
    assert model.head._parameters["weight"] is model.embed.weight
    assert type(model.head) is nn.Linear
    assert names(model) == ["decoder.weight = encoder.weight.T"]
    tied.adopt(model)
    assert sorted(names(model)) == sorted(before)


# -- guard --------------------------------------------------------------------------------------------


def shared() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    return model


def cut_by_load(model: nn.Module) -> None:
    model.load_state_dict({n: t.clone() for n, t in model.state_dict().items()}, assign=True)


CUTS = {
    "ModuleDict.load_state_dict": cut_by_load,
    "ModuleDict._apply (.to, .to_empty, .half ...)": lambda m: m.to("meta"),
    "Linear.__setattr__('weight')": lambda m: setattr(m["b"], "weight", nn.Parameter(torch.zeros(3, 3))),
    "Linear.__delattr__('weight')": lambda m: delattr(m["b"], "weight"),
    "ModuleDict.add_module('b')": lambda m: m.add_module("b", nn.Linear(3, 3)),
}


@pytest.mark.parametrize("culprit", CUTS)
def test_guard_names_the_operation_that_cut_plain_sharing(culprit: str) -> None:
    model = shared()
    with pytest.raises(tied.ConflictError) as caught, tied.guard(model):
        CUTS[culprit](model)
    assert f"{culprit} cut what the model shares." in str(caught.value)
    assert "a.weight and b.weight are not one tensor any more" in str(caught.value)


@pytest.mark.parametrize(
    "harmless",
    [
        lambda m: m.double(),
        lambda m: m.load_state_dict(m.state_dict()),
        lambda m: m.requires_grad_(False),
        lambda m: m.eval(),
        lambda m: copy.deepcopy(m).to_empty(device="cpu"),
        lambda m: nn.Linear(3, 3).to_empty(device="cpu"),
    ],
)
def test_guard_lets_the_harmless_pass(harmless) -> None:
    with tied.guard(shared()) as watcher:
        harmless(watcher.model)


def test_guard_lets_declared_ties_through_what_cuts_plain_ones() -> None:
    model = shared()
    tied.adopt(model)
    with tied.guard(model):
        cut_by_load(model)
        model.to("meta").to_empty(device="cpu")


def test_guard_watches_declared_ties() -> None:
    model = shared()
    tied.adopt(model)
    with pytest.raises(tied.ConflictError, match=r"b\.weight = a\.weight does not hold any more"), tied.guard(model):
        model["b"] = nn.Linear(3, 3)


def test_guard_finds_what_no_method_does() -> None:
    model = shared()
    with pytest.raises(tied.ConflictError, match="something in the block cut"), tied.guard(model):
        model["b"]._parameters["weight"] = nn.Parameter(torch.zeros(3, 3))
    watcher = tied.guard(shared())
    watcher()
    watcher.model["b"]._parameters["weight"] = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(tied.ConflictError, match="something since the last look cut"):
        watcher()


def test_guard_as_a_step_hook() -> None:
    model = shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(tied.guard(model))
    optimizer.step()
    model["b"].weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(tied.ConflictError, match="are not one tensor any more"):
        optimizer.step()


def test_guard_leaves_torch_as_it_was() -> None:
    before = {name: getattr(nn.Module, name) for name in ("_apply", "load_state_dict", "__setattr__")}
    with tied.guard(shared()), tied.guard(shared()):
        assert nn.Module._apply is not before["_apply"]
    with pytest.raises(ZeroDivisionError), tied.guard(shared()):
        _ = 1 / 0
    assert before == {name: getattr(nn.Module, name) for name in before}


def test_guard_does_not_hide_the_blocks_own_error() -> None:
    model = shared()

    def break_and_fail() -> None:
        model["b"]._parameters["weight"] = nn.Parameter(torch.zeros(3, 3))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), tied.guard(model):
        break_and_fail()


# -- views ----------------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "rows": lambda w: w[1:5],
    "columns": lambda w: w[:, 1:4],
    "a block": lambda w: w[2:, 1:],
    "every second row": lambda w: w[::2],
    "turned": lambda w: w.T,
    "turned rows": lambda w: w[:3].T,
    "one row": lambda w: w[2],
    "a dimension more": lambda w: w.T[None],
    "flat": lambda w: w.flatten(),
    "in three": lambda w: w.view(3, 2, 6),
}


@pytest.mark.parametrize("view_first", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_any_view_is_adopted_and_trains_as_one_weight(view: str, view_first: bool) -> None:
    """The larger one owns the memory, whichever comes first."""
    weight = torch.randn(6, 6, dtype=torch.float64)
    ends = {"whole": nn.Module(), "part": nn.Module()}
    model = nn.ModuleDict({name: ends[name] for name in (sorted(ends) if view_first else ["whole", "part"])})
    ends["whole"].weight = nn.Parameter(weight)
    ends["part"].weight = nn.Parameter(VIEWS[view](weight))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (tie,) = tied.adopt(model, half_tied=True, optimizer=optimizer)
    (source,) = tie.source.sources()
    assert source[0] == ("part" if view_first and ends["part"].weight.numel() == 36 else "whole")
    assert [*model.parameters()] == [ends[source[0]].weight]

    alone = ends[source[0]].weight.detach().clone().requires_grad_()
    by_hand = torch.optim.AdamW([alone], lr=0.1)
    for _ in range(3):
        loss(ends["whole"].weight, ends["part"].weight, optimizer)
        values = {source[0]: alone, tie.address[0]: tie.source.value({source: alone})}
        loss(values["whole"], values["part"], by_hand)
    assert torch.allclose(alone, ends[source[0]].weight, rtol=1e-13)


def loss(whole: torch.Tensor, part: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (whole.square().sum() + part.pow(3).sum()).backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["en-de", "a b", "gpt/attn", "layer@1", "2x", "f(x)"])
def test_names_as_torch_writes_them(name: str) -> None:
    model = nn.ModuleDict({name: nn.Linear(3, 3), "x": nn.Linear(3, 3)})
    (tie,) = tied.tie(model, f"{name}.weight", "x.weight.T")
    assert tied.parse(str(tie).partition(" = ")[2]) == tie.source
    tied.untie(model, f"{name}.weight")
    tied.tie(model, "x.weight", f"{name}.weight")
    assert model.x.weight is model[name].weight
