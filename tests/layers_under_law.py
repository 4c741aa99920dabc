"""The layers of `tied.nn`, and what each computes in plain torch: the subjects of `test_laws.py`.

A `Layer` builds a model in float64 and says by hand, from the model's own parameters and buffers, what it
must give. To put a layer under every law, add a function that yields its `Layer` to `LAYERS`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from structured_by_hand import SCHEMES
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import tied
from tied import nn as tnn

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """A model made of one kind of layer, and its oracle.

    Attributes:
        name: As it stands in the table.
        build: Makes the model, in the default dtype.
        inputs: Makes the arguments, in the default dtype.
        by_hand: From the tensors of the state dict and the inputs to the output, in plain torch.
        count: How many numbers are parameters: each shared one once.
        batch: The axis of the inputs along which examples lie.
        aside: Laws that do not apply, with the reason.
        differentiable: Whether gradients by the inputs are those of the whole function.
        own: The law that only this kind of layer has, in words, and its check of a model.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    by_hand: Callable[..., Any]
    count: int
    batch: int = 0
    aside: Mapping[str, str] = field(default_factory=dict)
    differentiable: bool = True
    own: tuple[str, Callable[[nn.Module], None]] | None = None

    def __str__(self) -> str:
        return self.name

    def model(self, seed: int = 0) -> nn.Module:
        """Return the model in float64, in evaluation."""
        torch.manual_seed(seed)
        return self.build().double().eval()

    def arguments(self, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """Return a batch."""
        torch.manual_seed(seed)
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in self.inputs())


def near(found: Tensor, expected: Tensor, bound: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


def like(x: Tensor) -> Tensor:
    return torch.randn_like(x)


class Chain(nn.Module):
    """Two layers with a tanh between them."""

    def __init__(self, there: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.there, self.back = there, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.tanh(self.there(x)))


def adjoint(*shape: int) -> tuple[str, Callable[[nn.Module], None]]:
    """The law of two maps, there and back, on inputs of that shape."""

    def check(model: nn.Module) -> None:
        there, back = (model.there, model.back) if isinstance(model, Chain) else (model.encoder[0], model.decoder[-1])
        for layer in (there, back):
            layer.bias = None
        x = torch.randn(shape, dtype=torch.float64)
        y = like(there(x))
        near((there(x) * y).sum(), (x * back(y)).sum())

    return "adjoint: <there(x), y> = <x, back(y)>", check


def linear() -> Iterator[Layer]:
    def build():
        encoder = nn.Linear(6, 4)
        return Chain(encoder, tnn.TiedLinear(encoder))

    def by_hand(t, x):
        code = torch.tanh(x @ t["there.weight"].t() + t["there.bias"])
        return code @ t["there.weight"] + t["back.bias"]

    yield Layer("TiedLinear", build, lambda: (torch.randn(5, 6),), by_hand, 6 * 4 + 4 + 6, own=adjoint(5, 6))

    def mirrored():
        return Chain(*tnn.mirror(nn.Parameter(0.3 * torch.randn(4, 6))))

    yield Layer("mirror", mirrored, lambda: (torch.randn(5, 6),), by_hand, 6 * 4 + 4 + 6, own=adjoint(5, 6))


def autoencoder() -> Iterator[Layer]:
    def by_hand(t, x):
        hidden = torch.tanh(x @ t["encoder.0.weight"].t() + t["encoder.0.bias"])
        code = torch.tanh(hidden @ t["encoder.2.weight"].t() + t["encoder.2.bias"])
        hidden = torch.tanh(code @ t["encoder.2.weight"] + t["decoder.0.bias"])
        return hidden @ t["encoder.0.weight"] + t["decoder.2.bias"]

    count = 6 * 5 + 5 * 4 + (5 + 4) + (5 + 6)
    yield Layer(
        "TiedAutoencoder",
        lambda: tnn.TiedAutoencoder((6, 5, 4), "tanh"),
        lambda: (torch.randn(5, 6),),
        by_hand,
        count,
        own=adjoint(5, 6),
    )


def convolution() -> Iterator[Layer]:
    def pair(conv, **options):
        kind = getattr(tnn, f"TiedConvTranspose{conv.weight.dim() - 2}d")
        return Chain(conv, kind(conv, **options))

    def circular(t, x):  # 7 entries, padded by 2 at both ends: 11 positions, of which 7 windows of 5
        padded = torch.cat([x[..., -2:], x, x[..., :2]], -1)
        code = torch.tanh(F.conv1d(padded, t["there.weight"], t["there.bias"]))
        whole = F.conv_transpose1d(code, t["there.weight"])
        folded = whole[..., 2:9].clone()
        folded[..., -2:] += whole[..., :2]
        folded[..., :2] += whole[..., 9:]
        return folded + t["back.bias"][:, None]

    yield Layer(
        "TiedConvTranspose1d circular",
        lambda: pair(nn.Conv1d(2, 3, 5, padding=2, padding_mode="circular")),
        lambda: (torch.randn(4, 2, 7),),
        circular,
        2 * 3 * 5 + 3 + 2,
        own=adjoint(4, 2, 7),
    )

    def strided(t, x):  # 8 -> 4 -> 8: one row and column are cut off by the stride
        code = torch.tanh(F.conv2d(x, t["there.weight"], t["there.bias"], 2, 1, 1, 2))
        return F.conv_transpose2d(code, t["there.weight"], t["back.bias"], 2, 1, 1, 2)

    yield Layer(
        "TiedConvTranspose2d strided",
        lambda: pair(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), output_size=8),
        lambda: (torch.randn(3, 4, 8, 8),),
        strided,
        6 * 2 * 9 + 6 + 4,
        own=adjoint(3, 4, 8, 8),
    )

    def same(t, x):  # a kernel of 4: padded by 1 before and 2 behind
        code = torch.tanh(F.conv2d(F.pad(x, (1, 2, 1, 2)), t["there.weight"], t["there.bias"]))
        return F.conv_transpose2d(code, t["there.weight"], t["back.bias"])[..., 1:-2, 1:-2]

    yield Layer(
        "TiedConvTranspose2d same",
        lambda: pair(nn.Conv2d(2, 3, 4, padding="same")),
        lambda: (torch.randn(3, 2, 5, 6),),
        same,
        3 * 2 * 16 + 3 + 2,
        own=adjoint(3, 2, 5, 6),
    )

    def dilated(t, x):
        code = torch.tanh(F.conv3d(x, t["there.weight"], t["there.bias"], 2, 0, 2))
        return F.conv_transpose3d(code, t["there.weight"], t["back.bias"], 2, 0, 1, 1, 2)

    yield Layer(
        "TiedConvTranspose3d dilated",
        lambda: pair(nn.Conv3d(2, 3, 2, stride=2, dilation=2), output_size=(6, 6, 6)),
        lambda: (torch.randn(2, 2, 6, 6, 6),),
        dilated,
        3 * 2 * 8 + 3 + 2,
        own=adjoint(2, 2, 6, 6, 6),
    )


def swaps(model: nn.Module) -> None:
    towers = [*model.towers] * (3 - len(model.towers))
    towers[1].load_state_dict(towers[0].state_dict(), strict=False)  # the same statistics, where they are private
    a, b = torch.randn(2, 5, 4, dtype=torch.float64)
    assert all(torch.equal(*pair) for pair in zip(model(a, b), reversed(model(b, a)), strict=True))


def siamese() -> Iterator[Layer]:
    def tower():
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))

    def branch(t, number, x):
        at = f"towers.{number}.1."
        hidden = x @ t["towers.0.0.weight"].t() + t["towers.0.0.bias"]
        hidden = (hidden - t[at + "running_mean"]) / torch.sqrt(t[at + "running_var"] + 1e-5)
        hidden = torch.tanh(hidden * t["towers.0.1.weight"] + t["towers.0.1.bias"])
        return hidden @ t["towers.0.3.weight"].t() + t["towers.0.3.bias"]

    for statistics in ("shared", "private"):

        def build(statistics=statistics):
            model = tnn.Siamese(tower(), statistics=statistics)
            for name, buffer in model.named_buffers():  # so that the branches differ
                if name.endswith("running_mean"):
                    buffer.normal_()
            return model

        def by_hand(t, a, b, second="0" if statistics == "shared" else "1"):
            return branch(t, "0", a), branch(t, second, b)

        yield Layer(
            f"Siamese {statistics}",
            build,
            lambda: (torch.randn(5, 4), torch.randn(5, 4)),
            by_hand,
            4 * 3 + 3 + 2 * 3 + 3 * 2 + 2,
            own=("with equal statistics, outputs change places with inputs", swaps),
        )


class Translator(nn.Module):
    """Embeddings of two languages and a head, without the network between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(9, 4)
        self.decoder = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 7)
        tnn.tie_vocabulary(self, "encoder", "decoder", "head")

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(torch.tanh(self.encoder(source) + self.decoder(target)))


def vocabulary() -> Iterator[Layer]:
    def by_hand(t, source, target):
        words = t["encoder.weight"]
        return torch.tanh(words[source] + words[target]) @ words[:7].t() + t["head.bias"]

    def symmetric(model):
        for embedding in (model.encoder, model.decoder):
            logits = model.head(embedding(torch.arange(7))) - model.head.bias
            near(logits, logits.t())

    inputs = lambda: (torch.randint(0, 9, (5, 3)), torch.randint(0, 9, (5, 3)))  # noqa: E731
    own = ("the logit of word i for word j is that of j for i", symmetric)
    yield Layer("tie_vocabulary", Translator, inputs, by_hand, 9 * 4 + 7, own=own)


class LanguageModel(nn.Module):
    """Words in and out by one table, with all that a head can have."""

    def __init__(self) -> None:
        super().__init__()
        options: Any = {"bias": True, "scale": 0.5, "soft_cap": 3.0, "pad_to_multiple_of": 4}
        self.words = tnn.TiedEmbedding(9, 4, padding_idx=2, **options)
        self.body = nn.Linear(4, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words.logits(torch.tanh(self.body(self.words(tokens))))


def words() -> Iterator[Layer]:
    def by_hand(t, tokens):
        table = torch.cat((t["words.weight"][:2], t["words.weight"][2:3].detach(), t["words.weight"][3:]))
        hidden = torch.tanh(table[tokens] @ t["body.weight"].t() + t["body.bias"])
        return 3 * torch.tanh((hidden / 2 @ table[:9].t() + t["words.head.bias"]) / 3)

    def frozen(model):
        tokens = torch.randint(0, 9, (5, 3))
        model.words.loss(torch.randn(5, 3, 4).double() + model.words(tokens), tokens).backward()
        assert not model.words.weight.grad[[2, 9, 10, 11]].any()
        assert model.words.weight.grad[[0, 1, 3, 8]].all()

    yield Layer(
        "TiedEmbedding",
        LanguageModel,
        lambda: (torch.randint(0, 9, (5, 3)),),
        by_hand,
        9 * 4 + 3 * 4 + 9 + 4 * 4 + 4,
        aside={"gradcheck": "a frozen row has no gradient, whatever its differences"},
        own=("padding gets no gradient from either use", frozen),
    )


def changes_everywhere(model: nn.Module) -> None:
    """Change what a layer owns, and look for the change in every layer that reads it."""
    read = [(tie.address, tie.source.sources()[0]) for tie in tied.ties(model)]
    before = {address: tensor_at(model, address).detach().clone() for pair in read for address in pair}
    with torch.no_grad():
        for parameter in {id(tensor_at(model, source)): tensor_at(model, source) for _, source in read}.values():
            parameter.add_(like(parameter))
    for target, source in read:
        moved = [tensor_at(model, address) - before[address] for address in (target, source)]
        near(*moved)


def tensor_at(model: nn.Module, address: tuple[str, ...]) -> Tensor:
    return getattr(model.get_submodule(".".join(address[:-1])), address[-1])


EVERYWHERE = ("a change of a block is a change of each of its layers", changes_everywhere)


def looped() -> Iterator[Layer]:
    def mlp():
        return nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))

    def run(t, layer, weights, x):
        at = f"layers.{layer}.0."
        x = F.layer_norm(x, (4,), t[at + "weight"], t[at + "bias"])
        x = torch.tanh(x @ weights[0].t() + t["layers.0.1.bias"])
        return x @ weights[1].t() + t["layers.0.3.bias"]

    def by_hand(t, x):
        for layer in range(3):
            x = run(t, layer, (t["layers.0.1.weight"], t["layers.0.3.weight"]), x)
        return x

    shared = 4 * 5 + 5 + 5 * 4 + 4
    yield Layer(
        "Looped private norms",
        lambda: tnn.Looped(mlp(), 3, private=["*.0.weight", "*.0.bias"]),
        lambda: (torch.randn(5, 4),),
        by_hand,
        shared + 3 * 8,
        own=EVERYWHERE,
    )

    def relaxed():
        model = tnn.Looped(mlp(), 3, private=["*.0.weight", "*.0.bias"], rank=2)
        for name, parameter in model.named_parameters():
            if name.endswith("left"):
                nn.init.normal_(parameter)
        return model

    def with_deltas(t, x):
        x = run(t, 0, (t["layers.0.1.weight"], t["layers.0.3.weight"]), x)
        for layer in (1, 2):
            weights = [
                t[f"layers.0.{at}.weight"]
                + t[f"layers.{layer}.{at}.weight_delta.left"] @ t[f"layers.{layer}.{at}.weight_delta.right"]
                for at in (1, 3)
            ]
            x = run(t, layer, weights, x)
        return x

    count = shared + 3 * 8 + 2 * 2 * (5 * 2 + 2 * 4)
    yield Layer("Looped rank 2", relaxed, lambda: (torch.randn(5, 4),), with_deltas, count, own=EVERYWHERE)


def looped_blocks() -> Iterator[Layer]:
    def transformer_layer():
        return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)

    shell = transformer_layer()

    def transformer(t, x):
        for layer in (0, 1, 1, 0):
            x = functional_call(
                shell, {name: t[f"layers.{layer}.{name}"] for name in dict(shell.named_parameters())}, x
            )
        return x

    yield Layer(
        "Looped transformer cycle_rev",
        lambda: tnn.Looped([transformer_layer(), transformer_layer()], 4, pattern="cycle_rev"),
        lambda: (torch.randn(3, 5, 4),),
        transformer,
        2 * sum(p.numel() for p in shell.parameters()),
        own=EVERYWHERE,
    )

    def image_block():
        return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Tanh())

    def images(t, x):
        for layer in range(3):
            at = f"layers.{layer}.1."
            x = F.conv2d(x, t["layers.0.0.weight"], t["layers.0.0.bias"], padding=1)
            gain, bias = t["layers.0.1.weight"], t["layers.0.1.bias"]
            x = torch.tanh(F.batch_norm(x, t[at + "running_mean"], t[at + "running_var"], gain, bias))
        return x

    yield Layer(
        "Looped convolution",
        lambda: tnn.Looped(image_block(), 3),
        lambda: (torch.randn(2, 2, 4, 4),),
        images,
        2 * 2 * 9 + 2 + 4,
        own=EVERYWHERE,
    )


def two_halves(model: nn.Module) -> None:
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    first, state = model(x[:2])
    assert torch.equal(torch.cat([first, model(x[2:], state)[0]]), model(x)[0])


def unrolled() -> Iterator[Layer]:
    for cell, network in ((nn.RNNCell, nn.RNN), (nn.GRUCell, nn.GRU), (nn.LSTMCell, nn.LSTM)):
        shell = network(3, 4).double()

        def by_hand(t, x, shell=shell):
            own = {f"{name}_l0": t[f"cell.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            outputs, state = functional_call(shell, {n: p.to(x.dtype) for n, p in own.items()}, (x,))
            return outputs, tree_map(lambda s: s.squeeze(0), state)

        gates = {"RNNCell": 1, "GRUCell": 3, "LSTMCell": 4}[cell.__name__]
        yield Layer(
            f"Unrolled {cell.__name__}",
            lambda cell=cell: tnn.Unrolled(cell(3, 4)),
            lambda: (torch.randn(6, 5, 3),),
            by_hand,
            gates * 4 * (3 + 4 + 2),
            batch=1,
            own=("two halves, with the state handed on, are the whole", two_halves),
            aside={"vmap": "torch has no rule for an LSTM cell"} if cell is nn.LSTMCell else {},
        )


def tree_map(function, tree):
    return tuple(tree_map(function, leaf) for leaf in tree) if isinstance(tree, tuple) else function(tree)


class TwoLayers(nn.Module):
    """Attention, and attention to the same keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = tnn.GroupedAttention(8, 4, 2)
        self.reader = tnn.GroupedAttention(8, 4, 0)

    def forward(self, x: Tensor) -> Tensor:
        hidden, shared = self.owner(x, is_causal=True)
        return self.reader(hidden, shared, is_causal=True)[0]


def attention() -> Iterator[Layer]:
    def grouped(t, x):
        rows = [t["group_weight"][3 * (head // 2) : 3 * (head // 2) + 3] for head in range(4)]
        biases = [t["group_bias"][3 * (head // 2) : 3 * (head // 2) + 3] for head in range(4)]
        return x @ torch.cat(rows).t() + torch.cat(biases)

    def heads_repeat(model):
        heads = model(torch.randn(6, 5, dtype=torch.float64)).unflatten(-1, (4, 3))
        assert torch.equal(heads[:, [0, 2]], heads[:, [1, 3]])

    yield Layer(
        "GroupedLinear",
        lambda: tnn.GroupedLinear(5, (4, 3), 2),
        lambda: (torch.randn(6, 5),),
        grouped,
        2 * 3 * (5 + 1),
        own=("the heads of a group are equal", heads_repeat),
    )

    def attend(query, key, value):
        """Attention one head after the other; each head of keys and values serves two of the queries'."""
        outputs = []
        for head in range(4):
            q = query[..., 2 * head : 2 * head + 2]
            k, v = (side[..., 2 * (head // 2) : 2 * (head // 2) + 2] for side in (key, value))
            unseen = torch.ones(q.shape[-2], q.shape[-2]).triu(1).bool()
            outputs.append(((q @ k.mT) / 2**0.5).masked_fill(unseen, float("-inf")).softmax(-1) @ v)
        return torch.cat(outputs, -1)

    def by_hand(t, x):
        query, both = (x @ t[f"owner.{name}.weight"].t() for name in ("query", "key_value"))
        key, value = both[..., :4], both[..., 4:]
        hidden = attend(query, key, value) @ t["owner.output.weight"].t()
        return attend(hidden @ t["reader.query.weight"].t(), key, value) @ t["reader.output.weight"].t()

    count = (8 * 8 + 8 * 8 + 8 * 8) + (8 * 8 + 8 * 8)

    def causal(model):
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        near(model(torch.cat([x[:, :3], like(x[:, 3:])], 1))[:, :3], model(x)[:, :3])

    own = ("a moment sees none that is later", causal)
    yield Layer("GroupedAttention shared", TwoLayers, lambda: (torch.randn(3, 5, 8),), by_hand, count, own=own)


class Forecaster(nn.Module):
    """Normalize, map 6 moments to 3, and give the units back."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.revin = tnn.RevIN(2, **options)
        self.time = nn.Linear(6, 3)
        for parameter in self.revin.parameters():  # away from a gain of 1 and a bias of 0
            nn.init.uniform_(parameter, 0.2, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        normal, statistics = self.revin.normalize(x)
        return self.revin.denormalize(self.time(normal.mT).mT, statistics)


def equivariant(model: nn.Module, scale: float) -> None:
    x = torch.randn(4, 6, 2, dtype=torch.float64)
    near((model(scale * x + 3 * scale) - 3 * scale) / scale, model(x), 1e-10)


def revin() -> Iterator[Layer]:
    def by_hand(t, x, gain, eps=0.0, last=False):
        mean, deviation = x.mean(-2, keepdim=True), torch.sqrt(x.var(-2, keepdim=True, unbiased=False) + eps)
        center, deviation = (x[..., -1:, :] if last else mean).detach(), deviation.detach()
        weight = {"positive": lambda: t["revin.log_weight"].exp(), "free": lambda: t["revin.weight"]}[gain]()
        normal = weight * (x - center) / deviation + t["revin.bias"]
        forecast = (normal.mT @ t["time.weight"].t() + t["time.bias"]).mT
        return (forecast - t["revin.bias"]) / weight * deviation + center

    def plain(t, x):
        ones = {**t, "revin.weight": torch.ones(2, dtype=x.dtype), "revin.bias": torch.zeros(2, dtype=x.dtype)}
        return by_hand(ones, x, "free")

    inputs = lambda: (3 + torch.randn(4, 6, 2),)  # noqa: E731
    kinds = [
        ("RevIN positive", {}, lambda t, x: by_hand(t, x, "positive"), 4),
        ("RevIN free, eps", {"gain": "free", "eps": 1e-5}, lambda t, x: by_hand(t, x, "free", eps=1e-5), 4),
        ("RevIN last", {"center": "last"}, lambda t, x: by_hand(t, x, "positive", last=True), 4),
        ("RevIN without gain", {"gain": None}, plain, 0),
    ]
    for name, options, oracle, own in kinds:
        build = lambda options=options: Forecaster(**options)  # noqa: E731
        law = ("equivariance: f(a x + b) = a f(x) + b", partial(equivariant, scale=1.0 if "eps" in name else 1e-4))
        yield Layer(name, build, inputs, oracle, 6 * 3 + 3 + own, differentiable=False, own=law)


class Distillation(nn.Module):
    """A student with a tie in it, and its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student = tnn.TiedAutoencoder((5, 3), "tanh")
        self.teacher = tnn.EMA(self.student, decay=0.9)
        for parameter in self.teacher.parameters():  # so that the two differ
            parameter.data.mul_(0.5).add_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) - self.teacher(x)


def approaches(model: nn.Module) -> None:
    """Let the student stand still, elsewhere than at the first update."""
    x, start = torch.randn(4, 5, dtype=torch.float64), [p.detach().clone() for p in model.student.parameters()]
    model.teacher.update(model.student)
    assert torch.equal(model.student(x), model.teacher(x))
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1)
    for count in range(1, 5):
        model.teacher.update(model.student)
        left = 0.9**count * 0.1 / (1 - 0.9 ** (count + 1))  # what the first update still counts
        for mean, parameter, old in zip(model.teacher.parameters(), model.student.parameters(), start, strict=True):
            near(mean, parameter.detach() * (1 - left) + old * left)


def ema() -> Iterator[Layer]:
    def autoencode(t, at, x):
        code = torch.tanh(x @ t[at + "encoder.0.weight"].t() + t[at + "encoder.0.bias"])
        return code @ t[at + "encoder.0.weight"] + t[at + "decoder.0.bias"]

    def by_hand(t, x):
        return autoencode(t, "student.", x) - autoencode(t, "teacher.module.", x).detach()

    count, own = 2 * (5 * 3 + 3 + 5), ("the mean of what the student was, the last counting most", approaches)
    yield Layer("EMA", Distillation, lambda: (torch.randn(4, 5),), by_hand, count, differentiable=False, own=own)


def structured() -> Iterator[Layer]:
    """Every scheme of `structured_by_hand.py`, by every algorithm; of the ten ways to broadcast, six."""
    aside = {f"BroadcastLinear {each}" for each in ("output", "output sign", "scalar scale", "scalar sign")}
    for scheme in SCHEMES:
        for algorithm in scheme.algorithms if scheme.name not in aside else ():
            build = lambda scheme=scheme, algorithm=algorithm: scheme.make(algorithm=algorithm)  # noqa: E731
            inputs = lambda width=scheme.shape[1]: (torch.randn(5, width),)  # noqa: E731
            count = sum(parameter.numel() for parameter in build().parameters())
            yield Layer(f"{scheme.name} ({algorithm})", build, inputs, scheme.output, count, own=scheme.own)


SOURCES = [
    linear,
    autoencoder,
    convolution,
    siamese,
    vocabulary,
    words,
    looped,
    looped_blocks,
    unrolled,
    attention,
    revin,
    ema,
    structured,
]
LAYERS = [layer for source in SOURCES for layer in source()]
