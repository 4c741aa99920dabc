"""Live slots under what is done to modules: as plain sharing where that is right, and loud where it would be cut."""

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import Parameter
from torch.nn.utils import parametrizations, parametrize, prune

import tied
from tied.binding.live.live_slots import Live


class Model(nn.Module):
    """A source before its target, or behind it; both hold something of their own."""

    def __init__(self, *, first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        names = ("a", "b") if first else ("b", "a")
        for name in names:
            setattr(self, name, nn.Linear(3, 3))
        tied.tie(self, "b.weight", "a.weight")

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


@pytest.fixture(params=[True, False], ids=["source first", "target first"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(first=request.param)


def assert_tied(model: nn.Module, *, live: bool = True) -> None:
    assert [str(tie) for tie in tied.ties(model)] == ["b.weight = a.weight"]
    assert torch.equal(model.b.weight, model.a.weight)
    assert "TIE109" not in {finding.code for finding in tied.check(model).findings}
    assert "weight=a.weight" in repr(model.b)
    if live:
        assert type(model.b) is nn.Linear
        assert model.b.weight is model.a.weight
        assert [id(p) for p in model.parameters()].count(id(model.a.weight)) == 1


# -- what tools see -----------------------------------------------------------------------------------


def test_tools_see_plain_sharing(model: Model) -> None:
    plain = Model(first=next(iter(model._modules)) == "a")
    tied.untie(plain)
    plain.b.weight = plain.a.weight
    for names in (
        lambda m: [n for n, _ in m.named_parameters()],
        lambda m: [n for n, _ in m.named_parameters(remove_duplicate=False)],
        lambda m: list(m.state_dict()),
        lambda m: [n for n, _ in m.b.named_parameters()],
        lambda m: [(type(c), len(c._parameters), list(c._parameters)) for c in m.children()],
        lambda m: sum(p.numel() for p in m.parameters()),
    ):
        assert names(model) == names(plain)
    assert_tied(model)


def test_the_repr_shows_the_tie(model: Model) -> None:
    assert repr(model.b) == "Linear(in_features=3, out_features=3, bias=True, weight=a.weight)"
    part = copy.deepcopy(model.b)
    assert repr(part) == "Linear(in_features=3, out_features=3, bias=True)"
    tied.untie(model)
    assert repr(model.b) == "Linear(in_features=3, out_features=3, bias=True)"
    assert type(model.b._parameters) is dict


def test_a_mixed_module_keeps_both_kinds(model: Model) -> None:
    model.c = nn.Linear(3, 3)
    tied.tie(model, {"c.weight": "2 * a.weight", "c.bias": "a.bias"})
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.c.bias is twin.a.bias
        assert torch.equal(twin.c.weight, 2 * twin.a.weight)
        assert "weight=2 * a.weight" in repr(twin.c)
        assert "bias=a.bias" in repr(twin.c)
    tied.untie(model, "c.weight")
    assert list(model.c._parameters) == ["weight", "bias"]
    assert model.c.bias is model.a.bias
    tied.untie(model)
    assert list(model.c._parameters) == ["weight", "bias"]
    assert type(model.c) is nn.Linear


def test_nothing_drags_a_model_along() -> None:
    model = Model()
    part, gone = model.b, weakref.ref(model)
    source = weakref.ref(model.a)
    del model
    gc.collect()
    assert gone() is None
    assert source() is None
    assert part.weight.shape == (3, 3)


def test_no_cycle_keeps_memory_until_the_collector_runs() -> None:
    gc.collect()
    gc.disable()
    try:
        model = Model()
        weight = weakref.ref(model.a)
        del model
        assert weight() is None
    finally:
        gc.enable()


# -- copies -------------------------------------------------------------------------------------------


def through_a_file(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_file, lambda m: pickle.loads(pickle.dumps(m, 2))])
def test_copies_are_tied_within(model: Model, copied: Callable[[nn.Module], nn.Module]) -> None:
    model.a.weight = Parameter(torch.ones(3, 3))  # nothing has been read since
    twin = copied(model)
    assert_tied(twin)
    assert twin.a.weight is not model.a.weight
    assert twin.a.weight.eq(1).all()
    twin.a.weight = Parameter(torch.zeros(3, 3))
    assert_tied(twin)
    assert_tied(model)
    assert model.b.weight.eq(1).all()


def test_a_copied_part_holds_the_weight(model: Model) -> None:
    part = copy.deepcopy(model.b)
    assert [n for n, _ in part.named_parameters()] == ["weight", "bias"]
    assert torch.equal(part.weight, model.b.weight)
    assert part.weight is not model.b.weight
    part.weight.data.zero_()
    assert not model.b.weight.eq(0).all()
    assert tied.ties(part) == ()


def test_a_part_copied_before_its_model_joins_it(model: Model) -> None:
    memo: dict[int, object] = {}
    part = copy.deepcopy(model.b, memo)
    twin = copy.deepcopy(model, memo)
    assert twin.b is part
    assert_tied(twin)


# -- conversions --------------------------------------------------------------------------------------


def test_a_conversion_converts_once(model: Model) -> None:
    before = model.a.weight.detach().clone()
    model._apply(lambda tensor: tensor * 2)
    assert torch.equal(model.a.weight, before * 2)
    assert_tied(model)


@pytest.mark.parametrize("future", ["overwrite_module_params_on_conversion", "swap_module_params_on_conversion"])
def test_the_ways_of_converting(model: Model, future: str) -> None:
    old = getattr(torch.__future__, f"get_{future}")()
    getattr(torch.__future__, f"set_{future}")(True)
    try:
        model.double()
        assert_tied(model)
        model.to("meta").to_empty(device="cpu")
        nn.init.ones_(model.a.weight)  # NaN may be in memory that nobody wrote
        assert_tied(model)
    finally:
        getattr(torch.__future__, f"set_{future}")(old)


def test_memory_for_all_is_for_both(model: Model) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to("meta")
    assert model.b.weight is model.a.weight
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.a.weight.fill_(3)
    assert model.b.weight.eq(3).all()
    assert_tied(model)
    model.load_state_dict(state)
    assert_tied(model)
    assert torch.equal(model.b.weight, state["b.weight"])


def test_memory_for_the_target_alone_is_loud() -> None:
    model = Model().to("meta")
    model.b.to_empty(device="cpu")
    with pytest.raises(tied.SourceGoneError, match="reads a source on the meta device"):
        model.b(torch.ones(1, 3))
    model.a.to_empty(device="cpu")
    nn.init.ones_(model.a.weight)
    assert_tied(model)


# -- values that are swapped for a while --------------------------------------------------------------


@pytest.mark.parametrize("kind", [Parameter, lambda t: t], ids=["Parameter", "Tensor"])
def test_functional_call_leaves_no_trace(model: Model, kind: Callable[[Tensor], Tensor]) -> None:
    weight, x = model.a.weight, torch.rand(2, 3)
    given = {"a.weight": kind(torch.eye(3)), "b.weight": kind(torch.eye(3))}
    given["b.weight"] = given["a.weight"]
    for names in (["a.weight"], ["b.weight"], ["a.weight", "b.weight"], ["b.weight", "a.weight"]):
        found = functional_call(model, {name: given[name] for name in names}, (x,))
        expected = torch.tanh(x + model.a.bias) + model.b.bias
        torch.testing.assert_close(found, expected)
        assert model.a.weight is weight
        assert_tied(model)
        replaced = Parameter(weight.detach().clone())
        model.a.weight = replaced
        weight = replaced
        assert_tied(model)


def test_what_was_swapped_in_is_not_kept_alive(model: Model) -> None:
    given = torch.eye(3).requires_grad_() * 2
    reference = weakref.ref(given)
    functional_call(model, {"a.weight": given}, (torch.rand(2, 3),))
    del given
    model(torch.rand(2, 3))
    model(torch.rand(2, 3))
    gc.collect()
    assert reference() is None


# -- writing ------------------------------------------------------------------------------------------


def test_an_equal_value_is_no_change(model: Model) -> None:
    for write in (
        lambda value: model.b._parameters.__setitem__("weight", value),
        lambda value: setattr(model.b, "weight", value),
        lambda value: model.b.register_parameter("weight", value),
    ):
        weight = model.a.weight
        write(Parameter(weight.detach().clone()))
        assert model.a.weight is weight
        assert_tied(model)


def test_another_value_behind_its_back_is_loud_and_both_ways_out_work(model: Model) -> None:
    weight, other = model.a.weight, Parameter(torch.zeros(3, 3))
    model.b._parameters["weight"] = other
    with pytest.raises(tied.ConflictError) as caught:
        model(torch.rand(2, 3))
    assert str(caught.value) == (
        "'b.weight' was given a value of its own that differs from its source's.\n"
        "  found:    b.weight = a.weight does not hold\n"
        "  expected: the name of the value to keep\n"
        '  fix:      tied.retie(model, keep="source") or tied.retie(model, keep="target")\n'
        "The model was not changed."
    )
    assert "TIE109" in {finding.code for finding in tied.check(model).findings}
    assert {id(weight), id(other)} <= {id(p) for p in model.parameters()}, "nothing is hidden"
    with pytest.raises(tied.ConflictError):
        tied.retie(model)
    twin = copy.deepcopy(model)
    assert len(tied.retie(model, keep="source")) == 1
    assert_tied(model)
    assert model.a.weight is weight
    assert len(tied.retie(twin, keep="target")) == 1
    assert_tied(twin)
    assert twin.a.weight.eq(0).all()


def test_a_state_dict_mends_two_values(model: Model) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.b._parameters["weight"] = Parameter(torch.zeros(3, 3))
    model.load_state_dict(state)
    assert_tied(model)


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.:FutureWarning")  # torch's older norms
def test_assigning_another_value_is_refused(model: Model) -> None:
    for act in (
        lambda: setattr(model.b, "weight", Parameter(torch.zeros(3, 3))),
        lambda: model.b.register_parameter("weight", Parameter(torch.zeros(3, 3))),
        lambda: setattr(model.b, "weight", None),
        lambda: delattr(model.b, "weight"),
        lambda: model.b._parameters.pop("weight"),
        lambda: model.b._parameters.popitem() and model.b._parameters.popitem(),
        lambda: model.b._parameters.clear(),
        lambda: nn.utils.weight_norm(model.b),
        lambda: nn.utils.spectral_norm(model.b),
        lambda: parametrizations.weight_norm(model.b),
        lambda: parametrizations.spectral_norm(model.b),
        lambda: parametrizations.orthogonal(model.b),
        lambda: parametrize.register_parametrization(model.b, "weight", nn.Tanh()),
    ):
        bias = model.b.bias
        with pytest.raises(tied.WriteError, match=r"'b\.weight' is tied and owns no memory"):
            act()
        model.b._parameters["bias"] = bias
        assert sorted(model.b._parameters) == ["bias", "weight"]
        assert_tied(model)
    with pytest.raises(tied.KindError, match="cannot be pruned here"):
        prune.l1_unstructured(model.b, "weight", 0.5)
    assert_tied(model)


def test_the_dict_is_a_dict(model: Model) -> None:
    slots, weight = model.b._parameters, model.a.weight
    assert isinstance(slots, Live)
    assert dict(slots) == {**slots} == slots.copy() == slots
    assert {type(made) for made in (slots.copy(), copy.copy(slots), dict(slots))} == {dict}
    slots.update(weight=weight)
    slots |= {"weight": weight}
    assert slots.setdefault("weight") is weight
    assert slots.setdefault("more") is None
    assert slots.pop("more") is None
    assert slots.pop("more", 7) == 7
    assert slots.get("more", 8) == 8
    assert [*slots] == [*slots.keys()] == [name for name, _ in slots.items()] == ["weight", "bias"]
    assert slots.values()[0] is weight
    assert "weight" in slots
    with pytest.raises(KeyError):
        slots["more"]
    assert_tied(model)


# -- computed sources ---------------------------------------------------------------------------------


def old_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(module)


COMPUTED: dict[str, tuple[Callable[[nn.Module], object], Callable[[nn.Module], object]]] = {
    "weight_norm": (parametrizations.weight_norm, lambda m: parametrize.remove_parametrizations(m, "weight")),
    "old weight_norm": (old_norm, nn.utils.remove_weight_norm),
    "prune": (lambda m: prune.l1_unstructured(m, "weight", 0.5), lambda m: prune.remove(m, "weight")),
    "parametrize": (
        lambda m: parametrize.register_parametrization(m, "weight", nn.Tanh()),
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
    "the second of two": (
        lambda m: [parametrize.register_parametrization(m, n, nn.Tanh()) for n in ("bias", "weight")],
        lambda m: parametrize.remove_parametrizations(m, "weight"),
    ),
}


@pytest.mark.parametrize("how", COMPUTED)
def test_a_computed_source_is_followed_and_left_again(how: str, model: Model) -> None:
    begin, end = COMPUTED[how]
    for twin in (model, copy.deepcopy(model)):
        begin(twin.a)
        assert_tied(twin, live=False)
        assert "weight" not in dict(twin.b.named_parameters())
        end(twin.a)
        twin(torch.rand(2, 3))
        assert_tied(twin)


@pytest.mark.parametrize("how", COMPUTED)
def test_freezing_through_a_target_whose_source_became_computed_is_loud_at_once(how: str, model: Model) -> None:
    COMPUTED[how][0](model.a)
    with pytest.raises(tied.KindError, match="is computed, so that it cannot be frozen"):
        model.b.requires_grad_(False)


def test_freezing_goes_through(model: Model) -> None:
    model.b.requires_grad_(False)
    assert not model.a.weight.requires_grad
    model.a.weight.requires_grad_(True)
    assert model.b.weight.requires_grad


# -- state dicts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("names", [("a",), ("b",), ("a", "b")], ids="".join)
def test_one_name_is_enough_and_a_lenient_load_says_what_was_missing(
    model: Model, names: tuple[str, ...], assign: bool
) -> None:
    state = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    state["b.weight"] = state["a.weight"]
    given = {n: t.clone() for n, t in state.items() if not n.endswith("weight") or n[0] in names}
    missing = {f"{name}.weight" for name in "ab" if name not in names}
    for strict in (True, False):
        found = model.load_state_dict(given, strict=strict, assign=assign)
        assert set(found.missing_keys) == (set() if strict else missing)
        assert found.unexpected_keys == []
        assert_tied(model)
        assert torch.equal(model.a.weight, state["a.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_part_loads_into_the_shared_weight(model: Model, assign: bool) -> None:
    outer = nn.ModuleDict({"part": model.b, "other": nn.Linear(1, 1)})
    state = {name: torch.rand_like(tensor) for name, tensor in outer.state_dict().items()}
    weight = model.a.weight
    outer.load_state_dict(state, assign=assign)
    assert_tied(model)
    assert model.a.weight is weight
    assert torch.equal(weight, state["part.weight"])


def test_a_part_without_its_weight_is_missing_it_as_in_plain_torch(model: Model) -> None:
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        model.b.load_state_dict({"bias": torch.zeros(3)})
    outer = nn.ModuleDict({"part": model.b})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "part\.weight"'):
        outer.load_state_dict({"part.bias": torch.zeros(3)})
    assert model.b.load_state_dict({"bias": torch.zeros(3)}, strict=False).missing_keys == ["weight"]
    assert_tied(model)


def test_two_values_are_refused(model: Model) -> None:
    state = {name: torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    before = model.a.weight.detach().clone()
    with pytest.raises(tied.ConflictError, match=r"has one tensor for both"):
        model.load_state_dict(state)
    assert torch.equal(model.a.weight, before)


def test_shapes_that_do_not_fit_are_torchs_to_word(model: Model) -> None:
    state = {name: torch.ones(2, 2) for name in model.state_dict()}
    with pytest.raises(RuntimeError, match=r"size mismatch for a\.weight"):
        model.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buffers_are_live_too(dtype: torch.dtype) -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)}).to(dtype)
    plain = copy.deepcopy(model)
    tied.tie(model, "b", "a", buffers=True)
    for name, buffer in plain.a.named_buffers():
        setattr(plain.b, name, buffer)
    for name, parameter in plain.a.named_parameters():
        setattr(plain.b, name, parameter)
    x = torch.rand(5, 3, dtype=dtype) + 2
    for each in (model, plain):
        each.b(each.a(x))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in model.state_dict().items())
    model.load_state_dict(dict(plain.state_dict()))
    assert model.a.running_mean is model.b.running_mean
    model.half().float()
    assert model.a.running_mean is model.b.running_mean
    with pytest.raises(tied.WriteError):
        model.b.running_mean = torch.zeros(3)
    assert model.a.num_batches_tracked is model.b.num_batches_tracked


# -- recurrent modules, threads, growth ---------------------------------------------------------------


def test_recurrent_modules_read_the_present_weights() -> None:
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.LSTM(3, 4)})
    tied.tie(model, "b", "a")
    x = torch.rand(5, 2, 3)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin.b) is nn.LSTM
        twin.a.weight_hh_l0 = Parameter(torch.rand(16, 4))
        assert torch.equal(twin.a(x)[0], twin.b(x)[0])
        parametrizations.weight_norm(twin.a, "weight_ih_l0")
        assert torch.equal(twin.a(x)[0], twin.b(x)[0])
        parametrize.remove_parametrizations(twin.a, "weight_ih_l0")
        assert torch.equal(twin.a(x)[0], twin.b(x)[0])


def test_threads_read_while_the_source_is_replaced(model: Model) -> None:
    failed: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(500):
                assert model.b.weight.shape == (3, 3)
                assert any(name == "weight" for name, _ in model.b.named_parameters())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        model.a.weight = Parameter(torch.rand(3, 3))
    assert failed == []
    assert_tied(model)


@pytest.mark.parametrize("count", [2, 50])
def test_a_read_costs_the_same_however_many_ties_a_module_has(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: a fast read compares one slot with one other, and judges nothing."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for place in range(count):
                self.register_parameter(f"p{place}", Parameter(torch.zeros(1)))

    model = nn.ModuleDict({"a": Wide(), "b": Wide()})
    tied.tie(model, "b", "a")
    judged: list[str] = []
    verdict = Live.verdict
    monkeypatch.setattr(Live, "verdict", lambda self, name, *rest: judged.append(name) or verdict(self, name, *rest))
    assert model.b.p1 is model.a.p1
    assert judged == []
    model.a.p1 = Parameter(torch.ones(1))
    judged.clear()  # the assignment had the reader look
    assert model.b.p1 is model.a.p1
    assert set(judged) <= {"p1"}
