"""A tie outlives what happens to a model: after every operation it still trains as its reference.

Each operation takes a tied model and returns what a user would go on with. Then the law is checked: the
parameters are there once, the outputs are those of the hand-written reference with the same values, and
three steps of AdamW with clipping keep them so. Half-tied and equal copies fail it.
"""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from corpus import CASES, MAIN, Case, Reference, assert_still_tied, loss, tied_model
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import tied


def _saved_module(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _through_file(model: nn.Module) -> dict[str, torch.Tensor]:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _loaded(assign: bool, meta: bool = False) -> Callable[[nn.Module], nn.Module]:
    def load(model: nn.Module) -> nn.Module:
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            nn.init.normal_(parameter)
        if meta:
            other = other.to("meta")
        other.load_state_dict(_through_file(model), strict=True, assign=assign)
        return other

    return load


def _emptied(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    return other


def _used_as_shallow_copy(model: nn.Module) -> nn.Module:
    return copy.copy(model)


def _replaced_source(model: nn.Module) -> nn.Module:
    for name, parameter in list(model.named_parameters()):
        owner = model.get_submodule(name.rpartition(".")[0])
        setattr(owner, name.rpartition(".")[2], nn.Parameter(torch.randn_like(parameter)))
    return model


def _replaced_source_module(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_children()):
        if name in ("encoder", "embed"):
            setattr(model, name, copy.deepcopy(module))
    return model


def _initialized(model: nn.Module) -> nn.Module:
    def init(module: nn.Module) -> None:
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, std=0.3)

    return model.apply(init)


def _wrapped(model: nn.Module) -> nn.Module:
    return copy.deepcopy(nn.ModuleList([model]))[0]


def _swapped(model: nn.Module) -> nn.Module:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return model.to(torch.float32).to(torch.float64)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _overwritten(model: nn.Module) -> nn.Module:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.to(torch.float32).to(torch.float64)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


OPERATIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "nothing": lambda model: model,
    "to-dtype": lambda model: model.to(torch.float32),
    "float-double": lambda model: model.float().double(),
    "swap-conversion": _swapped,
    "overwrite-conversion": _overwritten,
    "meta-to-empty": _emptied,
    "deepcopy": copy.deepcopy,
    "deepcopy-twice": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "deepcopy-in-container": _wrapped,
    "copy": _used_as_shallow_copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "pickle-of-deepcopy": lambda model: pickle.loads(pickle.dumps(copy.deepcopy(model))),
    "torch-save-module": _saved_module,
    "load": _loaded(assign=False),
    "load-assign": _loaded(assign=True),
    "load-assign-meta": _loaded(assign=True, meta=True),
    "replace-source": _replaced_source,
    "replace-source-module": _replaced_source_module,
    "apply-init": _initialized,
    "train-eval": lambda model: model.eval().train(),
    "requires-grad": lambda model: model.requires_grad_(False).requires_grad_(True),
    "zero-grad": lambda model: model.zero_grad() or model,
    "share-memory": lambda model: model.share_memory(),
    "untie-tie": lambda model: [tied.tie(model, str(t).split(" = ")[0], t.source) for t in tied.untie(model)] and model,
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", MAIN, ids=str)
def test_still_tied_after(case: Case, operation: str) -> None:
    assert_still_tied(OPERATIONS[operation](tied_model(case)), case)


def test_the_law_can_fail() -> None:
    """A Parameter over the same memory passes every test of values, and fails this one."""
    case = MAIN[0]
    model = tied_model(case)
    tied.untie(model)
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())
    with pytest.raises(AssertionError):
        assert_still_tied(model, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_without_graph_breaks(case: Case) -> None:
    model = tied_model(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for round in range(2):
        if round:  # a source replaced after compiling is followed
            model = _replaced_source(model)
        torch.testing.assert_close(
            compiled(case.inputs()), Reference(case, model)(case.inputs()), rtol=1e-12, atol=1e-12
        )
    loss(compiled(case.inputs())).backward()
    reference = Reference(case, model)
    loss(reference(case.inputs())).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, reference.tensors[name].grad, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_inductor_trains_as_the_reference() -> None:
    case = MAIN[0]
    model = tied_model(case)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert_still_tied(model, case)
    torch.testing.assert_close(compiled(case.inputs()), model(case.inputs()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_functional_call_reads_the_given_source(case: Case) -> None:
    model = tied_model(case)
    state = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    other = copy.deepcopy(model)
    other.load_state_dict({**{n: t for n, t in model.state_dict().items() if n != case.target}, **state})
    expected = Reference(case, other)(case.inputs())
    torch.testing.assert_close(functional_call(model, state, (case.inputs(),)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_vmap_over_an_ensemble(case: Case, device: str) -> None:
    """The tutorial's recipe; a base on meta gives garbage in silence if a tie leaves its target there."""
    models = [tied_model(case) for _ in range(3)]
    for model in models:
        _initialized(model)
    parameters, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0]).to(device)
    x = case.inputs()
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no batching rule
        outputs = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(outputs, torch.stack([m(x) for m in models]), rtol=1e-12, atol=1e-12)


# -- copies of parts -----------------------------------------------------------------------------------

COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch-save": _saved_module,
}


def _owner(model: nn.Module, case: Case) -> nn.Module:
    return model.get_submodule(case.target.rpartition(".")[0])


def parted(case: Case, how: str) -> Any:
    """A copy of a transform's target without its source has a Parameter more than the original, and says so."""
    if case.is_identity:
        return contextlib.nullcontext()
    return pytest.warns(tied.TieWarning, match="was copied without the source of")


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_copy_of_the_target_alone_owns_its_value(case: Case, how: str) -> None:
    model = tied_model(case)
    part, name = _owner(model, case), case.target.rpartition(".")[2]
    untied = _owner(case.build(), case)
    for twin in (COPIES[how](part), COPIES[how](nn.ModuleList([part]))[0]):
        assert type(twin) is type(untied)
        with parted(case, how):
            assert list(twin.state_dict()) == list(untied.state_dict())
        assert list(twin.state_dict()) == list(untied.state_dict()), "it is said once"
        weight = getattr(twin, name)
        assert isinstance(weight, nn.Parameter)
        assert weight.is_contiguous()
        assert weight.requires_grad == ("detach" in case.source or getattr(part, name).requires_grad)
        torch.testing.assert_close(weight.data, getattr(part, name).detach(), rtol=0, atol=0)
        nn.init.zeros_(weight)
        assert getattr(part, name).abs().sum() > 0, "the copy shares memory with the original"


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("target_first", [False, True])
def test_a_container_that_holds_both_keeps_the_tie(how: str, target_first: bool) -> None:
    model = tied_model(MAIN[0])
    both = [model.decoder, model.encoder] if target_first else [model.encoder, model.decoder]
    twin = COPIES[how](nn.ModuleList(both))
    source = 1 if target_first else 0
    assert [str(tie) for tie in tied.ties(twin)] == [f"{1 - source}.weight = {source}.weight.T"]
    assert len(list(twin.parameters())) == 3
    twin[source].weight = nn.Parameter(torch.randn(4, 6).double())
    assert torch.equal(twin[1 - source].weight, twin[source].weight.t())


def test_a_copy_points_into_the_copy() -> None:
    model = tied_model(MAIN[0])
    twin = copy.deepcopy(model)
    twin.encoder = nn.Linear(6, 4).double()
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.t())
    assert not torch.equal(twin.decoder.weight, model.decoder.weight)


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_follows_a_replaced_source_module(how: str) -> None:
    twin = COPIES[how](tied_model(MAIN[0]))
    twin.encoder = nn.Linear(6, 4).double()
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.t())


def test_children_outlive_the_model() -> None:
    """`Sequential(*model.children())`, after which the model itself is gone."""
    model = tied_model(MAIN[0])
    children = nn.Sequential(*[model.encoder, model.decoder])
    del model
    assert torch.equal(children[1].weight, children[0].weight.t())
    assert [str(tie) for tie in tied.ties(children)] == ["1.weight = 0.weight.T"]
    twin = copy.deepcopy(children)
    assert torch.equal(twin[1].weight, children[1].weight)
    orphan = twin[1]
    del twin
    with pytest.raises(tied.SourceGoneError, match="the module that held both ends is no more, and neither is it"):
        _ = orphan.weight


def test_children_follow_the_source_that_the_model_had_last() -> None:
    model = tied_model(MAIN[0])
    model.encoder = nn.Linear(6, 4).double()
    model(torch.zeros(1, 6).double())
    encoder, decoder = model.encoder, model.decoder
    del model
    assert torch.equal(decoder.weight, encoder.weight.t())


def test_a_deepcopy_needs_no_copy_of_the_target() -> None:
    """The copy is tied at once, and not given a Parameter that is dropped again."""
    model = tied_model(MAIN[0])
    model._modules["encoder"] = model._modules.pop("encoder")  # the target comes first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tied.binding.late_reading.uninstall", lambda *_: pytest.fail("a Parameter was made"))
        twin = copy.deepcopy(model)
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.t())


def test_no_reference_cycle_keeps_a_model_alive() -> None:
    import gc
    import weakref

    model = tied_model(MAIN[0])
    alive = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert alive() is None
    finally:
        gc.enable()


def test_a_file_holds_each_weight_once() -> None:
    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(1000, 64), nn.Linear(64, 1000, bias=False)

    globals()["Big"] = Big
    Big.__qualname__ = "Big"
    model = Big()
    tied.tie(model, "head.weight", "embed.weight")
    for write in (pickle.dumps, lambda m: _size(m)):
        assert len(write(model)) < 1.1 * 1000 * 64 * 4


def _size(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    return buffer.getvalue()
