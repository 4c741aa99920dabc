"""`tied.tension` splits a gradient by use, exactly; the oracle has a tensor of its own for each use.

Each oracle is plain torch: the same model with every use of the weight as a separate leaf, and the definition of
each use differentiated by hand.
"""

import json
import math

import pytest
import torch
from corpus import CASES, Case, LanguageModel, loss, tied_model
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import tied
from tied.proving.claims import Slots, claims
from tied.proving.objective import Objective
from tied.proving.reference import Reference
from tied.proving.tension import tension
from tied.proving.use_gradients import split
from tied.proving.working_copy import working_copy
from tied.reporting.tension import Pull, Tension, to_the_others

TOKENS = torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(3))


def parts_by_hand(case: Case, model: nn.Module, inputs: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """For each leaf: the part through its own slot, and the part through the target of the tie."""
    shell = case.build()
    names = [name for name, _ in shell.named_parameters() if name != case.target]
    fixed = {n: b.detach() for n, b in model.named_buffers()}
    own = {n: model.get_parameter(n).detach().clone().requires_grad_() for n in names}
    through = {n: tensor.detach().clone().requires_grad_() for n, tensor in own.items()}
    target = case.oracle({**fixed, **through})
    loss(functional_call(shell, {**fixed, **own, case.target: target}, (inputs,))).backward()
    zero = torch.zeros
    return {n: tuple(zero(t.shape).double() if t.grad is None else t.grad for t in (own[n], through[n])) for n in names}


def parts_of(model: nn.Module, objective: Objective, seed: int = 0) -> tuple[Reference, dict[str, dict[str, Tensor]]]:
    reference = Reference(working_copy(model), claims(Slots(model)))
    return reference, split(reference, objective, seed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parts_are_those_of_separate_leaves(case: Case) -> None:
    model, inputs = tied_model(case), case.inputs()
    _, parts = parts_of(model, Objective((inputs,), loss))
    for name, (own, through) in parts_by_hand(case, model, inputs).items():
        zeros = torch.zeros_like(own)
        torch.testing.assert_close(parts[name].get(name, zeros), own, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parts[name].get(case.target, zeros), through, rtol=1e-12, atol=1e-12)
        assert set(parts[name]) <= {name, case.target}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parts_add_up_to_the_gradient(case: Case) -> None:
    model, inputs = tied_model(case), case.inputs()
    reference, parts = parts_of(model, Objective((inputs,), loss))
    loss(model(inputs)).backward()
    for name, parameter in model.named_parameters():
        whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        total = sum(parts[name].values(), torch.zeros_like(parameter))
        torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
        assert set(reference.leaves) == set(dict(model.named_parameters()))


class Looped(nn.Module):
    """One layer, called twice; one Parameter, read inside and outside its module."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.options = options
        self.embed = nn.Embedding(9, 4)
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh())

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for _ in range(2):
            hidden = checkpoint(self.layer, hidden, **self.options) if self.options else self.layer(hidden)
        return F.linear(hidden, self.embed.weight)


@pytest.mark.parametrize("options", [{}, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_calls_and_reads_from_outside(options: dict) -> None:
    """The oracle: the loop written out, with a leaf for each use."""
    model = Looped(**options)
    _, parts = parts_of(model, Objective((TOKENS,), loss))
    table, weight, bias = (t.detach().double() for t in (model.embed.weight, *model.layer[0].parameters()))
    leaves = [t.clone().requires_grad_() for t in (table, weight, weight, bias, bias, table)]
    first, w1, w2, b1, b2, last = leaves
    hidden = torch.tanh(F.linear(torch.tanh(F.linear(F.embedding(TOKENS, first), w1, b1)), w2, b2))
    loss(F.linear(hidden, last)).backward()
    expected = {
        "embed.weight": {"embed.weight": first.grad, "embed.weight, read from outside": last.grad},
        "layer.0.weight": {"layer.0.weight, call 1": w1.grad, "layer.0.weight, call 2": w2.grad},
        "layer.0.bias": {"layer.0.bias, call 1": b1.grad, "layer.0.bias, call 2": b2.grad},
    }
    if options.get("use_reentrant"):  # the calls are those of the backward, from the last to the first
        for name in ("layer.0.weight", "layer.0.bias"):
            one, two = expected[name].values()
            expected[name] = {f"{name}, call 1": two, f"{name}, call 2": one}
    assert {name: set(uses) for name, uses in parts.items()} == {name: set(uses) for name, uses in expected.items()}
    for name, uses in expected.items():
        for use, gradient in uses.items():
            torch.testing.assert_close(parts[name][use], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("shared", ["plain", "half-tied", "tied"])
def test_embedding_and_head(shared: str, sparse: bool) -> None:
    model = LanguageModel()
    model.embed = nn.Embedding(9, 4, sparse=sparse)
    if shared == "tied":
        tied.tie(model, "head.weight", "embed.weight")
    else:
        model.head.weight = model.embed.weight if shared == "plain" else nn.Parameter(model.embed.weight.detach())
    (pull,) = tension(model, lambda m: F.cross_entropy(m(TOKENS).flatten(0, 1), TOKENS.flatten())).pulls
    one, two = (model.embed.weight.detach().double().requires_grad_() for _ in range(2))
    F.cross_entropy(F.linear(F.embedding(TOKENS, one).tanh(), two).flatten(0, 1), TOKENS.flatten()).backward()
    assert (pull.weight, pull.uses) == ("embed.weight", ("embed.weight", "head.weight"))
    assert pull.norms[0] == pytest.approx((float(one.grad.norm()), float(two.grad.norm())), rel=1e-12)
    cosine = F.cosine_similarity(one.grad.flatten(), two.grad.flatten(), dim=0)
    assert pull.cosines[0] == (pytest.approx((1, float(cosine))), pytest.approx((float(cosine), 1)))
    assert pull.gradients[0] == pytest.approx(float((one.grad + two.grad).norm()), rel=1e-12)
    assert pull.agreement[0] == pytest.approx(pull.gradients[0] / sum(pull.norms[0]))


def test_a_parameter_held_past_its_slot() -> None:
    class Box(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)
            self.box = [self.layer.weight]

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.layer(x), self.box[0].t())

    _, parts = parts_of(Box(), Objective((torch.randn(3, 4),)))
    assert set(parts["layer.weight"]) == {"layer.weight", "held elsewhere"}


def test_steps_with_and_without_training() -> None:
    model = LanguageModel()
    model.head.weight = model.embed.weight
    before = model.embed.weight.detach().clone()
    batches = [TOKENS, TOKENS, TOKENS]

    def run(m: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(m(batch).flatten(0, 1), batch.flatten())

    still = tension(model, run, batches)
    trained = tension(model, run, batches, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    assert still.steps == trained.steps == 3
    assert len(set(still.pulls[0].gradients)) == 1
    assert len(set(trained.pulls[0].gradients)) == 3
    assert torch.equal(model.embed.weight, before)
    weight = before.double().requires_grad_()
    for step in range(3):
        weight.grad = None
        F.cross_entropy(F.linear(F.embedding(TOKENS, weight).tanh(), weight).flatten(0, 1), TOKENS.flatten()).backward()
        assert trained.pulls[0].gradients[step] == pytest.approx(float(weight.grad.norm()), rel=1e-12)
        with torch.no_grad():
            weight -= 0.5 * weight.grad


def test_uses_that_come_and_go() -> None:
    layer = nn.Linear(2, 2, bias=False)
    model = nn.ModuleList([layer])

    def run(m: nn.ModuleList, times: Tensor) -> Tensor:
        y = torch.ones(1, 2, dtype=torch.float64)
        for _ in range(int(times)):
            y = m[0](y)
        return y.square().sum()

    (pull,) = tension(model, run, [torch.tensor(2), torch.tensor(1), torch.tensor(3)]).pulls
    assert pull.uses == ("0.weight, call 1", "0.weight, call 2", "0.weight", "0.weight, call 3")
    assert [[bool(norm) for norm in norms] for norms in pull.norms] == [
        [True, True, False, False],
        [False, False, True, False],
        [True, True, False, True],
    ]
    assert math.isnan(pull.cosines[0][0][2])
    data = tension(model, run, [torch.tensor(2), torch.tensor(1)]).to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["pulls"][0]["cosines"][0][0][2] is None


def test_frozen_and_single_uses_have_no_tension() -> None:
    model = LanguageModel()
    assert tension(model, lambda m: m(TOKENS).square().mean()).pulls == ()
    model.head.weight = model.embed.weight
    model.extra.requires_grad_(True)
    model.embed.weight.requires_grad_(False)
    assert tension(model, lambda m: m(TOKENS).square().mean() + m.extra.sum()).pulls == ()


def test_half_precision_and_batches_of_any_form() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).bfloat16()
    model[1].weight = model[0].weight
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    found = tension(model, lambda m, batch: (m(batch["x"]) - batch["y"][0]).square().mean(), [{"x": x, "y": [x]}])
    assert found.pulls[0].uses == ("0.weight", "1.weight")


def test_the_loss_is_checked() -> None:
    with pytest.raises(tied.KindError, match=r"tension\(LanguageModel\)\n  The loss is not one real number"):
        tension(LanguageModel(), lambda m: m(TOKENS))


# -- the table and the picture -----------------------------------------------------------------------


def made(norms: list[list[float]], cosine: float) -> Pull:
    matrix = ((1.0, cosine), (cosine, 1.0))
    gradients = [math.sqrt(a * a + b * b + 2 * a * b * cosine) for a, b in norms]
    return Pull("w", ("w", "v"), tuple(map(tuple, norms)), (matrix,) * len(norms), tuple(gradients))


def test_agreement() -> None:
    assert made([[1, 1]], 1).agreement == pytest.approx((1,))
    assert made([[1, 1]], 0).agreement == pytest.approx((math.sqrt(0.5),))
    assert made([[1, 1]], -1).agreement == pytest.approx((0,))
    assert math.isnan(made([[0, 0]], 0).agreement[0])


def test_cosine_to_the_others() -> None:
    """Of three vectors, computed from norms and cosines alone, and directly."""
    vectors = torch.randn(3, 7, dtype=torch.float64)
    norms, cosines = vectors.norm(dim=1), F.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    pull = Pull("w", ("a", "b", "c"), (tuple(norms.tolist()),), (tuple(map(tuple, cosines.tolist())),), (1.0,))
    direct = [float(F.cosine_similarity(v, vectors.sum(0) - v, dim=0)) for v in vectors]
    assert to_the_others(pull)[0].tolist() == pytest.approx(direct)
    assert to_the_others(made([[2, 3]], -0.4))[0].tolist() == pytest.approx([-0.4, -0.4])


def test_text(golden) -> None:
    pulls = (made([[3, 4], [1, 2]], 0.5), made([[1, 1]] * 2, -0.9))
    golden("tension/two.txt", f"{Tension('Model', 2, pulls)}\n")
    many = Pull("w", tuple("abcdefghijk"), ((0.0,) * 11,), (((math.nan,) * 11,) * 11,), (0.0,))
    golden("tension/many.txt", f"{Tension('Model', 1, (many,) * 18)}\n")
    golden("tension/none.txt", f"{Tension('Model', 1, ())}\n")


def test_picture() -> None:
    pytest.importorskip("matplotlib")
    for pulls in ((), (made([[3, 4], [1, 2]], 0.5),), (made([[3, 4], [1, 2]], 0.5),) * 9):
        assert Tension("Model", 2, pulls).to_png()[:8] == b"\x89PNG\r\n\x1a\n"
    assert Tension("Model", 2, ())._repr_png_()


def test_hooks_of_the_weight_change_no_part() -> None:
    """The parts are those of the gradient before a hook clips it; the training has the hook."""
    plain, hooked = LanguageModel(), LanguageModel()
    hooked.load_state_dict(plain.state_dict())
    for model in (plain, hooked):
        model.head.weight = model.embed.weight
    hooked.embed.weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    batches = [TOKENS, TOKENS]
    found = [tension(model, lambda m, tokens: loss(m(tokens)), batches, optimizer="sgd") for model in (plain, hooked)]
    (first,), (second,) = (each.pulls for each in found)
    assert second.uses == first.uses
    assert second.norms[0] == first.norms[0]
    assert second.norms[1] != first.norms[1]
