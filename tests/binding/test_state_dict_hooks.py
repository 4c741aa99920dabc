"""State dicts with both keys, one key, or keys that disagree; strict or not, assigned or copied."""

from typing import Any

import pytest
import torch
from corpus import CASES, Case
from snapshot import refused
from stack import Stack
from torch import Tensor, nn

import tied


def tied_case(case: Case) -> nn.Module:
    model = case.build()
    tied.tie(model, case.target, case.source)
    return model


def trained_state(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """Return a state dict with other values, and the target's value that belongs to it."""
    state = {n: t.clone() for n, t in case.build(seed=5).state_dict().items() if n != case.target}
    return state, case.oracle(state).clone()


INVERTIBLE = [c for c in CASES if not any(sign in c.source for sign in ("+", "@", "kron", "[index]", "expand"))]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_keys_that_agree(case: Case, assign: bool) -> None:
    model = tied_case(case)
    state, value = trained_state(case)
    given = {case.target: value, **state}
    assert str(model.load_state_dict(given, strict=True, assign=assign)) == "<All keys matched successfully>"
    assert case.target in given, "the caller's dict stays as it was"
    expected = {**state, case.target: value} if case.is_identity else state
    torch.testing.assert_close(model.state_dict(), model.state_dict().__class__(expected))
    torch.testing.assert_close(model.get_submodule(case.target.rpartition(".")[0]).weight.detach()
                               if case.target.endswith(".weight") else value, value)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_keys_that_disagree(case: Case) -> None:
    model = tied_case(case)
    state, value = trained_state(case)
    with refused(model, tied.ConflictError):
        model.load_state_dict({**state, case.target: value + 1})


def test_the_message_of_a_disagreement() -> None:
    model = Stack()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    message = """
'decoder.weight' and its source differ in this state dict, but the model has one tensor for both.
  found:    'decoder.weight' is not encoder.weight.T of 'encoder.weight'
  expected: equal values, or only one of the keys
  fix:      name the winner: tied.load_state_dict(model, state, keep='source'), 'target' or 'mean'
The model was not changed."""
    with refused(model, tied.ConflictError, message):
        model.load_state_dict({**model.state_dict(), "decoder.weight": torch.zeros(6, 4)})


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("case", INVERTIBLE, ids=str)
def test_the_targets_key_alone(case: Case, assign: bool) -> None:
    model = tied_case(case)
    state, value = trained_state(case)
    sources = {".".join(a) for a in tied.parse(case.source).sources()} & dict(model.named_parameters()).keys()
    given: dict[str, Any] = {n: t for n, t in state.items() if n not in sources}
    kept = {n: t.clone() for n, t in model.state_dict().items() if n in sources}
    model.load_state_dict({**given, case.target: value}, assign=assign)
    weight = model.get_submodule(case.target.rpartition(".")[0])._tied[case.target.rpartition(".")[2]].read()
    torch.testing.assert_close(weight.detach(), value, rtol=1e-12, atol=1e-14)
    if case.source.startswith("cat([embed.weight[2:]"):
        assert torch.equal(model.embed.weight[:2], kept["embed.weight"][:2]), "rows that nobody reads stay"


def test_the_targets_key_alone_where_nothing_gives_it() -> None:
    model = Stack()
    tied.tie(model, "decoder.weight", "theta[:4].expand(6, 4)")
    state = {n: t for n, t in model.state_dict().items() if n != "theta"}
    with refused(model, tied.InverseError):
        model.load_state_dict({**state, "decoder.weight": torch.randn(6, 4)})


def test_the_sources_key_alone_is_an_ordinary_load() -> None:
    model, other = tied_case(CASES[0]), tied_case(CASES[0])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.decoder.weight, model.decoder.weight)


def test_missing_both_is_missing_the_source() -> None:
    model = tied_case(CASES[0])
    state = {n: t for n, t in model.state_dict().items() if n != "encoder.weight"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "encoder.weight"'):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == ["encoder.weight"]


def test_wrong_shapes_are_worded_by_torch() -> None:
    model = tied_case(CASES[0])
    state = {**model.state_dict(), "decoder.weight": torch.zeros(2, 2)}
    with pytest.raises(RuntimeError, match=r"decoder\.weight"):
        model.load_state_dict(state)


@pytest.mark.parametrize("prefix", ["module.", "wrapper.inner."])
def test_below_a_wrapper(prefix: str) -> None:
    case = CASES[0]
    model = tied_case(case)
    wrapper = nn.Module()
    holder = wrapper
    for name in prefix.rstrip(".").split("."):
        child = model if name == prefix.rstrip(".").split(".")[-1] else nn.Module()
        holder.add_module(name, child)
        holder = child
    state, value = trained_state(case)
    wrapper.load_state_dict({prefix + n: t for n, t in {**state, case.target: value}.items()})
    assert torch.equal(model.decoder.weight, value)
    with pytest.raises(tied.ConflictError):
        wrapper.load_state_dict({prefix + n: t for n, t in {**state, case.target: value + 1}.items()})


def test_nan_agrees_with_nan() -> None:
    model = tied_case(CASES[0])
    state = {n: t.clone() for n, t in model.state_dict().items()}
    state["encoder.weight"][0, 0] = float("nan")
    model.load_state_dict({**state, "decoder.weight": state["encoder.weight"].t().clone()})
    assert model.decoder.weight.isnan().sum() == 1


# -- loading the target's module alone ---------------------------------------------------------------


def test_the_target_alone_writes_to_the_source() -> None:
    model = Stack()
    tied.tie(model, "decoder.weight", "2 * encoder.weight.T")
    model.decoder.load_state_dict({"weight": torch.full((6, 4), 6.0), "bias": torch.ones(6)})
    assert torch.equal(model.encoder.weight, torch.full((4, 6), 3.0))
    assert torch.equal(model.decoder.bias, torch.ones(6))


def test_the_target_in_a_part_without_its_source() -> None:
    model = Stack()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    part = nn.ModuleList([model.decoder])
    part.load_state_dict({"0.weight": model.decoder.weight.detach().clone(), "0.bias": torch.ones(6)})
    message = """
'0.weight' is tied to encoder.weight.T, and this load does not know the two together.
  found:    a value that differs from the source's present one
  expected: a load of the model on which the tie was declared
  fix:      load that model, leave the key out, or call tied.untie(model, target) first
The model was changed in part: torch had loaded what comes before this."""
    with refused(model, tied.ConflictError, message):
        part.load_state_dict({"0.weight": torch.zeros(6, 4), "0.bias": torch.ones(6)})


# -- naming a winner ----------------------------------------------------------------------------------


def test_load_state_dict_with_a_winner() -> None:
    case = CASES[0]
    state, value = trained_state(case)
    other = value + 1
    given = {**state, case.target: other}
    expected = {"source": value, "target": other, "mean": (value + other) / 2}
    for keep, want in expected.items():
        model = tied_case(case)
        tied.load_state_dict(model, given, keep=keep)
        torch.testing.assert_close(model.decoder.weight.detach(), want, rtol=1e-12, atol=1e-12)
    assert torch.equal(given[case.target], other), "the caller's dict stays as it was"
    model = tied_case(case)
    with refused(model, tied.ConflictError):
        tied.load_state_dict(model, given)


def test_load_state_dict_is_torchs_otherwise() -> None:
    model, other = tied_case(CASES[0]), tied_case(CASES[0])
    assert str(tied.load_state_dict(other, model.state_dict(), assign=True)) == "<All keys matched successfully>"
    with pytest.raises(RuntimeError, match="Unexpected key"):
        tied.load_state_dict(other, {**model.state_dict(), "more": torch.zeros(1)})


# -- on meta ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["both", "target"])
def test_a_model_on_meta_takes_the_targets_key(keys: str) -> None:
    case = CASES[0]
    model = tied_case(case).to("meta")
    state, value = trained_state(case)
    given = {n: t for n, t in state.items() if keys == "both" or n != "encoder.weight"}
    model.load_state_dict({**given, case.target: value}, assign=True)
    assert torch.equal(model.encoder.weight, state["encoder.weight"])
    assert torch.equal(model.decoder.weight, value)


def test_a_model_on_meta_refuses_a_target_that_gives_only_a_part() -> None:
    case = next(c for c in CASES if c.source.startswith("cat([embed.weight[2:]"))
    model = tied_case(case).to("meta")
    state, value = trained_state(case)
    given = {n: t for n, t in state.items() if n != "embed.weight"}
    with pytest.raises(tied.InverseError, match="entries of the source that the target never reads"):
        model.load_state_dict({**given, case.target: value}, assign=True)
    with pytest.raises(tied.ConflictError, match="which is on the meta device"):
        model.head.load_state_dict({"weight": value}, assign=True)


def test_a_layer_that_was_given_its_source() -> None:
    """No home is known; `tied.load_state_dict` sees both ends all the same."""
    encoder = nn.Linear(3, 2)
    model = nn.Sequential(encoder, tied.nn.TiedLinear(encoder))
    state = {**model.state_dict(), "1.weight": torch.zeros(3, 2)}
    tied.load_state_dict(model, state, keep="target")
    assert torch.equal(encoder.weight, torch.zeros(2, 3))


# -- plain sharing ------------------------------------------------------------------------------------


def shared() -> Stack:
    model = Stack()
    model.head.weight = model.embed.weight
    return model


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("keys", ["both", "source", "target"])
def test_plain_sharing_is_kept(assign: bool, keys: str) -> None:
    model = shared()
    state = {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    state["head.weight"] = state["embed.weight"].clone()
    given = {
        n: t for n, t in state.items() if keys == "both" or n != {"source": "head.weight"}.get(keys, "embed.weight")
    }
    tied.load_state_dict(model, given, assign=assign)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, state["embed.weight"])
    assert tied.ties(model) == ()
    assert type(model.head) is nn.Linear


def test_plain_sharing_with_two_values() -> None:
    model = shared()
    state = {**model.state_dict(), "head.weight": torch.zeros(9, 4)}
    with pytest.raises(tied.ConflictError, match="differ in this state dict"):
        tied.load_state_dict(model, state)
    assert model.head.weight is model.embed.weight
    tied.load_state_dict(model, state, keep="target")
    assert not model.embed.weight.any()


def test_source_and_target_on_one_module() -> None:
    model = nn.Module()
    model.w, model.log_w = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))
    tied.tie(model, "w", "log_w.exp()")
    value = torch.tensor([0.5, 1, 2])
    assert model.load_state_dict({"w": value}) == ([], [])
    torch.testing.assert_close(model.log_w.detach(), value.log())
    outer = nn.ModuleDict({"inner": model})
    outer.load_state_dict({"inner.w": value * 2})
    torch.testing.assert_close(model.log_w.detach(), (value * 2).log())
    with pytest.raises(tied.ConflictError):
        model.load_state_dict({"w": value, "log_w": torch.zeros(3)})


def three(first: float, second: float, third: float) -> tuple[nn.Module, dict[str, Tensor]]:
    model = nn.Module()
    model.a, model.b, model.c = (nn.Parameter(torch.ones(2)) for _ in "abc")
    tied.tie(model, {"b": "a", "c": "a"})
    return model, {name: torch.full((2,), value) for name, value in zip("abc", (first, second, third), strict=True)}


@pytest.mark.parametrize("values", [(0.0, 3.0, 6.0), (0.0, 0.0, 6.0), (2.0, 2.0, 2.0)])
def test_the_mean_is_over_all_targets_at_once(values: tuple[float, float, float]) -> None:
    model, state = three(*values)
    tied.load_state_dict(model, state, keep="mean")
    torch.testing.assert_close(model.a.detach(), torch.full((2,), sum(values) / 3))
    del state["a"]
    tied.load_state_dict(model, state, keep="mean")
    torch.testing.assert_close(model.a.detach(), torch.full((2,), sum(values[1:]) / 2))


def test_the_mean_of_overlapping_rows() -> None:
    model = nn.Module()
    model.all, model.head, model.tail = (nn.Parameter(torch.zeros(n)) for n in (4, 3, 3))
    tied.tie(model, {"head": "all[:3]", "tail": "all[1:]"})
    state = {"head": torch.tensor([1.0, 2, 3]), "tail": torch.tensor([4.0, 5, 6])}
    tied.load_state_dict(model, state, keep="mean")
    assert model.all.tolist() == [1, 3, 4, 6]


def test_targets_that_disagree_have_no_winner() -> None:
    model, state = three(0.0, 3.0, 6.0)
    with pytest.raises(tied.ConflictError) as error:
        tied.load_state_dict(model, state, keep="target")
    assert str(error.value) == (
        "load_state_dict(model, state_dict, keep='target')\n"
        "  The targets in this state dict ask for different values of one source.\n"
        "  found:    no source keeps 'b' as it is\n"
        "  expected: targets that agree\n"
        "  fix:      keep='mean' for the least-squares source, or keep='source'\n"
        "The model was not changed."
    )
    assert model.a.tolist() == [1, 1]
    state["b"] = state["c"]
    tied.load_state_dict(model, state, keep="target")
    assert model.a.tolist() == [6, 6]
