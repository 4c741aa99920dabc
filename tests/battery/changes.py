"""Tools that change a weight, convert it, or load it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils import parametrizations, prune

from battery.subjects import ByHand, by_hand, inputs, is_plain
from battery.tool import Act, Tool, both, quietly, trained


def with_memory_anew(model: nn.Module) -> list[Tensor]:
    model = by_hand(model)  # plain sharing is cut
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to("meta").to_empty(device="cpu").load_state_dict(state)
    return both(model)


def assigned(model: nn.Module) -> list[Tensor]:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    if is_plain(model):
        model.b.weight = model.a.weight  # what plain sharing has to do again by hand
    return both(model)


def with_source_replaced(model: nn.Module) -> list[Tensor]:
    again = is_plain(model)
    model.a.weight = Parameter(model.a.weight.detach() * 0.5)
    if again:
        model.b.weight = model.a.weight
    return both(model)


def changed_source(change: Callable[[nn.Module], object]) -> Act:
    """Change the weight of the source, which an oracle of plain sharing cannot follow: it computes by hand."""

    def act(model: nn.Module) -> list[Tensor]:
        model = by_hand(model)
        change(model.a)
        return [model(inputs()).detach(), trained(model, torch.optim.SGD(model.parameters(), lr=0.05))]

    return act


def spectral(module: nn.Module) -> None:
    parametrizations.spectral_norm(module.eval())  # training would move its estimate at each read


def prepared_for_awareness(model: nn.Module) -> list[Tensor]:
    """Quantization-aware training: each layer is swapped for one that is handed its weight, and rounds it."""
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, QConfig, prepare_qat

    fake = FakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=255)
    model.train().qconfig = QConfig(activation=nn.Identity, weight=fake)
    made = prepare_qat(model)
    return both(made)


def quantized(model: nn.Module) -> Tensor:
    from torch.ao.quantization import quantize_dynamic

    if isinstance(model, ByHand):  # whose second layer cannot be quantized
        raise NotImplementedError
    return quantize_dynamic(model.float(), {nn.Linear})(inputs().float())


class Swapped(nn.Module):
    """What tools for float8 put in the place of a layer: another class, which is handed the Parameters."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def swapped(*names: str) -> Act:
    def act(model: nn.Module) -> list[Tensor]:
        for name in names:
            if isinstance(getattr(model, name), nn.Linear):
                setattr(model, name, Swapped(getattr(model, name)))
        return both(model)

    return act


TOOLS = [
    Tool("changes", "`.to(meta)`, `to_empty`, `load_state_dict`", with_memory_anew),
    Tool("changes", "`load_state_dict(assign=True)`", assigned),
    Tool("changes", "the source's Parameter replaced", with_source_replaced),
    Tool("changes", "`weight_norm` on the source", changed_source(parametrizations.weight_norm)),
    Tool("changes", "`spectral_norm` on the source", changed_source(spectral)),
    Tool("changes", "`prune` on the source", changed_source(lambda m: prune.l1_unstructured(m, "weight", 0.5))),
    Tool("surgery", "`prepare_qat`, and training", quietly(prepared_for_awareness)),
    Tool("surgery", "`quantize_dynamic`", quietly(quantized)),
    Tool("surgery", "a layer swapped for one with its weight: the source", swapped("a")),
    Tool("surgery", "the same of the target", swapped("b"), foreign="torch's `ValueError`"),
    Tool("surgery", "the same of both", swapped("a", "b"), foreign="torch's `ValueError`"),
]
