"""Every fix is put in the place of the wrong line and run: the weights share, and train as one parameter does."""

import re
import textwrap

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

import tied
from tied.checking.source.look import found_in

X = torch.linspace(-1, 1, 5 * 12, dtype=torch.float64).sin().reshape(5, 12)
STEPS = 5

MODEL = """
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F
import tied

class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(12, 4)
        self.decoder = nn.Linear(4, 12)
        {init}

    def forward(self, x):
        z = torch.tanh(self.encoder(x))
        {forward}
        return self.decoder(z)
"""


def only_fix(text: str) -> tuple[str, str]:
    """The fix of the one finding in a text, and the other way that its comment names."""
    (found,) = found_in(text)
    ours, _, other = found.fix.partition("\n# or, ")
    return ours, other.partition(": ")[2].partition("  #")[0]


def put(code: str, old: str, new: str) -> str:
    """Replace a line by others, indented as it is."""
    (line,) = [line for line in code.splitlines() if line.strip() == old]
    indent = line[: len(line) - len(line.lstrip())]
    return code.replace(line, textwrap.indent(new, indent))


def made(code: str) -> nn.Module:
    """Run a text, and make its model, always the same."""
    names: dict[str, type[nn.Module]] = {"__name__": "code"}
    torch.manual_seed(0)
    exec(compile(code, "code", "exec"), names)
    return names["M"]()


def built(code: str) -> nn.Module:
    """Make the model of a text in float64."""
    return made(code).double()


def trained(model: nn.Module) -> Tensor:
    """Train for a few steps; return what the model computes then."""
    optimizer = AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (model(X) - X).square().mean().backward()
        optimizer.step()
    return model(X).detach()


def by_hand(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """One matrix, two uses, in plain torch."""
    w, b, c = (nn.Parameter(one.detach().clone()) for one in (weight, first, second))

    def forward() -> Tensor:
        return torch.tanh(X @ w.T + b) @ w + c

    optimizer = AdamW([w, b, c], lr=0.05, weight_decay=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (forward() - X).square().mean().backward()
        optimizer.step()
    return forward().detach()


def start() -> tuple[Tensor, Tensor, Tensor]:
    """What the model's layers hold before the wrong line."""
    model = built(MODEL.format(init="pass", forward="pass"))
    return model.encoder.weight, model.encoder.bias, model.decoder.bias


def expected() -> Tensor:
    return by_hand(*start())


TRANSPOSED = [
    "self.encoder.weight.t()",
    "self.encoder.weight.T",
    "self.encoder.weight.mT",
    "self.encoder.weight.transpose(0, 1)",
    "self.encoder.weight.permute(1, 0)",
    "torch.t(self.encoder.weight)",
    "self.encoder.weight.data.t()",
    "self.encoder.weight.t()[:]",
]
WRONG = {
    "Parameter": "self.decoder.weight = nn.Parameter({})",
    "setattr": 'setattr(self.decoder, "weight", nn.Parameter({}))',
    "registered": 'self.decoder.register_parameter("weight", nn.Parameter({}))',
    "data": "self.decoder.weight.data = {}",
    "raw": "self.decoder.weight = {}",
}


@pytest.mark.parametrize("view", TRANSPOSED)
@pytest.mark.parametrize("wrong", WRONG)
def test_the_tie_trains_as_one_parameter(wrong: str, view: str):
    line = WRONG[wrong].format(view)
    code = MODEL.format(init=line, forward="pass")
    ours, _ = only_fix(code)
    model = built(put(code, line, ours))
    assert [str(tie.address[0]) for tie in tied.ties(model)] == ["decoder"]
    assert tied.check(model).ok
    torch.testing.assert_close(trained(model), expected(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("view", TRANSPOSED)
@pytest.mark.parametrize("wrong", WRONG)
def test_plain_torch_trains_as_one_parameter(wrong: str, view: str):
    line = WRONG[wrong].format(view)
    code = MODEL.format(init=line, forward="pass")
    _, plain = only_fix(code)
    model = built(put(put(code, line, "pass"), "return self.decoder(z)", f"return {plain}"))
    torch.testing.assert_close(trained(model), expected(), rtol=0, atol=1e-12)


def test_verify_takes_the_fixed_model():
    line = WRONG["Parameter"].format(TRANSPOSED[0])
    code = MODEL.format(init=line, forward="pass")
    model = made(put(code, line, only_fix(code)[0]))
    assert tied.verify(model, X.float()).ties == ("decoder.weight = encoder.weight.T",)
    with pytest.raises(tied.SharingError):
        tied.verify(made(code), X.float())


@pytest.mark.parametrize("line", ["self.decoder.weight.data.copy_({})", "self.decoder.weight.data[:] = {}"])
@pytest.mark.parametrize("view", TRANSPOSED[:4])
def test_a_tie_in_place_of_copies(line: str, view: str):
    line = line.format(view)
    code = MODEL.format(init="pass", forward=line)
    ours, plain = only_fix(code)
    lines = put(code, line, "z = z").splitlines()
    lines[lines.index("        pass")] = textwrap.indent(ours, " " * 8)
    torch.testing.assert_close(trained(built("\n".join(lines))), expected(), rtol=0, atol=1e-12)
    model = built(put(put(code, line, "z = z"), "return self.decoder(z)", f"return {plain}"))
    torch.testing.assert_close(trained(model), expected(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", [".data.t()", ".data.T", ".t().detach()"])
def test_a_use_with_its_gradient(cut: str):
    line = f"return F.linear(z, self.encoder.weight{cut}, self.decoder.bias)"
    code = MODEL.format(init="pass", forward=line)
    ours, layer = only_fix(code)
    model = built(put(code, line, f"return {ours}"))
    torch.testing.assert_close(trained(model), expected(), rtol=0, atol=1e-12)
    code = put(
        put(code, "pass", f"bias = self.decoder.bias\nself.decoder = {layer}\nself.decoder.bias = bias"), line, "pass"
    )
    torch.testing.assert_close(trained(built(code)), expected(), rtol=0, atol=1e-12)


# -- other shapes of code ------------------------------------------------------------------------------------

HEAD = "import copy\nimport torch\nimport torch.nn as nn\nimport torch.nn.functional as F\nimport tied\n"
LANGUAGE_MODEL = """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9)
        LINE

    def get_input_embeddings(self):
        return self.embed
"""
RAW = """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_enc = nn.Parameter(torch.randn(5, 3))
        LINE
"""
STACK = """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [8, 6, 4]
        self.down = nn.ModuleList([nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])])
        self.up = nn.ModuleList([nn.Linear(b, a) for a, b in zip(sizes, sizes[1:])])
        LINE
"""
TOWERS = """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.LSTM(3, 3), nn.LSTM(3, 3)
        LINE
"""
SCRIPT = """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        encoder, decoder = nn.Linear(5, 3), nn.Linear(3, 5)
        LINE
        self.net = nn.Sequential(encoder, nn.ReLU(), decoder)
"""
ROWS = """
class M(nn.Module):
    def __init__(self, n=6):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, n)
        LINE
"""
SHAPES = {
    "a head": (LANGUAGE_MODEL, "self.head.weight = nn.Parameter(self.embed.weight)"),
    "a head by data": (LANGUAGE_MODEL, "self.head.weight.data = self.embed.weight.data"),
    "rows": (ROWS, "self.head.weight = nn.Parameter(self.embed.weight[:n])"),
    "raw parameters": (RAW, "self.W_dec = nn.Parameter(self.W_enc.T)"),
    "raw parameters, registered": (RAW, 'self.register_parameter("W_dec", nn.Parameter(self.W_enc.T))'),
    "an index": (STACK, "self.up[1].weight = nn.Parameter(self.down[1].weight.t())"),
    "locals": (SCRIPT, "decoder.weight = nn.Parameter(encoder.weight.t())"),
}


def fixed(code: str, line: str) -> tuple[nn.Module, str]:
    code = HEAD + code.replace("LINE", line)
    ours, plain = only_fix(code)
    return made(put(code, line, ours)), plain


def shared(model: nn.Module) -> bool:
    """Whether there is one trained weight fewer, and no second one over its memory."""
    report = tied.check(model)
    return report.ok and any(group.state == "tied" for group in report.groups)


@pytest.mark.parametrize("name", SHAPES)
def test_fixes_of_other_shapes(name: str):
    code, line = SHAPES[name]
    model, _ = fixed(code, line)
    assert shared(model)
    assert not shared(made(HEAD + code.replace("LINE", line)))


def test_a_loop_becomes_a_loop_of_ties():
    line = "for down, up in zip(self.down, self.up):\n            up.weight = nn.Parameter(down.weight.t())"
    code = HEAD + STACK.replace("LINE", line)
    ours, _ = only_fix(code)
    model = built(code.replace(line, textwrap.indent(ours, " " * 8).strip()))
    assert [str(tie) for tie in tied.ties(model)] == [f"up.{i}.weight = down.{i}.weight.T" for i in (0, 1)]
    assert shared(model)


@pytest.mark.parametrize(
    "line", ["self.head.weight = nn.Parameter(self.embed.weight)", "self.head.weight = self.embed.weight.data"]
)
def test_one_parameter_in_plain_torch(line: str):
    code = HEAD + LANGUAGE_MODEL.replace("LINE", line)
    _, plain = only_fix(code)
    model = built(put(code, line, plain))
    assert model.head.weight is model.embed.weight


def test_what_a_method_returns():
    line = "self.head.weight = nn.Parameter(self.get_input_embeddings().weight)"
    (found,) = found_in(HEAD + LANGUAGE_MODEL.replace("LINE", line))
    model = built(put(HEAD + LANGUAGE_MODEL.replace("LINE", line), line, found.fix))
    assert model.head.weight is model.embed.weight
    tied.adopt(model)
    assert found.fix.endswith("# with tied, afterwards: tied.adopt(self)")
    assert len(tied.ties(model)) == 1


def test_towers_become_one():
    line = "for a, b in zip(self.left.parameters(), self.right.parameters()):\n            b.data = a.data"
    code = HEAD + TOWERS.replace("LINE", line)
    ours, plain = only_fix(code)
    model = built(code.replace(line, ours))
    assert len(list(model.parameters())) == 4
    model = built(code.replace("b.data = a.data", plain))
    assert len(list(model.parameters())) == 8
    assert all(torch.equal(a, b) for a, b in zip(model.left.parameters(), model.right.parameters(), strict=True))
    assert tied.check(model).ok


LISTS = """
class M(nn.Module):
    def __init__(self, n=3):
        super().__init__()
        layer = nn.Linear(4, 4)
        p = nn.Parameter(torch.zeros(2))
        self.layers = LIST
"""


@pytest.mark.parametrize(
    "made",
    [
        "nn.ModuleList([nn.Linear(4, 4)] * n)",
        "nn.ModuleList([layer] * n)",
        "nn.ModuleList(n * [layer])",
        "nn.Sequential(*[nn.Linear(4, 4)] * n)",
        "nn.ModuleList([layer for _ in range(n)])",
        "nn.ParameterList([p] * n)",
        "nn.ParameterList([nn.Parameter(torch.zeros(2))] * n)",
    ],
)
def test_several_in_place_of_one(made: str):
    code = HEAD + LISTS.replace("LIST", made)
    ours, other = only_fix(code)
    wrong = re.search(r"\[.*\] \* n|n \* \[.*\]|\[layer for .*\)\]", made)
    assert wrong
    model = built(code.replace(wrong[0], ours))
    assert len({id(p) for p in model.layers.parameters()}) == len({id(p) for p in built(code).layers.parameters()}) * 3
    if "Parameter" not in made:
        looped = built(code.replace(made, other))
        assert sum(p.numel() for p in looped.layers.parameters()) == 20
        assert looped.layers(torch.zeros(1, 4, dtype=torch.float64)).shape == (1, 4)


def test_functions_follow_the_layer():
    code = (
        HEAD
        + """
class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.back = nn.ConvTranspose2d(5, 3, 3)
        self.embed = nn.Embedding(9, 4)
        self.other = nn.Embedding(4, 9)
        self.back.weight = nn.Parameter(self.conv.weight[:])
        self.other.weight = nn.Parameter(self.embed.weight.t())
"""
    )
    plain = [one.fix.partition("plain torch: ")[2] for one in found_in(code)]
    assert plain == [
        "torch.nn.functional.conv_transpose2d(z, self.conv.weight[:], self.back.bias)  # in forward",
        "torch.nn.functional.embedding(z, self.embed.weight.t())  # in forward",
    ]


def test_the_wrong_lines_do_not_train_as_one():
    """The oracle tells them apart: a half-tied model was parted by the cast."""
    code = MODEL.format(init=WRONG["Parameter"].format(TRANSPOSED[0]), forward="pass")
    assert F.mse_loss(trained(built(code)), expected()) > 1e-4
