"""What a target reads as: hooks, freezing and `.data` reach the source, or are refused."""

import copy
import io
import pickle
import re

import pytest
import torch
from corpus import MAIN, Case, tied_model
from torch import Tensor, nn

import tied

VIEWS = [case for case in MAIN if case.source != "embed.weight"]


def read(model: nn.Module, case: Case) -> Tensor:
    owner, _, name = case.target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def sources(model: nn.Module) -> list[Tensor]:
    return [
        model.get_parameter(".".join(a)) for a in tied.ties(model)[0].source.sources() if not {"order", "index"} & {*a}
    ]


def autoencoder(source: str = "encoder.weight.T") -> nn.Module:
    model = nn.ModuleDict({"encoder": nn.Linear(6, 4), "decoder": nn.Linear(4, 6)})
    if "delta" in source:
        model.delta = nn.Parameter(torch.zeros(6, 4))
    tied.tie(model, "decoder.weight", source)
    return model


@pytest.mark.parametrize("how", ["method", "attribute"])
@pytest.mark.parametrize("case", [c for c in MAIN if "detach" not in c.source], ids=str)
def test_freezing_the_value_freezes_the_sources(case: Case, how: str) -> None:
    model = tied_model(case)
    for wanted in (False, True):
        if how == "method":
            assert read(model, case).requires_grad_(wanted).requires_grad is wanted
        else:
            read(model, case).requires_grad = wanted
        assert {p.requires_grad for p in sources(model)} == {wanted}
        assert read(model, case).requires_grad is wanted


@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T"])
def test_a_hook_on_the_value_is_refused(source: str) -> None:
    model = autoencoder(source)
    with pytest.raises(tied.KindError) as error:
        model["decoder"].weight.register_hook(print)
    assert str(error.value) == (
        "A hook on a tied weight would never be called: every read of it is a new tensor.\n"
        "  found:    register_hook() on the value of a tie\n"
        "  expected: a tensor that stays, such as the source\n"
        "  fix:      register the hook on the source, which gets the sum over all uses, or give "
        "module.register_full_backward_hook() to the module that computes with the weight\n"
        "The model was not changed."
    )


def test_a_hook_on_the_same_parameter_is_called() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    tied.tie(model, "head.weight", "embed.weight")
    seen: list[Tensor] = []
    model["head"].weight.register_hook(seen.append)
    model["head"](model["embed"](torch.tensor([1, 2]))).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], model["embed"].weight.grad)


@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T", "-encoder.weight.T"])
def test_setting_data_writes_the_source(source: str) -> None:
    model = autoencoder(source)
    value = torch.randn(6, 4)
    parameter = model["encoder"].weight
    model["decoder"].weight.data = value
    assert torch.equal(model["decoder"].weight, value)
    assert model["encoder"].weight is parameter
    model["decoder"].weight.data.zero_()
    assert not parameter.any()
    model["decoder"].weight.detach().add_(2)  # a value without a graph is the value itself, as in plain torch
    assert torch.equal(model["decoder"].weight, torch.full((6, 4), 2.0))


def test_setting_data_of_a_slice_leaves_the_rest() -> None:
    model = nn.ModuleDict({"big": nn.Linear(3, 8), "small": nn.Linear(3, 2)})
    tied.tie(model, "small.weight", "big.weight[2:4]")
    before = model["big"].weight.detach().clone()
    model["small"].weight.data = torch.ones(2, 3)
    assert torch.equal(model["big"].weight[2:4], torch.ones(2, 3))
    assert torch.equal(model["big"].weight[4:], before[4:])


def test_data_of_another_shape_is_refused() -> None:
    model = autoencoder()
    before = model["encoder"].weight.detach().clone()
    with pytest.raises(tied.ShapeError) as error:
        model["decoder"].weight.data = torch.zeros(5, 4)
    assert str(error.value) == (
        "The data of a tied weight keeps its shape: the source has it too.\n"
        "  found:    data of shape (5, 4)\n"
        "  expected: shape (6, 4)\n"
        "  fix:      tied.untie(model, target) gives the attribute a Parameter of its own, of any shape\n"
        "The model was not changed."
    )
    assert torch.equal(model["encoder"].weight, before)


def test_a_computed_source_cannot_be_frozen_through_its_target() -> None:
    model = autoencoder()
    nn.utils.parametrizations.weight_norm(model["encoder"])
    for freeze in (
        lambda: model["decoder"].weight.requires_grad_(False),
        lambda: model["decoder"].requires_grad_(False),
    ):
        with pytest.raises(tied.KindError) as error:
            freeze()
        assert str(error.value) == (
            "The source 'encoder.weight' is computed, so that it cannot be frozen.\n"
            "  found:    a value that its module makes of other Parameters (a norm, pruning, a parametrization)\n"
            "  expected: a Parameter\n"
            "  fix:      call requires_grad_(False) on the module that holds them: 'encoder'\n"
            "The model was not changed."
        )
    assert all(p.requires_grad for p in model.parameters())
    model["decoder"].weight.requires_grad_(True)  # nothing to do
    model["encoder"].requires_grad_(False)
    assert not model["decoder"].weight.requires_grad
    with pytest.raises(tied.KindError, match="cannot be thawed"):
        model["decoder"].weight.requires_grad_(True)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo reads it of what it is given
@pytest.mark.parametrize("case", VIEWS, ids=str)
def test_a_value_is_a_plain_tensor_to_everyone_else(case: Case) -> None:
    model = tied_model(case)
    value = read(model, case)
    assert type(value + 1) is type(value.detach() * 1) is Tensor
    assert repr(value).startswith("tensor(")
    for copied in (
        pickle.loads(pickle.dumps(value)),
        copy.deepcopy(value.detach()),
        torch.load(io.BytesIO(saved(value)), weights_only=True),
    ):
        assert type(copied) is Tensor
        assert torch.equal(copied, value)
    with torch.no_grad():
        assert type(read(model, case).clone()) is Tensor
    torch._dynamo.reset()
    doubled = torch.compile(lambda tensor: tensor * 2, backend="eager", fullgraph=True)(value)
    assert torch.equal(doubled, value * 2)


def saved(value: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_buffer_that_a_transform_returns_as_it_is_stays_itself() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("line", torch.arange(3.0))
            self.other = nn.Module()
            self.other.weight = nn.Parameter(torch.zeros(3))

    model = Holder()
    tied.tie(model, "other.weight", "line.flatten()")
    assert torch.equal(model.other.weight, model.line)
    assert type(model.line) is Tensor


def test_the_refusals_leave_the_model_usable() -> None:
    model = autoencoder()
    with pytest.raises(tied.KindError, match=re.escape("register_hook()")):
        model["decoder"].weight.register_hook(print)
    model["decoder"](model["encoder"](torch.ones(1, 6))).sum().backward()
    assert model["encoder"].weight.grad is not None


@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_value_is_a_parameter_to_isinstance_and_to_get_parameter(source: str, frozen: bool) -> None:
    model = autoencoder(source)
    model.requires_grad_(not frozen)
    assert isinstance(model["decoder"].weight, nn.Parameter)
    assert torch.equal(model.get_parameter("decoder.weight"), model["decoder"].weight)
    model.get_parameter("decoder.weight").requires_grad_(frozen)
    assert model["encoder"].weight.requires_grad is frozen
    assert len(list(model.parameters())) == 3


def test_a_frozen_value_cannot_be_registered() -> None:
    """It is a leaf, so that torch would take it; a second Parameter over the source's memory is what nobody wants."""
    model, other = autoencoder().requires_grad_(False), nn.Linear(4, 6)
    with pytest.raises(tied.KindError) as error:
        other.weight = model["decoder"].weight
    assert str(error.value) == (
        "The value of a tie cannot become a Parameter: it would be a second one over the source's memory.\n"
        "  found:    the value of a tied weight, assigned to 'weight' of Linear\n"
        "  expected: a Parameter, or a tie\n"
        "  fix:      tie the attribute too: tied.tie(model, target, source); or nn.Parameter(value.detach().clone())\n"
        "The model was not changed."
    )
    assert type(other.weight) is nn.Parameter
    with pytest.raises(tied.KindError):
        nn.ParameterList([model["decoder"].weight])
    other.weight = nn.Parameter(model["decoder"].weight.detach().clone())


@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T"])
def test_torch_refuses_a_value_that_needs_a_gradient(source: str) -> None:
    model, other = autoencoder(source), nn.Linear(4, 6)
    for use in (
        lambda: setattr(other, "weight", model["decoder"].weight),
        lambda: setattr(other, "weight", nn.Parameter(model["decoder"].weight)),
        lambda: torch.optim.SGD([model["decoder"].weight], lr=0.1),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            use()
    assert type(other.weight) is nn.Parameter
    assert model["encoder"].weight.requires_grad


def test_a_value_read_before_its_source_was_replaced_is_not_the_source() -> None:
    model = autoencoder()
    stale = model["decoder"].weight
    model["encoder"].weight = nn.Parameter(torch.ones(4, 6))
    with pytest.raises(tied.WriteError):
        model["decoder"].weight = stale
    with torch.no_grad():
        model["decoder"].weight += 1
    assert model["encoder"].weight.eq(2).all()


# -- gradients of a value -----------------------------------------------------------------------------


def test_the_gradient_of_a_view_is_the_sources_as_it_sees_it() -> None:
    model = autoencoder("encoder.weight.T")
    assert model.decoder.weight.grad is None
    model.decoder(torch.tanh(model.encoder(torch.rand(2, 6)))).sum().backward()
    assert torch.equal(model.decoder.weight.grad, model.encoder.weight.grad.T)
    norm = model.encoder.weight.grad.norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_([model.decoder.weight], 1e-3), norm)
    torch.testing.assert_close(model.encoder.weight.grad.norm(), torch.tensor(1e-3))


@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T"])
def test_a_gradient_cannot_be_assigned_to_a_value(source: str) -> None:
    model = autoencoder(source)
    with pytest.raises(tied.KindError) as caught:
        model.decoder.weight.grad = torch.ones(6, 4)
    assert str(caught.value) == (
        "A weight that is computed has no gradient of its own.\n"
        "  found:    a gradient, assigned to the value\n"
        "  expected: the gradient of the source, which is the sum over all uses\n"
        "  fix:      set .grad of the source\n"
        "The model was not changed."
    )


@pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T"])
def test_an_attribute_that_would_be_lost_is_refused(source: str) -> None:
    """As libraries for per-sample gradients set `grad_sample`, and others `no_decay`."""
    model = autoencoder(source)
    with pytest.raises(tied.KindError) as error:
        model["decoder"].weight.grad_sample = torch.zeros(1)
    assert str(error.value) == (
        "An attribute that is set on a tied weight would be lost: every read of it is a new tensor.\n"
        "  found:    '.grad_sample', set on the value of a tie\n"
        "  expected: a tensor that stays, such as the source\n"
        "  fix:      set '.grad_sample' on the source; or tied.untie(model) first, where a library does this for each "
        "layer\n"
        "The model was not changed."
    )
    model["encoder"].weight.grad_sample = 1
    assert model["decoder"].weight.grad_sample == 1
    tied.untie(model)
    model["decoder"].weight.grad_sample = 2
    assert model["decoder"].weight.grad_sample == 2


def test_marks_of_the_sources_are_seen_through_a_target_where_they_agree() -> None:
    model = autoencoder("encoder.weight.T + delta")
    for parameter, mark in ((model["encoder"].weight, True), (model.delta, False)):
        assert not hasattr(model["decoder"].weight, "no_decay")
        parameter.no_decay = mark
    assert not hasattr(model["decoder"].weight, "no_decay")
    model.delta.no_decay = True
    assert model["decoder"].weight.no_decay is True


@pytest.mark.parametrize("source", ["2 * encoder.weight.T", "encoder.weight.T + delta"])
def test_a_write_on_the_meta_device_writes_nothing(source: str) -> None:
    model = autoencoder(source).to("meta")
    with torch.no_grad():
        nn.init.normal_(model["decoder"].weight)
    assert model["encoder"].weight.is_meta
