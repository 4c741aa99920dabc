"""`tied.verify` passes what trains as one weight, and refuses what does not, with the right figures.

The oracle is a model written by hand in float64, in which one tensor is used twice.
"""

import copy
import functools
import threading
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from corpus import CASES, NARROW, WIDE, Autoencoder, Case, LanguageModel, tied_model
from torch import Tensor, nn
from torch.nn import functional as F

import tied
from tied.proving.objective import default_loss
from tied.proving.side_by_side import distance, largest
from tied.proving.verify import OPTIMIZERS, Proof, verify
from tied.proving.working_copy import working_copy

X = torch.randn(8, WIDE, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(3))
EACH_OPTIMIZER = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Small(nn.Module):
    """Linear, tanh, Linear, of 10 + 4 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(WIDE, NARROW)
        self.decoder = nn.Linear(NARROW, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def parameter_of_transpose(model: Small) -> Small:
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())
    return model


def data_alias(model: Small) -> Small:
    model.decoder.weight.data = model.encoder.weight.data.t()
    return model


def copy_hook(model: Small) -> Small:
    def write(decoder: nn.Linear, _: object) -> None:
        with torch.no_grad():
            decoder.weight.copy_(model.encoder.weight.t())

    model.decoder.register_forward_pre_hook(write)
    return model


def copy_hook_by_data(model: Small) -> Small:
    def write(decoder: nn.Linear, _: object) -> None:
        decoder.weight.data.copy_(model.encoder.weight.data.t())

    model.decoder.register_forward_pre_hook(write)
    return model


def alias_hook(model: Small) -> Small:
    def write(decoder: nn.Linear, _: object) -> None:
        decoder.weight.data = model.encoder.weight.data.t()

    model.decoder.register_forward_pre_hook(write)
    return model


def copy_in_forward(model: Small) -> Small:
    class Copies(Small):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.decoder.weight.copy_(self.encoder.weight.t())
            return super().forward(x)

    model.__class__ = Copies
    return model


WRONG = [parameter_of_transpose, data_alias, copy_hook, copy_hook_by_data, alias_hook, copy_in_forward]


def test_a_copy_hook_behind_another_layer() -> None:
    """There autograd needs the source once more, after the hook wrote."""
    model = copy_hook(small())
    with pytest.raises(tied.SharingError, match=r"'1.encoder.weight' and '1.decoder.weight' do not train as one"):
        verify(nn.Sequential(nn.Linear(WIDE, WIDE), model), X)


class Functional(Small):
    def __init__(self) -> None:
        super().__init__()
        del self.decoder
        self.bias = nn.Parameter(torch.zeros(WIDE))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias)


def small(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small()


# -- what is one weight -------------------------------------------------------------------------------


@EACH_OPTIMIZER
@pytest.mark.parametrize("case", CASES, ids=str)
def test_declared_ties_are_proved(case: Case, optimizer: str) -> None:
    model, inputs = tied_model(case), case.inputs()
    proof = verify(model, inputs, optimizer=optimizer)
    assert proof.ties == (f"{case.target} = {case.source}",)
    assert proof.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert max(proof.differences.values()) <= 1e-12
    assert {"loss", "gradient", "clip norm", "value"} <= set(proof.differences)
    assert proof.unused == ()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_tie_that_was_undone_is_no_tie(case: Case) -> None:
    """The equal copy trains otherwise; without the claim it is a model like any other."""
    model = tied_model(case)
    tied.untie(model)
    assert verify(model, case.inputs()).ties == ()
    if "detach" not in case.source:
        with pytest.raises(tied.SharingError, match="do not train as one weight: at step 1 of AdamW"):
            verify(model, case.inputs(), ties={case.target: case.source})


def test_plain_sharing_is_proved() -> None:
    model = LanguageModel()
    model.head.weight = model.embed.weight
    proof = verify(model, TOKENS)
    assert (proof.groups, proof.ties) == ((("embed.weight", "head.weight"),), ("head.weight = embed.weight",))
    assert proof.parameters == 9 * 4 + 2 * 4


@EACH_OPTIMIZER
def test_functional_form_shares_nothing_that_could_part(optimizer: str) -> None:
    proof = verify(Functional(), X, optimizer=optimizer)
    assert (proof.groups, proof.parameters) == ((), 24 + 4 + 6)


# -- what is not --------------------------------------------------------------------------------------


@EACH_OPTIMIZER
@pytest.mark.parametrize("wrong", WRONG)
def test_what_looks_tied_is_refused(wrong, optimizer: str) -> None:
    with pytest.raises(tied.SharingError, match=r"'encoder.weight' and 'decoder.weight' do not train as one weight"):
        verify(wrong(small()), X, optimizer=optimizer)


def figures(error: pytest.ExceptionInfo[tied.SharingError]) -> tuple[list[float], list[float]]:
    """The numbers of the lines `found` and `expected`."""

    def numbers(text: str) -> list[float]:
        return [
            float(word.strip(",;"))
            for word in text.split()
            if word.strip(",;").replace("e-", "").replace(".", "").isdigit()
        ]

    return numbers(error.value.found), numbers(error.value.expected)


def test_figures_are_those_of_a_model_written_by_hand() -> None:
    """Gradient and clip norm, and the first update of AdamW, of one weight used twice."""
    model = parameter_of_transpose(small())
    with pytest.raises(tied.SharingError) as caught:
        verify(model, X, loss=lambda output: output.square().mean())
    w, b, c = (
        p.detach().double().requires_grad_() for p in (model.encoder.weight, model.encoder.bias, model.decoder.bias)
    )

    def one_step(weights: list[Tensor], decoder: Tensor) -> list[float]:
        for tensor in (*weights, b, c):
            tensor.grad = None
        before = w.detach().clone()
        F.linear(torch.tanh(F.linear(X.double(), w, b)), decoder, c).square().mean().backward()
        clip = torch.cat([t.grad.flatten() for t in (*weights, b, c)]).norm()
        norm = w.grad.norm()
        torch.nn.utils.clip_grad_norm_([*weights, b, c], half)
        torch.optim.AdamW([*weights, b, c], lr=1e-3, weight_decay=0.1).step()
        change = (w - before).abs().max()
        with torch.no_grad():
            w.copy_(before)
            b.copy_(model.encoder.bias)
            c.copy_(model.decoder.bias)
        return [float(value.detach()) for value in (norm, clip, change)]

    half = 1e9
    half = one_step([w], w.t())[1] / 2
    expected = one_step([w], w.t())
    alias = w.detach().t().requires_grad_()
    found = one_step([w, alias], alias)
    shown_found, shown_expected = figures(caught)
    assert shown_found == pytest.approx(found, rel=5e-3)
    assert shown_expected == pytest.approx(expected, rel=5e-3)
    assert found[2] > 1.9e-3  # stepped twice
    assert expected[2] < 1.2e-3


def test_message(golden) -> None:
    with pytest.raises(tied.SharingError) as caught:
        verify(parameter_of_transpose(small()), X)
    golden("verify/half-tied.txt", f"{caught.value}\n")


def test_proof_as_text(golden) -> None:
    model = small()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    golden("verify/proof.txt", f"{verify(model, X)}\n")


# -- half-tied in further ways ------------------------------------------------------------------------


def test_assign_leaves_half_tied() -> None:
    model = LanguageModel()
    model.head.weight = model.embed.weight
    model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(tied.SharingError, match=r"without the part of head.weight"):
        verify(model, TOKENS)


def over(buffer: Tensor, *slices: slice) -> nn.Module:
    """A model whose two weights lie over parts of one buffer."""
    model = small()
    first, second = slices
    model.encoder.weight.data = buffer[first].view(NARROW, WIDE)
    model.decoder.weight.data = buffer[second].view(WIDE, NARROW)
    return model


def test_partial_overlap_is_refused() -> None:
    """Neither covers the other: the reference is the memory itself."""
    with pytest.raises(tied.SharingError, match="at step 1") as caught:
        verify(over(torch.randn(36), slice(0, 24), slice(12, 36)), X)
    assert "part of the memory of" not in str(caught.value)


def test_disjoint_views_share_nothing() -> None:
    assert verify(over(torch.randn(48), slice(0, 24), slice(24, 48)), X).ties == ()


def test_a_slice_is_refused() -> None:
    model = small()
    model.encoder.bias = nn.Parameter(model.decoder.weight.detach()[0])
    with pytest.raises(tied.SharingError, match=r"'decoder.weight' and 'encoder.bias'"):
        verify(model, X)


def test_three_over_one_memory() -> None:
    """A short one inside a long one, beside a third: one group."""
    buffer = torch.randn(30)
    model = nn.Sequential(nn.Linear(3, 10), nn.Linear(10, 1), nn.Linear(1, 12))
    model[0].weight.data = buffer.view(10, 3)
    model[1].weight.data = buffer[2:12].view(1, 10)
    model[2].weight.data = buffer[14:26].view(12, 1)
    with pytest.raises(tied.SharingError, match=r"'0.weight', '1.weight' and '2.weight' do not"):
        verify(model, torch.randn(4, 3))


def test_half_tied_and_half_frozen_is_refused() -> None:
    model = parameter_of_transpose(small())
    model.encoder.weight.requires_grad_(False)
    with pytest.raises(tied.SharingError):
        verify(model, X)


def test_a_gradient_of_zero_at_the_other_end_still_decays_twice() -> None:
    """Only the decay of AdamW is off: the second use is multiplied by zero."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = nn.Parameter(model["a"].weight.detach())
    loss = lambda m: (m["a"](torch.eye(3).double()) + 0 * m["b"](torch.eye(3).double())).square().sum()  # noqa: E731
    assert verify(model, loss=loss, optimizer="sgd").unused == ("b.weight",)
    with pytest.raises(tied.SharingError, match="the value is off by"):
        verify(model, loss=loss, optimizer="momentum")


# -- declared elsewhere -------------------------------------------------------------------------------


def cut_by_copying() -> LanguageModel:
    model = LanguageModel()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    return model


def test_a_cut_tie_is_seen_where_it_is_claimed() -> None:
    assert verify(cut_by_copying(), TOKENS).ties == ()
    with pytest.raises(tied.SharingError, match=r"without the part of head.weight"):
        verify(cut_by_copying(), TOKENS, ties={"head.weight": "embed.weight"})


def test_different_values_are_seen_before_the_first_step() -> None:
    with pytest.raises(tied.SharingError, match="have different values before the first step"):
        verify(LanguageModel(), TOKENS, ties={"head.weight": "embed.weight"})


def declares(model: nn.Module, ties: dict[str, str]) -> nn.Module:
    """Declare as models of transformers do."""
    model._tied_weights_keys = model.all_tied_weights_keys = ties
    model.config = SimpleNamespace(tie_word_embeddings=True)
    return model


def test_what_transformers_declares_is_claimed() -> None:
    with pytest.raises(tied.SharingError, match=r"tie_weights\(\)"):
        verify(declares(cut_by_copying(), {"head.weight": "embed.weight"}), TOKENS)
    inside = nn.Sequential(declares(cut_by_copying(), {"head.weight": "embed.weight"}))
    with pytest.raises(tied.SharingError, match=r"'0.embed.weight' and '0.head.weight'"):
        verify(inside, TOKENS)


def test_a_declaration_of_other_names_or_shapes_claims_nothing() -> None:
    assert verify(declares(LanguageModel(), {"head.weight": "gone.weight", "extra": "embed.weight"}), TOKENS).ties == ()


def test_a_claim_that_the_model_makes_itself_is_no_second_one() -> None:
    model = LanguageModel()
    model.head.weight = model.embed.weight
    assert verify(model, TOKENS, ties={"head.weight": "embed.weight"}).ties == ("head.weight = embed.weight",)
    tied.adopt(model)
    assert verify(model, TOKENS, ties={"head.weight": "embed.weight"}).ties == ("head.weight = embed.weight",)


def test_a_tie_that_was_cut_is_still_claimed() -> None:
    """Its target's module was replaced, or its slot overwritten: with another value, or with the same."""
    model = LanguageModel()
    tied.tie(model, "head.weight", "embed.weight")
    model.head = nn.Linear(4, 9, bias=False)
    with pytest.raises(tied.SharingError, match=r"different values before the first step(.|\n)*tied.retie\("):
        verify(model, TOKENS)
    with torch.no_grad():
        model.head.weight.copy_(model.embed.weight)
    with pytest.raises(tied.SharingError, match="do not train as one weight"):
        verify(model, TOKENS)
    tied.retie(model)
    assert verify(model, TOKENS).ties == ("head.weight = embed.weight",)
    model.head.__dict__["_parameters"] = dict(model.head._parameters)
    model.head._parameters["weight"] = nn.Parameter(model.embed.weight.detach().clone())
    with pytest.raises(tied.SharingError, match="do not train as one weight"):
        verify(model, TOKENS)


def test_contradicting_claims_are_refused() -> None:
    model = LanguageModel()
    tied.tie(model, "head.weight", "embed.weight")
    with pytest.raises(tied.SharingError, match=r"h.*= 2 \* embed.weight, and head.weight = embed.weight"):
        verify(model, TOKENS, ties={"head.weight": "2 * embed.weight"})


def test_claims_are_checked() -> None:
    with pytest.raises(tied.AddressError, match=r"did you mean 'head.weight'"):
        verify(LanguageModel(), TOKENS, ties={"heat.weight": "embed.weight"})
    with pytest.raises(tied.AddressError, match=r"'embed.bias'"):
        verify(LanguageModel(), TOKENS, ties={"head.weight": "embed.bias"})
    with pytest.raises(tied.SharingError, match=r"shapes \(9, 4\) and \(4, 9\)"):
        verify(LanguageModel(), TOKENS, ties={"head.weight": "embed.weight.T"})


def test_a_cut_in_a_group_of_three() -> None:
    """Two are half-tied, the third a copy that is declared: all three are one group, whichever is declared."""
    for target, source in (("1.weight", "2.weight"), ("2.weight", "1.weight"), ("0.weight", "2.weight")):
        model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
        model[1].weight = nn.Parameter(model[0].weight.detach())
        model[2].weight = nn.Parameter(model[0].weight.detach().clone())
        with pytest.raises(tied.SharingError, match=r"'0.weight', '\d.weight' and '\d.weight' do not|'2.weight'"):
            verify(model, torch.randn(4, 3), ties={target: source})


# -- models of every kind -----------------------------------------------------------------------------


def test_dropout_is_equal_on_both_sides() -> None:
    model = LanguageModel()
    model.head = nn.Sequential(nn.Dropout(0.5), model.head)
    model.head[1].weight = model.embed.weight
    assert verify(model, TOKENS).differences["value"] == 0


def test_numpy_and_python_dice_are_equal_on_both_sides() -> None:
    class Throws(Small):
        def forward(self, x: Tensor) -> Tensor:
            import random

            import numpy as np

            return super().forward(x * np.random.rand() * random.random())

    assert verify(Throws(), X).differences["loss"] == 0


def test_batch_norm_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(WIDE, WIDE), nn.BatchNorm1d(WIDE), nn.Linear(WIDE, WIDE))
    model[2].weight = model[0].weight
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verify(model, X)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 0.5}, {"padding_idx": 1}])
@pytest.mark.parametrize("declared", [False, True])
def test_embeddings(options: dict, declared: bool) -> None:
    model = LanguageModel()
    model.embed = nn.Embedding(9, 4, **options)
    if declared:
        tied.tie(model, "head.weight", "embed.weight")
    else:
        model.head.weight = model.embed.weight
    assert verify(model, TOKENS).groups == (("embed.weight", "head.weight"),)
    model = LanguageModel()
    model.embed = nn.Embedding(9, 4, **options)
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    with pytest.raises(tied.SharingError):
        verify(model, TOKENS)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.LSTM(4, 4), nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)[0])[0]


def test_recurrent_layers() -> None:
    x = torch.randn(3, 2, 4)
    plain, declared, half = Recurrent(), Recurrent(), Recurrent()
    plain.two.weight_hh_l0 = plain.one.weight_hh_l0
    tied.tie(declared, "two.weight_hh_l0", "one.weight_hh_l0")
    half.two.weight_hh_l0 = nn.Parameter(half.one.weight_hh_l0.detach())
    assert verify(plain, x).ties == verify(declared, x).ties == ("two.weight_hh_l0 = one.weight_hh_l0",)
    with pytest.raises(tied.SharingError):
        verify(half, x)


def test_one_module_at_two_places() -> None:
    layer = nn.Linear(WIDE, WIDE)
    assert verify(nn.Sequential(layer, nn.Tanh(), layer), X).parameters == 42


def test_a_computed_source_is_named() -> None:
    model = small()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    nn.utils.parametrizations.weight_norm(model.encoder)
    proof = verify(model, X)
    assert (proof.ties, proof.late) == ((), ("decoder.weight = encoder.weight.T",))
    assert "as the tie itself reads it" in str(proof)


def test_a_source_that_is_a_buffer() -> None:
    model = Autoencoder()
    model.register_buffer("fixed", torch.randn(NARROW, WIDE))
    tied.tie(model, "decoder.weight", "fixed.T")
    assert verify(model, X).ties == ("decoder.weight = fixed.T",)


def test_compiled_and_parallel_models_are_unwrapped() -> None:
    half = parameter_of_transpose(small())
    for model in (torch.compile(half, backend="eager"), nn.DataParallel(half)):
        with pytest.raises(tied.SharingError, match=r"'encoder.weight'"):
            verify(model, X)


def test_a_frozen_copy_is_no_claim() -> None:
    """A target network, copied at each forward, is not to be trained."""

    class Target(Small):
        def __init__(self) -> None:
            super().__init__()
            self.target = nn.Linear(WIDE, NARROW).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.target.weight.copy_(self.encoder.weight)
            return super().forward(x) + self.target(x).sum()

    assert verify(Target(), X).ties == ()


def test_a_model_that_cannot_compute_in_float64() -> None:
    class Single(Small):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise RuntimeError("Expected Float, got Double")
            return super().forward(x)

    model = Single()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    proof = verify(model, X)
    assert proof.dtype == "float32"
    assert proof.reason == "float64 fails with RuntimeError: Expected Float, got Double"
    assert "3 steps of AdamW in float32" in str(proof)
    assert "In float32, as float64 fails with RuntimeError: Expected Float, got Double" in str(proof)
    assert proof.to_json()["reason"] == proof.reason
    with pytest.raises(tied.SharingError):
        verify(parameter_of_transpose(Single()), X)


def test_half_precision_is_proved_in_float64() -> None:
    model = small().bfloat16()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    assert verify(model, X.bfloat16()).dtype == "float64"


# -- inputs and losses --------------------------------------------------------------------------------


def test_inputs_by_name_and_by_place() -> None:
    class Two(Small):
        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            x.mul_(0.5)  # its own copy
            return super().forward(x) * scale

    x = X.clone()
    verify(Two(), {"x": x, "scale": torch.ones(())})
    assert torch.equal(x, X)
    with pytest.raises(TypeError, match="scale"):
        verify(Two(), x)


def test_the_loss_may_run_the_model() -> None:
    model = parameter_of_transpose(small())
    with pytest.raises(tied.SharingError):
        verify(model, loss=lambda m: m.decoder(m.encoder(X.double())).square().mean())


def test_default_loss() -> None:
    """The output's own loss; else the distance of all that has a gradient to fixed random numbers."""
    y, z = (torch.randn(shape, requires_grad=True) for shape in ((3, 2), (4,)))
    own = y.sum()
    assert default_loss(SimpleNamespace(loss=own, logits=z)) is own

    def by_hand(tensor: Tensor) -> Tensor:
        goal = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel()), dtype=torch.float64)
        return F.mse_loss(tensor, goal.float())

    assert default_loss(y) == by_hand(y)
    nested = {"y": y, "rest": (z, [torch.ones(2), torch.arange(3), None, "text"])}
    torch.testing.assert_close(default_loss(nested), by_hand(y) + by_hand(z))
    torch.testing.assert_close(default_loss({"loss": None, "y": y}), by_hand(y))


def test_default_loss_behind_a_layer_norm_is_no_constant() -> None:
    model = nn.Sequential(nn.Linear(WIDE, WIDE, bias=False), nn.Linear(WIDE, WIDE, bias=False), nn.LayerNorm(WIDE))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    seen: list[list[nn.Parameter]] = []
    with pytest.raises(tied.SharingError):
        verify(model, X, optimizer=lambda p: seen.append(p) or torch.optim.Adam(p))
    assert seen[0][0].grad.norm() > 1e-3


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda y: y, r"not one real number.(.|\n)*shape \(8, 6\)"),
        (lambda y: 3.0, r"not one real number.(.|\n)*float"),
        (lambda y: y.sum() * float("nan"), r"not finite(.|\n)*nan"),
        (lambda y: y.sum().detach(), "does not depend on any parameter"),
        (lambda y: y.sum().to(torch.complex64), "not one real number"),
    ],
)
def test_losses_that_prove_nothing(loss, words: str) -> None:
    with pytest.raises(tied.KindError, match=words):
        verify(small(), X, loss=loss)


def test_nothing_to_run() -> None:
    with pytest.raises(tied.KindError, match="neither inputs nor a loss"):
        verify(small())
    with pytest.raises(tied.KindError, match="Nothing in the model's output has a gradient"):
        verify(nn.Linear(2, 2).requires_grad_(False), torch.randn(1, 2))


def test_gradients_that_are_not_finite() -> None:
    with pytest.raises(tied.KindError, match="gradients are not finite at step 1"):
        verify(small(), X, loss=lambda y: (y * 0).abs().sum().sqrt())


def test_an_optimizer_of_ones_own() -> None:
    model = parameter_of_transpose(small())
    tied.adopt(model, half_tied=True)
    assert verify(model, X, optimizer=lambda p: torch.optim.RMSprop(p, momentum=0.9)).optimizer == "RMSprop"
    with pytest.raises(tied.KindError, match="no optimizer called 'lion'"):
        verify(model, X, optimizer="lion")
    with pytest.raises(tied.KindError, match="steps=0"):
        verify(model, X, steps=0)


def test_gradients_are_clipped_to_half_of_their_first_norm() -> None:
    """Two steps of SGD at a rate of one: the first moves by half of the norm, the second by no more."""
    seen: list[tuple[list[nn.Parameter], list[Tensor]]] = []

    def remembers(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        seen.append((parameters, [parameter.detach().clone() for parameter in parameters]))
        return torch.optim.SGD(parameters, lr=1.0)

    model = Functional()
    verify(model, X, loss=lambda y: y.square().sum(), steps=1, optimizer=remembers)
    by_hand = copy.deepcopy(model).double()
    by_hand(X.double()).square().sum().backward()
    norm = float(torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm())
    for parameters, before in seen:
        moved = torch.cat([(p - q).flatten() for p, q in zip(parameters, before, strict=True)]).detach().norm()
        assert float(moved) == pytest.approx(norm / 2, rel=1e-6)
    assert len(seen) == 2


def test_a_difference_of_a_later_step_is_found() -> None:
    """A copy that is refreshed before each forward but lags: at the first step it is right."""
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    with torch.no_grad():
        model["b"].weight.copy_(model["a"].weight)
    loss = lambda m: m["a"](torch.eye(3).double()).square().sum()  # noqa: E731  (the second is not used)
    with pytest.raises(tied.SharingError, match="at step 1 of SGD in float64 the value"):
        verify(model, loss=loss, ties={"b.weight": "a.weight"}, optimizer="sgd")
    late = [torch.optim.SGD]

    def starts_late(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.0)
        optimizer.register_step_post_hook(lambda o, *_: o.param_groups[0].update(lr=0.1))
        return optimizer

    with pytest.raises(tied.SharingError, match="at step 2 of SGD in float64 the value"):
        verify(model, loss=loss, ties={"b.weight": "a.weight"}, optimizer=starts_late)
    assert late
    assert verify(model, loss=loss, ties={"b.weight": "a.weight"}, optimizer=starts_late, steps=1)


CALLS = [0]


class Counts(Small):
    """Scaled by what a function of the number of calls says, of all instances together."""

    def __init__(self, scale) -> None:
        super().__init__()
        self.scale = scale
        CALLS[0] = 0

    def forward(self, x: Tensor) -> Tensor:
        CALLS[0] += 1
        return super().forward(x) * self.scale(CALLS[0])


DICE = torch.Generator()
NOT_TWICE = {
    "counter": lambda calls: calls,
    "every other call": lambda calls: 1 + calls % 2,
    "warm-up over the first calls": lambda calls: min(calls, 5),
    "one call, later": lambda calls: 1 + (calls == 5),
    "global generator": lambda calls: torch.rand((), generator=DICE),
    "clock": lambda calls: time.perf_counter_ns(),
}


@pytest.mark.parametrize("what", NOT_TWICE)
@pytest.mark.parametrize("shared", ["not", "tied", "plain"])
def test_a_model_that_does_not_do_the_same_twice_is_not_accused(what: str, shared: str) -> None:
    model = Counts(NOT_TWICE[what])
    if shared == "tied":
        tied.tie(model, "decoder.weight", "encoder.weight.T")
    if shared == "plain":
        model.decoder.bias = nn.Parameter(torch.zeros(WIDE))
        model.encoder = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE), model.encoder)
        model.encoder[1].weight = model.encoder[0].weight
    with pytest.raises(tied.KindError, match="does not do the same twice"):
        verify(model, X)


def test_message_of_a_model_that_does_not_do_the_same_twice(golden) -> None:
    model = Counts(NOT_TWICE["counter"])
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    with pytest.raises(tied.KindError) as caught:
        verify(model, X, loss=lambda y: y.square().mean())
    golden("verify/not-twice.txt", f"{caught.value}\n")


def test_an_optimizer_of_the_original_is_refused(golden) -> None:
    """Else nothing would be stepped on either side, and all would be equal."""
    model = small()
    with pytest.raises(tied.KindError) as caught:
        verify(model, X, optimizer=lambda _: torch.optim.SGD(model.parameters(), lr=0.1))
    golden("verify/optimizer-of-the-original.txt", f"{caught.value}\n")


def test_a_loss_that_is_no_function(golden) -> None:
    x, model = X, small()
    loss = model(x).square().mean()
    with pytest.raises(tied.KindError, match=r"no function(.|\n)*found: *a tensor of shape \(\)"):
        verify(model, x, loss=loss)
    with pytest.raises(tied.KindError) as caught:
        tied.tension(model, loss)
    golden("verify/loss-of-tension.txt", f"{caught.value}\n")


def test_what_differs_where_nothing_claims_to_share(golden) -> None:
    """A forward that looks at what stands in a slot: in the reference that is no Parameter."""

    class Looks(Small):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach() * 0 + self.decoder.bias + (type(self.decoder.weight) is nn.Parameter)

    model = Looks()
    model.encoder.weight = nn.Parameter(torch.ones(NARROW, WIDE))
    model.decoder = nn.Linear(WIDE, NARROW)
    model.decoder.weight = model.encoder.weight
    model.encoder = nn.Sequential(model.encoder, nn.Linear(NARROW, WIDE))
    with pytest.raises(tied.SharingError) as caught:
        verify(model, X, loss=lambda y: y.sum())
    golden("verify/parted-alone.txt", f"{caught.value}\n")


# -- functions and hooks of the copy --------------------------------------------------------------------


def test_a_copy_has_functions_and_hooks_of_its_own() -> None:
    """Closures, defaults, partials, methods and recursive functions reach the copy; what cannot be copied stays."""
    model, lock, calls = small(), threading.Lock(), [0]

    def by_closure(*_: object) -> list[object]:
        calls[0] += 1
        return [model, lock, by_closure]

    def by_default(held: nn.Module = model, *, also: Tensor = model.encoder.weight) -> list[object]:
        return [held, also]

    model.functions = [by_closure, by_default, functools.partial(lambda held: held, model), (model.forward, len)]
    model.encoder.weight.register_hook(lambda gradient: by_closure() and gradient)
    copied = working_copy(model)
    closure, default, part, (method, builtin) = copied.functions
    assert closure()[0] is copied
    assert closure()[1] is lock
    assert closure()[2] is closure
    assert default()[0] is copied
    assert default()[1] is copied.encoder.weight
    assert part() is copied
    assert method.__self__ is copied
    assert builtin is len
    copied(X.double()).sum().backward()
    assert (closure()[2] is by_closure, calls) == (False, [0])
    assert len(copied.encoder.weight._backward_hooks) == 1
    assert by_closure()[0] is model


# -- what cannot be copied ----------------------------------------------------------------------------


def test_a_copy_that_reads_the_original_is_refused() -> None:
    class Weak(nn.Module):
        def __init__(self, encoder: nn.Linear) -> None:
            super().__init__()
            self.__dict__["encoder"] = weakref.ref(encoder)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.__dict__["encoder"]().weight.t())

    model = small()
    model.decoder = Weak(model.encoder)
    with pytest.raises(tied.SharingError, match=r"the copy reads encoder.weight of the original"):
        verify(model, X)
    assert model.encoder.weight.grad is None


def test_models_without_values() -> None:
    for model, words in ((small().to("meta"), "meta device"), (nn.LazyLinear(3), "lazy module")):
        with pytest.raises(tied.KindError, match=words):
            verify(model, X)


def test_models_that_cannot_be_copied() -> None:
    model = small()
    model.lock = threading.Lock()
    with pytest.raises(tied.KindError, match=r"cannot be copied(.|\n)*lock"):
        verify(model, X)


def test_two_dtypes_over_one_memory() -> None:
    model = small()
    model.decoder.weight.data = model.encoder.weight.data.view(torch.bfloat16).view(-1)[:24].view(WIDE, NARROW)
    with pytest.raises(tied.DtypeError, match=r"torch.bfloat16, torch.float32"):
        verify(model, X)


# -- the model stays as it was ------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [*WRONG, lambda model: model])
def test_the_model_stays_as_it_was(wrong) -> None:
    model = wrong(small())
    if wrong is not copy_in_forward:
        model.eval()
    model.encoder.bias.requires_grad_(False)
    model.encoder.weight.grad = torch.ones(NARROW, WIDE)
    with torch.no_grad():
        model.decoder.bias.add_(1)
    kept = copy.deepcopy({name: tensor.detach() for name, tensor in model.named_parameters()})
    places = {name: (id(p), p.data_ptr(), p.requires_grad, p.dtype) for name, p in model.named_parameters()}
    modes, dice = [module.training for module in model.modules()], torch.get_rng_state()
    with torch.no_grad():
        try:
            verify(model, X)
        except tied.SharingError:
            assert wrong in WRONG
        assert not torch.is_grad_enabled()
    assert {name: (id(p), p.data_ptr(), p.requires_grad, p.dtype) for name, p in model.named_parameters()} == places
    assert all(torch.equal(kept[name], parameter) for name, parameter in model.named_parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), dice)
    assert torch.equal(model.encoder.weight.grad, torch.ones(NARROW, WIDE))
    assert model.decoder.weight.grad is None


def test_in_inference_mode() -> None:
    model = small()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    with torch.inference_mode():
        assert verify(model, X).ties


def test_proof_as_data() -> None:
    import json

    model = small()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    data = verify(model, X).to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["groups"] == [["encoder.weight", "decoder.weight"]]
    assert isinstance(verify(model, X), Proof)


# -- what counts as a difference --------------------------------------------------------------------------


def test_distances():
    inf, nan = float("inf"), float("nan")
    assert distance(torch.zeros(2), torch.zeros(3)) == inf
    assert distance(torch.zeros(1), torch.zeros(3)) == inf  # though torch would broadcast
    assert distance(torch.tensor([1.0, nan, inf]), torch.tensor([1.0, nan, inf])) == 0
    assert distance(torch.tensor([1.0, nan]), torch.tensor([1.0, 2.0])) == inf
    assert distance(torch.tensor([inf]), torch.tensor([-inf])) == inf
    assert distance(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.5])) == 2.5
    assert distance(torch.tensor([True, False]), torch.tensor([True, True])) == 1
    assert distance(torch.zeros(0), torch.zeros(0)) == 0
    assert [largest(torch.tensor(t)) for t in ([True, False], [2, -3], [0.5, -0.25])] == [1, 3, 0.5]
