"""One mistake in all its spellings: names of torch, views, ways to store, places; and the same of what is right."""

import ast
from itertools import product
from typing import NamedTuple

import pytest

from tied.checking.source.look import found_in


class Alias(NamedTuple):
    """How a file imports Parameter, and what it calls it."""

    imports: str
    parameter: str


ALIASES = {
    "nn": Alias("import torch\nfrom torch import nn", "nn.Parameter"),
    "import as": Alias("import torch\nimport torch.nn as N", "N.Parameter"),
    "torch.nn": Alias("import torch", "torch.nn.Parameter"),
    "renamed": Alias("import torch\nfrom torch.nn import Parameter as P", "P"),
    "its own module": Alias("import torch\nimport torch.nn.parameter", "torch.nn.parameter.Parameter"),
    "from its module": Alias("import torch\nfrom torch.nn.parameter import Parameter", "Parameter"),
    "the module renamed": Alias("import torch\nfrom torch.nn import parameter as par", "par.Parameter"),
    "torch renamed": Alias("import torch\nimport torch as th", "th.nn.Parameter"),
    "assigned": Alias("import torch\nfrom torch import nn\nMake = nn.Parameter", "Make"),
    "starred": Alias("import torch\nfrom torch.nn import *", "Parameter"),
    "in a try": Alias(
        "import torch\ntry:\n    from torch.nn import Parameter\nexcept ImportError:\n    raise", "Parameter"
    ),
}
VIEWS = [
    "{}",
    "{}.t()",
    "{}.T",
    "{}.mT",
    "{}.data",
    "{}.data.t()",
    "{}.t().data",
    "{}.detach().T",
    "{}.transpose(0, 1)",
    "{}.transpose(-2, -1).detach()",
    "{}.permute(1, 0)",
    "torch.t({})",
    "torch.transpose({}, 0, 1)",
    "torch.permute({}, (1, 0))",
    "{}[:8]",
    "{}[:, :8]",
    "{}[None]",
    "{}.view(8, -1)",
    "{}.flatten()",
    "{}.unsqueeze(0)",
    "({}.t())",
]
COPIES = [
    "{}.clone()",
    "{}.t().clone()",
    "{}.data.t().clone()",
    "{}.t().contiguous()",
    "{} * 1",
    "{}.t() / 2",
    "-{}.t()",
    "{}.to(torch.float16)",
    "{}.float()",
    "torch.clone({})",
    "torch.tensor({})",
    "torch.empty_like({})",
    "torch.randn({}.shape)",
    "copy.deepcopy({})",
    "{}.new_zeros(3)",
    "{}[mask]",
    "{}[[0, 1]]",
    "unknown({})",
    "{}.mean(0)",
    "torch.cat([{}, {}])",
    "torch.nn.functional.normalize({})",
]
STORES = {
    "assigned": "{target}.weight = {made}",
    "annotated": "{target}.weight: object = {made}",
    "two at once": "{target}.weight, self.count = {made}, 3",
    "chained": "self.kept = {target}.weight = {made}",
    "setattr": 'setattr({target}, "weight", {made})',
    "registered": '{target}.register_parameter("weight", {made})',
    "registered by keyword": '{target}.register_parameter("weight", param={made})',
    "in the dict": '{target}._parameters["weight"] = {made}',
    "named first": "made = {made}\n{target}.weight = made",
    "in parentheses": "{target}.weight = (\n    {made}\n)",
}
PLACES = {
    "in __init__": (
        "class M(nn_.Module):\n    def __init__(self):\n        super().__init__()\n{body}",
        "self.a",
        "self.b",
        8,
    ),
    "in a method": (
        "class M(nn_.Module):\n    def build(self, n):\n        if n > 1:\n{body}",
        "self.a[0]",
        "self.b.c",
        12,
    ),
    "in a function": ("def build(model):\n    for i in range(3):\n{body}", "model.a[i]", "model.b[i]", 8),
    "in a script": ("model = build()\n{body}", "model.a", "model.b", 0),
    "in a loop": (
        "class M(nn_.Module):\n    def build(self):\n        for a, b in zip(self.xs, reversed(self.ys)):\n{body}",
        "a",
        "b",
        12,
    ),
    "in another loop": (
        "def build(model):\n    for i, (a, b) in enumerate(zip(model.xs, model.ys)):\n{body}",
        "a",
        "b",
        8,
    ),
    "through names": (
        "class M(nn_.Module):\n    def build(self):\n        a = self.a\n        b = self.b\n{body}",
        "a",
        "b",
        8,
    ),
}


def written(imports: str, place: str, statement: str) -> str:
    """Put a statement, in which `{target}` and `{source}` stand, into a place."""
    frame, source, target, depth = PLACES[place]
    lines = statement.replace("<source>", f"{source}.weight").replace("<target>", target).splitlines()
    body = "\n".join(" " * depth + line for line in lines)
    return f"{imports}\nimport copy\nimport torch.nn as nn_\nself = None\n{frame.format(body=body)}\n"


def codes(text: str) -> list[str]:
    """The codes of what is found in a text; that the text and every fix are Python is seen to here."""
    compile(text, "text", "exec")
    found = found_in(text)
    for one in found:
        ast.parse(one.fix)
    return [one.code for one in found]


def made(alias: Alias, store: str, value: str) -> str:
    return STORES[store].format(target="<target>", made=f"{alias.parameter}({value.format('<source>')})")


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("store", STORES)
def test_a_parameter_around_another(alias: str, store: str):
    for place, (frame, *_) in PLACES.items():
        also_kept = store == "chained" and "class" in frame  # `self.kept` is a second Parameter, too
        found = codes(written(ALIASES[alias].imports, place, made(ALIASES[alias], store, "{}.t()")))
        assert found == ["TIE601"] * (1 + also_kept), place


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_any_kind(view: str):
    for place in PLACES:
        for keyword in ("{}", "data={}", "{}, requires_grad=True"):
            statement = f"<target>.weight = nn.Parameter({keyword.format(view.format('<source>'))})"
            assert codes(written("import torch\nfrom torch import nn", place, statement)) == ["TIE601"]
        named = f"view = {view.format('<source>')}\n<target>.weight = nn.Parameter(view)"
        assert codes(written("import torch\nfrom torch import nn", place, named)) == ["TIE601"]


@pytest.mark.parametrize("view", VIEWS)
def test_data_pointed_at_a_view(view: str):
    for place in PLACES:
        for target in (
            "<target>.weight.data = {}",
            'setattr(<target>.weight, "data", {})',
            "<target>.weight.data.set_({})",
        ):
            statement = target.format(view.format("<source>"))
            assert codes(written("import torch", place, statement)) == ["TIE602"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_in_place_of_a_parameter(view: str):
    for place in PLACES:
        expected = [] if view == "{}" else ["TIE603"]  # the whole weight is plain sharing
        for target in ("<target>.weight = {}", "view = {}\n<target>.weight = view", 'setattr(<target>, "weight", {})'):
            statement = target.format(view.format("<source>"))
            assert codes(written("import torch", place, statement)) == expected


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_silent(copy: str):
    for place in PLACES:
        value = copy.replace("{}", "<source>")
        for line in (
            "<target>.weight = nn.Parameter({})",
            "<target>.weight.data = {}",
            "new = {}\n<target>.weight.data = new",
        ):
            assert codes(written("import torch\nfrom torch import nn", place, line.format(value))) == []


@pytest.mark.parametrize("view", VIEWS)
def test_its_own_weight_is_silent(view: str):
    for place in PLACES:
        for line in ("<target>.weight = nn.Parameter({})", "<target>.weight.data = {}", "<target>.weight = {}"):
            statement = line.format(view.format("<target>.weight"))
            assert codes(written("import torch\nfrom torch import nn", place, statement)) == []


@pytest.mark.parametrize("alias", ALIASES)
def test_another_parameter_is_silent(alias: str):
    foreign = Alias("import torch\nfrom mylib import nn, Parameter, par, P, N, th, Make", ALIASES[alias].parameter)
    if foreign.parameter.startswith("torch."):
        return
    for store in STORES:
        assert codes(written(foreign.imports, "in __init__", made(foreign, store, "{}.t()"))) == []


# -- uses ----------------------------------------------------------------------------------------------------

MODEL = """
import torch
import torch.nn as nn
import torch.nn.functional as F

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(4, 8)

    def {name}(self, x):
        z = self.a(x)
        {line}
        return self.b(z)
"""
CUTS = [".data", ".data.t()", ".t().data", ".data.T", ".detach().t()", ".T.detach()", ".data.transpose(0, 1)"]
USES = [
    "z = F.linear(z, self.a.weight{})",
    "z = torch.nn.functional.linear(z, weight=self.a.weight{})",
    "z = z @ self.a.weight{}",
    "z = torch.matmul(z, self.a.weight{})",
    "z = torch.mm(z, self.a.weight{}) + self.b.bias",
    "z = z.matmul(self.a.weight{})",
    "w = self.a.weight{}; z = F.linear(z, w)",
    "w = self.a.weight; z = F.linear(z, w{})",
    "z = torch.einsum('bi,ij->bj', z, self.a.weight{})",
]
WRITES = [
    "self.b.weight.data.copy_({})",
    "self.b.weight.detach().copy_({})",
    "self.b.weight.data[:] = {}",
    "self.b.weight.data[...] = {}",
    "w = self.b.weight.data; w.copy_({})",
    "with torch.no_grad(): self.b.weight.copy_({})",
]


@pytest.mark.parametrize(("use", "cut"), list(product(USES, CUTS)))
def test_a_detached_use(use: str, cut: str):
    assert codes(MODEL.format(name="forward", line=use.format(cut))) == ["TIE605"]
    assert codes(MODEL.format(name="forward", line=use.format(cut.replace(".data", "").replace(".detach()", "")))) == []
    assert codes(MODEL.format(name="export", line=use.format(cut))) == []
    assert codes(MODEL.format(name="forward", line=f"with torch.no_grad(): {use.format(cut)}")) == []


@pytest.mark.parametrize(("write", "view"), list(product(WRITES, VIEWS)))
def test_copies_at_every_step(write: str, view: str):
    line = write.format(view.format("self.a.weight"))
    for name in ("forward", "forward_features", "training_step", "on_train_batch_end"):
        assert codes(MODEL.format(name=name, line=line)) == ["TIE604"]
    for name in ("reset_parameters", "from_pretrained", "load"):
        assert codes(MODEL.format(name=name, line=line)) == []


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("self.b.weight.data.lerp_(self.a.weight.data, 0.1)", "b"),
        ("self.b.weight.data.mul_(m).add_(self.a.weight.data, alpha=1 - m)", "b"),
        ("self.b.weight.data = m * self.b.weight.data + (1 - m) * self.a.weight.data", "b"),
        *[
            ("self.NAME.weight.data.copy_(self.a.weight.data)", n)
            for n in ("target", "teacher", "ema_net", "old", "shadow")
        ],
    ],
)
def test_averages_are_silent(line: str, names: str):
    assert (
        codes(MODEL.format(name="forward", line=line.replace("NAME", names)).replace("self.b", f"self.{names}")) == []
    )


# -- lists ---------------------------------------------------------------------------------------------------

LAYERS = """
import torch
import torch.nn as nn
from torch.nn import Linear, ModuleList
import copy

class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(d, d))

class Inherits(Block):
    pass

class Raw(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_parameter("w", nn.Parameter(torch.zeros(3)))

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.n = nn.ReLU(), 3

class M(nn.Module):
    def __init__(self, d, n):
        super().__init__()
        layer = {module}
        self.layers = {many}
"""
TRAINED = [
    "nn.Linear(d, d)",
    "Linear(d, d)",
    "torch.nn.Conv2d(d, d, 3)",
    "nn.LSTM(d, d)",
    "nn.LayerNorm(d)",
    "nn.BatchNorm1d(d)",
    "nn.PReLU()",
    "nn.MultiheadAttention(d, 2)",
    "nn.Sequential(nn.Linear(d, d), nn.ReLU())",
    "Block(d)",
    "Inherits(d)",
    "Raw()",
    "copy.deepcopy(nn.Linear(d, d))",
]
UNTRAINED = [
    "nn.ReLU()",
    "nn.Dropout(0.1)",
    "nn.BatchNorm1d(d, affine=False)",
    "nn.LayerNorm(d, elementwise_affine=False)",
    "nn.LayerNorm(d, elementwise_affine=affine)",
    "nn.Sequential(nn.ReLU(), nn.Tanh())",
    "Bare()",
    "build(d)",
    "torch.zeros(d)",
    "d",
]
MANY = [
    "nn.ModuleList([{}] * n)",
    "ModuleList([{}] * n)",
    "nn.ModuleList(n * [{}])",
    "nn.Sequential(*[{}] * n)",
    "nn.Sequential(*([{}] * n))",
    "nn.ModuleList([nn.ReLU(), {}] * n)",
    "[{}] * 6",
    "nn.ModuleList([{}] * (n - 1) + [nn.Linear(d, 1)])",
    "nn.ModuleList([layer] * n)",
    "nn.ModuleList([layer for _ in range(n)])",
    "nn.Sequential(*[layer for _ in range(n)])",
    "nn.Sequential(*(layer for _ in range(n)))",
]
NEW = [
    "nn.ModuleList([{} for _ in range(n)])",
    "nn.ModuleList([copy.deepcopy(layer) for _ in range(n)])",
    "nn.ModuleList([layer] * 1)",
    "nn.ModuleList([layer] + [{}])",
    "nn.ModuleList([{}, {}])",
    "nn.ModuleList([layer] * n if share else [])",
    "nn.ModuleList([layer] * n)  # one layer, shared",
    "{} * 3",
]


@pytest.mark.parametrize(("module", "many"), list(product(TRAINED, MANY)))
def test_one_module_several_times(module: str, many: str):
    assert codes(LAYERS.format(module=module, many=many.replace("{}", module))) == ["TIE606"]


@pytest.mark.parametrize(("module", "many"), list(product(UNTRAINED, MANY)))
def test_modules_without_parameters_are_silent(module: str, many: str):
    assert codes(LAYERS.format(module=module, many=many.replace("{}", module))) == []


@pytest.mark.parametrize(("module", "many"), list(product([*TRAINED, *UNTRAINED], NEW)))
def test_new_modules_and_wanted_sharing_are_silent(module: str, many: str):
    assert codes(LAYERS.format(module=module, many=many.replace("{}", module))) == []
