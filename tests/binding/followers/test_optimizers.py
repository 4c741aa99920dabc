"""Optimizers follow what they are handed over for, and say it where they were not.

The oracle is written by hand: a model of plain torch whose forward computes the target, and an optimizer of it whose
state was put together by hand.
"""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from battery.subjects import TIES, inputs
from torch import Tensor, nn
from torch.nn import Parameter
from two_layers import ByHand, Pair

import tied
from tied.binding.followers import optimizers

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(inputs(step)).square().sum().backward()
        optimizer.step()


def held(optimizer: torch.optim.Optimizer) -> list[list[Tensor]]:
    return [list(group["params"]) for group in optimizer.param_groups]


def is_same(first: list[list[Tensor]], second: list[list[Tensor]]) -> bool:
    return [list(map(id, group)) for group in first] == [list(map(id, group)) for group in second]


def trained_pair(make: Callable[[Any], torch.optim.Optimizer]) -> tuple[Pair, torch.optim.Optimizer]:
    model = Pair()
    optimizer = make(model.parameters())
    train(model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", TIES)
def test_a_tied_model_is_trained_as_one_that_always_was_of_this_form(kind: str, name: str) -> None:
    model, optimizer = trained_pair(OPTIMIZERS[name])
    dropped = model.b.weight
    twin: nn.Module = ByHand(kind)
    twin.load_state_dict({key: value for key, value in model.state_dict().items() if key != "b.weight"})
    its_own = OPTIMIZERS[name](twin.parameters())
    for key, parameter in twin.named_parameters():
        its_own.state[parameter] = copy.deepcopy(optimizer.state[model.get_parameter(key)])

    tied.tie(model, "b.weight", TIES[kind][0], optimizer=optimizer)

    assert is_same(held(optimizer), [list(model.parameters())])
    assert dropped not in optimizer.state
    train(model, optimizer)
    train(twin, its_own)
    for key, parameter in twin.named_parameters():
        assert torch.allclose(model.get_parameter(key), parameter, rtol=1e-12, atol=1e-14), key


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("kind", TIES)
def test_an_untied_weight_begins_with_what_is_known_of_its_source(kind: str, name: str) -> None:
    """Where the tie shows entries as they are; elsewhere nothing is known of the new one, and it starts afresh."""
    model = Pair()
    tied.tie(model, "b.weight", TIES[kind][0])
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    twin, moved = Pair(), {"identity": lambda t: t, "transposed": lambda t: t.t(), "gathered": None}.get(kind)
    twin.load_state_dict({**model.state_dict(), "b.weight": model.b.weight.detach()})
    its_own = OPTIMIZERS[name](twin.parameters())
    for key, parameter in twin.named_parameters():
        state = copy.deepcopy(optimizer.state[model.get_parameter("a.weight" if key == "b.weight" else key)])
        if key == "b.weight" and (moved is None or (name == "adafactor" and kind != "identity")):
            continue
        if key == "b.weight" and kind == "transposed":
            state = {k: moved(v) if v.dim() == 2 else v for k, v in state.items()}  # type: ignore[misc]
        its_own.state[parameter] = state

    tied.untie(model, "b.weight", optimizer=optimizer)

    assert optimizer.param_groups[0]["params"][-1] is model.b.weight
    train(model, optimizer)
    train(twin, its_own)
    for key, parameter in twin.named_parameters():
        assert torch.allclose(model.get_parameter(key), parameter, rtol=1e-12, atol=1e-14), key


@pytest.mark.parametrize("source", ["a.weight", "a.weight.T", "a.weight.flip(0)", "a.weight.mT"])
def test_values_that_win_bring_their_moments(source: str) -> None:
    model, optimizer = trained_pair(OPTIMIZERS["amsgrad"])
    before = copy.deepcopy(optimizer.state[model.b.weight])
    own = copy.deepcopy(optimizer.state[model.a.weight])
    tied.tie(model, "b.weight", source, keep="target", optimizer=optimizer)
    after = optimizer.state[model.a.weight]
    turned = {key: value.t() if value.dim() else value for key, value in before.items()}
    for key, value in {"a.weight": before, "a.weight.flip(0)": own}.get(source, turned).items():
        assert torch.equal(after[key], value), key


def test_a_part_of_a_source_says_nothing_of_the_rest() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 6), "b": nn.Linear(3, 2)})
    optimizer = OPTIMIZERS["adam"](model.parameters())
    (model.a(torch.rand(2, 3)).sum() + model.b(torch.rand(2, 3)).sum()).backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state[model.a.weight])
    tied.tie(model, "b.weight", "a.weight[:2]", keep="target", optimizer=optimizer)
    assert torch.equal(optimizer.state[model.a.weight]["exp_avg"], before["exp_avg"])
    tied.untie(model, optimizer=optimizer)
    assert torch.equal(optimizer.state[model.b.weight]["exp_avg"], before["exp_avg"][:2])


# -- groups, several optimizers -----------------------------------------------------------------------


def test_groups_keep_their_settings_and_names() -> None:
    model = Pair()
    named = dict(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named.items() if n.endswith("weight")], "lr": 0.5},
        {"params": [(n, p) for n, p in named.items() if not n.endswith("weight")], "lr": 0.1},
    ]
    optimizer = torch.optim.SGD(groups)
    tied.tie(model, "b.weight", "a.weight", optimizer=optimizer)
    assert [group["param_names"] for group in optimizer.param_groups] == [["a.weight"], ["spare", "a.bias", "b.bias"]]
    tied.untie(model, optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == ["a.weight", "b.weight"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert optimizer.param_groups[0]["params"][1] is model.b.weight


def test_a_source_that_nobody_steps_takes_the_place_of_its_target() -> None:
    model = Pair()
    optimizer = torch.optim.SGD([{"params": [model.b.bias]}, {"params": [model.b.weight], "lr": 0.1}], lr=1.0)
    tied.tie(model, "b.weight", "a.weight.T", optimizer=optimizer)
    assert is_same(held(optimizer), [[model.b.bias], [model.a.weight]])


def test_a_frozen_source_is_not_stepped() -> None:
    model = Pair()
    model.a.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([model.b.bias, model.b.weight], lr=1.0)
    tied.tie(model, "b.weight", "a.weight.T", optimizer=optimizer)
    assert is_same(held(optimizer), [[model.b.bias]])
    tied.untie(model, optimizer=optimizer)
    assert is_same(held(optimizer), [[model.b.bias]])


def test_several_optimizers() -> None:
    model = Pair()
    first, second = torch.optim.SGD(model.a.parameters(), lr=0.1), torch.optim.Adam(model.b.parameters(), lr=0.1)
    tied.tie(model, "b.weight", "a.weight", optimizer=[first, second])
    assert is_same([*held(first), *held(second)], [[model.a.weight, model.a.bias], [model.b.bias]])
    tied.untie(model, optimizer=(first, second))
    assert is_same(held(first), [[model.a.weight, model.a.bias, model.b.weight]])


def test_many_ties_of_one_call() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(5))})
    optimizer = torch.optim.Adam(model.parameters())
    tied.tie(model, "layers.*.weight", "layers[0].weight", optimizer=optimizer)
    assert is_same(held(optimizer), [list(model.parameters())])
    tied.untie(model, optimizer=optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}


def test_a_computed_source_counts_by_what_it_is_made_of() -> None:
    model = Pair()
    nn.utils.parametrizations.weight_norm(model.a)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    tied.tie(model, "b.weight", "a.weight", optimizer=optimizer)
    train(model, optimizer)
    tied.untie(model, optimizer=optimizer)
    assert optimizer.param_groups[0]["params"][-1] is model.b.weight
    assert model.b.weight not in optimizer.state  # the moments of its direction are not those of its value


@pytest.mark.parametrize("act", ["tying", "adopt", "retie", "retie a module"])
def test_every_call_that_ties(act: str) -> None:
    model = Pair()
    if act.startswith("retie"):
        tied.tie(model, "b.weight", "a.weight.T")
        if act == "retie":
            model.b._parameters["weight"] = Parameter(torch.ones(4, 4, dtype=torch.float64))
        else:
            model.b = nn.Linear(4, 4).double()
    elif act == "adopt":
        model.b.weight = Parameter(model.a.weight.detach())
    optimizer = torch.optim.Adam([*model.parameters()])
    if act == "tying":
        with tied.tying(model, optimizer=optimizer) as m:
            m.b.weight = m.a.weight.T
    elif act == "adopt":
        tied.adopt(model, half_tied=True, optimizer=optimizer)
    else:
        tied.retie(model, keep="source", optimizer=optimizer)
    assert len(tied.ties(model)) == 1
    assert is_same(held(optimizer), [list(model.parameters())])
    assert tied.check(model, optimizer=optimizer).ok


# -- refusals -----------------------------------------------------------------------------------------


def refused(optimizer: Any) -> str:
    model = Pair()
    given = optimizer(model)
    with pytest.raises(tied.KindError) as error:
        tied.tie(model, "b.weight", "a.weight", optimizer=given)
    assert tied.ties(model) == ()
    assert len([*model.parameters()]) == 5
    return str(error.value)


def test_what_is_no_optimizer_is_refused() -> None:
    assert refused(lambda model: [3]) == (
        "tie(model, 'b.weight', 'a.weight')\n"
        "  What was given as optimizer= is no optimizer.\n"
        "  found:    int\n"
        "  expected: a torch.optim.Optimizer, or a list of them\n"
        "  fix:      tied.tie(model, ..., optimizer=optimizer)\n"
        "The model was not changed."
    )
    assert "found:    float" in refused(lambda model: 0.1)


def test_an_optimizer_with_one_state_for_all_is_refused() -> None:
    assert refused(lambda model: torch.optim.LBFGS(model.parameters())) == (
        "tie(model, 'b.weight', 'a.weight')\n"
        "  The Parameters of LBFGS cannot be changed once it is built.\n"
        "  found:    one state for all Parameters together\n"
        "  expected: an optimizer with a state for each Parameter\n"
        "  fix:      leave optimizer= out, and build the optimizer again afterwards\n"
        "The model was not changed."
    )


def test_the_optimizer_of_another_model_is_refused() -> None:
    assert refused(lambda model: torch.optim.SGD(Pair().parameters())) == (
        "tie(model, 'b.weight', 'a.weight')\n"
        "  The optimizer holds no Parameter of this model.\n"
        "  found:    an optimizer of another model, or one with copies of the Parameters\n"
        "  expected: the optimizer that trains the model\n"
        "  fix:      leave optimizer= out, and build the optimizer again afterwards\n"
        "The model was not changed."
    )


def test_a_refused_tie_leaves_the_optimizer_as_it_was() -> None:
    model, optimizer = trained_pair(OPTIMIZERS["adam"])
    before, state = held(optimizer), dict(optimizer.state)
    with pytest.raises(tied.ShapeError):
        tied.tie(model, {"b.weight": "a.weight", "b.bias": "a.weight"}, optimizer=optimizer)
    assert is_same(held(optimizer), before)
    assert {id(p): id(s) for p, s in optimizer.state.items()} == {id(p): id(s) for p, s in state.items()}


# -- optimizers that were not handed over -------------------------------------------------------------

LATE_TIE = (
    "The optimizer steps a Parameter that the model does not have any more, since b.weight = a.weight: build it again "
    "from model.parameters(), or hand it over where you tie: tied.tie(..., optimizer=optimizer)."
)
LATE_UNTIE = (
    "The optimizer does not step 'b.weight', with a Parameter of its own since the untie: hand the optimizer over "
    "where you untie, tied.untie(..., optimizer=optimizer), or add what is new: "
    "optimizer.add_param_group({'params': model.get_parameter('b.weight')})."
)


def test_an_optimizer_with_a_dropped_parameter_says_so_once() -> None:
    model, optimizer = trained_pair(OPTIMIZERS["adam"])
    tied.tie(model, "b.weight", "a.weight")
    with pytest.warns(tied.TieWarning) as said:
        train(model, optimizer)
    assert [str(each.message) for each in said] == [LATE_TIE]
    assert said[0].filename == __file__
    again = torch.optim.Adam(model.parameters())
    train(model, again)


def test_an_optimizer_that_lacks_a_new_parameter_says_so_once() -> None:
    model = Pair()
    tied.tie(model, "b.weight", "a.weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tied.untie(model)
    with pytest.warns(tied.TieWarning) as said:
        train(model, optimizer)
    assert [str(each.message) for each in said] == [LATE_UNTIE]
    before = model.b.weight.detach().clone()
    exec(LATE_UNTIE.partition("add what is new: ")[2].rstrip("."), {"optimizer": optimizer, "model": model})
    train(model, optimizer)
    assert not torch.equal(model.b.weight, before)


def test_several_are_said_in_one_line() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.rand(2, 4)
    tied.tie(model, "*.weight", "0.weight")
    with pytest.warns(tied.TieWarning) as said:
        optimizer.step()
    assert [str(each.message) for each in said] == [
        "The optimizer steps Parameters that the model does not have any more, since 1.weight = 0.weight, "
        "2.weight = 0.weight, 3.weight = 0.weight and 1 more: build it again from model.parameters(), or hand it over "
        "where you tie: tied.tie(..., optimizer=optimizer)."
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tied.untie(model)
    model(x).sum().backward()
    with pytest.warns(tied.TieWarning) as said:
        optimizer.step()
    (message,) = [str(each.message) for each in said]
    exec(message.partition("add what is new: ")[2].rstrip("."), {"optimizer": optimizer, "model": model})
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, model.parameters()))


def other_optimizer(model: Pair) -> list[torch.optim.Optimizer]:
    rest = [p for p in model.parameters() if p is not model.b.weight]
    return [torch.optim.SGD(rest, lr=0.1), torch.optim.SGD([model.b.weight], lr=0.1)]


def frozen(model: Pair) -> list[torch.optim.Optimizer]:
    model.b.weight.requires_grad_(False)
    return [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)]


def of_another_model(model: Pair) -> list[torch.optim.Optimizer]:
    other = Pair()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    train(other, optimizer)
    return [torch.optim.SGD(model.parameters(), lr=0.1)]


@pytest.mark.parametrize("make", [other_optimizer, frozen, of_another_model])
def test_nothing_is_said_where_nothing_is_wrong(make: Callable[[Pair], list[torch.optim.Optimizer]]) -> None:
    model = Pair()
    tied.tie(model, "b.weight", "a.weight.T")
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, early)
    tied.untie(model)
    made = make(model)
    for step in range(3):
        model(inputs(step)).square().sum().backward()
        for optimizer in made:
            optimizer.step()
    del early


def test_a_parameter_that_another_model_trains_was_not_dropped() -> None:
    model, other = Pair(), Pair()
    other.b.weight = model.b.weight
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()][:7], lr=0.1)
    tied.tie(model, "b.weight", "a.weight")
    for step in range(3):
        optimizer.zero_grad()
        (model(inputs(step)) + other(inputs(step))).square().sum().backward()
        optimizer.step()


def test_no_hook_is_left_where_nothing_is_to_be_said() -> None:
    gc.collect()
    optimizers._NEWS.clear()
    model = Pair()
    tied.tie(model, "b.weight", "a.weight.T")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tied.untie(model, optimizer=optimizer)
    train(model, optimizer)
    assert not optimizers._NEWS
    assert not optimizers._HOOK


def test_a_compiled_step_is_not_broken_by_what_is_to_be_said() -> None:
    model, optimizer = trained_pair(OPTIMIZERS["adam"])
    tied.tie(model, "b.weight", "a.weight")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, too: it imports its compiler here
        step = torch.compile(optimizer.step, backend="eager")
        optimizer.zero_grad()
        model(inputs()).square().sum().backward()
        before = model.a.weight.detach().clone()
        step()
    assert not torch.equal(model.a.weight, before)
