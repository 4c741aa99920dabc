"""The loss in chunks is `F.cross_entropy` of the scores: values, gradients, errors and not-a-numbers."""

import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tied.nn import TiedEmbedding, cross_entropy, lm_head, products
from tied.nn.cross_entropy import LossRule, Pass, Softmax
from tied.nn.lm_head import Head

TOKENS, WIDTH, WORDS = 23, 5, 17


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make chunks pay for the small heads of these tests, and have several of them."""
    monkeypatch.setattr(lm_head, "FEWEST_SCORES", 1)
    monkeypatch.setattr(cross_entropy, "SMALLEST_CHUNK", 7)
    monkeypatch.setattr(cross_entropy, "FEW_SCORES", 1)
    monkeypatch.setattr(cross_entropy, "WORDS_AT_ONCE", 5)


@pytest.fixture
def passes(monkeypatch):
    """Count the walks over the chunks."""
    found, plain = [], Pass.run

    def counted(self, *arguments):
        found.append(arguments[-1])
        return plain(self, *arguments)

    monkeypatch.setattr(Pass, "run", counted)
    return found


def tensors(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    shapes = [(TOKENS, WIDTH), (WORDS, WIDTH), (WORDS,)]
    targets = torch.randint(0, WORDS, (TOKENS,))
    targets[3:5] = -100
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes], targets


def by_hand(hidden, table, bias, targets, scale=1.0, soft_cap=None, **rule):
    """The oracle: plain torch."""
    scores = functional.linear(hidden * scale, table, bias)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    return functional.cross_entropy(scores, targets, **rule)


def in_chunks(hidden, table, bias, targets, scale=1.0, soft_cap=None, **rule):
    return Head(table, bias, scale=scale, soft_cap=soft_cap).loss(hidden, targets, LossRule(**rule))


def same(found, wanted, bound=1e-12):
    torch.testing.assert_close(found, wanted, rtol=bound, atol=bound, equal_nan=True)


def both(act, bound=1e-12):
    found, wanted = act(in_chunks), act(by_hand)
    same(found, wanted, bound)
    return found


RULES = [
    {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
    for reduction, smoothing, ignored in itertools.product(("mean", "sum", "none"), (0.0, 0.1, 1.0), (-100, 2))
]


def targets_for(rule, targets):
    return torch.where(targets < 0, rule.get("ignore_index", -100), targets)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"soft_cap": 1.5}, {"scale": 0.3, "soft_cap": 1.5}], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients(rule, options, biased, passes):
    def act(loss):
        leaves, targets = tensors()
        hidden, table, bias = leaves if biased else [*leaves[:2], None]
        found = loss(hidden, table, bias, targets_for(rule, targets), **options, **rule)
        weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
        (found * weights * 1.7).sum().backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act)
    assert len(passes) == (2 if rule["reduction"] == "none" else 1)


@pytest.mark.parametrize("chunk", [1, 2, 7, 22, 23, 1000])
def test_size_of_chunks_does_not_matter(chunk, monkeypatch):
    monkeypatch.setattr(cross_entropy, "SMALLEST_CHUNK", chunk)
    monkeypatch.setattr(cross_entropy, "LARGEST_CHUNK", chunk)

    def act(loss):
        leaves, targets = tensors()
        loss(*leaves, targets).backward()
        return [leaf.grad for leaf in leaves]

    both(act)


@pytest.mark.parametrize("block", [1, 2, 16, 17, 1000])
@pytest.mark.parametrize("options", [{}, {"soft_cap": 1.5, "label_smoothing": 0.1}], ids=str)
def test_size_of_blocks_does_not_matter(block, options, monkeypatch):
    monkeypatch.setattr(cross_entropy, "WORDS_AT_ONCE", block)

    def act(loss):
        leaves, targets = tensors()
        found = loss(*leaves, targets, **options)
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act)


INF = float("inf")
EXTREMES = {
    "rising": lambda bias: bias.copy_(torch.linspace(-1e4, 1e4, WORDS)),
    "falling": lambda bias: bias.copy_(torch.linspace(1e4, -1e4, WORDS)),
    "far below nothing": lambda bias: bias.fill_(-1e3),
    "one far above": lambda bias: bias[8].add_(1e4),
    "as far apart as numbers are": lambda bias: bias.copy_(torch.linspace(-1, 1, WORDS).sign() * 1.7e308),
    "a block that cannot be": lambda bias: bias[:5].fill_(-INF),
    "one word that can be": lambda bias: bias[torch.arange(WORDS) != 8].fill_(-INF),
    "no word that can be": lambda bias: bias.fill_(-INF),
    "one block infinite": lambda bias: bias[5:10].fill_(INF),
    "not a number in one block": lambda bias: bias[12].fill_(math.nan),
}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_scores_of_any_size(extreme, smoothing):
    def act(loss):
        leaves, targets = tensors()
        with torch.no_grad():
            EXTREMES[extreme](leaves[2])
        found = loss(*leaves, targets, reduction="none", label_smoothing=smoothing)
        found.nansum().backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act)


def test_equal_scores():
    def act(loss):
        leaves, targets = tensors()
        with torch.no_grad():
            leaves[1].zero_()
            leaves[2].fill_(3.0)
        found = loss(*leaves, targets)
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    loss, *_ = both(act)
    assert abs(loss - math.log(WORDS)) < 1e-12


@pytest.mark.parametrize("library", ["mm", "onednn"])
@pytest.mark.parametrize("options", [{}, {"soft_cap": 3.0, "label_smoothing": 0.1, "scale": 0.5}], ids=str)
def test_either_library_in_single_precision(library, options, monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", library)

    def act(loss, dtype):
        leaves, targets = tensors(torch.float32)
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
        found = loss(*leaves, targets, **options)
        found.backward()
        return [found.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    same(act(in_chunks, torch.float32), act(by_hand, torch.float64), 1e-5)


@pytest.mark.parametrize("wanted", list(itertools.product((True, False), repeat=3)))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_what_is_wanted(wanted, reduction):
    def act(loss):
        leaves, targets = tensors()
        for leaf, needs in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(needs)
        found = loss(*leaves, targets, reduction=reduction).sum()
        if found.requires_grad:
            found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act)


def test_without_gradients_none_are_made(passes, monkeypatch):
    leaves, targets = tensors()
    monkeypatch.setattr(Softmax, "slopes", None)
    with torch.no_grad():
        same(in_chunks(*leaves, targets), by_hand(*leaves, targets))
    assert passes == [(False, False, False)]


VIEWS = {
    "first rows": ((WORDS + 3, WIDTH), lambda w: w[:WORDS]),
    "later rows": ((WORDS + 3, WIDTH), lambda w: w[3:]),
    "every other row": ((2 * WORDS, WIDTH), lambda w: w[::2]),
    "first columns": ((WORDS, WIDTH + 1), lambda w: w[:, :WIDTH]),
    "transposed": ((WIDTH, WORDS), lambda w: w.t()),
    "of a vector": ((WORDS * WIDTH,), lambda w: w.view(WORDS, WIDTH)),
    "of a view": ((WORDS + 3, WIDTH), lambda w: w[:-1].view_as(w[:-1])[:WORDS]),
    "computed": ((WORDS, WIDTH), lambda w: 2 * w),
}


@pytest.mark.parametrize("view", VIEWS)
def test_table_that_is_a_view(view):
    shape, take = VIEWS[view]

    def act(loss):
        leaves, targets = tensors()
        whole = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).view(shape).clone().requires_grad_()
        loss(leaves[0], take(whole), leaves[2], targets).backward()
        return [whole.grad, leaves[0].grad]

    both(act)


# As torch does


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("what", ["all ignored", "empty"])
def test_nothing_to_learn_from(rule, what):
    def act(loss):
        leaves, targets = tensors()
        targets = torch.full_like(targets, rule["ignore_index"])
        hidden = leaves[0]
        if what == "empty":
            hidden, targets = hidden[:0], targets[:0]
        found = loss(hidden, *leaves[1:], targets, **rule)
        found.sum().backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act)


def message_of(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return type(error), str(error)
    return None


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        (WORDS, {}),
        (-1, {}),
        (-100, {"ignore_index": 0}),
        (10**9, {"label_smoothing": 0.1}),
        (0, {"label_smoothing": 2.0}),
        (0, {"reduction": "average"}),
    ],
)
def test_errors_are_those_of_torch(target, rule):
    leaves, targets = tensors()
    targets[11] = target
    found, wanted = (message_of(lambda loss=loss: loss(*leaves, targets, **rule)) for loss in (in_chunks, by_hand))
    assert found == wanted is not None


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float64])
def test_targets_of_another_dtype(dtype):
    leaves, targets = tensors()
    targets = targets.clamp(min=0).to(dtype)
    found, wanted = (message_of(lambda loss=loss: loss(*leaves, targets)) for loss in (in_chunks, by_hand))
    assert found == wanted
    if found is None:
        same(in_chunks(*leaves, targets), by_hand(*leaves, targets))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_that_are_not_finite(value, smoothing):
    def act(loss):
        leaves, targets = tensors(torch.float32)
        with torch.no_grad():
            leaves[2][1] = value
        found = loss(*leaves, targets, reduction="none", label_smoothing=smoothing)
        found.sum().backward()
        return [found.detach(), leaves[0].grad, leaves[2].grad]

    both(act, 1e-5)


# What may be asked of the graph


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("order", ["hth", "tht", "bht"])
def test_gradients_asked_for_one_by_one(reduction, order):
    def act(loss):
        leaves, targets = tensors()
        found = loss(*leaves, targets, reduction=reduction).sum()
        named = dict(zip("htb", leaves, strict=True))
        return [torch.autograd.grad(found, named[name], retain_graph=True)[0] for name in order]

    both(act)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_retained_graph(reduction):
    def act(loss):
        leaves, targets = tensors()
        found = loss(*leaves, targets, reduction=reduction).sum()
        for factor in (1, 2, 3):
            (found * factor).backward(retain_graph=True)
        return [leaf.grad for leaf in leaves]

    both(act)


def test_graph_that_was_not_retained_says_so():
    leaves, targets = tensors()
    found = in_chunks(*leaves, targets)
    found.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        found.backward()


def test_table_changed_between_forward_and_backward_is_noticed():
    leaves, targets = tensors()
    found = in_chunks(*leaves, targets)
    with torch.no_grad():
        leaves[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_double_backward(reduction, soft_cap):
    def act(loss):
        leaves, targets = tensors()
        found = loss(*leaves, targets, reduction=reduction, soft_cap=soft_cap).square().sum()
        grads = torch.autograd.grad(found, leaves, create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
        return [grad.detach() for grad in grads] + [leaf.grad for leaf in leaves]

    both(act)


def test_gradcheck():
    leaves, targets = tensors()
    assert torch.autograd.gradcheck(lambda *t: in_chunks(*t, targets, label_smoothing=0.1, soft_cap=2.0), leaves)


def test_batched_gradients():
    def act(loss):
        leaves, targets = tensors()
        found = loss(*leaves, targets, reduction="none")
        return torch.autograd.grad(found, leaves, torch.eye(TOKENS, dtype=torch.float64), is_grads_batched=True)

    both(act)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at its first jvp
def test_functional_transformations(passes):
    def act(loss):
        leaves, targets = tensors()
        leaves = [leaf.detach() for leaf in leaves]
        each = torch.func.vmap(torch.func.grad(lambda h, t: loss(h[None], *leaves[1:], t[None])))
        return [
            *torch.func.grad(lambda *t: loss(*t, targets), argnums=(0, 1, 2))(*leaves),
            each(leaves[0], targets.clamp(min=0)),
            torch.func.jvp(lambda *t: loss(*t, targets), tuple(leaves), tuple(leaves))[1],
        ]

    both(act)
    assert not passes


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpoints(reentrant):
    def act(loss):
        leaves, targets = tensors()
        checkpoint(lambda h: loss(h, *leaves[1:], targets), leaves[0], use_reentrant=reentrant).backward()
        return [leaf.grad for leaf in leaves]

    both(act)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_exception_in_the_middle_of_backward(reduction):
    def act(loss):
        leaves, targets = tensors()
        angry = [True]

        def once(grad):
            if angry:
                angry.clear()
                raise RuntimeError("once")

        hidden = leaves[0] * 2
        hidden.register_hook(once)
        found = loss(hidden, *leaves[1:], targets, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="once"):
            found.backward(retain_graph=True)
        for leaf in leaves:
            leaf.grad = None
        found.backward()
        return [leaf.grad for leaf in leaves]

    both(act)


def test_compiled(passes):
    def act(loss):
        torch._dynamo.reset()
        leaves, targets = tensors()
        found = torch.compile(lambda *t: loss(*t, targets), fullgraph=True, backend="aot_eager")(*leaves)
        found.backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act)
    assert not passes


# Dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_the_truth_than_torch(dtype):
    def error(loss, kind):
        leaves, targets = tensors()
        leaves = [leaf.detach().to(dtype).to(kind).requires_grad_() for leaf in leaves]
        found = loss(*leaves, targets)
        found.backward()
        assert found.dtype == kind
        assert [leaf.grad.dtype for leaf in leaves] == [kind] * 3
        return [found.detach().double(), *(leaf.grad.double() for leaf in leaves)]

    truth, mine, theirs = error(by_hand, torch.float64), error(in_chunks, dtype), error(by_hand, dtype)
    for exact, found, torchs in zip(truth, mine, theirs, strict=True):
        assert (found - exact).norm() <= 1.2 * (torchs - exact).norm() + 1e-3 * exact.norm()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(reduction, passes):
    def act(loss):
        leaves, targets = tensors(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(*leaves, targets, reduction=reduction)
        assert found.dtype == torch.float32
        found.sum().backward()
        return [found.detach(), *(leaf.grad for leaf in leaves)]

    both(act, 3e-2)
    assert passes


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast_does_not_reach_the_backward_pass(reduction):
    def act(loss):
        leaves, targets = tensors(torch.float32)
        found = loss(*leaves, targets, reduction=reduction).sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=loss is in_chunks):
            found.backward()
        return [leaf.grad for leaf in leaves]

    both(act, 1e-5)


def test_hidden_states_of_another_dtype_get_the_message_of_torch():
    leaves, targets = tensors()
    leaves[0] = leaves[0].detach().float()
    found, wanted = (message_of(lambda loss=loss: loss(*leaves, targets)) for loss in (in_chunks, by_hand))
    assert found == wanted is not None


def test_dtype_of_the_head():
    leaves, targets = tensors(torch.bfloat16)
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    found = Head(*leaves[1:], dtype=torch.float32).loss(leaves[0], targets, LossRule())
    wanted = by_hand(*wide, targets)
    assert found.dtype == torch.float32
    same(found, wanted, 1e-5)
    found.backward()
    wanted.backward()
    for leaf, other in zip(leaves, wide, strict=True):
        same(leaf.grad, other.grad.bfloat16(), 2e-3)


# Memory


def test_no_tensor_has_the_size_of_all_scores(monkeypatch):
    monkeypatch.undo()
    tokens, words = 2048, 4000
    emb = TiedEmbedding(words, 16)
    hidden, targets = torch.randn(tokens, 16, requires_grad=True), torch.randint(0, words, (tokens,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        emb.loss(hidden, targets).backward()
    largest = max(event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    assert largest < tokens * words * 4 / 8
    assert isinstance(emb.weight, nn.Parameter)
