"""Adapters, as peft puts them around layers; the oracle of a transform has the same adapters, written by hand."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from battery.subjects import LAYERS, TIES, TOKENS, ByHand, Pair, by_hand, inputs
from battery.tool import Act, Tool, both, folder, quietly, trained

SCALE = 4.0  # alpha / r


def drawn(layer: str, what: str, *shape: int) -> Tensor:
    """Draw an adapter's values, the same for peft's and for ours."""
    seed = sum(map(ord, layer + what))
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Adapted(nn.Module):
    """Adapters on layers of a pair, by hand; everything else is frozen.

    Args:
        pair: The model.
        method: "LoRA", "DoRA", "IA3" or "tokens".
        names: Of the layers that have one.
        saved: Of the layers that are copied, and trained as a whole.
    """

    def __init__(self, pair: ByHand, method: str, names: tuple[str, ...], saved: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.pair, self.method, self.names = pair.requires_grad_(False), method, names
        self.own, self.whole = nn.ParameterDict(), nn.ParameterDict()
        for name in names:
            shapes = {"LoRA": {"A": (2, 4), "B": (4, 2)}, "DoRA": {"A": (2, 4), "B": (4, 2), "m": (4,)}}
            for what, shape in shapes.get(method, {"l": (4,)} if method == "IA3" else {}).items():
                self.own[name + what] = Parameter(drawn(name, what, *shape))
        if method == "tokens":
            self.own["rows"] = Parameter(pair.a.weight.detach()[[0, 2]].clone())
        for name in saved:
            layer = getattr(pair, name)
            self.whole[name] = Parameter((layer.weight if name == "a" else pair.shared).detach().clone())
            self.whole[name + "_bias"] = Parameter(layer.bias.detach().clone())

    def weight(self, name: str, weight: Tensor) -> Tensor:
        """Return the matrix that a layer multiplies by."""
        if name not in self.names or self.method == "IA3":
            return weight
        if self.method == "tokens":
            return weight.index_copy(0, torch.tensor([0, 2]), self.own["rows"])
        delta = SCALE * self.own[name + "B"] @ self.own[name + "A"]
        if self.method == "LoRA":
            return weight + (delta.T if name == "a" and self.pair.reads_tokens else delta)
        norm = (weight + delta).norm(dim=1).detach()
        return (self.own[name + "m"] / norm)[:, None] * (weight + delta)

    def layer(self, name: str, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if name in self.whole:
            weight, bias = self.whole[name], self.whole[name + "_bias"]
        y = nn.functional.linear(x, self.weight(name, weight), bias)
        return y * self.own[name + "l"] if self.method == "IA3" and name in self.names else y

    def forward(self, x: Tensor) -> Tensor:
        pair = self.pair
        if pair.reads_tokens:
            hidden = self.weight("a", pair.a.weight)[x.argmax(-1)]
        else:
            hidden = self.layer("a", x, pair.a.weight, pair.a.bias)
        hidden = self.layer("b", torch.tanh(hidden), pair.shared, pair.b.bias)
        return self.layer("c", hidden, pair.c.weight, pair.c.bias)


PARTS = {"lora_A": "A", "lora_embedding_A": "A", "lora_B": "B", "lora_embedding_B": "B", "lora_magnitude": "m"}
PARTS |= {"ia3_l": "l"}


def configured(method: str, names: tuple[str, ...], saved: tuple[str, ...] = ()) -> Any:
    import peft

    options: dict[str, Any] = {"target_modules": list(names)} | ({"modules_to_save": list(saved)} if saved else {})
    if method == "IA3":
        return peft.IA3Config(feedforward_modules=[], **options)
    if method == "tokens":
        return peft.TrainableTokensConfig(token_indices=[0, 2], **options)
    return peft.LoraConfig(r=2, use_dora=method == "DoRA", **options)


def put_on(model: nn.Module, method: str, names: tuple[str, ...], saved: tuple[str, ...] = ()) -> nn.Module:
    """Put adapters with the values of ours on a model."""
    import peft

    if isinstance(model, ByHand):
        return Adapted(model, method, names, saved)
    made = peft.get_peft_model(model, configured(method, names, saved)).double()
    for name, parameter in made.named_parameters():
        for part, what in PARTS.items():
            if f".{part}." in name or (part == "lora_magnitude" and part in name):
                layer = name.split("base_model.model.")[1][0]
                parameter.data.copy_(drawn(layer, what, *parameter.shape))
    return made


def used(method: str, *names: str, saved: tuple[str, ...] = ()) -> Act:
    """Compute and train."""
    return quietly(lambda model: both(put_on(model, method, names, saved)))


def merged(method: str, *names: str) -> Act:
    def act(model: nn.Module) -> Tensor:
        made = put_on(by_hand(model), method, names)
        made = made if isinstance(made, Adapted) else made.merge_and_unload()
        return made(inputs()).detach()

    return quietly(act)


def merged_and_back(method: str, *names: str) -> Act:
    def act(model: nn.Module) -> list[Tensor]:
        made = put_on(by_hand(model), method, names)
        if isinstance(made, Adapted):
            return [made(inputs()).detach()] * 2
        made.merge_adapter()
        first = made(inputs()).detach()
        made.unmerge_adapter()
        return [first, made(inputs()).detach()]

    return quietly(act)


def unloaded(method: str, *names: str) -> Act:
    """Train the adapters, take them off, and train the model."""

    def act(model: nn.Module) -> list[Tensor]:
        made = put_on(model, method, names)
        trained(made)
        bare = made.pair if isinstance(made, Adapted) else made.unload()
        return both(bare.requires_grad_(True))

    return quietly(act)


def untied_twin(kind: str, *, reads_tokens: bool = False) -> nn.Module:
    """Return a model of the same values, in which nothing is shared."""
    model = Pair(kind, nn.Embedding if reads_tokens else nn.Linear)
    held = {"a.weight": model.a.weight, "spare": model.spare}
    model.b.weight = Parameter(TIES[kind][1](held).detach().clone())
    return model


def saved(method: str, *names: str, whole: tuple[str, ...] = ()) -> Act:
    """Train adapters; their file means the same on a model in which nothing is shared, and on this one."""

    def act(model: nn.Module) -> list[Tensor]:
        import peft

        made = put_on(model, method, names, whole)
        expected = trained(made)
        if isinstance(made, Adapted):
            return [expected] * 3
        with folder() as place:
            made.save_pretrained(place)
            base = untied_twin(model.kind, reads_tokens=model.reads_tokens)
            elsewhere = peft.PeftModel.from_pretrained(base, place).double()
            here = peft.PeftModel.from_pretrained(made.unload(), place).double()
        return [expected, elsewhere(inputs(9)).detach(), here(inputs(9)).detach()]

    return quietly(act)


def two_adapters(method: str, first: str, second: str) -> Act:
    """One adapter on one layer and a second on another, between which is switched."""

    def act(model: nn.Module) -> list[Tensor]:
        if isinstance(model, ByHand):
            return [Adapted(model, method, (name,))(inputs()).detach() for name in (first, second)]
        made = put_on(model, method, (first,))
        one = made(inputs()).detach()
        made.add_adapter("other", configured(method, (second,)))
        made.set_adapter("other")
        for name, parameter in made.double().named_parameters():
            for part, what in PARTS.items():
                if f".{part}.other" in name:
                    parameter.data.copy_(drawn(second, what, *parameter.shape))
        return [one, made(inputs()).detach()]

    return quietly(act)


ON = {"the source": ("a",), "the target": ("b",), "both": ("a", "b")}
TOOLS = [
    *(
        Tool("peft", f"{method} on {where}", used(method, *names), "peft")
        for method in ("LoRA", "DoRA", "IA3")
        for where, names in ON.items()
    ),
    Tool("peft", "LoRA on an embedding and its head", used("LoRA", "a", "b"), "peft", subject=TOKENS),
    Tool("peft", "trainable tokens of an embedding", used("tokens", "a"), "peft", subject=TOKENS),
    Tool("peft", "`modules_to_save`, the source", used("LoRA", "b", saved=("a",)), "peft"),
    Tool("peft", "`modules_to_save`, the target", used("LoRA", "a", saved=("b",)), "peft"),
    Tool("peft", "`modules_to_save`, both", used("LoRA", "c", saved=("a", "b")), "peft"),
    Tool("peft", "one adapter on the source, another on the target", two_adapters("LoRA", "a", "b"), "peft"),
    *(
        Tool("peft", f"`{call}` of LoRA on {where}", act("LoRA", *names), "peft", plain_is_wrong=True)
        for call, act in (("merge_and_unload", merged), ("merge_adapter", merged_and_back))
        for where, names in ON.items()
    ),
    Tool("peft", "`merge_and_unload` of DoRA", merged("DoRA", "b"), "peft", plain_is_wrong=True),
    Tool("peft", "`merge_and_unload` of IA³", merged("IA3", "b"), "peft", plain_is_wrong=True),
    Tool("peft", "`merge_and_unload` of tokens", merged("tokens", "a"), "peft", subject=TOKENS, plain_is_wrong=True),
    *(Tool("peft", f"`unload` of LoRA on {where}", unloaded("LoRA", *names), "peft") for where, names in ON.items()),
    *(
        Tool("peft", f"{method} on both, saved and loaded", saved(method, "a", "b"), "peft")
        for method in ("LoRA", "DoRA", "IA3")
    ),
    Tool("peft", "tokens, saved and loaded", saved("tokens", "a"), "peft", subject=TOKENS),
    Tool("peft", "`modules_to_save`, saved and loaded", saved("LoRA", "c", whole=("a", "b")), "peft", subject=LAYERS),
]
