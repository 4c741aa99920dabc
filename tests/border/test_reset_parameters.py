"""`reset_parameters()` of every module of torch that has one, called on a module whose parameters are all targets.

What is drawn for the target is drawn for the source: by the same seed an ordinary module draws the values that the
target then reads. Where a source cannot take them the call is refused.
"""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import tied

FACTORIES: dict[str, Callable[[], nn.Module]] = {
    "AdaptiveLogSoftmaxWithLoss": lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3, 6], div_value=1.0),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "BatchNorm3d": lambda: nn.BatchNorm3d(4),
    "Bilinear": lambda: nn.Bilinear(4, 3, 4),
    "Conv1d": lambda: nn.Conv1d(4, 4, 3),
    "Conv2d": lambda: nn.Conv2d(4, 4, 3),
    "Conv3d": lambda: nn.Conv3d(4, 4, 3),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 4, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 4, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(4, 4, 3),
    "Embedding": lambda: nn.Embedding(5, 4),
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 4),
    "GRU": lambda: nn.GRU(4, 3, num_layers=2, bidirectional=True),
    "GRUCell": lambda: nn.GRUCell(4, 3),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "InstanceNorm1d": lambda: nn.InstanceNorm1d(4, affine=True),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "InstanceNorm3d": lambda: nn.InstanceNorm3d(4, affine=True),
    "LSTM": lambda: nn.LSTM(4, 3, proj_size=2),
    "LSTMCell": lambda: nn.LSTMCell(4, 3),
    "LayerNorm": lambda: nn.LayerNorm(4),
    "Linear": lambda: nn.Linear(4, 4),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "PReLU": lambda: nn.PReLU(4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "RNN": lambda: nn.RNN(4, 3, bias=False),
    "RNNCell": lambda: nn.RNNCell(4, 3),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
}
BASES = {"RNNBase", "RNNCellBase"}
KINDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "identity": ("{}", lambda w: w),
    "scaled": ("2 * {}", lambda w: 2 * w),
    "flipped": ("{}.flip(0)", lambda w: w.flip(0)),
    "gathered": ("{}.flatten()[{}_places]", lambda w: w.flatten().flip(0).reshape(w.shape)),
    "two sources": ("{} + {}_other", lambda w: w + 1),
}


class Source(nn.Module):
    """What a module's parameters are made of."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for path, parameter in module.named_parameters():
            name = path.replace(".", "_")
            self.register_parameter(name, Parameter(torch.rand_like(parameter)))
            self.register_parameter(f"{name}_other", Parameter(torch.ones_like(parameter), requires_grad=False))
            places = torch.arange(parameter.numel() - 1, -1, -1).reshape(parameter.shape)
            self.register_buffer(f"{name}_places", places)


def reset(module: nn.Module) -> None:
    torch.manual_seed(3)
    getattr(module, "_reset_parameters" if hasattr(module, "_reset_parameters") else "reset_parameters")()


def tied_to_a_source(name: str, kind: str) -> nn.ModuleDict:
    module = FACTORIES[name]().double()
    model = nn.ModuleDict({"source": Source(module), "module": module})
    paths = [path for path, _ in module.named_parameters()]
    text = {path: KINDS[kind][0].replace("{}", f"source.{path.replace('.', '_')}") for path in paths}
    tied.tie(model, {f"module.{path}": text[path] for path in paths})
    return model


def test_no_module_of_torch_is_missing() -> None:
    classes = {name: found for name in dir(nn) if inspect.isclass(found := getattr(nn, name))}
    resets = {
        name
        for name, found in classes.items()
        if hasattr(found, "reset_parameters") or (issubclass(found, nn.Module) and hasattr(found, "_reset_parameters"))
    }
    assert {name for name in resets if not name.startswith("Lazy")} - BASES == FACTORIES.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_drawn_for_a_target_is_drawn_for_its_source(name: str, kind: str) -> None:
    ordinary = FACTORIES[name]().double()
    model = tied_to_a_source(name, kind)
    with torch.no_grad():
        for path, parameter in ordinary.named_parameters():
            parameter.copy_(model.module.get_parameter(path))  # what a reset leaves as it is, is the same
    reset(ordinary)
    if kind == "two sources" and name != "Transformer":
        with pytest.raises(tied.InverseError):
            reset(model.module)
        return
    reset(model.module)
    for path, expected in ordinary.named_parameters():
        if name == "Transformer" and kind != "identity" and "." in path:
            continue  # loops over the Parameters of a whole model, to which a weight that is elsewhere does not belong
        found = model.module.get_parameter(path)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        source = model.source.get_parameter(path.replace(".", "_"))
        torch.testing.assert_close(KINDS[kind][1](source), expected, rtol=1e-12, atol=1e-12)
