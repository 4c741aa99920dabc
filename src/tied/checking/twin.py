"""Twins: copies of a model to run, whose forward and hooks write into the copy and never into the model.

Owns: copying a model with all that it and its hooks reach. Must not run anything. Read next: `forward_trace.py`.
"""

from __future__ import annotations

import copy
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.checking.repointing import Repointing, reached


def twin_of(model: nn.Module, *, on_meta: bool) -> nn.Module:
    """Copy a model with all that it holds; on meta its Parameters and buffers have no values."""
    parts, memo = list(reached(model)), dict[int, Any]()
    for tensor in (part for part in parts if isinstance(part, Tensor)):
        if on_meta and isinstance(tensor, Parameter):
            memo[id(tensor)] = Parameter(torch.empty_like(tensor, device="meta"), requires_grad=tensor.requires_grad)
        elif not tensor.is_leaf:
            memo[id(tensor)] = (
                tensor.detach().clone()
            )  # of a graph, which deepcopy refuses: a cache of the last forward
    twin = copy.deepcopy(model, memo)
    Repointing(memo, (part for part in parts if isinstance(part, FunctionType)))
    return twin.to("meta") if on_meta else twin
