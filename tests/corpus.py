"""Models with one tie each, and what the tie means in plain torch: the subjects of every law.

A `Case` builds an untied model in float64, names the target and its definition, and gives the oracle: a
hand-written function from the model's own tensors to the target's value. `Reference` trains the untied
model with the target computed by the oracle: one parameter, plain torch, nothing of `tied`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import AdamW

import tied

WIDE, NARROW, WORDS = 6, 4, 9

Tensors = dict[str, Tensor]


class Autoencoder(nn.Module):
    """Linear, tanh, Linear; with spare parameters and buffers for ties to be made of."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDE, NARROW)
        self.decoder = nn.Linear(NARROW, WIDE)
        self.delta = nn.Parameter(0.1 * torch.randn(WIDE, NARROW))
        self.left = nn.Parameter(torch.randn(WIDE, 2))
        self.right = nn.Parameter(torch.randn(2, NARROW))
        self.vector = nn.Parameter(torch.randn(NARROW))
        self.register_buffer("index", torch.randint(-1, WIDE * NARROW, (WIDE, NARROW)))
        self.register_buffer("signs", torch.randn(WIDE, NARROW).sign())

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


class LanguageModel(nn.Module):
    """Embedding, tanh, head; the head is as large as the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, NARROW)
        self.extra = nn.Parameter(torch.randn(2, NARROW))
        self.register_buffer("order", torch.randperm(WORDS))
        self.head = nn.Linear(NARROW, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


class Transformer(nn.Module):
    """Two encoder layers between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, NARROW)
        layer = {"d_model": NARROW, "nhead": 2, "dim_feedforward": WIDE, "dropout": 0.0, "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(**layer) for _ in range(2))
        self.head = nn.Linear(NARROW, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden)


@dataclass(frozen=True)
class Case:
    """One tie: on which model, of which target, by which expression, and what that is in plain torch."""

    model: type[nn.Module]
    target: str
    source: str
    oracle: Callable[[Tensors], Tensor]

    def __str__(self) -> str:
        return f"{self.model.__name__}-{self.source}"

    @property
    def is_identity(self) -> bool:
        """Whether plain sharing can say it."""
        return self.source.replace(".", "").replace("_", "").isalnum() and ".T" not in self.source

    @property
    def source_name(self) -> str:
        """The name of the source's Parameter, where it is an identity."""
        return self.source

    def build(self, seed: int = 0) -> nn.Module:
        """Return the untied model."""
        torch.manual_seed(seed)
        return self.model().double()

    def inputs(self, seed: int = 1) -> Tensor:
        """Return a batch."""
        generator = torch.Generator().manual_seed(seed)
        if self.model is Autoencoder:
            return torch.randn(8, WIDE, generator=generator, dtype=torch.float64)
        return torch.randint(0, WORDS, (5, 7), generator=generator)


def _cases() -> Iterator[Case]:
    ae: dict[str, Callable[[Tensors], Tensor]] = {
        "encoder.weight.T": lambda t: t["encoder.weight"].t(),
        "2 * encoder.weight.T": lambda t: 2 * t["encoder.weight"].t(),
        "encoder.weight.T.flip(0).roll(1, 1)": lambda t: t["encoder.weight"].t().flip(0).roll(1, 1),
        "encoder.weight.flatten()[index]": lambda t: torch.where(
            t["index"] < 0, 0.0, t["encoder.weight"].flatten()[t["index"].clamp(min=0)]
        ),
        "encoder.weight.T * signs": lambda t: t["encoder.weight"].t() * t["signs"],
        "encoder.weight.T + delta": lambda t: t["encoder.weight"].t() + t["delta"],
        "left @ right": lambda t: t["left"] @ t["right"],
        "cat([encoder.weight.T[:4], delta[:2]], 0)": lambda t: torch.cat([t["encoder.weight"].t()[:4], t["delta"][:2]]),
        "vector.expand(6, 4)": lambda t: t["vector"].expand(6, 4),
        "encoder.weight.exp().T": lambda t: t["encoder.weight"].exp().t(),
        "encoder.weight.T.detach()": lambda t: t["encoder.weight"].t().detach(),
        "kron(left[:3], right.T[:2, :]) / 3": lambda t: (
            torch.einsum("ij,kl->ikjl", t["left"][:3], t["right"].t()[:2]).reshape(6, 4) / 3
        ),
    }
    yield from (Case(Autoencoder, "decoder.weight", source, oracle) for source, oracle in ae.items())
    lm: dict[str, Callable[[Tensors], Tensor]] = {
        "embed.weight": lambda t: t["embed.weight"],
        "embed.weight / 2": lambda t: t["embed.weight"] / 2,
        "embed.weight[order]": lambda t: t["embed.weight"][t["order"]],
        "cat([embed.weight[2:], extra], 0)": lambda t: torch.cat([t["embed.weight"][2:], t["extra"]]),
        "embed.weight * [1, -1, 1, -1]": lambda t: t["embed.weight"] * torch.tensor([1.0, -1, 1, -1]).double(),
    }
    yield from (Case(LanguageModel, "head.weight", source, oracle) for source, oracle in lm.items())
    inner: dict[tuple[str, str], Callable[[Tensors], Tensor]] = {
        ("head.weight", "embed.weight"): lambda t: t["embed.weight"],
        ("layers.1.linear1.weight", "layers.0.linear1.weight"): lambda t: t["layers.0.linear1.weight"],
        ("layers.0.linear2.weight", "layers.0.linear1.weight.T"): lambda t: t["layers.0.linear1.weight"].t(),
        ("layers.1.self_attn.in_proj_weight", "layers.0.self_attn.in_proj_weight.roll(1, 0)"): lambda t: t[
            "layers.0.self_attn.in_proj_weight"
        ].roll(1, 0),
        ("layers.0.self_attn.out_proj.weight", "layers.0.self_attn.in_proj_weight[:4]"): lambda t: t[
            "layers.0.self_attn.in_proj_weight"
        ][:4],
    }
    yield from (Case(Transformer, target, source, oracle) for (target, source), oracle in inner.items())


CASES = list(_cases())
MAIN = [case for case in CASES if str(case) in {
    "Autoencoder-encoder.weight.T",
    "Autoencoder-2 * encoder.weight.T",
    "Autoencoder-encoder.weight.flatten()[index]",
    "Autoencoder-encoder.weight.T + delta",
    "LanguageModel-embed.weight",
    "LanguageModel-cat([embed.weight[2:], extra], 0)",
    "Transformer-embed.weight",
    "Transformer-layers.0.linear1.weight.T",
    "Transformer-layers.0.self_attn.in_proj_weight[:4]",
}]  # fmt: skip


class Reference:
    """The untied model of a case with its target computed by hand: the one-parameter reference."""

    def __init__(self, case: Case, model: nn.Module) -> None:
        """Start from the values of `model`, untied or tied."""
        self.case, self.shell = case, case.build()
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name != case.target}
        buffers = {name for name, _ in self.shell.named_buffers()}
        self.tensors = {n: t if n in buffers else t.requires_grad_() for n, t in state.items()}

    def parameters(self) -> list[Tensor]:
        """Return the leaves, in the order of the model without its target."""
        return [tensor for tensor in self.tensors.values() if tensor.is_leaf and tensor.requires_grad]

    def __call__(self, x: Tensor) -> Tensor:
        """Run the model with the target computed from the leaves."""
        return functional_call(self.shell, {**self.tensors, self.case.target: self.case.oracle(self.tensors)}, (x,))


def loss(output: Tensor) -> Tensor:
    """Return a number that depends on every output."""
    return (output - output.detach().flip(0)).square().mean() + output.square().mean() + output.sin().mean()


def distance(model: nn.Module, reference: Reference) -> float:
    """Return the largest difference between the parameters of a tied model and of its reference."""
    named = dict(model.named_parameters())
    assert set(named) == {name for name, t in reference.tensors.items() if t.requires_grad}
    return max(float((tensor - reference.tensors[name]).abs().max().detach()) for name, tensor in named.items())


def tied_model(case: Case) -> nn.Module:
    model = case.build()
    tied.tie(model, case.target, case.source)
    return model


def assert_still_tied(model: nn.Module, case: Case) -> None:
    """Check the law: counted once, equal to the reference now, and after three steps of AdamW."""
    assert [str(tie) for tie in tied.ties(model)] == [f"{case.target} = {case.source}"]
    dtype = next(model.parameters()).dtype
    reference = Reference(case, model)
    reference.shell.to(dtype)
    steppers = [AdamW(subject.parameters(), lr=0.02, weight_decay=0.1) for subject in (model, reference)]
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for step in range(3):
        inputs = case.inputs(step)
        inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        torch.testing.assert_close(model(inputs), reference(inputs), rtol=bound, atol=bound)
        for subject, stepper in zip((model, reference), steppers, strict=True):
            stepper.zero_grad()
            loss(subject(inputs)).backward()
            torch.nn.utils.clip_grad_norm_([p for group in stepper.param_groups for p in group["params"]], 0.5)
            stepper.step()
    assert distance(model, reference) <= bound
