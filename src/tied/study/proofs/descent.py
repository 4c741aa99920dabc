"""What a step of training means when one parameter is used k times.

Owns: one proof. The oracle is the untied network with a parameter for each use, averaged by hand.
Read next: `popular_recipe.py`.

If k layers read one weight, its gradient is the sum over the uses. So tied SGD with learning rate η/k is
projected SGD with η: step each use on its own, then put all back to their mean. Adam divides by the size of
the gradient, so a factor of k leaves it as it is, but for its ε.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from tied.binding import tie_layers
from tied.study.proofs.operators import EXACT, drawn
from tied.study.proofs.proof import Control, Measurement, at_most, exactly

USES, WIDTH, ROWS, STEPS = 4, 6, 32, 50
LEARNING_RATE = 0.1
ADAM_STEPS, ADAM_RATE, ADAM_EPSILON = 100, 1e-2, 1e-8


class Deep(nn.Module):
    """k layers of tanh that start from one weight, tied or each with a copy of its own."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float64) for _ in range(USES))
        for layer in self.layers:
            layer.weight = nn.Parameter(drawn(WIDTH, WIDTH, seed=1) / WIDTH**0.5)
        if tied:
            tie_layers(self, "layers", pattern="all")

    def weights(self) -> torch.Tensor:
        """Return the weights of all layers, stacked."""
        return torch.stack([layer.weight for layer in self.layers if isinstance(layer, nn.Linear)])

    def loss(self) -> torch.Tensor:
        """Compute the mean squared error on one fixed batch."""
        hidden = drawn(ROWS, WIDTH, seed=2)
        for layer in self.layers:
            hidden = layer(hidden).tanh()
        return (hidden - drawn(ROWS, WIDTH, seed=3).tanh()).square().mean()


def _trained(model: Deep, optimizer: torch.optim.Optimizer, steps: int, after: Callable[[], None]) -> torch.Tensor:
    """Train, calling `after` behind each step; returns the weights."""
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
        after()
    return model.weights().detach()


def _nothing() -> None:
    pass


def _tied_sgd(rate: float) -> torch.Tensor:
    model = Deep(tied=True)
    return _trained(model, torch.optim.SGD(model.parameters(), lr=rate), STEPS, _nothing)


def _projected_sgd(rate: float) -> torch.Tensor:
    """Step an untied network, then put every layer's weight to the mean of all."""
    model = Deep(tied=False)

    @torch.no_grad()
    def project() -> None:
        mean = model.weights().mean(0)
        for parameter in model.parameters():
            parameter.copy_(mean)

    return _trained(model, torch.optim.SGD(model.parameters(), lr=rate), STEPS, project)


def _tied_adam(*, share: float, epsilon: float) -> torch.Tensor:
    """Train with Adam, the gradient multiplied by `share`."""
    model = Deep(tied=True)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient * share)
    optimizer = torch.optim.Adam(model.parameters(), lr=ADAM_RATE, eps=epsilon)
    return _trained(model, optimizer, ADAM_STEPS, _nothing)


def _apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def tied_training_is_projected_training() -> Iterator[Measurement]:
    """Compare tied and projected SGD, and Adam on the sum and on the mean of the gradients."""
    projected = _projected_sgd(LEARNING_RATE)
    yield Measurement(
        f"tied SGD at η/{USES} is projected SGD at η: {STEPS} steps",
        _apart(_tied_sgd(LEARNING_RATE / USES), projected),
        at_most(EXACT),
        Control("tied SGD at η", _apart(_tied_sgd(LEARNING_RATE), projected)),
    )
    total = _tied_adam(share=1, epsilon=0)
    yield Measurement(
        f"Adam at ε=0 is the same for sum and mean: {ADAM_STEPS} steps",
        _apart(total, _tied_adam(share=1 / USES, epsilon=0)),
        exactly(0),
        Control(
            f"the same at ε={ADAM_EPSILON:g}",
            _apart(_tied_adam(share=1, epsilon=ADAM_EPSILON), _tied_adam(share=1 / USES, epsilon=ADAM_EPSILON)),
        ),
    )
