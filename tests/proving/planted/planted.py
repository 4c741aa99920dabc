"""What a planted model is: a builder, what `verify` shall be given beside it, and what it shall say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

WIDE, NARROW, WORDS = 6, 4, 9
X = torch.randn(8, WIDE, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(0, WORDS, (5, 7), generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Planted:
    """One model: how it is built, how it is verified, and what the answer must say.

    Attributes:
        build: Makes the model; its docstring says why the answer is right.
        says: Of a wrong model, a pattern of the message; of a right one, a text in the proof.
        inputs: Given to `verify`.
        options: Further arguments of `verify`.
    """

    build: Callable[[], nn.Module]
    says: str
    inputs: tuple[Any, ...] = (X,)
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.build.__name__


def bench() -> tuple[list[Planted], Callable[..., Any]]:
    """Return a list, and a decorator that puts what it decorates on it."""
    found: list[Planted] = []

    def planted(says: str, *inputs: Any, **options: Any) -> Callable[[Callable[[], nn.Module]], Any]:
        def put(build: Callable[[], nn.Module]) -> Any:
            found.append(Planted(build, says, inputs or (X,), options))
            return build

        return put

    return found, planted


class Autoencoder(nn.Module):
    """Linear, tanh, Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDE, NARROW)
        self.decoder = nn.Linear(NARROW, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


class Half(nn.Module):
    """An encoder whose subclasses decode with its weight, each in its way."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDE, NARROW)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encoder(x)))

    def decode(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError


class LanguageModel(nn.Module):
    """Embedding, tanh, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, NARROW)
        self.head = nn.Linear(NARROW, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


class Stack(nn.Module):
    """Layers of one width, each with a tanh."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers or [nn.Linear(WIDE, WIDE) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x
