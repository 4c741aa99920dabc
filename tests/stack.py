"""A model with a bit of everything that can be tied: linears, an embedding, a stack of layers, buffers."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)


class Stack(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.layers = nn.ModuleList(Block() for _ in range(depth))
        self.theta, self.bias = nn.Parameter(torch.randn(7)), nn.Parameter(torch.zeros(6))
        self.register_buffer("index", torch.randint(0, 7, (6, 4)))
