"""Random material for hypothesis: expressions that Python reads too, chains of views, addresses, hostile texts.

Every text of `arithmetic()` is valid for Python and for the language, and all of its values are 3 x 3 matrices:
what Python's own `eval` gives over torch tensors is then the oracle of how the language reads it.
"""

import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from corpus_of_transforms import SUBJECTS, outer
from hypothesis import strategies as st
from torch import Tensor

Shape = tuple[int, ...]

# Arithmetic that Python can evaluate

SUFFIXES = [
    ".T",
    ".mT",
    ".t()",
    ".transpose(0, 1)",
    ".permute(1, 0)",
    ".flip(0)",
    ".flip(-1, 0)",
    ".roll(1, 0)",
    ".roll(-2)",
    ".reshape(9).view(3, 3)",
    ".flatten().unflatten(0, (3, -1))",
    ".unsqueeze(1).squeeze(1)",
    ".repeat(1, 2)[:, 1:4]",
    ".repeat_interleave(2, 0)[1:4]",
    ".narrow(0, 1, 1).expand(3, -1)",
    "[None][0]",
    "[0:3]",
    "[..., :]",
    ".square()",
    ".sigmoid()",
    ".reciprocal()",
    ".detach()",
]
FUNCTIONS = ["cat([{}, {}], 0)[1:4]", "cat(({}, {}), 1)[:, 2:5]", "stack([{}, {}])[1]", "kron({}, {})[0:3, 4:7]"]
LEAVES = ["a.w", "b.w", "layers[0].w", "layers[1].w"]


def names(seed: int = 0) -> dict[str, Any]:
    """What the texts name, for `eval`: tensors of small whole numbers, and torch's functions."""
    generator = torch.Generator().manual_seed(seed)
    a, b, c, d = (torch.randint(-4, 5, (3, 3), generator=generator).double() for _ in range(4))
    layers = [SimpleNamespace(w=c), SimpleNamespace(w=d)]
    functions = {"cat": torch.cat, "stack": torch.stack, "kron": outer}
    return {"a": SimpleNamespace(w=a), "b": SimpleNamespace(w=b), "layers": layers, **functions}


def tensors(seed: int = 0) -> dict[tuple[str, ...], Tensor]:
    """The same tensors by address."""
    values = names(seed)
    layers = {("layers", str(i), "w"): layer.w for i, layer in enumerate(values["layers"])}
    return {("a", "w"): values["a"].w, ("b", "w"): values["b"].w, **layers}


def _usable(text: str) -> bool:
    try:
        value = eval(text)
    except ZeroDivisionError:
        return False
    return math.isfinite(value) and 1e-3 < abs(value) < 1e3


class Writer:
    """Writes one random text of the grammar; `size` bounds how deep its parentheses go."""

    def __init__(self, seed: int, size: int) -> None:
        self.draw, self.size = random.Random(seed), size

    def space(self) -> str:
        return self.draw.choice(["", "", " "])

    def number(self, size: int = 2) -> str:
        """A constant, also a computed one in parentheses."""
        text = self.draw.choice(["", "", "-", "--"]) + self.draw.choice(["2", "3", "0.5", ".25", "1.5e-1", "4.", "1e1"])
        if size and self.draw.random() < 0.3:
            text = f"({self.number(size - 1)} {self.draw.choice('+-*/')} {self.number(size - 1)})"
        return text if _usable(text) else "7"

    def atom(self) -> str:
        self.size -= 1
        if self.size < 0 or self.draw.random() < 0.5:
            return self.draw.choice(LEAVES)
        if self.draw.random() < 0.5:
            return f"({self.sum()})"
        return self.draw.choice(FUNCTIONS).format(self.sum(), self.sum())

    def unary(self) -> str:
        signs = self.draw.choice(["", "", "", "-", "--", "- "])
        return signs + self.atom() + "".join(self.draw.choices(SUFFIXES, k=self.draw.choice([0, 0, 1, 2])))

    def product(self) -> str:
        text = "".join(f"{self.number()}{self.space()}*{self.space()}" for _ in range(self.draw.choice([0, 0, 1, 2])))
        text += self.unary()
        for _ in range(self.draw.choice([0, 0, 1, 2])):
            sign = self.draw.choice("**@/")
            constant = sign == "/" or (sign == "*" and self.draw.random() < 0.5)
            text += self.space() + sign + self.space() + (self.number() if constant else self.unary())
        return text

    def sum(self) -> str:
        text = self.product()
        for _ in range(self.draw.choice([0, 0, 1, 2])):
            text += self.draw.choice([" + ", " - ", "+", "-", " -"]) + self.product()
        return text


def arithmetic() -> st.SearchStrategy[str]:
    """Texts with every operator, parentheses, functions and transforms, on 3 x 3 matrices."""
    return st.builds(lambda seed, size: Writer(seed, size).sum(), st.integers(0, 2**32), st.integers(0, 6))


# Chains of views


def _some_dims(draw: st.DrawFn, rank: int) -> list[int]:
    dims = draw(st.lists(st.integers(0, rank - 1), unique=True, max_size=rank, min_size=min(rank, 1)))
    return [dim - rank * draw(st.booleans()) for dim in dims]


def _items(draw: st.DrawFn, shape: Shape) -> tuple[Any, ...]:
    items: list[Any] = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        kind = draw(st.sampled_from(["slice", "slice", "integer", "all"] if size else ["slice", "all"]))
        bounds = st.none() | st.integers(-size - 1, size + 2)
        if kind == "integer":
            items.append(draw(st.integers(-size, size - 1)))
        elif kind == "slice":
            items.append(slice(draw(bounds), draw(bounds), draw(st.sampled_from([None, 1, 2, 3]))))
        else:
            items.append(slice(None))
    if draw(st.integers(0, 4)) == 0:
        items.insert(draw(st.integers(0, len(items))), None)
    return tuple(items) or (...,)


def _factors(draw: st.DrawFn, size: int) -> list[int]:
    return draw(st.sampled_from([[k, size // k] for k in range(1, size + 1) if size % k == 0]))


def _window(draw: st.DrawFn, shape: Shape) -> tuple[int, int, int]:
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    start = draw(st.integers(0, shape[dim]))
    return dim, start, draw(st.integers(0, shape[dim] - start))


Step = tuple[str, tuple[Any, ...]]
STEPS: dict[str, Callable[[st.DrawFn, Shape], Step]] = {
    "transpose": lambda draw, s: ("transpose", (_some_dims(draw, len(s))[0], _some_dims(draw, len(s))[0])),
    "permute": lambda draw, s: ("permute", tuple(draw(st.permutations(range(len(s)))))),
    "mT": lambda draw, s: ("mT", ()) if len(s) >= 2 else ("flatten", ()),
    "T": lambda draw, s: ("T", ()) if len(s) == 2 else ("flatten", ()),
    "t": lambda draw, s: ("t", ()) if len(s) == 2 else ("unsqueeze", (0,)),
    "reshape": lambda draw, s: ("reshape", (tuple(_factors(draw, math.prod(s))) if math.prod(s) else s,)),
    "view": lambda draw, s: ("reshape", draw(st.permutations(s)) if s else ((),)),
    "flatten": lambda draw, s: ("flatten", ()),
    "unflatten": lambda draw, s: (
        ("unflatten", (len(s) - 1, tuple(_factors(draw, s[-1])))) if s[-1] else ("flatten", ())
    ),
    "squeeze": lambda draw, s: ("squeeze", tuple(_some_dims(draw, len(s))[:1])),
    "unsqueeze": lambda draw, s: ("unsqueeze", (draw(st.integers(-len(s) - 1, len(s))),)),
    "expand": lambda draw, s: ("expand", (draw(st.integers(1, 3)), *[-1] * len(s))),
    "repeat": lambda draw, s: ("repeat", (2, *[1] * (len(s) - 1))),
    "repeat_interleave": lambda draw, s: ("repeat_interleave", (2, _some_dims(draw, len(s))[0])),
    "flip": lambda draw, s: ("flip", tuple(_some_dims(draw, len(s)))),
    "roll": lambda draw, s: ("roll", (draw(st.integers(-3, 3)), _some_dims(draw, len(s))[0])),
    "roll flat": lambda draw, s: ("roll", (draw(st.integers(-3, 3)),)),
    "narrow": lambda draw, s: ("narrow", _window(draw, s)),
    "index": lambda draw, s: ("__getitem__", (_items(draw, s),)),
    "neg": lambda draw, s: ("__neg__", ()),
    "scale": lambda draw, s: ("__mul__", (draw(st.sampled_from([2, -1, -0.5, 3])),)),
    "divide": lambda draw, s: ("__truediv__", (draw(st.sampled_from([2, -1, 3])),)),
}
MOST_ENTRIES = 400


def follow(value: Any, step: Step) -> Any:
    """Do to a tensor or an expression what a step says."""
    name, arguments = step
    found = getattr(value, name)
    return found if name in ("T", "mT") else found(*arguments)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Tensor, list[Step]]:
    """A tensor, and steps that torch can take from it one after the other."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    start = now = torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64).reshape(shape)
    steps: list[Step] = []
    favourite = st.sampled_from(draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(1, 7))):
        if not now.dim():
            now, step = now.unsqueeze(0), ("unsqueeze", (0,))
        else:
            kind = draw(favourite) if draw(st.booleans()) else draw(st.sampled_from(sorted(STEPS)))
            step = STEPS[kind](draw, tuple(now.shape))
            now = follow(now, step)
        steps.append(step)
        if now.numel() > MOST_ENTRIES:
            break
    return start, steps


# Addresses


class Names:
    """A tree of names as nested dicts; what is no dict is a tensor."""

    title = "Model"

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree

    def names(self, address: tuple[str, ...]) -> list[str] | None:
        found: Any = self.tree
        for segment in address:
            found = found.get(segment) if isinstance(found, dict) else None
        return list(found) if isinstance(found, dict) else None

    def leaves(self, tree: dict[str, Any] | None = None) -> list[tuple[str, ...]]:
        found = self.tree if tree is None else tree
        below = {n: self.leaves(child) if isinstance(child, dict) else [()] for n, child in found.items()}
        return [(name, *rest) for name, ends in below.items() for rest in ends]


NASTY = ["T", "mT", "t", "flip", "exp", "to", "cat", "stack", "kron", "None", "0", "1", "12", "1e5", "0x1", "1_0", "-1"]
NASTY += ["my block", "a.b", '"', "'", "\\", "]", "[0]", "weight", "é", "٣", "²", "1é", "..", "\n", "\x00", "\ud800"]

segments = st.sampled_from(NASTY) | st.text(st.characters(), min_size=1, max_size=6)
addresses = st.lists(segments, min_size=1, max_size=4).map(tuple)
trees = st.recursive(
    st.dictionaries(segments, st.none(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(segments, inner | st.none(), min_size=1, max_size=4),
    max_leaves=12,
).map(Names)

# Hostile texts

WORDS = """
    . , : ( ) [ ] + - * / @ = ... ' " \\ # ! ~ ** // == -1 0 1 2 1.5 1e5 1e999 99999999999999999999 0x1f 1_000
    a a.w layers layers[0].w index None True T mT t flip exp cat stack kron reshape permute expand roll to
"""
TOKENS = WORDS.split()
TOKENS += [".T", ".t()", ".exp()", ".flip(0)", ".reshape(", "cat([", "kron(", "dim=", "(0,)", "[0]", '["a b"]', "[::2]"]
TOKENS += [" ", "\n", "\t", "\x00", "\ud800", "é", "²", "٣", "float16", '"cuda:0"', ".to(", "lambda", "__class__"]

everything = st.text(st.characters(codec=None, categories=["L", "M", "N", "P", "S", "Z", "C"]), max_size=60)
latin = st.binary(max_size=80).map(lambda data: data.decode("latin-1"))
soup = st.lists(st.sampled_from(TOKENS), max_size=30).map("".join)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A good text with a few characters changed, dropped or put in."""
    text = draw(st.sampled_from([subject.text for subject in SUBJECTS]))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from([*TOKENS, ""])) + text[at + draw(st.integers(0, 2)) :]
    return text


hostile = everything | latin | soup | damaged()
