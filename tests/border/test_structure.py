"""The modules of a model are rearranged: the source's module is followed; where it left, an identity lives on in its
target as in plain torch, and the next read of a transform is loud.

Each rearrangement runs on a stack of layers that share one matrix, under a tie of each kind. A target then reads what
it read before, computed by hand from the source's own Parameter, which is still among the model's parameters; or it
raises. It never reads a layer that it was not tied to, nor a weight that no optimizer sees.
"""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import tied

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's

TIES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "identity": ("{}.weight", lambda w: w),
    "transposed": ("{}.weight.T", lambda w: w.T),
    "scaled": ("2 * {}.weight", lambda w: 2 * w),
    "gathered": ("{}.weight.flatten()[{}.places]", lambda w: w.flatten()[torch.arange(8, -1, -1).reshape(3, 3)]),
    "two sources": ("{}.weight + {}.other", lambda w: w + 7.0),
}
LAST = 3  # the target; the source is layer 1


class Layer(nn.Linear):
    """A square layer that holds what the ties need beside its weight."""

    def __init__(self) -> None:
        super().__init__(3, 3, dtype=torch.float64)
        self.other = nn.Parameter(torch.full((3, 3), 7.0, dtype=torch.float64))
        self.register_buffer("places", torch.arange(8, -1, -1).reshape(3, 3))


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(LAST + 1))
        self.bottom = nn.Linear(3, 3, dtype=torch.float64)  # so that the home of the tie is the model
        text = TIES[kind][0].replace("{}", "layers.1")
        tied.tie(self, f"layers.{LAST}.weight", text)


@dataclass(frozen=True)
class Rearrangement:
    """What somebody does to the layers.

    Attributes:
        name: What.
        act: Does it.
        keeps: Whether the source's module is still in the model.
    """

    name: str
    act: Callable[[Model], object]
    keeps: bool = True

    def __str__(self) -> str:
        return self.name


def wrapped(wrap: Callable[[nn.Module], nn.Module], place: int) -> Callable[[Model], object]:
    def act(model: Model) -> None:
        model.layers[place] = wrap(model.layers[place])

    return act


def swapped(model: Model) -> None:
    layers = model.layers
    layers[0], layers[1] = layers[1], layers[0]


def deleted(place: int | slice) -> Callable[[Model], object]:
    def act(model: Model) -> None:
        del model.layers[place]

    return act


def sliced(cut: slice) -> Callable[[Model], object]:
    def act(model: Model) -> None:
        model.layers = model.layers[cut]

    return act


WRAPPERS = {
    "Sequential": nn.Sequential,
    "checkpoint_wrapper": checkpoint_wrapper,
    "torch.compile": torch.compile,
    "DataParallel": nn.DataParallel,
}
REARRANGEMENTS = [
    Rearrangement("insert a layer at the front", lambda model: model.layers.insert(0, Layer())),
    Rearrangement("insert a layer between", lambda model: model.layers.insert(2, Layer())),
    Rearrangement("delete the first layer", deleted(0)),
    Rearrangement("pop the first layer", lambda model: model.layers.pop(0)),
    Rearrangement("delete a layer between", deleted(2)),
    Rearrangement("drop the first layer by a slice", sliced(slice(1, None))),
    Rearrangement("swap two layers", swapped),
    Rearrangement("reverse", lambda model: setattr(model, "layers", nn.ModuleList(list(model.layers)[::-1]))),
    Rearrangement("extend", lambda model: model.layers.extend([Layer()])),
    Rearrangement("Sequential of the list", lambda model: setattr(model, "layers", nn.Sequential(*model.layers))),
    Rearrangement(
        "move to another name", lambda model: (setattr(model, "stack", model.layers), delattr(model, "layers"))
    ),
    *(Rearrangement(f"{name} around the source", wrapped(wrap, 1)) for name, wrap in WRAPPERS.items()),
    *(Rearrangement(f"{name} around the target", wrapped(wrap, LAST)) for name, wrap in WRAPPERS.items()),
    Rearrangement("delete the source", deleted(1), keeps=False),
    Rearrangement("pop the source", lambda model: model.layers.pop(1), keeps=False),
    Rearrangement("drop the source by a slice", sliced(slice(2, None)), keeps=False),
    Rearrangement("keep every second layer from the third", sliced(slice(3, None, 2)), keeps=False),
    Rearrangement(
        "another layer of the model in the source's place",
        lambda model: model.layers.__setitem__(1, model.layers[0]),
        keeps=False,
    ),
]
COPIES: dict[str, Callable[[Model], Model]] = {
    "itself": lambda model: model,
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def assert_lives_on(model: Model, target: nn.Module, weight: nn.Parameter) -> None:
    """As `b.weight = a.weight` does where `a` left: nothing is lost, and nothing is tied any longer."""
    assert target.weight is weight
    assert any(parameter is weight for parameter in model.parameters())
    assert any(torch.equal(tensor, weight) for tensor in model.state_dict().values())
    assert tied.ties(model) == ()
    assert "weight=" not in repr(target)
    target.weight.square().sum().backward()
    assert weight.grad is not None
    alone = copy.deepcopy(model)
    assert [n for n, _ in alone.named_parameters()] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("change", REARRANGEMENTS, ids=str)
def test_the_source_is_followed_or_the_read_is_loud(change: Rearrangement, kind: str, copied: str) -> None:
    model = COPIES[copied](Model(kind))
    source, target = model.layers[1], model.layers[LAST]
    weight = source.weight
    change.act(model)
    if not change.keeps:
        del source  # nobody but the model held it
        gc.collect()
        if kind == "identity":
            assert_lives_on(model, target, weight)
            return
        with pytest.raises(tied.SourceGoneError, match=r"left ModuleList|is no more"):
            _ = target.weight
        return
    for _ in range(2):  # the second read goes by the new address
        assert torch.equal(target.weight, TIES[kind][1](source.weight))
    assert any(parameter is source.weight for parameter in model.parameters())
    target.weight.square().sum().backward()
    assert source.weight.grad is not None
    (tie,) = tied.ties(model)
    owner = model.get_submodule(".".join(tie.source.sources()[0][:-1]))
    assert owner is source
    assert "TIE109" not in {finding.code for finding in tied.check(model).findings}
    assert tied.retie(model) == ()
    assert tied.ties(model) == (tie,)


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("kind", TIES)
def test_a_source_behind_its_target_is_followed_too(kind: str, copied: str) -> None:
    """A copy that was rearranged before anything was read: its target was copied before its source."""

    def made() -> Model:
        model = Model(kind)
        tied.untie(model)
        tied.tie(model, "layers.0.weight", TIES[kind][0].replace("{}", "layers.2"))
        return COPIES[copied](model)

    moved, lost, mistaken = made(), made(), made()
    source, target = moved.layers[2], moved.layers[0]
    moved.layers.insert(0, Layer())
    assert torch.equal(target.weight, TIES[kind][1](source.weight))
    del lost.layers[2]
    mistaken.layers[2] = mistaken.layers[1]
    for model in (lost, mistaken):
        if kind == "identity":
            target = model.layers[0]
            assert_lives_on(model, target, target.weight)
            continue
        with pytest.raises(tied.SourceGoneError, match="left ModuleList"):
            _ = model.layers[0].weight


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("kind", TIES)
def test_a_new_module_in_the_sources_place_replaces_it(kind: str, copied: str) -> None:
    model = COPIES[copied](Model(kind))
    new = Layer()
    model.layers[1] = new
    assert torch.equal(model.layers[LAST].weight, TIES[kind][1](new.weight))
    model.layers.insert(0, Layer())
    assert torch.equal(model.layers[LAST + 1].weight, TIES[kind][1](new.weight))


@pytest.mark.parametrize("copied", COPIES)
def test_once_the_weight_lives_on_no_stranger_takes_its_place(copied: str) -> None:
    model = Model("identity")
    weight = model.layers[LAST].weight
    gone = [model.layers.pop(1), model.layers.pop(0)]
    assert model.layers[LAST - 2].weight is weight
    model = COPIES[copied](model)
    weight = model.layers[LAST - 2].weight
    model.layers.insert(0, Layer())
    model.layers.insert(0, Layer())
    assert model.layers[LAST].weight is weight
    assert tied.ties(model) == ()
    if copied == "itself":
        model.layers[1] = gone[0]  # the source itself came back
        assert len(tied.ties(model)) == 1
        assert model.layers[LAST].weight is gone[0].weight


def test_what_is_put_in_the_place_has_to_have_such_a_tensor() -> None:
    model = Model("transposed")
    model.layers[1] = nn.Tanh()
    with pytest.raises(tied.SourceGoneError, match=r'left ModuleList; at \'\["1"\]\' is another Tanh'):
        _ = model.layers[LAST].weight


def test_a_target_that_was_replaced_after_a_move_is_found() -> None:
    model = Model("transposed")
    model.layers.insert(0, Layer())
    assert [finding.code for finding in tied.check(model).findings if finding.code == "TIE109"] == []
    model.layers[LAST + 1] = Layer()
    assert "TIE109" in {finding.code for finding in tied.check(model).findings}


def test_the_way_out_is_to_untie_first() -> None:
    model = Model("transposed")
    expected = model.layers[LAST].weight.detach().clone()
    tied.untie(model)
    del model.layers[1]
    assert torch.equal(model.layers[LAST - 1].weight, expected)


@pytest.mark.parametrize("kind", TIES)
def test_a_source_that_left_is_not_kept_alive(kind: str) -> None:
    model = Model(kind)
    source = weakref.ref(model.layers[1])
    del model.layers[1]
    gc.collect()
    assert source() is None


@pytest.mark.parametrize("kind", TIES)
def test_a_shallow_copy_outlives_its_original(kind: str) -> None:
    model = Model(kind)
    source = model.layers[1]
    twin = copy.copy(model)
    del model
    gc.collect()
    assert torch.equal(twin.layers[LAST].weight, TIES[kind][1](source.weight))


def test_a_part_moved_into_another_model_is_followed_or_loud() -> None:
    model, other = Model("transposed"), nn.ModuleDict()
    other["target"] = model.layers[LAST]
    assert torch.equal(other["target"].weight, model.layers[1].weight.T)
    other["source"] = model.layers[1]
    del model
    gc.collect()
    assert torch.equal(other["target"].weight, other["source"].weight.T)
    del other["source"]
    gc.collect()
    with pytest.raises(tied.SourceGoneError, match="is no more"):
        _ = other["target"].weight
