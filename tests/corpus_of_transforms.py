"""Every transform of the language, in several shapes and ranks, alone and composed: the subjects of its laws.

A `Subject` is an expression in its canonical text, the shapes of its sources, the values of its buffers, and
the oracle: the same in plain torch, written by hand, of the sources and then the buffers in their order here.
Addresses have two segments, so that a model for a subject is a module of modules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

Shape = tuple[int, ...]
Address = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Subject:
    """One expression and what is true of it.

    Attributes:
        sparse: Each entry of the value is a constant times at most one entry of one source.
        linear: The value is linear in all sources together, and its adjoint is the transposed map.
        invertible: Every value that some sources give can be traced back to sources that give it.
        rounding: How far the value may be from exact arithmetic, relative; 0 for what is exact in float64.
    """

    name: str
    text: str
    sources: dict[str, Shape]
    oracle: Callable[..., Tensor]
    buffers: dict[str, Tensor] = field(default_factory=dict)
    sparse: bool = True
    linear: bool = True
    invertible: bool = True
    dtype: torch.dtype = torch.float64
    rounding: float = 0.0

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"

    def tensors(self, seed: int = 0) -> dict[Address, Tensor]:
        """Return random sources and the buffers, by address."""
        generator = torch.Generator().manual_seed(seed)
        sources = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(self.dtype)
            for name, shape in self.sources.items()
        }
        return {tuple(name.split(".")): tensor for name, tensor in {**sources, **self.buffers}.items()}

    @property
    def fixed(self) -> set[Address]:
        """The addresses of the buffers."""
        return {tuple(name.split(".")) for name in self.buffers}

    def expected(self, tensors: dict[Address, Tensor]) -> Tensor:
        """Return the value by plain torch."""
        return self.oracle(*(tensors[tuple(name.split("."))] for name in (*self.sources, *self.buffers)))


def zero_where_missing(theta: Tensor, index: Tensor) -> Tensor:
    """Gather by hand: a zero where the index is -1."""
    rows = [theta[i] if i >= 0 else torch.zeros_like(theta[0]) for i in index.reshape(-1).tolist()]
    return torch.stack(rows).reshape(*index.shape, *theta.shape[1:])


def outer(x: Tensor, y: Tensor) -> Tensor:
    """Take the Kronecker product of two matrices by hand: every entry of `x` times all of `y`."""
    return torch.cat([torch.cat([entry * y for entry in row], 1) for row in x], 0)


VIEWS: list[tuple[str, Shape, Callable[[Tensor], Tensor]]] = [
    (".T", (3, 5), lambda x: x.t()),
    (".T", (1, 4), lambda x: x.t()),
    (".T", (0, 3), lambda x: x.t()),
    (".mT", (3, 5), lambda x: x.transpose(0, 1)),
    (".mT", (2, 3, 4), lambda x: x.transpose(1, 2)),
    (".mT", (2, 1, 3, 2), lambda x: x.transpose(2, 3)),
    (".transpose(0, 2)", (2, 3, 4), lambda x: x.permute(2, 1, 0)),
    (".transpose(-1, 0)", (2, 3), lambda x: x.t()),
    (".transpose(1, 1)", (2, 3), lambda x: x),
    (".permute(2, 0, 1)", (2, 3, 4), lambda x: x.permute(2, 0, 1)),
    (".permute(0, -1, 1)", (2, 3, 4), lambda x: x.transpose(1, 2)),
    (".permute(0, 1)", (2, 3), lambda x: x),
    (".permute()", (), lambda x: x),
    (".reshape(6)", (2, 3), lambda x: x.flatten()),
    (".reshape(-1, 2)", (2, 3), lambda x: x.flatten().unflatten(0, (3, 2))),
    (".reshape(2, 1, 3)", (3, 2), lambda x: x.reshape(2, 3).unsqueeze(1)),
    (".reshape()", (1, 1), lambda x: x[0, 0]),
    (".flatten()", (2, 3, 4), lambda x: x.reshape(24)),
    (".flatten(1, -1)", (2, 3, 2), lambda x: x.reshape(2, 6)),
    (".flatten(0, 1)", (2, 3, 2), lambda x: x.reshape(6, 2)),
    (".flatten()", (), lambda x: x.reshape(1)),
    (".unflatten(0, (2, 3))", (6,), lambda x: x.reshape(2, 3)),
    (".unflatten(-1, (-1, 2))", (3, 4), lambda x: x.reshape(3, 2, 2)),
    (".squeeze()", (1, 3, 1), lambda x: x[0, :, 0]),
    (".squeeze(0)", (1, 3), lambda x: x[0]),
    (".squeeze(1)", (3, 2), lambda x: x),
    (".squeeze((0, 2))", (1, 3, 1), lambda x: x[0, :, 0]),
    (".unsqueeze(0)", (3,), lambda x: x[None]),
    (".unsqueeze(-1)", (2, 3), lambda x: x[:, :, None]),
    (".unsqueeze(0)", (), lambda x: x[None]),
    (".expand(4, 3)", (3,), lambda x: torch.stack([x] * 4)),
    (".expand(-1, 5)", (3, 1), lambda x: torch.cat([x] * 5, 1)),
    (".expand(2, 3, 4)", (3, 1), lambda x: torch.stack([torch.cat([x] * 4, 1)] * 2)),
    (".expand(3)", (), lambda x: torch.stack([x] * 3)),
    (".repeat(2)", (3,), lambda x: torch.cat([x, x])),
    (".repeat(2, 1, 3)", (2, 3), lambda x: torch.stack([torch.cat([x] * 3, 1)] * 2)),
    (".repeat(3)", (), lambda x: torch.stack([x] * 3)),
    (".repeat_interleave(2, 0)", (3, 2), lambda x: torch.stack([x, x], 1).reshape(6, 2)),
    (".repeat_interleave(3, -1)", (2, 3), lambda x: torch.stack([x] * 3, 2).reshape(2, 9)),
    (".repeat_interleave(1, 0)", (3,), lambda x: x),
    (".flip(0)", (4,), lambda x: x[[3, 2, 1, 0]]),
    (".flip(0, -1)", (2, 3), lambda x: x[[1, 0]][:, [2, 1, 0]]),
    (".flip(1)", (2, 3, 2), lambda x: x[:, [2, 1, 0]]),
    (".roll(1)", (2, 3), lambda x: torch.cat([x.flatten()[-1:], x.flatten()[:-1]]).reshape(2, 3)),
    (".roll(-1, 0)", (3, 2), lambda x: x[[1, 2, 0]]),
    (".roll((1, 2), (0, 1))", (2, 3), lambda x: x[[1, 0]][:, [1, 2, 0]]),
    (".narrow(0, 1, 2)", (4, 2), lambda x: x[1:3]),
    (".narrow(-1, 0, 2)", (2, 3), lambda x: x[:, :2]),
    (".narrow(0, -2, 2)", (4,), lambda x: x[2:]),
    (".narrow(0, 1, 0)", (4,), lambda x: x[:0]),
    ("[1]", (3, 2), lambda x: x.unbind(0)[1]),
    ("[-1]", (3, 2), lambda x: x.unbind(0)[2]),
    ("[1]", (3,), lambda x: x.unbind(0)[1]),
    ("[1:]", (3, 2), lambda x: torch.stack(x.unbind(0)[1:])),
    ("[:-1]", (3, 2), lambda x: torch.stack(x.unbind(0)[:-1])),
    ("[::2]", (5,), lambda x: torch.stack([x[0], x[2], x[4]])),
    ("[1::3]", (5,), lambda x: torch.stack([x[1], x[4]])),
    ("[1:3, 0]", (4, 2), lambda x: torch.stack([x[1, 0], x[2, 0]])),
    ("[..., 0]", (2, 2, 3), lambda x: x.unbind(2)[0]),
    ("[0, ..., 1:3]", (2, 2, 3), lambda x: x.unbind(0)[0].narrow(1, 1, 2)),
    ("[...]", (2, 3), lambda x: x),
    ("[None]", (3,), lambda x: x.unsqueeze(0)),
    ("[None]", (), lambda x: x.unsqueeze(0)),
    ("[:, None, 1]", (2, 3), lambda x: x.unbind(1)[1].unsqueeze(1)),
    ("[3:]", (3, 2), lambda x: x.narrow(0, 0, 0)),
    ("[2:100]", (3,), lambda x: x.narrow(0, 2, 1)),
]

SCALES: list[tuple[str, Shape, Callable[[Tensor], Tensor]]] = [
    ("-a.w", (2, 3), lambda x: x.neg()),
    ("2 * a.w", (2, 3), lambda x: x.mul(2)),
    ("-0.5 * a.w", (), lambda x: x.mul(-0.5)),
    ("1e-05 * a.w", (3,), lambda x: x.mul(0.00001)),
    ("0 * a.w", (3,), torch.zeros_like),
    ("a.w / 3", (2, 2, 2), lambda x: x.div(3)),
    ("a.w / -0.7", (4,), lambda x: x.div(-0.7)),
    ("2 * (3 * a.w)", (4,), lambda x: x.mul(3).mul(2)),
    ("-(a.w / 3)", (4,), lambda x: x.div(3).neg()),
    ("2 * a.w / 3", (4,), lambda x: x.mul(2).div(3)),
    ("a.w * [1, -1, 1]", (2, 3), lambda x: torch.stack([x[:, 0], -x[:, 1], x[:, 2]], 1)),
    ("a.w * [[1], [0.5]]", (2, 3), lambda x: torch.stack([x[0], x[1] / 2])),
    ("a.w * [[1, 2], [3, 4]]", (2,), lambda x: torch.stack([x * x.new_tensor([1, 2]), x * x.new_tensor([3, 4])])),
    ("a.w * [1, 0]", (2,), lambda x: torch.stack([x[0], x.new_zeros(())])),
    ('a.w.to("cpu")', (2, 3), lambda x: x),
    ("a.w.to(float64)", (2, 3), lambda x: x),
]

BENDS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    (".exp()", lambda x: x.exp()),
    (".softplus()", softplus),
    (".square()", lambda x: x * x),
    (".sigmoid()", lambda x: x.sigmoid()),
    (".reciprocal()", lambda x: 1 / x),
]

JOINS: list[tuple[str, dict[str, Shape], Callable[..., Tensor]]] = [
    ("cat([a.w, b.w], 0)", {"a.w": (2, 3), "b.w": (1, 3)}, lambda x, y: torch.cat([x, y])),
    ("cat([a.w, b.w], 1)", {"a.w": (2, 3), "b.w": (2, 2)}, lambda x, y: torch.cat([x.t(), y.t()]).t()),
    ("cat([a.w, b.w], -1)", {"a.w": (3,), "b.w": (2,)}, lambda x, y: torch.cat([x, y])),
    ("cat([a.w, b.w], 0)", {"a.w": (0, 3), "b.w": (2, 3)}, lambda x, y: y),
    ("cat([a.w, b.w, a.w], 0)", {"a.w": (2, 2), "b.w": (1, 2)}, lambda x, y: torch.cat([x, y, x])),
    ("cat([a.w, a.w.flip(0)], 0)", {"a.w": (3,)}, lambda x: torch.cat([x, x[[2, 1, 0]]])),
    ("cat([a.w], 0)", {"a.w": (3,)}, lambda x: x),
    ("cat([a.w.T, -b.w], 1)", {"a.w": (3, 2), "b.w": (2, 2)}, lambda x, y: torch.cat([x, -y.t()]).t()),
    ("stack([a.w, b.w], 0)", {"a.w": (2, 3), "b.w": (2, 3)}, lambda x, y: torch.cat([x[None], y[None]])),
    ("stack([a.w, b.w], -1)", {"a.w": (2,), "b.w": (2,)}, lambda x, y: torch.cat([x[:, None], y[:, None]], 1)),
    ("stack([a.w, b.w, a.w], 1)", {"a.w": (2, 3), "b.w": (2, 3)}, lambda x, y: torch.stack([x, y, x]).transpose(0, 1)),
    ("stack([a.w, b.w], 0)", {"a.w": (), "b.w": ()}, lambda x, y: torch.cat([x[None], y[None]])),
    ("stack([a.w, a.w.T], 0) / 2", {"a.w": (2, 2)}, lambda x: torch.stack([x / 2, x.t() / 2])),
]

SUMS: list[tuple[str, dict[str, Shape], Callable[..., Tensor]]] = [
    ("a.w + b.w", {"a.w": (2, 3), "b.w": (2, 3)}, lambda x, y: x.add(y)),
    ("a.w - b.w", {"a.w": (2, 3), "b.w": (2, 3)}, lambda x, y: x.sub(y)),
    ("a.w + b.w", {"a.w": (3, 1), "b.w": (4,)}, lambda x, y: x.expand(3, 4) + y.expand(3, 4)),
    ("a.w - 2 * b.w", {"a.w": (), "b.w": (2,)}, lambda x, y: x.expand(2) - 2 * y),
    ("(a.w + a.w.T) / 2", {"a.w": (3, 3)}, lambda x: (x + x.t()) / 2),
    ("a.w - (b.w - a.w)", {"a.w": (3,), "b.w": (3,)}, lambda x, y: x - (y - x)),
    ("-(a.w + b.w.T)", {"a.w": (3, 2), "b.w": (2, 3)}, lambda x, y: -(x + y.t())),
]

PRODUCTS: list[tuple[str, dict[str, Shape], Callable[..., Tensor]]] = [
    ("a.w * b.w", {"a.w": (2, 3), "b.w": (2, 3)}, lambda x, y: x.mul(y)),
    ("a.w * b.w", {"a.w": (3, 1), "b.w": (3, 4)}, lambda x, y: x.expand(3, 4) * y),
    ("a.w * a.w", {"a.w": (2, 3)}, lambda x: x * x),
    ("a.w @ b.w", {"a.w": (3, 2), "b.w": (2, 4)}, lambda x, y: x.mm(y)),
    ("a.w @ b.w", {"a.w": (2, 3, 2), "b.w": (2, 4)}, lambda x, y: torch.matmul(x, y)),
    ("a.w @ b.w", {"a.w": (2, 3), "b.w": (2, 3, 2)}, lambda x, y: torch.matmul(x, y)),
    ("a.w @ a.w.T", {"a.w": (3, 2)}, lambda x: x.mm(x.t())),
    ("a.w @ b.w + c.w", {"a.w": (3, 1), "b.w": (1, 2), "c.w": (3, 2)}, lambda x, y, z: x.mm(y) + z),
    ("kron(a.w, b.w)", {"a.w": (2, 3), "b.w": (3, 2)}, outer),
    ("kron(a.w, b.w)", {"a.w": (2,), "b.w": (3,)}, lambda x, y: torch.cat([x[0] * y, x[1] * y])),
    ("kron(a.w, b.w)", {"a.w": (2,), "b.w": (2, 3)}, lambda x, y: outer(x[None], y)),
    ("kron(a.w, b.w)", {"a.w": (), "b.w": (2,)}, lambda x, y: x * y),
    ("kron(a.w, a.w)", {"a.w": (2, 2)}, lambda x: outer(x, x)),
    ("kron(a.w.T, b.w[:, :2])[1:]", {"a.w": (2, 2), "b.w": (1, 3)}, lambda x, y: outer(x.t(), y[:, :2])[1:]),
]


def whole(values: list, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


SOME = whole([[0, 3, -1, 3], [6, 6, 1, 0]])
CIRCULANT = whole([[(column - row) % 4 for column in range(4)] for row in range(4)])
SIGNS = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 0.0]], dtype=torch.float64)

GATHERS: list[tuple[str, dict[str, Shape], dict[str, Tensor], Callable[..., Tensor]]] = [
    ("a.w[i.index]", {"a.w": (7,)}, {"i.index": SOME}, zero_where_missing),
    ("a.w[i.index]", {"a.w": (4,)}, {"i.index": CIRCULANT}, lambda x, _: torch.stack([x.roll(k) for k in range(4)])),
    ("a.w[i.index]", {"a.w": (5, 2)}, {"i.index": whole([4, -1, 4])}, zero_where_missing),
    ("a.w[i.index]", {"a.w": (7, 2)}, {"i.index": SOME.t()}, zero_where_missing),
    ("a.w[i.index]", {"a.w": (3,)}, {"i.index": whole([2, -1], torch.int32)}, zero_where_missing),
    ("a.w[i.index]", {"a.w": (200,)}, {"i.index": whole([127, -1], torch.int8)}, zero_where_missing),
    ("a.w[i.index]", {"a.w": (300,)}, {"i.index": whole([255, 0], torch.uint8)}, zero_where_missing),
    ("a.w[i.index]", {"a.w": (3,)}, {"i.index": whole(2)}, lambda x, _: x[2]),
    ("a.w[i.index]", {"a.w": (3, 2)}, {"i.index": whole([])}, lambda x, _: x[:0]),
    (
        "a.w.flatten()[i.index].T",
        {"a.w": (2, 4)},
        {"i.index": SOME},
        lambda x, i: zero_where_missing(x.flatten(), i).t(),
    ),
    ("2 * a.w[i.index[1]]", {"a.w": (7,)}, {"i.index": SOME}, lambda x, i: 2 * zero_where_missing(x, i[1])),
    ("a.w * s.signs", {"a.w": (2, 3)}, {"s.signs": SIGNS}, lambda x, s: torch.where(s == 0, 0.0, x.copysign(x * s))),
    ("s.signs * a.w", {"a.w": (3,)}, {"s.signs": SIGNS}, lambda x, s: torch.stack([x * s[0], x * s[1]])),
    ("(a.w * s.signs).T", {"a.w": (1, 3)}, {"s.signs": SIGNS}, lambda x, s: torch.cat([x * s[:1], x * s[1:]]).t()),
    (
        "a.w[i.index] * s.signs",
        {"a.w": (7,)},
        {"i.index": SOME[:, :3], "s.signs": SIGNS},
        lambda x, i, s: zero_where_missing(x, i) * s,
    ),
]


def composed() -> Iterator[Subject]:
    """Yield transforms on transforms, of several families."""
    moved: list[tuple[str, dict[str, Shape], Callable[..., Tensor]]] = [
        ("a.w.T.reshape(-1)", {"a.w": (2, 3)}, lambda x: torch.cat([x[:, 0], x[:, 1], x[:, 2]])),
        ("2 * a.w.T[:2].flip(0)", {"a.w": (2, 3)}, lambda x: 2 * torch.stack([x[:, 1], x[:, 0]])),
        ("cat([a.w.T, -b.w], 1)[1:]", {"a.w": (3, 2), "b.w": (2, 2)}, lambda x, y: torch.cat([x.t()[1], -y[1]])[None]),
        ("a.w.expand(3, 2).repeat_interleave(2, 0)", {"a.w": (2,)}, lambda x: torch.stack([x] * 6)),
        ("(a.w * [1, -1]).roll(1, 1)", {"a.w": (2, 2)}, lambda x: torch.stack([-x[:, 1], x[:, 0]], 1)),
        ("(a.w / 3).to(float64).T", {"a.w": (2, 3)}, lambda x: x.t() / 3),
    ]
    for text, shapes, oracle in moved:
        yield Subject("composed", text, shapes, oracle)
    bent: list[tuple[str, dict[str, Shape], Callable[..., Tensor]]] = [
        ("(2 * a.w).exp()", {"a.w": (2, 3)}, lambda x: (2 * x).exp()),
        ("a.w.softplus().T", {"a.w": (2, 3)}, lambda x: softplus(x).t()),
        ("a.w.exp()[:1]", {"a.w": (3, 2)}, lambda x: x[:1].exp()),
        ("-a.w.sigmoid() / 2", {"a.w": (3,)}, lambda x: -x.sigmoid() / 2),
        ("a.w.square().reciprocal()", {"a.w": (3,)}, lambda x: 1 / (x * x)),
        ("a.w[i.index].exp()", {"a.w": (4,)}, lambda x, i: x[i].exp()),
        ("cat([a.w[:1].exp(), a.w[1:]], 0)", {"a.w": (3,)}, lambda x: torch.cat([x[:1].exp(), x[1:]])),
        ("stack([a.w.exp(), b.w.square()], 0)", {"a.w": (3,), "b.w": (3,)}, lambda x, y: torch.stack([x.exp(), y * y])),
        ("cat([a.w.exp(), a.w], 0)", {"a.w": (3,)}, lambda x: torch.cat([x.exp(), x])),
        ("a.w.T.detach()", {"a.w": (2, 3)}, lambda x: x.t().detach()),
        ("cat([a.w.detach(), b.w], 0)", {"a.w": (2,), "b.w": (1,)}, lambda x, y: torch.cat([x.detach(), y])),
    ]
    for text, shapes, oracle in bent:
        buffers = {"i.index": CIRCULANT} if "index" in text else {}
        yield Subject("composed", text, shapes, oracle, buffers, sparse=False, linear=False)
    mixed: list[tuple[str, dict[str, Shape], Callable[..., Tensor]]] = [
        ("a.w.detach() + b.w", {"a.w": (2,), "b.w": (2,)}, lambda x, y: x.detach() + y),
        ("a.w.exp() * b.w", {"a.w": (2, 1), "b.w": (2, 3)}, lambda x, y: x.exp() * y),
        ("(a.w @ b.w).exp()", {"a.w": (2, 1), "b.w": (1, 2)}, lambda x, y: x.mm(y).exp()),
    ]
    for text, shapes, oracle in mixed:
        yield Subject("composed", text, shapes, oracle, sparse=False, linear=False, invertible=False)


def subjects() -> Iterator[Subject]:
    for call, shape, oracle in VIEWS:
        yield Subject("view", f"a.w{call}", {"a.w": shape}, oracle)
    for text, shape, oracle in SCALES:
        yield Subject("scaled", text, {"a.w": shape}, oracle)
    for text, sources, oracle in JOINS:
        yield Subject("joined", text, sources, oracle)
    for text, sources, buffers, oracle in GATHERS:
        yield Subject("gathered", text, sources, oracle, buffers)
    for text, sources, oracle in SUMS:
        yield Subject("sum", text, sources, oracle, sparse=False, invertible=False)
    for text, sources, oracle in PRODUCTS:
        yield Subject("product", text, sources, oracle, sparse=False, linear=False, invertible=False)
    for call, oracle in BENDS:
        for shape in [(2, 3), ()]:
            yield Subject("bent", f"a.w{call}", {"a.w": shape}, oracle, sparse=False, linear=False)
    yield Subject("itself", "a.w", {"a.w": (2, 3)}, lambda x: x)
    yield Subject("cut", "a.w.detach()", {"a.w": (2, 3)}, lambda x: x.detach(), sparse=False, linear=False)
    for name, rounding in {"float32": 2**-23, "bfloat16": 2**-7}.items():
        dtype = getattr(torch, name)
        yield Subject("moved", f"a.w.to({name})", {"a.w": (2, 3)}, lambda x, d=dtype: x.type(d), rounding=rounding)
    yield Subject(
        "moved", "a.w.to(float64)", {"a.w": (2, 3)}, lambda x: x.double(), dtype=torch.float32, rounding=2**-23
    )
    yield from composed()


SUBJECTS = list(subjects())

# What torch cannot compute: the text, and shapes that do not fit it.
REFUSED: list[tuple[str, dict[str, Shape]]] = [
    ("a.w.T", {"a.w": (2, 3, 4)}),
    ("a.w.mT", {"a.w": (3,)}),
    ("a.w.transpose(0, 2)", {"a.w": (2, 3)}),
    ("a.w.permute(1, 2, 0)", {"a.w": (2, 3)}),
    ("a.w.permute(0, 0)", {"a.w": (2, 3)}),
    ("a.w.reshape(5)", {"a.w": (2, 3)}),
    ("a.w.reshape(-1, -1)", {"a.w": (2, 3)}),
    ("a.w.flatten(1, -1)", {"a.w": (3,)}),
    ("a.w.unflatten(0, (2, 2))", {"a.w": (3,)}),
    ("a.w.squeeze(2)", {"a.w": (1, 3)}),
    ("a.w.unsqueeze(3)", {"a.w": (2, 3)}),
    ("a.w.expand(4, 2)", {"a.w": (3,)}),
    ("a.w.expand(3)", {"a.w": (1, 3)}),
    ("a.w.repeat(2)", {"a.w": (2, 3)}),
    ("a.w.repeat_interleave(2, 1)", {"a.w": (3,)}),
    ("a.w.repeat_interleave(-1, 0)", {"a.w": (3,)}),
    ("a.w.flip(1)", {"a.w": (3,)}),
    ("a.w.flip(0, 0)", {"a.w": (3,)}),
    ("a.w.roll(1, 1)", {"a.w": (3,)}),
    ("a.w.roll((1, 2), 0)", {"a.w": (3,)}),
    ("a.w.narrow(0, 2, 2)", {"a.w": (3,)}),
    ("a.w[3]", {"a.w": (3,)}),
    ("a.w[0, 0]", {"a.w": (3,)}),
    ("a.w * [1, 2]", {"a.w": (3,)}),
    ("cat([a.w, b.w], 0)", {"a.w": (2, 3), "b.w": (2, 2)}),
    ("cat([a.w, b.w], 2)", {"a.w": (2, 3), "b.w": (2, 3)}),
    ("stack([a.w, b.w], 0)", {"a.w": (2, 3), "b.w": (3, 2)}),
    ("a.w + b.w", {"a.w": (2, 3), "b.w": (3, 2)}),
    ("a.w * b.w", {"a.w": (2, 3), "b.w": (2,)}),
    ("a.w @ b.w", {"a.w": (2, 3), "b.w": (2, 3)}),
    ("a.w[b.w]", {"a.w": (), "b.w": (2,)}),
    ("2 * cat([a.w.T, a.w], 0).exp()", {"a.w": (2, 3)}),
]

# What the language refuses although torch takes it: transposed vectors, products of vectors, indices of floats.
STRICTER: list[tuple[str, dict[str, Shape]]] = [
    ("a.w.T", {"a.w": (3,)}),
    ("a.w @ b.w", {"a.w": (2, 3), "b.w": (3,)}),
    ("a.w @ b.w", {"a.w": (3,), "b.w": (3, 2)}),
    ("a.w[b.w]", {"a.w": (3,), "b.w": (2,)}),
]
