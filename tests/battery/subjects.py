"""The models that tools are tried on: two layers that share, and the same in plain torch.

For an identity the oracle is the plain twin (`b.weight = a.weight`); for every other tie it is a module that computes
the target by hand in its forward.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter

import tied

Formula = Callable[[dict[str, Tensor]], Tensor]
TURNED = torch.arange(15, -1, -1).reshape(4, 4)
TIES: dict[str, tuple[str, Formula]] = {
    "identity": ("a.weight", lambda t: t["a.weight"]),
    "transposed": ("a.weight.T", lambda t: t["a.weight"].t()),
    "scaled": ("2 * a.weight", lambda t: 2 * t["a.weight"]),
    "gathered": ("a.weight.flatten()[turned]", lambda t: t["a.weight"].flatten()[TURNED]),
    "two sources": ("a.weight + spare", lambda t: t["a.weight"] + t["spare"]),
}


class Pair(nn.Module):
    """Three layers, of which the second shares with the first; float64, so that a difference is a difference.

    Attributes:
        kind: Of the tie, by its name in `TIES`.
        reads_tokens: Whether the first layer is an embedding, which reads the places of the largest inputs.
    """

    def __init__(self, kind: str, first: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.reads_tokens = kind, first is nn.Embedding
        self.a, self.b, self.c = first(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.spare = Parameter(torch.rand(4, 4))
        self.register_buffer("turned", torch.arange(15, -1, -1).reshape(4, 4))
        self.double()

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x.argmax(-1) if self.reads_tokens else x))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.hidden(x))) + 0 * self.spare.sum()


class Bias(nn.Module):
    """What is left of a layer whose matrix is computed elsewhere."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = Parameter(layer.bias.detach().clone())


class ByHand(Pair):
    """The oracle of a transform: the matrix of the second layer is computed in the forward."""

    def __init__(self, kind: str, first: type[nn.Module] = nn.Linear) -> None:
        super().__init__(kind, first)
        self.b = Bias(self.b)

    @property
    def shared(self) -> Tensor:
        """The matrix of the second layer."""
        return TIES[self.kind][1]({"a.weight": self.a.weight, "spare": self.spare})

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x)  # first: torch's pruning computes the weight in there
        return self.c(nn.functional.linear(hidden, self.shared, self.b.bias)) + 0 * self.spare.sum()


def tied_pair(kind: str, first: type[nn.Module] = nn.Linear) -> nn.Module:
    model = Pair(kind, first)
    tied.tie(model, "b.weight", TIES[kind][0])
    return model


def oracle(kind: str, first: type[nn.Module] = nn.Linear) -> nn.Module:
    if kind != "identity":
        return ByHand(kind, first)
    model = Pair(kind, first)
    model.b.weight = model.a.weight
    return model


@dataclass(frozen=True)
class Subject:
    """What a tool is tried on: makes a model for each kind of tie, and its oracle."""

    tied: Callable[[str], nn.Module]
    oracle: Callable[[str], nn.Module]


LAYERS = Subject(tied_pair, oracle)
TOKENS = Subject(lambda kind: tied_pair(kind, nn.Embedding), lambda kind: oracle(kind, nn.Embedding))


def is_plain(model: nn.Module) -> bool:
    """Tell whether a model is the plain twin."""
    return isinstance(model, Pair) and not isinstance(model, ByHand) and not tied.ties(model)


def by_hand(model: nn.Module) -> nn.Module:
    """Return the oracle that computes by hand in the place of a plain twin, which a tool cuts or gets wrong."""
    return ByHand(model.kind, nn.Embedding if model.reads_tokens else nn.Linear) if is_plain(model) else model


def inputs(seed: int = 1) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
