"""`Looped` is a stack of layers whose shared weights are equal."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import tied
from tied.nn import Looped


class Block(nn.Module):
    """A layer with a shift that remembers how often it was run."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)
        self.register_buffer("runs", torch.zeros((), dtype=torch.int64))

    def forward(self, x, shift=0.0, *, scale=1.0):
        self.runs += 1
        return x + scale * torch.tanh(self.mlp(self.norm(x + shift)))


def doubled(module: nn.Module) -> nn.Module:
    return module.double()


def letters(looped: Looped) -> str:
    owners = dict.fromkeys(id(layer.mlp.weight) for layer in looped.layers)
    names = dict(zip(owners, "ABCDEF", strict=False))
    return "".join(names[id(layer.mlp.weight)] for layer in looped.layers)


@pytest.mark.parametrize(
    ("pattern", "count", "depth", "wanted"),
    [
        ("cycle", 1, 4, "AAAA"),
        ("all", 1, 4, "AAAA"),
        ("sequence", 3, 6, "AABBCC"),
        ("cycle", 3, 6, "ABCABC"),
        ("cycle_rev", 3, 6, "ABCCBA"),
        ("sandwich", 3, 6, "ABBBBC"),
        ("immediate", 3, 6, "AABBCC"),
        ("cycle", 2, 2, "AB"),
    ],
)
def test_patterns(pattern, count, depth, wanted):
    blocks = [doubled(Block()) for _ in range(count)]
    looped = Looped(blocks, depth, pattern=pattern)
    assert letters(looped) == wanted
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = x
    for letter in wanted:
        expected = blocks["ABCDEF".index(letter)](expected)
    torch.testing.assert_close(looped(x), expected, rtol=0, atol=1e-12)
    assert sum(p.numel() for p in looped.parameters()) == count * (8 + 20)


def test_the_blocks_are_layers_themselves():
    blocks = [Block(), Block()]
    looped = Looped(blocks, 4)
    assert [looped.layers[0], looped.layers[1]] == blocks
    assert list(Looped(nn.ModuleList([Block()]), 1).layers[0].state_dict()) == list(Block().state_dict())
    assert isinstance(Looped(nn.Sequential(nn.Linear(2, 2)), 2).layers[1], nn.Sequential)


def test_arguments_go_to_every_layer():
    looped, x, shift = Looped(Block(), 3), torch.randn(2, 4), torch.randn(4)
    expected = x
    for _ in range(3):
        expected = looped.layers[0](expected, shift, scale=2.0)
    torch.testing.assert_close(looped(x, shift, scale=2.0), expected)
    torch.testing.assert_close(looped(x, shift=shift, scale=2.0), expected)


def test_tuples_are_collected():
    class Two(nn.Module):
        def forward(self, x):
            calls.append(x)
            return x + 1, 10 * x, -x

    calls = []
    assert Looped(Two(), 3)(1) == (4, (10, 20, 30), (-1, -2, -3))
    assert calls == [1, 2, 3]
    output, states = Looped(nn.LSTM(4, 4, batch_first=True), 2)(torch.randn(3, 5, 4))
    assert output.shape == (3, 5, 4)
    assert [hidden.shape for hidden, _ in states] == [(1, 3, 4)] * 2

    class One(nn.Module):
        def forward(self, x):
            return (x + 1,)

    assert Looped(One(), 3)(1) == (4,)


def test_an_lstm_in_a_loop_is_one_lstm():
    torch.manual_seed(0)
    lstm = nn.LSTM(4, 4).double()
    looped = Looped(lstm, 3)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    expected = lstm(lstm(lstm(x)[0])[0])[0]
    torch.testing.assert_close(looped(x)[0], expected, rtol=0, atol=1e-12)
    assert len(list(looped.parameters())) == 4


def test_buffers_are_private():
    looped = Looped(Block(), 3)
    looped(torch.zeros(1, 4))
    looped(torch.zeros(1, 4))
    assert [int(layer.runs) for layer in looped.layers] == [2, 2, 2]


def test_private_parameters_start_as_copies_and_go_their_own_way():
    looped = Looped(Block(), 3, private=["*.norm*", "*.bias"])
    norms = [layer.norm.weight for layer in looped.layers]
    assert len({id(norm) for norm in norms}) == 3
    assert all(isinstance(norm, nn.Parameter) and torch.equal(norm, norms[0]) for norm in norms)
    assert len({norm.data_ptr() for norm in norms}) == 3
    assert [str(tie) for tie in tied.ties(looped)] == [
        "layers.1.mlp.weight = layers.0.mlp.weight",
        "layers.2.mlp.weight = layers.0.mlp.weight",
    ]


def test_plain_sharing_inside_a_block_survives_in_private_parts():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    looped = Looped(Pair(), 2, private=["*.a.*", "*.b.*"])
    assert looped.layers[1].a.weight is looped.layers[1].b.weight
    assert looped.layers[1].a.weight is not looped.layers[0].a.weight
    frozen = Looped(nn.Sequential(nn.Linear(2, 2).requires_grad_(False)), 2, private=["*.bias"])
    assert not frozen.layers[1][0].bias.requires_grad


def test_ties_inside_a_block_hold_in_every_layer():
    block = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied.tie(block, "b.weight", "a.weight.T")
    block.forward = None

    looped = Looped(block, 3)
    with torch.no_grad():
        looped.layers[0]["a"].weight.copy_(torch.arange(9.0).reshape(3, 3))
    for layer in looped.layers:
        assert torch.equal(layer["b"].weight, torch.arange(9.0).reshape(3, 3).t())


# -- low-rank differences ---------------------------------------------------------------------------


def test_differences_start_at_zero():
    torch.manual_seed(0)
    plain, relaxed = Looped(doubled(Block()), 3), Looped(doubled(Block()), 3, rank=2)
    relaxed.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.equal(relaxed(x), plain(x))
    own = {n: p for n, p in relaxed.named_parameters() if "delta" in n}
    assert {name: tuple(p.shape) for name, p in own.items()} == {
        f"layers.{layer}.mlp.weight_delta.{side}": shape
        for layer in (1, 2)
        for side, shape in (("left", (4, 2)), ("right", (2, 4)))
    }
    assert all(p.dtype == torch.float64 for p in own.values())
    assert all(0.2 < p.abs().max() <= 0.5 for name, p in own.items() if name.endswith("right"))


def test_full_rank_holds_any_stack():
    """At full rank the loop can be any untied stack: the first layer as it is, the others by their difference."""
    torch.manual_seed(0)
    looped, wanted = Looped(nn.Linear(4, 4, bias=False), 3, rank=9), [torch.randn(4, 4) for _ in range(3)]
    with torch.no_grad():
        looped.layers[0].weight.copy_(wanted[0])
        for layer, weight in list(zip(looped.layers, wanted, strict=True))[1:]:
            assert layer.weight_delta.left.shape == (4, 4)  # not 9
            layer.weight_delta.left.copy_(weight - wanted[0])
            layer.weight_delta.right.copy_(torch.eye(4))
    for layer, weight in zip(looped.layers, wanted, strict=True):
        torch.testing.assert_close(layer.weight, weight)


def test_a_difference_of_the_first_layer_too_is_twice_the_rank_of_the_others():
    torch.manual_seed(0)
    shared, looped = torch.randn(6, 5).double(), Looped(nn.Linear(5, 6, bias=False), 4, rank=2).double()
    wanted = [shared + torch.randn(6, 1).double() @ torch.randn(1, 5).double() for _ in range(4)]
    with torch.no_grad():
        looped.layers[0].weight.copy_(wanted[0])
        for layer, weight in list(zip(looped.layers, wanted, strict=True))[1:]:
            left, values, right = torch.linalg.svd(weight - wanted[0], full_matrices=False)
            layer.weight_delta.left.copy_(left[:, :2] * values[:2])
            layer.weight_delta.right.copy_(right[:2])
    for layer, weight in zip(looped.layers, wanted, strict=True):
        torch.testing.assert_close(layer.weight, weight, rtol=1e-12, atol=1e-12)


def test_kernels_get_differences_as_matrices():
    looped = Looped(nn.Conv2d(2, 2, 3, padding=1).double(), 2, rank=1)
    delta = looped.layers[1].weight_delta
    assert (tuple(delta.left.shape), tuple(delta.right.shape)) == ((2, 1), (1, 18))
    with torch.no_grad():
        delta.left.normal_()
    expected = looped.layers[0].weight + (delta.left @ delta.right).reshape(2, 2, 3, 3)
    assert torch.equal(looped.layers[1].weight, expected)
    assert repr(delta) == "Delta(2, 18, rank=1)"


def test_what_cannot_have_a_difference_is_shared_without_one():
    block = nn.Module()
    block.codes = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    block.none = nn.Parameter(torch.ones(0, 3))
    block.nothing = nn.Parameter(torch.ones(3, 0))
    looped = Looped(block, 2, rank=1)
    assert not list(looped.layers[1].children())
    assert len(tied.ties(looped)) == 3


def test_differences_are_drawn_anew():
    looped = Looped(nn.Linear(3, 3), 2, rank=1)
    delta = looped.layers[1].weight_delta
    with torch.no_grad():
        delta.left.fill_(5)
        delta.right.fill_(5)
    delta.reset_parameters()
    assert not delta.left.any()
    assert 0 < delta.right.abs().max() <= 3**-0.5


def test_a_transformer_layer_in_evaluation_takes_no_shortcut_around_a_tie():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    looped = Looped(copy.deepcopy(block), 2, rank=1)
    with torch.no_grad():
        for name, parameter in looped.named_parameters():
            if name.endswith("left"):
                parameter.normal_()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    trained = looped.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(looped.eval()(x), trained.detach(), rtol=0, atol=1e-12)


def test_the_blocks_parameters_stay_themselves():
    """An optimizer that was built before, or a name that somebody keeps, still means the block's weights."""
    block = Block()
    own = list(block.parameters())
    looped = Looped(block, 3, private=["*.bias"])
    assert all(one is other for one, other in zip(block.parameters(), own, strict=True))
    assert all(one is other for one, other in zip(looped.layers[0].parameters(), own, strict=True))


class Heavy(nn.Parameter):
    """A Parameter of which nobody shall make a copy."""

    def __deepcopy__(self, memo):
        raise AssertionError("copied")


def test_shared_parameters_are_never_copied():
    block = nn.Linear(3, 3)
    block.weight = Heavy(block.weight.data)
    assert Looped(block, 4, private=["*.bias"]).layers[3].weight is block.weight


def test_repr():
    assert repr(Looped(nn.Identity(), 2, rank=3)).splitlines()[1].strip() == "pattern='cycle', rank=3"
    assert repr(Looped(nn.Identity(), 2)).splitlines()[1].strip() == "pattern='cycle'"


class Entries(nn.Module):
    """A block that returns so many entries."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x):
        return (x,) * self.count


KIND = """\
Looped(ReLU, type, depth=4, pattern='cycle')
  The blocks are not different modules.
  found:    type
  expected: a module, or a list of different ones
  fix:      Looped(block, depth=12); a pattern says which layer is which block
The model was not changed."""

DEPTH = """\
Looped(ReLU, Tanh, depth=1, pattern='cycle')
  The depth or the rank does not fit.
  found:    depth=1 and rank=0 for 2 blocks
  expected: a depth of at least 2, and a rank of at least 0, both whole numbers
  fix:      depth=4
The model was not changed."""

PATTERN = """\
Looped(ReLU, Tanh, depth=6, pattern='sandwich')
  The number of blocks does not fit the pattern 'sandwich' and 6 layers.
  found:    2
  expected: a whole number from 3 to 6
  fix:      another depth, pattern, or number of blocks
The model was not changed."""

TEXT = """\
Looped(ReLU, depth=2, pattern='cycle')
  private is a list of patterns.
  found:    private='*.norm*'
  expected: a list of texts
  fix:      private=['*.norm*']
The model was not changed."""

MIXED = """\
Looped.forward(...)
  The blocks do not return the same kind of output.
  found:    no tuple, 2 entries
  expected: a tensor from every block, or tuples of one length
  fix:      wrap the blocks so that they return the same
The model was not changed."""

relu = nn.ReLU()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Looped([relu, nn.ReLU], 4), tied.KindError, KIND),
        (lambda: Looped([relu, relu], 4), tied.KindError, "found:    one block twice"),
        (lambda: Looped([], 4), tied.KindError, "found:    no blocks"),
        (lambda: Looped(3, 4), tied.KindError, "found:    int"),
        (lambda: Looped([relu, nn.Tanh()], 1), tied.ShapeError, DEPTH),
        (lambda: Looped(relu, 0), tied.ShapeError, "for 1 block\n"),
        (lambda: Looped(relu, 2.0), tied.ShapeError, "found:    depth=2.0"),
        (lambda: Looped(relu, 2, rank=-1), tied.ShapeError, "rank=-1"),
        (lambda: Looped(relu, 2, rank=0.5), tied.ShapeError, "rank=0.5"),
        (lambda: Looped([relu, nn.Tanh()], 6, pattern="sandwich"), tied.ShapeError, PATTERN),
        (lambda: Looped(relu, 6, pattern="spiral"), tied.KindError, "'spiral' is not a pattern of layers."),
        (lambda: Looped(Block(), 2, private=["*.nrom*"]), tied.AddressError, "The private pattern '*.nrom*'"),
        (lambda: Looped(relu, 2, private="*.norm*"), tied.KindError, TEXT),
        (lambda: Looped(relu, 2, private=3), tied.KindError, "found:    private=3"),
        (lambda: Looped([nn.Identity(), nn.LSTM(2, 2)], 2)(torch.zeros(1, 1, 2)), tied.KindError, MIXED),
        (lambda: Looped([Entries(2), Entries(3)], 2)(0), tied.KindError, "found:    2 entries, 3 entries"),
    ],
)
def test_wrong_use(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == message if message.endswith("changed.") else message in str(caught.value)


def test_a_block_whose_weight_is_computed_shares_what_it_is_computed_from() -> None:
    block = parametrizations.weight_norm(nn.Linear(2, 2).double())
    by_hand = copy.deepcopy(block)
    model, x = Looped(block, 3), torch.randn(5, 2).double()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in by_hand.parameters())
    for subject, run in ((model, model), (by_hand, lambda x: by_hand(by_hand(by_hand(x))))):
        optimizer = torch.optim.AdamW(subject.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            run(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(model(x), by_hand(by_hand(by_hand(x))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", ["cycle", "sequence"])
def test_each_layer_has_a_cache_of_its_own(pattern):
    """Decoding word by word with transformers' cache computes what the whole text at once does."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    config = transformers.LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    blocks = [LlamaDecoderLayer(config, number) for number in range(2)]
    stack, place = Looped(blocks, depth=4, pattern=pattern).eval().double(), LlamaRotaryEmbedding(config)
    x, position = torch.randn(1, 5, 16, dtype=torch.float64), torch.arange(5)[None]
    mask = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    cache = transformers.DynamicCache()
    with torch.no_grad():
        whole = stack(x, position_embeddings=place(x, position), attention_mask=mask)
        steps = [
            stack(x[:, i : i + 1], position_embeddings=place(x, position[:, i : i + 1]), past_key_values=cache)
            for i in range(5)
        ]
    assert len(cache.layers) == 4
    assert torch.allclose(torch.cat(steps, 1), whole, rtol=1e-9)
