"""Several models over one backbone, and a stack whose layers share: what is put on one use stays with that use.

The oracle is torch by hand: each layer's matrix computed from the source's, an adapter's term added where it was put.
"""

import contextlib
import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import tied

peft = pytest.importorskip("peft", exc_type=ImportError)

Formula = Callable[[Tensor], Tensor]
PLACES = torch.arange(15, -1, -1).reshape(4, 4)
TIES: dict[str, tuple[str, Formula]] = {
    "identity": ("{}.weight", lambda w: w),
    "transposed": ("{}.weight.T", lambda w: w.T),
    "scaled": ("2 * {}.weight", lambda w: 2 * w),
    "gathered": ("{}.weight.flatten()[{}.places]", lambda w: w.flatten()[PLACES]),
    "two sources": ("{}.weight + {}.other", lambda w: w + 7),
}
KINDS = pytest.mark.parametrize("kind", TIES)
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Layer(nn.Linear):
    """A layer that holds what the ties need beside its weight."""

    def __init__(self) -> None:
        super().__init__(4, 4, dtype=torch.float64)
        self.other = Parameter(torch.full((4, 4), 7.0, dtype=torch.float64), requires_grad=False)
        self.register_buffer("places", PLACES.clone())


class Model(nn.Module):
    """A head over a backbone, which it shares a matrix with, and which may belong to several models."""

    def __init__(self, backbone: nn.Module, kind: str) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(4, 4, dtype=torch.float64)
        tied.tie(self, "head.weight", TIES[kind][0].replace("{}", "backbone.layer"))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.backbone(x)))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def two_models(kind: str) -> tuple[Model, Model]:
    torch.manual_seed(0)
    backbone = Backbone()
    return Model(backbone, kind), Model(backbone, kind)


def by_hand(model: Model, kind: str, weight: Tensor) -> Tensor:
    hidden = torch.tanh(nn.functional.linear(X, weight, model.backbone.layer.bias))
    return nn.functional.linear(hidden, TIES[kind][1](weight), model.head.bias)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@KINDS
def test_two_heads_train_one_backbone(kind: str) -> None:
    models = two_models(kind)
    weight = models[0].backbone.layer.weight.detach().clone().requires_grad_()
    for model in models:
        model(X).square().mean().backward()
        by_hand(model, kind, weight).square().mean().backward()
    close(models[0].backbone.layer.weight.grad, weight.grad)
    both = nn.ModuleList(models)
    names = [name for name, _ in both.named_parameters() if name.endswith("weight")]
    assert names == ["0.backbone.layer.weight"]
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    optimizer.step()
    close(models[1](X), by_hand(models[1], kind, models[0].backbone.layer.weight))


@KINDS
@pytest.mark.parametrize("which", [0, 1])
def test_an_adapter_on_one_model_leaves_the_other_alone(which: int, kind: str) -> None:
    """Each model has a layer of its own around the shared one: peft changes the backbone of both, and no matrix."""
    models = two_models(kind)
    other = models[1 - which]
    other.backbone = copy.copy(other.backbone)
    other.backbone._modules = dict(other.backbone._modules)  # its own container of the same layer
    weight = models[0].backbone.layer.weight
    before = other(X).detach()
    made = peft.get_peft_model(
        models[which], peft.LoraConfig(target_modules=["layer"], r=2, init_lora_weights=False)
    ).double()
    delta = made.base_model.model.backbone.layer.get_delta_weight("default")
    close(made(X), by_hand_adapted(made, kind, weight, delta))
    close(other(X), before)
    close(other(X), by_hand(other, kind, weight))
    with pytest.raises(tied.WriteError, match="cannot be merged"):
        made.merge_and_unload()
    close(other(X), before)


def by_hand_adapted(made: nn.Module, kind: str, weight: Tensor, delta: Tensor) -> Tensor:
    model = made.base_model.model
    hidden = torch.tanh(nn.functional.linear(X, weight + delta, model.backbone.layer.base_layer.bias))
    return nn.functional.linear(hidden, TIES[kind][1](weight), model.head.bias)


class Stack(nn.Module):
    """Layers that share the first one's matrix."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        tied.tie(self, {f"layers.{n}.weight": TIES[kind][0].replace("{}", "layers.0") for n in (1, 2)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def stacked_by_hand(made: nn.Module, kind: str, weight: Tensor, adapters: list[tuple[Tensor, Tensor]]) -> Tensor:
    x = X
    for n, (layer, (down, up)) in enumerate(zip(made.base_model.model.layers, adapters, strict=True)):
        matrix = (weight if n == 0 else TIES[kind][1](weight)) + layer.scaling["default"] * up @ down
        x = torch.tanh(nn.functional.linear(x, matrix, layer.base_layer.bias))
    return x


@KINDS
def test_each_layer_of_a_stack_has_an_adapter_of_its_own(kind: str) -> None:
    """Relaxed recursive transformers: one matrix, and LoRA of each layer's own."""
    config = peft.LoraConfig(target_modules=r".*layers\.\d", r=2, init_lora_weights=False)
    made = peft.get_peft_model(Stack(kind), config).double()
    layers = made.base_model.model.layers
    weight = layers[0].base_layer.weight
    adapters = [(layer.lora_A.default.weight, layer.lora_B.default.weight) for layer in layers]
    copies = [tuple(p.detach().clone().requires_grad_() for p in pair) for pair in adapters]
    found, expected = made(X), stacked_by_hand(made, kind, weight, copies)
    close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    for pair, own in zip(adapters, copies, strict=True):
        for parameter, other in zip(pair, own, strict=True):
            close(parameter.grad, other.grad)
    assert not weight.requires_grad
    assert "TIE109" not in {finding.code for finding in tied.check(made).findings}


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda each: pickle.loads(pickle.dumps(each))}


@KINDS
@pytest.mark.parametrize("how", COPIES)
def test_two_models_are_copied_together(how: str, kind: str) -> None:
    one, other = COPIES[how](nn.ModuleList(two_models(kind)))
    assert one.backbone is other.backbone
    with torch.no_grad():
        one.backbone.layer.weight.mul_(0.5)
    for model in (one, other):
        close(model(X), by_hand(model, kind, one.backbone.layer.weight))


@KINDS
def test_one_of_two_models_goes(kind: str) -> None:
    """What is left reads the backbone that it holds."""
    one, other = two_models(kind)
    del one
    close(other(X), by_hand(other, kind, other.backbone.layer.weight))
    with torch.no_grad():
        other.backbone.layer.weight.mul_(0.5)
    close(other(X), by_hand(other, kind, other.backbone.layer.weight))


@KINDS
def test_a_target_reads_a_source_of_another_model(kind: str) -> None:
    """The tie is declared on what holds both; each model then goes its own way through copies and files."""
    torch.manual_seed(0)
    teacher, student = nn.ModuleDict({"layer": Layer()}), nn.ModuleDict({"head": nn.Linear(4, 4, dtype=torch.float64)})
    both = nn.ModuleDict({"teacher": teacher, "student": student})
    tied.tie(both, "student.head.weight", TIES[kind][0].replace("{}", "teacher.layer"))
    formula = TIES[kind][1]
    with torch.no_grad():
        teacher.layer.weight.mul_(0.5)
    assert torch.equal(student.head.weight, formula(teacher.layer.weight))
    alone = copy.deepcopy(student)
    with torch.no_grad():
        teacher.layer.weight.mul_(0.5)
    assert torch.equal(student.head.weight, formula(teacher.layer.weight))
    assert not torch.equal(alone.head.weight, student.head.weight)
    said = pytest.warns(tied.TieWarning) if kind != "identity" else contextlib.nullcontext()
    with said:
        assert {name for name, _ in alone.named_parameters()} == {"head.weight", "head.bias"}
    holder = nn.ModuleDict({"student": student})  # the student in a model without the teacher
    assert torch.equal(holder.student.head.weight, formula(teacher.layer.weight))
    assert tied.ties(holder) == ()
