"""One weight used many times: the gradients of all its uses are added up in one buffer, inside autograd.

Owns: `shared_linear`, `many_uses`, and the node that stands between a weight and its uses.
Must not write to `.grad`; must step aside to plain autograd where that is as fast, or cannot be replaced safely.
Read next: `lm_head.py`, whose gradient goes into the same buffer.

Plain autograd makes a temporary as large as the weight for every use, and adds it to the sum of the others.
Here the graph is `weight -> Gather -> uses`: a use adds its product to a `Sum` and passes nothing on to `Gather`,
which the engine runs after all uses and which passes on the whole. The engine decides what runs, as ever, so
hooks, `retain_graph`, `autograd.grad` and DistributedDataParallel see what they always see. A `Sum` belongs to one
run of the engine, known by its number: what an interrupted run leaves behind is never read by another.
"""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.weak import TensorWeakRef

from tied.binding.late_reading import Late, late_class
from tied.errors import KindError, during
from tied.nn.products import add_product, linear, product, uses_onednn

FEWEST_WEIGHTS = 2**20  # below, the few microseconds of Python per use cost more than they save
ROWS_PER_WIDTH = 1 / 16  # above, the products themselves take all the time: worth it if those are faster here
WAITING_ROWS = 64  # products of few rows wait for one another until they are so many

PLAIN = (Tensor, nn.Parameter)  # other classes may mean something else by a product

Module = TypeVar("Module", bound=nn.Module)


def shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a weight that is used many times: `F.linear`, with the gradients of all uses in one buffer.

    Law: output and gradients are those of `F.linear(x, weight, bias)`, up to rounding.

    Worth it where few rows meet a large weight many times, as in a loop or an unrolled cell: there plain
    autograd spends most of its time on temporaries as large as the weight. Elsewhere this *is* `F.linear`: for a
    weight of fewer than 2**20 entries, for more rows than a sixteenth of the weight's narrower side (unless
    `products.py` knows a faster library than `mm` on this processor), on other devices than the CPU, for weights that
    are computed (only a leaf gathers), under autocast, in `torch.compile`, tracing, `torch.func` and forward-mode
    differentiation, and for tensor subclasses. Double backward and batched gradients take the ordinary way within
    the same graph.

    Shapes:
        x: `(..., in)`; weight: `(out, in)`; bias: `(out,)`; output: `(..., out)`.

    Example:
        >>> weight = nn.Parameter(torch.randn(1024, 1024) / 32)
        >>> state = torch.randn(8, 1024)
        >>> for _ in range(12):
        ...     state = torch.tanh(shared_linear(state, weight))
        >>> state.sum().backward()
        >>> weight.grad.shape
        torch.Size([1024, 1024])

    Source:
        Narayanan et al. 2021, arXiv:2104.04473, section 4 (Megatron-LM adds weight gradients into one buffer,
        which it writes to `.grad` itself; this stays inside autograd).
    """
    if torch.compiler.is_compiling() or not _pays(x, weight):
        return functional.linear(x, weight, bias)
    return gathered_linear(x, weight, bias)


def many_uses(model: Module) -> Module:
    """Make each `nn.Linear` in a model add up the gradients of all its uses in one buffer.

    Law: outputs and gradients stay as they were; see `shared_linear` for when anything changes at all.

    For models that run one layer or block many times: loops, unrolled cells, stacks whose layers are tied. Layers
    with equal weights (`tied.tie_layers`) share one buffer. It is meant for whole models: a layer that turns out to
    be used once, or with many rows, computes as before. Parameters, names, state dicts and `isinstance` stay.

    Args:
        model: Changed in place; a single `nn.Linear` is fine. Subclasses of `nn.Linear` stay as they are, since
            they may compute in a way of their own.

    Returns:
        The model.

    Raises:
        KindError: `model` is no module.

    Example:
        >>> cell = many_uses(nn.Linear(1024, 1024))
        >>> cell
        Linear(in_features=1024, out_features=1024, bias=True)
    """
    with during("many_uses(model)"):
        if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise KindError(
                "The model is no module.",
                found=type(model).__name__,
                expected="an nn.Module",
                fix="for a weight of your own use tied.nn.shared_linear(x, weight, bias)",
            )
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
        elif isinstance(module, Late) and type(module).__dict__.get("_tied_base") is nn.Linear:
            module.__class__ = late_class(Linear, module._tied_names)  # type: ignore[assignment]
    return model


class Linear(nn.Linear):
    """An `nn.Linear` whose weight is used many times; made by `many_uses`."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute as `nn.Linear` does."""
        return shared_linear(input, self.weight, self.bias)


def gathered_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear` with the weight's gradient gathered, wherever that is possible, whether it pays or not."""
    if not gathers(weight, x):
        return functional.linear(x, weight, bias)
    gathering, handle = gathering_of(weight)
    return _LinearUse.apply(x, handle, bias, gathering)  # type: ignore[no-any-return]


def fast_linear(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute `F.linear` for a matrix that was built for this one use, by the faster products where they pay."""
    tensors = (x, matrix) if bias is None else (x, matrix, bias)
    plain = all(type(tensor) in PLAIN for tensor in tensors) and not torch.is_autocast_enabled("cpu")
    if is_transformed() or not plain or not uses_onednn(x, matrix.t()):
        return functional.linear(x, matrix, bias)
    return _LinearUse.apply(x, matrix, bias, None)  # type: ignore[no-any-return]


def gathered_embedding(tokens: Tensor, weight: Tensor, words: int, padding_idx: int | None = None) -> Tensor:
    """Compute `F.embedding` of the first `words` rows with the gradient gathered, wherever that is possible."""
    if not gathers(weight) or weight.dtype not in (torch.float32, torch.float64):
        return functional.embedding(tokens, first_rows(weight, words), padding_idx)
    gathering, handle = gathering_of(weight)
    return _EmbeddingUse.apply(tokens, handle, words, padding_idx, gathering)  # type: ignore[no-any-return]


def first_rows(matrix: Tensor, count: int) -> Tensor:
    """Return the first rows of a matrix; the matrix itself if these are all."""
    return matrix if len(matrix) == count else matrix[:count]


def _pays(x: Tensor, weight: Tensor) -> bool:
    if type(x) not in PLAIN or weight.dim() != 2 or weight.numel() < FEWEST_WEIGHTS:
        return False
    rows = x.numel() // weight.shape[1]
    return 0 < rows <= ROWS_PER_WIDTH * min(weight.shape) or uses_onednn(x, weight.t())


def gathers(weight: Tensor, x: Tensor | None = None) -> bool:
    """Tell whether gradients of `weight` may be gathered now; where this is not certain, they are not."""
    return (
        not is_transformed()
        and torch.is_grad_enabled()
        and weight.requires_grad
        and weight.is_leaf
        and type(weight) in PLAIN
        and weight.device.type == "cpu"
        and weight.layout is torch.strided
        and weight.is_floating_point()
        and (x is None or _is_plain(x, weight))
        and not torch.is_autocast_enabled("cpu")
    )


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    alike = x.dtype is weight.dtype and x.device == weight.device and x.layout is weight.layout
    return type(x) in PLAIN and alike


def is_transformed() -> bool:
    """Tell whether the program is being compiled, traced, or transformed, so that it must be plain."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_ordinary_backward(grad: Tensor) -> bool:
    """Tell whether a gradient is one tensor that will not be differentiated again."""
    if torch.is_grad_enabled() or is_transformed():
        return False
    functorch: Any = torch._C._functorch  # type: ignore[attr-defined]
    return not (functorch.is_legacy_batchedtensor(grad) or functorch.is_batchedtensor(grad))


class Sum:
    """The gradients of many uses of one weight, added up; products of few rows wait for one another."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._rows = 0

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add `left.T @ right`, of shapes `(rows, out)` and `(rows, in)`; both may change afterwards."""
        if len(left) > WAITING_ROWS // 2:
            self._multiply(left, right)
            return
        if self._rows + len(left) > WAITING_ROWS:
            self._multiply_waiting()
        self._waiting.append((left.clone(), right.clone()))
        self._rows += len(left)

    def add_rows(self, index: Tensor, rows: Tensor, like: Tensor) -> None:
        """Add each of the rows to the row of the sum that `index` names."""
        if self._total is None:
            self._total = torch.zeros_like(like)
        self._total.index_add_(0, index, rows)

    def take_in(self, matrix: Tensor) -> None:
        """Add a matrix that nobody else holds: it becomes the sum where there is none yet."""
        self._total = matrix if self._total is None else self._total.add_(matrix)

    def result(self) -> Tensor | None:
        """Return the whole sum."""
        self._multiply_waiting()
        return self._total

    def _multiply_waiting(self) -> None:
        if self._waiting:
            left, right = zip(*self._waiting, strict=True)
            self._waiting.clear()
            self._rows = 0
            self._multiply(_one_above_the_other(left), _one_above_the_other(right))

    def _multiply(self, left: Tensor, right: Tensor) -> None:
        if self._total is None:
            self._total = product(left.t(), right)
        else:
            add_product(self._total, left.t(), right)


def _one_above_the_other(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Gathering:
    """What the uses of one weight have in common: the handle they read, and a `Sum` for each run of the engine.

    Nothing holds it but the nodes of the graph, so it goes when they go.
    """

    def __init__(self) -> None:
        self.sums: dict[int, Sum] = {}
        self._handle: TensorWeakRef | None = None

    def handle(self, weight: Tensor) -> Tensor | None:
        """Return the handle, if it is alive and still is the memory of `weight`."""
        found: Tensor | None = self._handle() if self._handle is not None else None
        return found if found is not None and found.dtype is weight.dtype and found.is_set_to(weight) else None

    def start(self, weight: Tensor) -> Tensor:
        """Make the handle: the weight, behind the node that all gradients pass."""
        handle: Tensor = _Gather.apply(weight, self)  # pyright: ignore[reportAssignmentType]
        self._handle = TensorWeakRef(handle)
        return handle

    def sum_for(self, handle: Tensor, grad: Tensor) -> Sum | None:
        """Return the sum of the present run of the engine, or None where `grad` must take the ordinary way."""
        run = torch._C._current_graph_task_id()
        if run < 0 or not is_ordinary_backward(grad) or not _runs(handle):
            return None
        return self.sums.setdefault(run, Sum())

    def take(self) -> Tensor | None:
        """Return what was gathered in the present run of the engine, if anything."""
        gathered = self.sums.pop(torch._C._current_graph_task_id(), None)
        return gathered.result() if gathered is not None else None


def _runs(handle: Tensor) -> bool:
    """Tell whether this run of the engine will reach the weight; `autograd.grad(loss, x)` does not."""
    return torch._C._will_engine_execute_node(handle.grad_fn)  # type: ignore[attr-defined]


_GATHERINGS: WeakValueDictionary[int, Gathering] = WeakValueDictionary()  # by the id of the weight, which lives as long


def gathering_of(weight: Tensor) -> tuple[Gathering, Tensor]:
    """Return the gathering of a weight in the graphs that are alive now, or a new one; and its handle."""
    gathering = _GATHERINGS.get(id(weight))
    handle = gathering.handle(weight) if gathering is not None else None
    if gathering is None or handle is None:
        gathering = _GATHERINGS[id(weight)] = Gathering()
        handle = gathering.start(weight)
    return gathering, handle


class _Gather(torch.autograd.Function):
    """The node between a weight and its uses: passes on the sum of what came by itself and what was gathered."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, gathering: Gathering) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.gathering = gathering
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        (grad,) = grads
        gathered = ctx.gathering.take()
        if gathered is None or grad is None:
            return (grad if gathered is None else gathered), None
        return (gathered.add_(grad) if is_ordinary_backward(grad) else gathered + grad), None


class _LinearUse(torch.autograd.Function):
    """`F.linear` by the faster products; the weight's gradient goes into the gathering, where there is one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, handle: Tensor, bias: Tensor | None, gathering: Gathering | None) -> Tensor:
        ctx.gathering = gathering
        ctx.save_for_backward(x, handle)
        return linear(x, handle, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, handle = ctx.saved_tensors
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        multiply = product if is_ordinary_backward(grad) else torch.mm
        total = ctx.gathering.sum_for(handle, grad) if ctx.gathering is not None and for_weight else None
        if total is not None:
            total.add_product(rows, inputs)
        return (
            multiply(rows, handle).reshape(x.shape) if for_x else None,
            multiply(rows.t(), inputs) if for_weight and total is None else None,
            rows.sum(0) if for_bias else None,
            None,
        )


class _EmbeddingUse(torch.autograd.Function):
    """`F.embedding` whose weight's gradient goes into the gathering."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, handle: Tensor, *rest: Any) -> Tensor:
        words, ctx.padding_idx, ctx.gathering = rest
        ctx.handle = handle  # not saved: a write to the weight between forward and backward does no harm here
        ctx.save_for_backward(tokens)
        return functional.embedding(tokens, first_rows(handle, words), ctx.padding_idx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (tokens,) = ctx.saved_tensors
        padding = -1 if ctx.padding_idx is None else ctx.padding_idx
        total = ctx.gathering.sum_for(ctx.handle, grad)
        if total is None:
            ordinary = torch.ops.aten.embedding_backward(grad, tokens, len(ctx.handle), padding, False, False)
            return None, ordinary, None, None, None
        rows = grad.reshape(-1, grad.shape[-1])
        if padding >= 0:
            rows = rows.masked_fill((tokens == padding).reshape(-1, 1), 0)
        total.add_rows(tokens.reshape(-1), rows, ctx.handle)
        return None, None, None, None, None
