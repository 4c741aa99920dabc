"""Two layers in float64, of which the second is to share with the first, and the same by hand."""

import torch
from battery.subjects import TIES, TURNED, Bias
from torch import Tensor, nn
from torch.nn import Parameter


class Pair(nn.Module):
    """Two linear layers, a spare matrix, and an index."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.spare = Parameter(torch.rand(4, 4))
        self.register_buffer("turned", TURNED.clone())
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x))) + 0 * self.spare.sum()


class ByHand(Pair):
    """The oracle: the matrix of the second layer is computed in the forward, as `TIES` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.b, self.kind = Bias(self.b), kind

    def forward(self, x: Tensor) -> Tensor:
        weight = TIES[self.kind][1]({"a.weight": self.a.weight, "spare": self.spare})
        return nn.functional.linear(torch.tanh(self.a(x)), weight, self.b.bias) + 0 * self.spare.sum()
