"""`TiedEmbedding` is an embedding and a head by hand over one table."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import tied
from tied.nn import TiedEmbedding, accumulate, cross_entropy, lm_head, many_uses

WORDS, WIDTH = 11, 4


@pytest.fixture(autouse=True, params=["plain", "chunks"])
def small(request, monkeypatch):
    """Run all tests with the plain loss, as small heads have it, and in chunks."""
    if request.param == "chunks":
        monkeypatch.setattr(lm_head, "FEWEST_SCORES", 1)
        monkeypatch.setattr(cross_entropy, "SMALLEST_CHUNK", 3)


def same(found, wanted, bound=1e-12):
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound)


OPTIONS = [
    {},
    {"bias": True},
    {"scale": WIDTH**-0.5},
    {"soft_cap": 2.0, "bias": True},
    {"pad_to_multiple_of": 8},
    {"padding_idx": 2},
    {"padding_idx": -1, "pad_to_multiple_of": 8, "bias": True, "scale": 0.5, "soft_cap": 3.0},
    {"tie": False},
    {"tie": False, "padding_idx": 2, "pad_to_multiple_of": 8, "bias": True},
]


def build(seed=0, **options):
    torch.manual_seed(seed)
    emb = TiedEmbedding(WORDS, WIDTH, dtype=torch.float64, **options)
    if emb.bias is not None:
        nn.init.normal_(emb.bias)
    return emb


class ByHand(nn.Module):
    """The oracle: plain torch over one table, or two."""

    def __init__(self, emb, tie=True, bias=False, padding_idx=None, scale=1.0, soft_cap=None, pad_to_multiple_of=1):
        super().__init__()
        self.scale, self.soft_cap = scale, soft_cap
        self.padding_idx = None if padding_idx is None else padding_idx % WORDS
        self.table = nn.Parameter(emb.weight.detach().clone())
        self.own = None if tie else nn.Parameter(emb.head.weight.detach().clone())
        self.bias = nn.Parameter(emb.bias.detach().clone()) if bias else None

    def forward(self, tokens):
        return functional.embedding(tokens, self.table, self.padding_idx)

    def logits(self, hidden):
        table = self.table[:WORDS] if self.own is None else self.own
        if self.padding_idx is not None:
            trained = (torch.arange(WORDS) != self.padding_idx)[:, None].double()
            table = table * trained + (table * (1 - trained)).detach()
        scores = functional.linear(hidden * self.scale, table, self.bias)
        return scores if self.soft_cap is None else self.soft_cap * torch.tanh(scores / self.soft_cap)

    def loss(self, hidden, targets, **rule):
        return functional.cross_entropy(self.logits(hidden).flatten(0, 1), targets.flatten(), **rule)


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, WORDS, (3, 6), generator=generator)
    tokens[0, :3] = torch.tensor([2, WORDS - 1, 2])
    return tokens[:, :-1], tokens[:, 1:].clone()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients(options):
    emb = build(**options)
    hand, (tokens, targets) = ByHand(emb, **options), batch()
    targets[1, :2] = -100
    results = []
    for model in (emb, hand):
        hidden = torch.tanh(model(tokens))
        logits = model.logits(hidden)
        loss = model.loss(hidden, targets, label_smoothing=0.1)
        (3 * loss + logits.sin().sum()).backward()
        results.append([hidden, logits, loss, *(p.grad for p in model.parameters())])
    same(*results)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_twenty_steps(options):
    emb = build(**options)
    hand = ByHand(emb, **options)
    for model in (emb, hand):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
        for step in range(20):
            tokens, targets = batch(step)
            optimizer.zero_grad()
            model.loss(torch.tanh(model(tokens)), targets).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    same(list(emb.parameters()), list(hand.parameters()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_loss_is_that_of_the_logits(reduction, ignore_index):
    emb, (tokens, targets) = build(bias=True), batch()
    hidden = emb(tokens)
    found = emb.loss(hidden, targets, reduction=reduction, ignore_index=ignore_index, label_smoothing=0.2)
    wanted = functional.cross_entropy(
        emb.logits(hidden).transpose(1, 2),
        targets,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=0.2,
    )
    same(found, wanted)


def test_gradcheck():
    emb, (tokens, targets) = build(bias=True, soft_cap=3.0, pad_to_multiple_of=8), batch()
    leaves = (emb.weight, emb.bias)
    assert torch.autograd.gradcheck(lambda *_: emb.loss(torch.tanh(emb(tokens)), targets), leaves)
    assert torch.autograd.gradgradcheck(lambda *_: emb.loss(torch.tanh(emb(tokens)), targets), leaves)


def test_both_uses_share_one_buffer(monkeypatch, request):
    taken = []
    for name in ("take_in", "add_rows"):
        plain = getattr(accumulate.Sum, name)
        monkeypatch.setattr(
            accumulate.Sum, name, lambda self, *a, plain=plain, name=name: taken.append((name, self)) or plain(self, *a)
        )
    for options in ({}, {"pad_to_multiple_of": 8}):
        taken.clear()
        emb, (tokens, targets) = build(**options), batch()
        emb.loss(torch.tanh(emb(tokens)), targets).backward()
        if "chunks" in request.node.name:
            assert [name for name, _ in taken] == ["take_in", "add_rows"]
            assert taken[0][1] is taken[1][1]


def test_two_losses_of_one_table():
    emb, (tokens, targets) = build(bias=True, padding_idx=2), batch()
    hand = ByHand(emb, bias=True, padding_idx=2)
    for model in (emb, hand):
        first = torch.tanh(model(tokens))
        second = torch.tanh(first + model(targets))
        (model.loss(first, targets) + 2 * model.loss(second, tokens) + model.loss(first.detach(), tokens)).backward()
    same([p.grad for p in emb.parameters()], [p.grad for p in hand.parameters()])


def test_lookup_of_one_graph_in_several_runs():
    emb, (tokens, targets) = build(bias=True), batch()
    hand, found = ByHand(emb, bias=True), []
    for model in (emb, hand):
        hidden = model(tokens)
        loss = model.loss(torch.tanh(hidden), targets)
        table, *_ = model.parameters()
        found.append(
            [
                *torch.autograd.grad(loss, hidden, retain_graph=True),
                *torch.autograd.grad(loss, table, retain_graph=True),
                *torch.autograd.grad(loss, (hidden, table), retain_graph=True),
                *torch.autograd.grad(loss, table, create_graph=True),
                *torch.autograd.grad(loss, table),
            ]
        )
    same(*found)


def test_penalty_on_the_gradient_of_the_table():
    emb, (tokens, targets) = build(bias=True, padding_idx=2, pad_to_multiple_of=8), batch()
    hand, found = ByHand(emb, bias=True, padding_idx=2), []
    for model in (emb, hand):
        loss = model.loss(torch.tanh(model(tokens)), targets)
        table, bias = model.parameters()
        first = torch.autograd.grad(loss, (table, bias), create_graph=True)
        (loss + sum(grad.square().sum() for grad in first)).backward()
        found.append([table.grad, bias.grad])
    same(*found)


# Where it starts


@pytest.mark.parametrize(("words", "width"), [(5000, 128), (10000, 512), (300, 16)])
@pytest.mark.parametrize("options", [{}, {"scale": "root"}, {"tie": False}, {"pad_to_multiple_of": 64}], ids=str)
def test_first_loss_is_near_that_of_a_guess(words, width, options):
    torch.manual_seed(0)
    options = {name: width**-0.5 if value == "root" else value for name, value in options.items()}
    emb = TiedEmbedding(words, width, **options)
    hidden, targets = torch.randn(512, width), torch.randint(0, words, (512,))
    assert math.log(words) < emb.loss(hidden, targets).item() < math.log(words) + 1


def test_plain_embedding_starts_far_off():
    """What the initialization is for: the same check fails for that of `nn.Embedding`."""
    torch.manual_seed(0)
    emb = TiedEmbedding.from_embedding(nn.Embedding(5000, 128))
    assert emb.loss(torch.randn(512, 128), torch.randint(0, 5000, (512,))) > 3 * math.log(5000)


def test_initial_table():
    torch.manual_seed(0)
    emb = TiedEmbedding(5000, 100, 7, bias=True, pad_to_multiple_of=64)
    assert emb.weight.shape == (5056, 100)
    assert not emb.weight[5000:].any()
    assert not emb.weight[7].any()
    assert not emb.bias.any()
    assert emb.weight[:5000].std().item() == pytest.approx(0.1, rel=0.01)
    assert TiedEmbedding(5000, 100, scale=0.1).weight.std().item() == pytest.approx(1, rel=0.01)
    twin = TiedEmbedding(5000, 100, tie=False)
    assert twin.head.weight.std().item() == pytest.approx(0.1, rel=0.01)
    assert not torch.equal(twin.head.weight, twin.weight)


# Padding


def test_padding_word_is_never_trained():
    emb = build(padding_idx=2, bias=True)
    optimizer = torch.optim.SGD(emb.parameters(), lr=0.5)
    for step in range(5):
        tokens, targets = batch(step)
        hidden = torch.tanh(emb(tokens))
        (emb.loss(hidden, targets) + emb.logits(hidden).square().mean()).backward()
        optimizer.step()
    assert not emb.weight[2].any()
    same(emb.logits(hidden)[..., 2], emb.bias[2].expand(3, 5))


def test_rows_of_padding_are_no_words():
    emb = build(pad_to_multiple_of=8)
    assert emb.weight.shape == (16, WIDTH)
    assert emb.logits(torch.zeros(2, WIDTH).double()).shape == (2, WORDS)
    with pytest.raises(IndexError, match="index out of range in self"):
        emb(torch.tensor([WORDS]))
    hidden = torch.randn(2, WIDTH, dtype=torch.float64)
    with pytest.raises(IndexError, match="Target 11 is out of bounds"):
        emb.loss(hidden, torch.tensor([1, WORDS]))
    emb.loss(hidden, torch.tensor([1, 2])).backward()
    assert not emb.weight.grad[WORDS:].any()


# What survives


def assert_still_right(emb, tie=True, **options):
    tokens, targets = batch()
    dtype = emb.weight.dtype
    hand = ByHand(emb, tie=tie, **options).to(dtype)
    bound = 1e-12 if dtype == torch.float64 else 2e-2
    loss = emb.loss(emb(tokens), targets)
    loss.backward()
    wanted = hand.loss(hand(tokens), targets)
    wanted.backward()
    same(loss, wanted, bound)
    same(emb.weight.grad, hand.table.grad, bound)
    assert len(list(emb.parameters())) == len(list(hand.parameters()))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda emb: pickle.loads(pickle.dumps(emb)),
    "bfloat16": lambda emb: emb.to(torch.bfloat16),
}


@pytest.mark.parametrize("operation", COPIES)
@pytest.mark.parametrize("options", [{}, {"bias": True, "pad_to_multiple_of": 8}, {"tie": False}], ids=str)
def test_copies(operation, options):
    emb = build(**options)
    twin = COPIES[operation](emb)
    assert twin.is_tied == options.get("tie", True)
    assert_still_right(twin, **options)
    assert str(twin) == str(emb)


def test_whole_object_through_a_file():
    stream = io.BytesIO()
    torch.save(build(bias=True), stream)
    stream.seek(0)
    assert_still_right(torch.load(stream, weights_only=False), bias=True)


@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": True, "pad_to_multiple_of": 8}, {"tie": False}], ids=str)
def test_state_dict(assign, options):
    source, emb = build(**options), build(seed=3, **options)
    names = [
        "weight",
        *(["head.weight"] if options in ({}, {"tie": False}) else []),  # a tie that pads is no identity
        *(["head.bias"] * bool(emb.bias is not None)),
    ]
    assert sorted(source.state_dict()) == sorted(names)
    assert list(emb.load_state_dict(source.state_dict(), assign=assign)) == [[], []]
    same(emb.logits(torch.ones(1, WIDTH).double()), source.logits(torch.ones(1, WIDTH).double()))
    assert_still_right(emb, **options)


def test_file_of_the_tied_one_into_the_twin_and_back():
    emb, twin = build(), build(seed=3, tie=False)
    state = emb.state_dict()
    twin.load_state_dict({**state, "head.weight": state["weight"]})
    assert list(emb.load_state_dict(twin.state_dict())) == [[], []]
    different = {**state, "head.weight": state["weight"] + 1}
    with pytest.raises(tied.ConflictError):
        emb.load_state_dict(different)


def test_untying_gives_the_twin():
    emb = build(bias=True)
    tied.untie(emb)
    assert not emb.is_tied
    assert_still_right(emb, tie=False, bias=True)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2, "pad_to_multiple_of": 8, "soft_cap": 2.0}], ids=str)
def test_compiled(options):
    emb, (tokens, targets) = build(**options), batch()

    def run(tokens, targets):
        hidden = emb(tokens)
        return emb.loss(hidden, targets) + emb.logits(hidden).sin().sum()

    torch._dynamo.reset()
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(tokens, targets)
    wanted = run(tokens, targets)
    same(found, wanted)
    same(torch.autograd.grad(found, emb.weight), torch.autograd.grad(wanted, emb.weight))


def test_gradients_of_each_sample():
    emb, (tokens, targets) = build(bias=True, padding_idx=2), batch()
    state = {name: p.detach() for name, p in emb.named_parameters()}

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = emb

        def forward(self, tokens, targets):
            return self.emb.loss(torch.tanh(self.emb(tokens)), targets)

    def one(state, tokens, targets):
        return torch.func.functional_call(Loss(), {f"emb.{k}": v for k, v in state.items()}, (tokens, targets))

    found = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(state, tokens, targets)
    for row in range(len(tokens)):
        emb.zero_grad()
        emb.loss(torch.tanh(emb(tokens[row])), targets[row]).backward()
        same({name: grad[row] for name, grad in found.items()}, {n: p.grad for n, p in emb.named_parameters()})


def test_exports():
    emb, (tokens, _) = build(bias=True, pad_to_multiple_of=8), batch()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = emb

        def forward(self, tokens):
            return self.emb.logits(self.emb(tokens))

    exported = torch.export.export(Model(), (tokens,)).module()
    same(exported(tokens), Model()(tokens))


def test_meta_then_memory():
    emb = TiedEmbedding(WORDS, WIDTH, bias=True, device="meta")
    emb.to_empty(device="cpu").reset_parameters()
    assert_still_right(emb.double(), bias=True)


# Other embeddings


def test_three_tables_are_one():
    """Press and Wolf's three-way tying: both embeddings and the head."""
    model = nn.ModuleDict({"encoder": nn.Embedding(WORDS, WIDTH), "decoder": TiedEmbedding(WORDS, WIDTH)}).double()
    tied.tie(model, "encoder.weight", "decoder.weight")
    tokens, targets = batch()
    hidden = model["encoder"](tokens) + model["decoder"](tokens)
    model["decoder"].loss(hidden, targets).backward()
    table = model["decoder"].weight.detach().clone().requires_grad_()
    functional.cross_entropy((2 * table[tokens] @ table.T).flatten(0, 1), targets.flatten()).backward()
    same(model["decoder"].weight.grad, table.grad)
    assert len(list(model.parameters())) == 1


@pytest.mark.parametrize("tie", [True, False])
def test_from_a_trained_embedding(tie):
    table = nn.Embedding(WORDS, WIDTH, padding_idx=2, dtype=torch.float64)
    emb = TiedEmbedding.from_embedding(table, tie=tie, bias=True)
    assert emb.weight is table.weight
    assert emb.padding_idx == 2
    assert not emb.bias.any()
    assert torch.equal(emb.head.weight, table.weight)
    assert_still_right(emb, tie=tie, bias=True, padding_idx=2)


@pytest.mark.parametrize("words", [7, WORDS, 13, 30])
@pytest.mark.parametrize(
    "options", [{}, {"bias": True, "pad_to_multiple_of": 8, "padding_idx": 2}, {"tie": False}], ids=str
)
def test_resize(words, options):
    emb = build(**options)
    old = {name: p.detach().clone() for name, p in emb.named_parameters()}
    emb.eval().resize(words)
    kept = min(words, WORDS)
    assert torch.equal(emb.weight[:kept], old["weight"][:kept])
    assert emb.weight.shape[0] == -(-words // emb.pad_to_multiple_of) * emb.pad_to_multiple_of
    assert not emb.weight[words:].any()
    assert emb.weight[kept:words].abs().min() > 0 if words > WORDS else True
    assert emb.head.weight.shape == (words, WIDTH)
    assert emb.head.out_features == emb.num_embeddings == words
    assert emb.is_tied == options.get("tie", True)
    assert not emb.head.training
    if emb.bias is not None:
        assert torch.equal(emb.bias[:kept], old["head.bias"][:kept])
        assert not emb.bias[kept:].any()
    if not emb.is_tied:
        assert torch.equal(emb.head.weight[:kept], old["head.weight"][:kept])
    hidden = emb(torch.tensor([0, words - 1]))
    emb.loss(hidden, torch.tensor([words - 1, 0])).backward()
    assert emb.logits(hidden).shape == (2, words)


def test_resize_keeps_what_is_frozen():
    emb = build(bias=True)
    emb.weight.requires_grad_(False)
    emb.resize(13)
    assert [p.requires_grad for p in emb.parameters()] == [False, True]


def test_dtype_of_the_head():
    emb = TiedEmbedding(WORDS, WIDTH, bias=True, dtype=torch.bfloat16, head_dtype=torch.float32)
    tokens, targets = batch()
    hidden = emb(tokens)
    assert hidden.dtype == torch.bfloat16
    assert emb.logits(hidden).dtype == emb.loss(hidden, targets).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert emb.logits(hidden).dtype == torch.float32
        under = emb.loss(hidden, targets)
    same(under, emb.loss(hidden, targets), 1e-6)
    same(emb.logits(hidden), hidden.float() @ emb.weight.float().T, 1e-6)


def test_autocast_does_not_reach_a_head_with_a_dtype_of_its_own():
    emb, (_, targets) = TiedEmbedding(WORDS, WIDTH, head_dtype=torch.float32), batch()
    hidden, found = torch.randn(3, 5, WIDTH, requires_grad=True), []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = emb.loss(hidden, targets)
        found.append([loss, *torch.autograd.grad(loss, (hidden, emb.weight))])
    same(*found, 1e-6)


def test_many_uses_of_a_tied_embedding():
    emb = many_uses(build(bias=True))
    assert_still_right(emb, bias=True)
    assert emb.is_tied


def test_shown():
    assert str(build(padding_idx=2, pad_to_multiple_of=8, soft_cap=2.0)) == (
        "TiedEmbedding(\n  11, 4, padding_idx=2, soft_cap=2.0, pad_to_multiple_of=8\n"
        "  (head): Linear(in_features=4, out_features=11, bias=False, weight=weight[:11])\n)"
    )
    assert str(build(tie=False)) == (
        "TiedEmbedding(\n  11, 4\n  (head): Linear(in_features=4, out_features=11, bias=False)\n)"
    )


# Bad input


def message(call, problem, found, expected, fix):
    parts = [call, f"  {problem}", f"  found:    {found}", f"  expected: {expected}", f"  fix:      {fix}"]
    return "\n".join([*parts, "The model was not changed."])


def no_size(name, value):
    return tied.ShapeError, (f"{name} is no size.", f"{name}={value}", "a positive integer", f"{name}=64")


def no_dtype(name, value):
    problem = f"A table of words cannot be of this {name}."
    return tied.DtypeError, (problem, f"{name}={value}", "a real floating-point dtype", f"{name}=torch.float32")


def no_factor(name, value):
    return tied.KindError, (f"{name} is no factor.", f"{name}={value!r}", "a positive number", f"leave {name} out")


NO_WORD = (
    "padding_idx is no word.",
    "padding_idx=11, num_embeddings=11",
    "from -11 to 10",
    "padding_idx=0, or leave it out",
)
NO_OPTION = (
    "'softcap' is no option of the head.",
    "softcap=30.0",
    "bias, scale, soft_cap, head_dtype, pad_to_multiple_of",
    "did you mean 'soft_cap'?",
)
WRONG = [
    ((0, 4), {}, *no_size("num_embeddings", 0)),
    ((11, 4.0), {}, *no_size("embedding_dim", 4.0)),
    ((True, 4), {}, *no_size("num_embeddings", True)),
    ((11, 4), {"pad_to_multiple_of": 0}, *no_size("pad_to_multiple_of", 0)),
    ((11, 4), {"dtype": torch.int64}, *no_dtype("dtype", torch.int64)),
    ((11, 4), {"head_dtype": torch.cfloat}, *no_dtype("head_dtype", torch.cfloat)),
    ((11, 4), {"scale": 0}, *no_factor("scale", 0)),
    ((11, 4), {"scale": math.inf}, *no_factor("scale", math.inf)),
    ((11, 4), {"soft_cap": "30"}, *no_factor("soft_cap", "30")),
    ((11, 4, 11), {}, tied.AddressError, NO_WORD),
    ((11, 4), {"softcap": 30.0}, tied.AddressError, NO_OPTION),
]


@pytest.mark.parametrize(("arguments", "options", "error", "parts"), WRONG)
def test_wrong_arguments(arguments, options, error, parts):
    with pytest.raises(error) as caught:
        TiedEmbedding(*arguments, **options)
    assert str(caught.value) == message(f"TiedEmbedding({arguments[0]!r}, {arguments[1]!r})", *parts)


def test_wrong_hidden_states_and_targets():
    emb = build()
    with pytest.raises(tied.ShapeError) as caught:
        emb.logits(torch.ones(3, 5))
    assert str(caught.value) == message(
        "TiedEmbedding.logits(hidden)",
        "The hidden states are not as wide as the table.",
        "hidden of shape (3, 5)",
        "(..., 4)",
        "project them first: nn.Linear(hidden_width, embedding_dim)",
    )
    with pytest.raises(tied.ShapeError) as caught:
        emb.loss(torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.int64))
    assert str(caught.value) == message(
        "TiedEmbedding.loss(hidden, targets)",
        "There is not one target for each hidden state.",
        "hidden of shape (2, 3, 4), targets of shape (2, 4)",
        "targets of shape (2, 3)",
        "emb.loss(hidden[:, :-1], tokens[:, 1:])",
    )


ONLY = "an nn.Embedding with a Parameter of its own, without max_norm, sparse, scale_grad_by_freq"
COPY = "make a TiedEmbedding(num_embeddings, embedding_dim) and copy the rows"


def test_wrong_embeddings():
    def complaint(embedding, **options):
        with pytest.raises(tied.KindError) as caught:
            TiedEmbedding.from_embedding(embedding, **options)
        return str(caught.value)

    name = "TiedEmbedding.from_embedding"
    assert complaint(nn.Linear(2, 3)) == message(f"{name}(Linear)", "That is no embedding.", "Linear", ONLY, COPY)
    for options in ({"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}):
        table = nn.Embedding(5, 3, **options)
        assert complaint(table) == message(
            f"{name}(Embedding)", "The embedding has options that have no meaning for a head.", repr(table), ONLY, COPY
        )
    table = nn.Embedding(5, 3)
    assert complaint(table, pad_to_multiple_of=8) == message(
        f"{name}(Embedding)",
        "The Parameter would have to grow.",
        "{'pad_to_multiple_of': 8}, Embedding(5, 3)",
        ONLY,
        COPY,
    )
    computed = nn.utils.parametrizations.weight_norm(nn.Embedding(5, 3))
    assert "The embedding owns no Parameter; its weight is computed or tied." in complaint(computed)


def test_failed_resize_changes_nothing():
    emb = build(padding_idx=8)
    before = {name: p.clone() for name, p in emb.named_parameters()}
    for words, error in ((0, tied.ShapeError), (8, tied.AddressError)):
        with pytest.raises(error) as caught:
            emb.resize(words)
        assert str(caught.value).startswith(f"TiedEmbedding.resize({words})\n")
    same(dict(emb.named_parameters()), before)
    assert emb.num_embeddings == WORDS
