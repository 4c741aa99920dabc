"""Tracing: one forward through a twin, in which every use of a Parameter, every call and every copy is noted.

Owns: running the twin, and what was seen. Must not touch the model, nor judge what was seen: that is
`forward_uses.py`'s. Read next: `forward_uses.py`.

A tensor belongs to the Parameter whose storage it lies in, however often it was viewed; what is computed from
Parameters alone is an expression of them. Where such a tensor meets one that depends on the inputs, the Parameter is
used.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tied.checking.inventory import Inventory, walk
from tied.checking.twin import twin_of
from tied.ledger import links
from tied.memory import IDENTITY, OVERLAP
from tied.memory.view_relation import relation

MOVES = frozenset(["clone", "contiguous", "to", "float", "double", "half", "bfloat16", "type", "cpu", "cuda"])
WRITES = frozenset(["copy_", "set_", "__setitem__", "__set__"])
MOST_SOURCES = 4  # of an expression; what is computed from more Parameters is taken for a result of the forward
MOST_NODES = 500  # of a graph, between a use and its Parameter
OPERATORS = {"add": "+", "mul": "*", "sub": "-", "div": "/", "matmul": "@", "rsub": "-", "pow": "**"}


class NotTracedError(Exception):
    """The forward could not be run; the text says why."""


class Origin(NamedTuple):
    """Where a tensor comes from: Parameters by their names, and what it is of the one if it is no more than that."""

    names: tuple[str, ...]
    suffix: str | None


class Use(NamedTuple):
    """One use of a Parameter.

    Attributes:
        name: Of the Parameter.
        suffix: What of it is used, as ".T"; None for an expression of it.
        function: As "F.linear".
        path: Of the module in whose forward it is used.
        is_own: Whether that module has the Parameter itself.
        call: Which call of the module it is.
        is_cut: Whether no gradient gets from here to the Parameter, where gradients are asked for.
        tensor: What is used.
    """

    name: str
    suffix: str | None
    function: str
    path: str
    is_own: bool
    call: int
    is_cut: bool
    tensor: Tensor


class Copy(NamedTuple):
    """One Parameter that is written into another in the forward, or by a hook."""

    target: str
    source: str
    suffix: str | None
    path: str


@dataclass
class Seen:
    """What a forward showed.

    Attributes:
        calls: How often each module was called, by the first of its names.
        uses: In the order in which they came.
        copies: Likewise, each once.
    """

    calls: Counter[str] = field(default_factory=Counter[str])
    uses: list[Use] = field(default_factory=list[Use])
    copies: dict[Copy, None] = field(default_factory=dict[Copy, None])


def trace(model: nn.Module, inputs: Any = None) -> Seen:
    """Run one forward of a copy of a model.

    Args:
        model: Not changed, and not called.
        inputs: What the forward takes: a tensor, a tuple, or a dict of names. None makes some for a model of
            transformers, and sees nothing of others.

    Raises:
        NotTracedError: the copy could not be made, or its forward failed.
    """
    made = inputs is None
    inputs = dummy_inputs(model) if made else tree_map(_own, inputs)
    if inputs is None:
        return Seen()
    try:
        with _quiet():
            twin = twin_of(model, on_meta=made)
            return _run(model, twin, inputs)
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


def _own(value: Any) -> Any:
    """Return a tensor that the forward may write to."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _run(model: nn.Module, twin: nn.Module, inputs: Any) -> Seen:
    watch = Watch(twin)
    with ExitStack() as stack:
        for handle in watch.handles():
            stack.callback(handle.remove)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(Untouched(model))
        stack.enter_context(watch)
        if isinstance(inputs, Mapping):
            watch.begin(inputs)
            twin(**inputs)
        else:
            arguments = inputs if isinstance(inputs, tuple) else (inputs,)
            watch.begin(arguments)
            twin(*arguments)
    return watch.seen


@contextmanager
def _quiet() -> Generator[None]:
    """Keep warnings of the traced forward to itself, and random numbers as they were."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    numpy, python = np.random.get_state(), random.getstate()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=devices):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


class Untouched(TorchDispatchMode):
    """Refuses to write into the model itself, which a function may reach in a way that the copy does not know."""

    def __init__(self, model: nn.Module) -> None:
        """Remember the memory of the model."""
        super().__init__()
        inventory = Inventory.of(model)
        self.names = {k: n for n, t in zip(inventory.names, inventory.tensors, strict=True) if (k := key(t))}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run what writes elsewhere."""
        kwargs = kwargs or {}
        written = (a for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write)
        for argument in written if self.names else ():
            place = func._schema.arguments.index(argument)
            value = kwargs.get(argument.name, args[place] if place < len(args) else None)
            for tensor in tree_leaves(value):
                if isinstance(tensor, Tensor) and key(tensor) in self.names:
                    raise RuntimeError(f"something in it writes to '{self.names[key(tensor)]}' of the model itself")
        return func(*args, **kwargs)


def key(tensor: Tensor) -> int:
    """Return what names the storage of a tensor; 0 where it has none."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return 0


class Watch(TorchFunctionMode):
    """Follows Parameters and inputs through the functions of a forward."""

    def __init__(self, twin: nn.Module) -> None:
        """Name the Parameters of the twin."""
        super().__init__()
        self.seen, self.twin = Seen(), twin
        inventory = Inventory.of(twin)
        held = zip(inventory.names, inventory.tensors, strict=True)
        self.roots: dict[str, Tensor] = {}
        self.origins: dict[int, Origin] = {}
        for name, tensor in list(held)[: inventory.parameters]:
            if (place := key(tensor)) and place not in self.origins:
                self.roots[name], self.origins[place] = tensor, Origin((name,), "")
        self.kept: list[Any] = []  # so that no storage gets the key of one that is gone
        self.live: set[int] = set()
        self.stack: list[tuple[str, nn.Module, int]] = [("", twin, 0)]

    def begin(self, inputs: Any) -> None:
        """Take what is in the inputs as what a forward depends on."""
        self._follow(inputs)

    def handles(self) -> Iterator[Any]:
        """Have every module say when it is entered and left."""
        names: dict[nn.Module, str] = {}
        for path, module in walk(self.twin):
            names.setdefault(module, path)
        for module, path in names.items():
            yield module.register_forward_pre_hook(self._entering(path), prepend=True)
            yield module.register_forward_hook(self._leave, always_call=True)

    def _entering(self, path: str) -> Any:
        def enter(module: nn.Module, _: object) -> None:
            self.stack.append((path, module, self.seen.calls[path]))
            self.seen.calls[path] += 1

        return enter

    def _leave(self, *_: object) -> None:
        self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function, and note what it makes of Parameters and inputs."""
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        before = [(tensor, self.origins.get(key(tensor))) for tensor in given]
        weights = [(tensor, origin) for tensor, origin in before if origin is not None]
        if weights and getattr(func, "__name__", "") in WRITES:
            self._note_copy(func, args)
        result = func(*args, **kwargs)
        depends = any(key(tensor) in self.live for tensor in given)
        if depends:
            if weights:
                self._note_uses(func, weights, result)
            self._follow(result)
        elif weights:
            self._derive(func, weights, result)
        return result

    def _follow(self, result: Any) -> None:
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (place := key(tensor)) not in self.origins:
                self.live.add(place)
                self.kept.append(tensor.untyped_storage() if place else tensor)

    def _derive(self, func: Any, weights: list[tuple[Tensor, Origin]], result: Any) -> None:
        """Note what is computed from Parameters alone."""
        names = tuple(dict.fromkeys(name for _, origin in weights for name in origin.names))
        if len(names) > MOST_SOURCES:
            return self._follow(result)
        moved = getattr(func, "__name__", "") in MOVES and len(weights) == 1
        for tensor in tree_leaves(result):
            place = key(tensor) if isinstance(tensor, Tensor) else 0
            if place and place not in self.origins and place not in self.live:
                self.origins[place] = Origin(names, self._suffix(*weights[0]) if moved else None)
                self.kept.append(tensor.untyped_storage())

    def _suffix(self, tensor: Tensor, origin: Origin) -> str | None:
        """Return what a tensor is of the one Parameter that it belongs to."""
        root = self.roots[origin.names[0]]
        if origin.suffix is None or key(tensor) != key(root):
            return origin.suffix if root.shape == tensor.shape or origin.suffix else None
        if root.is_meta:
            same = (root.shape, root.stride()) == (tensor.shape, tensor.stride())
            turned = root.dim() == 2 and (root.mT.shape, root.mT.stride()) == (tensor.shape, tensor.stride())
            return "" if same else ".T" if turned else OVERLAP
        found = relation(root.detach(), tensor.detach())
        return "" if found == IDENTITY else found

    def _note_copy(self, func: Any, args: Any) -> None:
        """Note one Parameter that is written into another."""
        if func.__name__ == "__set__" and func.__self__ is not Tensor.data:
            return
        target, source = args[0], args[-1]
        if not isinstance(source, Tensor) or not isinstance(target, Tensor):
            return
        into, of = self.origins.get(key(target)), self.origins.get(key(source))
        if into is None or of is None or into.suffix is None or of.suffix is None:
            return
        if into.names != of.names:
            path = self.stack[-1][0]
            self.seen.copies[Copy(into.names[0], of.names[0], self._suffix(source, of), path)] = None

    def _note_uses(self, func: Any, weights: list[tuple[Tensor, Origin]], result: Any) -> None:
        made = {key(tensor) for tensor in tree_leaves(result) if isinstance(tensor, Tensor)}
        if not made:
            return
        path, module, call = self.stack[-1]
        for tensor, origin in weights:
            if key(tensor) in made or not (tensor.is_floating_point() or tensor.is_complex()):
                continue  # a view of it, or a mask made of it
            for name in origin.names:
                root = self.roots[name]
                if tensor.numel() > 1 or root.numel() == 1:  # a penalty is no use
                    suffix = self._suffix(tensor, origin) if len(origin.names) == 1 else None
                    is_cut = root.requires_grad and torch.is_grad_enabled() and not leads_to(tensor, root)
                    use = Use(name, suffix, called(func), path, _has(module, root), call, is_cut, tensor.detach())
                    self.seen.uses.append(use)


def _has(module: nn.Module, root: Tensor) -> bool:
    """Tell whether a module has a Parameter itself, or reads it by a tie."""
    held = [*module._parameters.values()]
    for name, link in links(module).items():
        held += link.tensors().values() if name not in module._parameters else ()
    return any(tensor is root for tensor in held)


def leads_to(tensor: Tensor, root: Tensor) -> bool:
    """Tell whether the gradient of a tensor gets to a leaf."""
    if tensor is root:
        return True
    waiting, seen = [tensor.grad_fn], set[Any]()
    while waiting and len(seen) < MOST_NODES:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is root:
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return len(seen) >= MOST_NODES


def called(func: Any) -> str:
    """Return the name of a function as people write it."""
    name = getattr(func, "__name__", str(func)).strip("_")
    if name in OPERATORS:
        return OPERATORS[name]
    return f"F.{name}" if hasattr(F, name) else f"torch.{name}" if hasattr(torch, name) else f"Tensor.{name}"
