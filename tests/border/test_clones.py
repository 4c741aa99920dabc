"""Modules made anew over a copied `__dict__`: a target in a clone never reads the source of its original.

So do `nn.DataParallel`'s replicas, libraries for meta-learning, and fast weights. A clone's source has another value
here, so that a read of the original would be seen. An identity is right, as in plain torch; a transform is loud.
"""

import copy
import importlib
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import tied

TIES: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "identity": ("a.weight", lambda w: w),
    "transposed": ("a.weight.T", lambda w: w.T),
    "scaled": ("-3 * a.weight", lambda w: -3 * w),
    "gathered": ("a.weight.flatten()[index]", lambda w: w.flatten()[torch.arange(8, -1, -1).reshape(3, 3)]),
    "product": ("a.weight @ a.weight", lambda w: w @ w),
}


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("index", torch.arange(8, -1, -1).reshape(3, 3))
        tied.tie(self, "b.weight", TIES[kind][0])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


Shifted = dict[nn.Parameter, nn.Parameter]


def shifted(module: nn.Module, known: Shifted) -> dict[str, nn.Parameter]:
    """Return other values for a module's parameters, the same for the same Parameter."""
    for parameter in module._parameters.values():
        known.setdefault(parameter, nn.Parameter(parameter.detach() + 1))
    return {name: known[parameter] for name, parameter in module._parameters.items()}


def replicated(module: nn.Module, known: Shifted) -> nn.Module:
    """As `torch.nn.parallel.replicate` builds a replica, with tensors that were broadcast (and here are shifted)."""
    twin = module._replicate_for_data_parallel()
    for name, parameter in shifted(module, known).items():
        setattr(twin, name, parameter)
    twin._modules = {name: replicated(child, known) for name, child in module._modules.items()}
    return twin


def remade(module: nn.Module, known: Shifted) -> nn.Module:
    """As libraries for meta-learning clone a module: a new object, a copied `__dict__`, copied children."""
    twin = object.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    twin._parameters = shifted(module, known)
    twin._modules = {name: remade(child, known) for name, child in module._modules.items()}
    return twin


def written_into(module: nn.Module, known: Shifted) -> nn.Module:
    """As learn2learn does: a copied dict of parameters, into which the new ones are written."""
    twin = object.__new__(type(module))
    twin.__dict__ = module.__dict__.copy()
    twin._parameters = module._parameters.copy()
    for name, parameter in shifted(module, known).items():
        twin._parameters[name] = parameter
    twin._modules = {name: written_into(child, known) for name, child in module._modules.items()}
    return twin


CLONES = {"replicate": replicated, "a copied __dict__": remade, "written into a copy": written_into}


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("clone", CLONES)
def test_a_target_in_a_clone_is_its_own_or_loud(clone: str, kind: str) -> None:
    model = Model(kind)
    twin = CLONES[clone](model, {})
    if kind == "identity":
        assert twin.b.weight is twin.a.weight
        assert torch.equal(twin.b.weight, model.b.weight + 1)
        assert model.b.weight is model.a.weight
        return
    with pytest.raises(tied.SourceGoneError, match="belongs to the module that it was cloned from"):
        _ = twin.b.weight
    assert torch.equal(model.b.weight, TIES[kind][1](model.a.weight))


def test_the_whole_message() -> None:
    with pytest.raises(tied.SourceGoneError) as caught:
        replicated(Model("transposed"), {})(torch.rand(2, 3))
    assert str(caught.value) == (
        "'weight' of this Linear belongs to the module that it was cloned from.\n"
        "  found:    weight = a.weight.T, in a module made anew over a copied __dict__\n"
        "  expected: the module that was tied, or a copy of it by copy.deepcopy or copy.copy\n"
        "  fix:      use torch.func.functional_call; or first tied.alias(model), for identities, or tied.untie(model)\n"
        "The model was not changed."
    )


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("clone", CLONES)
def test_the_ways_out_work(clone: str, kind: str) -> None:
    model = Model(kind)
    moved = {name: p.detach() + 1 for name, p in model.named_parameters()}
    x = torch.rand(2, 3)
    expected = nn.functional.linear(
        torch.tanh(nn.functional.linear(x, moved["a.weight"], moved["a.bias"])),
        TIES[kind][1](moved["a.weight"]),
        moved["b.bias"],
    )
    torch.testing.assert_close(functional_call(model, moved, (x,)), expected)
    tied.untie(model)
    twin = CLONES[clone](model, {})
    assert torch.equal(twin.b.weight, model.b.weight + 1)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "copy": copy.copy}


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("how", COPIES)
def test_python_s_own_copies_read_their_own_source(how: str, kind: str) -> None:
    model = Model(kind)
    twin = COPIES[how](model)
    with torch.no_grad():
        twin.a.weight.add_(1)
    assert torch.equal(twin.b.weight, TIES[kind][1](twin.a.weight))
    assert torch.equal(model.b.weight, TIES[kind][1](model.a.weight))
    part = copy.copy(twin.b)  # reads by a link of its own, that the original's end does not cut
    tied.untie(twin)
    assert torch.equal(part.weight, TIES[kind][1](twin.a.weight))


def test_a_copy_that_failed_half_way_breaks_no_other_model() -> None:
    """Whoever keeps the error keeps a half-made model, whose links are asked whenever a source may become computed."""
    importlib.import_module("torch.distributed._composable.contract")  # what FSDP2 loads
    broken = Model("identity")
    broken.extra = torch.ones(1, requires_grad=True) * 2  # which torch does not copy
    with pytest.raises(RuntimeError, match="deepcopy") as kept:
        copy.deepcopy(broken)
    model = Model("identity")
    parametrizations.weight_norm(model.a)
    assert torch.equal(model.b.weight, model.a.weight)
    assert kept.value is not None
