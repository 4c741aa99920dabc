"""Tracing: which modules are called several times in one forward.

Owns: one forward through a twin of the model, and counting calls. The model itself is never called: the twin has
its Parameters (or, without inputs, none: it lives on meta), and buffers of its own. Read next: `check.py`.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from tied.checking.collapse import above
from tied.checking.groups import name_of
from tied.checking.library_ties import tied_layers
from tied.memory.overlap import size_of
from tied.reporting.facts import Group


class NotTracedError(Exception):
    """The forward could not be run; the text says why."""


def calls(model: nn.Module, inputs: Any = None) -> dict[str, int]:
    """Count the calls of each module in one forward, by the first of its names.

    Args:
        model: Not changed, and not called.
        inputs: What the forward takes: a tensor, a tuple, or a dict of names. None makes some for a model of
            transformers, and counts nothing for others.

    Raises:
        NotTracedError: the twin could not be made, or its forward failed.
    """
    made = inputs is None
    inputs = dummy_inputs(model) if made else inputs
    if inputs is None:
        return {}
    try:
        twin = _twin(model, on_meta=made)
        return _count(twin, inputs)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        raise NotTracedError(f"{type(error).__name__}: {first}" if first else type(error).__name__) from error


def dummy_inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """Make inputs on meta for a model of transformers that reads tokens; None for other models."""
    if not hasattr(model, "_tied_weights_keys") or getattr(model, "main_input_name", "") != "input_ids":
        return None
    tokens = torch.zeros(2, 8, dtype=torch.long, device="meta")
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if is_pair else {})


def _twin(model: nn.Module, *, on_meta: bool) -> nn.Module:
    """Copy the modules, not the Parameters: the twin holds the same ones, or stand-ins on meta."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        writes = getattr(module, "max_norm", None) is not None  # a look-up changes the weight in place
        for parameter in module._parameters.values():
            if parameter is not None and (on_meta or not writes):
                memo[id(parameter)] = _on_meta(parameter) if on_meta else parameter
    twin = copy.deepcopy(model, memo)
    return twin.to("meta") if on_meta else twin


def _on_meta(parameter: Parameter) -> Parameter:
    return Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _count(twin: nn.Module, inputs: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    hooks = [module.register_forward_pre_hook(_counter(counted, name)) for name, module in twin.named_modules()]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices), _quiet():
            if isinstance(inputs, Mapping):
                twin(**inputs)
            else:
                twin(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    finally:
        for hook in hooks:
            hook.remove()
    return counted


def _counter(counted: dict[str, int], name: str) -> Any:
    def count(*_: object) -> None:
        counted[name] = counted.get(name, 0) + 1

    return count


@contextmanager
def _quiet() -> Generator[None]:
    """Keep warnings of the traced forward to itself: it is not the user's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def called(modules: Mapping[str, nn.Module], counted: Mapping[str, int]) -> Iterator[Group]:
    """Yield the outermost modules with parameters that are called more often than they stand in what holds them."""
    places = Counter(id(module) for module in modules.values()) if counted else {}
    for name, module in modules.items() if counted else ():
        times = counted.get(name, 0)
        if times <= places[id(module)] or not name or next(module.parameters(), None) is None:
            continue
        if max((counted.get(path, 0) for path in (*above(name), "")), default=1) >= times:
            continue
        yield _several(name, module, f"{times} calls")
    yield from (_several(name, layer, f"{n} layers") for name, layer, n in tied_layers(modules) if n > 1)


def _several(name: str, module: nn.Module, what: str) -> Group:
    distinct = list({id(parameter): parameter for parameter in module.parameters()}.values())
    dtypes = {name_of(parameter.dtype) for parameter in distinct}
    size = sum(map(size_of, distinct))
    return Group("called", (name,), (what,), (), dtypes.pop() if len(dtypes) == 1 else "", size)
