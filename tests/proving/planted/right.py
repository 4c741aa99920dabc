"""Models that look odd and are right; each says why, and what the proof must say of it."""

import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import tied

from .planted import NARROW, TOKENS, WIDE, Autoencoder, Half, LanguageModel, Stack, bench

RIGHT, right = bench()
NOTHING = "It shares nothing."
FROM_OUTSIDE = "encoder.weight has 2 uses: encoder.weight; encoder.weight, read from outside"
TIE = "decoder.weight = encoder.weight.T"
PLAIN = "layers.1.weight = layers.0.weight"


def tied_autoencoder(source: str = "encoder.weight.T") -> nn.Module:
    model = Autoencoder()
    tied.tie(model, "decoder.weight", source)
    return model


def shared_stack() -> nn.Module:
    model = Stack()
    model.layers[1].weight = model.layers[0].weight
    return model


# -- sharing in the forward -------------------------------------------------------------------------------


@right(FROM_OUTSIDE)
def functional_form() -> nn.Module:
    """`F.linear` with the weight of the encoder: both uses are in the graph."""

    class Functional(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            return F.linear(hidden, self.encoder.weight.t())

    return Functional()


@right(FROM_OUTSIDE)
def forward_that_encloses_the_model() -> nn.Module:
    """A closure in the place of a method."""
    model = Half()
    model.decode = lambda hidden: F.linear(hidden, model.encoder.weight.t())
    return model


@right("layers.0.weight has 3 uses: layers.0.weight, call 1; layers.0.weight, call 2; layers.0.weight, call 3")
def one_layer_three_times() -> nn.Module:
    """`[layer] * 3`: one module, one Parameter."""
    return Stack(*[nn.Linear(WIDE, WIDE)] * 3)


@right("weight has 2 uses")
def functional_call_with_the_weight() -> nn.Module:
    """`functional_call` reads what it is given, with its graph."""

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(WIDE, NARROW)
            self.decoder = nn.Linear(NARROW, WIDE)
            self.decoder.weight = None

        def forward(self, x: Tensor) -> Tensor:
            weight = self.encoder.weight.t()
            return functional_call(self.decoder, {"weight": weight}, (torch.tanh(self.encoder(x)),))

    return Called()


@right(FROM_OUTSIDE)
def scaled_gradient_of_one_use() -> nn.Module:
    """One use has a tenth of its gradient, by a difference that is detached."""

    class Scaled(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            weight = self.encoder.weight.t()
            return F.linear(hidden, weight * 0.1 + (weight * 0.9).detach())

    return Scaled()


@right(FROM_OUTSIDE)
def straight_through_quantization() -> nn.Module:
    """The rounding is detached, the weight is not."""

    class Rounded(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            weight = self.encoder.weight.t()
            return F.linear(hidden, weight + ((weight.detach() * 8).round() / 8 - weight.detach()))

    return Rounded()


@right(FROM_OUTSIDE)
def rows_without_a_gradient() -> nn.Module:
    """A mask over the gradient: half of the entries are meant to stay."""

    class Masked(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            weight = self.encoder.weight
            mask = torch.arange(NARROW)[:, None] < 2
            return F.linear(hidden, torch.where(mask, weight, weight.detach()).t())

    return Masked()


# -- plain sharing, and what is put around it -------------------------------------------------------------


@right("head.weight = embed.weight", TOKENS)
def one_parameter_in_two_slots() -> nn.Module:
    """`b.weight = a.weight`."""
    model = LanguageModel()
    model.head.weight = model.embed.weight
    return model


@right("head.weight = embed.0.weight", TOKENS)
def frozen_and_shared() -> nn.Module:
    """A frozen embedding in two slots, under a trained adapter."""
    model = LanguageModel()
    model.head.weight = model.embed.weight.requires_grad_(False)
    model.embed = nn.Sequential(model.embed, nn.Linear(NARROW, NARROW))
    return model


@right("head.weight = embed.weight", TOKENS)
def shared_and_renormalized() -> nn.Module:
    """`max_norm` writes to the weight in each look-up."""
    model = LanguageModel()
    model.embed = nn.Embedding(9, NARROW, max_norm=0.5)
    model.head.weight = model.embed.weight
    return model


@right("head.weight = embed.weight", TOKENS)
def shared_and_sparse() -> nn.Module:
    """One use gives a sparse gradient, the other a dense one."""
    model = LanguageModel()
    model.embed = nn.Embedding(9, NARROW, sparse=True)
    model.head.weight = model.embed.weight
    return model


@right(PLAIN)
def hook_that_scales_the_gradient() -> nn.Module:
    """A hook of the one Parameter sees the sum of both uses."""
    model = shared_stack()
    model.layers[1].weight.register_hook(lambda gradient: 3 * gradient)
    return model


@right(PLAIN)
def hook_that_clips_the_gradient() -> nn.Module:
    """Not linear: clipping the sum is not clipping each part."""
    model = shared_stack()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    return model


@right(TIE)
def hook_on_the_source_of_a_tie() -> nn.Module:
    """The target has no Parameter of its own; the source's hook sees both uses."""
    model = tied_autoencoder()
    model.encoder.weight.register_hook(lambda gradient: gradient.sign())
    return model


@right(PLAIN)
def hook_after_the_gradient_was_accumulated() -> nn.Module:
    """It normalizes the gradient of the one Parameter in place."""
    model = shared_stack()

    def normalize(parameter: Tensor) -> None:
        parameter.grad.div_(parameter.grad.norm() + 1)

    model.layers[0].weight.register_post_accumulate_grad_hook(normalize)
    return model


@right(PLAIN)
def optimizer_in_the_backward() -> nn.Module:
    """A hook steps an optimizer of its own as soon as the gradient is there."""
    model = shared_stack()
    inner = torch.optim.Adam([model.layers[0].weight], lr=1e-2)

    def step(_: Tensor) -> None:
        inner.step()
        inner.zero_grad()

    model.layers[0].weight.register_post_accumulate_grad_hook(step)
    return model


@right(TIE)
def hooks_that_only_look() -> nn.Module:
    """Norms, Gram matrices and histograms of a closed-over weight, in both directions."""
    model, seen = tied_autoencoder(), []

    def look(*_: object) -> None:
        weight = model.encoder.weight.detach()
        seen.append((float(weight.norm()), (weight @ weight.t()).trace(), model.decoder.weight.data.sum()))

    model.decoder.register_forward_hook(look)
    model.decoder.register_full_backward_hook(look)
    model.encoder.weight.register_hook(lambda gradient: look())
    return model


@right("decoder.weight = encoder.weight.T, as the tie itself reads it")
def computed_source() -> nn.Module:
    """The source is normalized by its module."""
    model = tied_autoencoder()
    parametrizations.weight_norm(model.encoder)
    return model


@right("weight has 2 uses")
def parametrization_that_is_another_weight() -> nn.Module:
    """A parametrization that gives another layer's weight."""

    class Transposed(nn.Module):
        def __init__(self, source: nn.Module) -> None:
            super().__init__()
            self.__dict__["source"] = source

        def forward(self, _: Tensor) -> Tensor:
            return self.__dict__["source"].weight.t()

    model = Autoencoder()
    parametrize.register_parametrization(model.decoder, "weight", Transposed(model.encoder))
    model.decoder.parametrizations.weight.original.requires_grad_(False)
    return model


@right("It shares nothing.")
def spectral_norm() -> nn.Module:
    """A power iteration without gradient, over buffers that move."""
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(WIDE, WIDE)), nn.Tanh())


@right("layers.1.weight_v = layers.0.weight_v")
def old_weight_norm_on_both() -> nn.Module:
    """The old `weight_norm`, by a hook that computes an attribute; its two Parameters are shared."""
    model = Stack()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in model.layers[:2]:
            nn.utils.weight_norm(layer)
    model.layers[1].weight_v, model.layers[1].weight_g = model.layers[0].weight_v, model.layers[0].weight_g
    return model


@right("layers.2.weight = layers.0.weight")
def batch_norm_between() -> nn.Module:
    """Running statistics move in each forward."""
    model = Stack(nn.Linear(WIDE, WIDE), nn.BatchNorm1d(WIDE), nn.Linear(WIDE, WIDE))
    model.layers[2].weight = model.layers[0].weight
    return model


@right("two.weight_hh_l0 = one.weight_hh_l0", torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)))
def shared_recurrence() -> nn.Module:
    """torch keeps a list of an LSTM's Parameters besides."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.LSTM(4, 4), nn.LSTM(4, 4)
            self.two.weight_hh_l0 = self.one.weight_hh_l0

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)[0])[0]

    return Two()


def groups_of(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [[p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]]
    return torch.optim.AdamW([{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}])


@right(TIE, optimizer=groups_of)
def groups_of_weight_decay() -> nn.Module:
    """Matrices decay, vectors do not."""
    return tied_autoencoder()


@right("layers.3.weight = layers.0.weight")
def looped() -> nn.Module:
    """One block, four times."""
    return tied.nn.Looped(nn.Linear(WIDE, WIDE), 4)


# -- ties of every kind -----------------------------------------------------------------------------------


def _ties() -> Iterator[str]:
    yield from ("2 * encoder.weight.T", "encoder.weight.T.flip(0).roll(1, 1)", "encoder.weight.exp().T")
    yield from ("encoder.weight.T.detach()", "cat([encoder.weight.T[:4], encoder.weight.T[:2]], 0)")
    yield from ("encoder.weight.flatten().roll(3).reshape(6, 4)", "encoder.weight[:1].T.expand(6, 4)")


for _source in _ties():

    def _build(source: str = _source) -> nn.Module:
        """A tie says what it computes, and `detach()` that no gradient is meant."""
        return tied_autoencoder(source)

    _build.__name__ = f"tie_by_{_source}"
    right(f"decoder.weight = {_source}")(_build)


# -- gradients that take another way ----------------------------------------------------------------------


@right(FROM_OUTSIDE)
def checkpointed() -> nn.Module:
    """The forward is run once more in the backward."""

    class Checkpointed(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            return checkpoint(lambda h: F.linear(h, self.encoder.weight.t()), hidden, use_reentrant=False)

    return Checkpointed()


@right(FROM_OUTSIDE)
def checkpointed_by_reentering() -> nn.Module:
    """The backward runs a graph of its own inside."""

    class Checkpointed(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            return checkpoint(lambda h: F.linear(h, self.encoder.weight.t()), hidden, use_reentrant=True)

    return Checkpointed()


class ByHand(torch.autograd.Function):
    """A product that keeps a transposed copy for the backward."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight.t().contiguous())
        return hidden @ weight

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, transposed = ctx.saved_tensors
        return gradient @ transposed, hidden.t() @ gradient


@right(FROM_OUTSIDE)
def function_of_its_own() -> nn.Module:
    """A custom autograd function computes without a graph, and has a backward."""

    class Custom(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            return ByHand.apply(hidden, self.encoder.weight)

    return Custom()


@right(TIE)
def target_that_is_stopped() -> nn.Module:
    """The goal of the loss is computed without a gradient, from the same weights."""

    class Distilled(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                goal = super().forward(x + 1)
            return super().forward(x) - goal

    model = Distilled()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


@right(NOTHING)
def nearest_code() -> nn.Module:
    """Distances to detached codes choose one, which then has a gradient."""

    class Quantized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.codes = nn.Linear(WIDE, NARROW), nn.Embedding(9, NARROW)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.encoder(x)
            code = self.codes(torch.cdist(hidden, self.codes.weight.detach()).argmin(-1))
            return hidden + (code - hidden).detach() + (code - hidden.detach()).square().mean()

    return Quantized()


@right("Uses in the forward were not told apart: ")
def forward_under_vmap() -> nn.Module:
    """The tie is proved; further uses cannot be told apart there, and the proof says so."""

    class Mapped(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(super().forward)(x)

    model = Mapped()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


# -- weights that are written -----------------------------------------------------------------------------


class Teacher(nn.Module):
    """A student, and a frozen teacher that each forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE).requires_grad_(False)

    @torch.no_grad()
    def move(self) -> None:
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.mul_(0.9).add_(other, alpha=0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.move()
        return self.student(x) - self.teacher(x) / 2


@right(NOTHING)
def average_teacher() -> nn.Module:
    """A moving average is no copy."""
    return Teacher()


@right("teacher.weight = student.weight.detach(), as the forward copies it: without a gradient")
def target_network() -> nn.Module:
    """A frozen copy that is meant: nothing upstream of it is trained."""

    class Copied(Teacher):
        @torch.no_grad()
        def move(self) -> None:
            self.teacher.weight.copy_(self.student.weight)

    return Copied()


@right(NOTHING)
def teacher_in_a_list() -> nn.Module:
    """Hidden from `parameters()`, frozen, and in another dtype than the copy's, unless it is copied along."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.Linear(WIDE, WIDE)
            self.hidden = [AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(0.9)).requires_grad_(False)]

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x) - self.hidden[0](x) / 2

    return Hidden()


@right(NOTHING)
def copied_once() -> nn.Module:
    """The first forward initializes one layer like another, transposed."""

    class Initializes(Autoencoder):
        fresh = True

        def forward(self, x: Tensor) -> Tensor:
            if self.fresh:
                self.decoder.weight.data.copy_(self.encoder.weight.data.t())
                self.fresh = False
            return super().forward(x)

    return Initializes()


@right(NOTHING)
def scaled_by_the_first_batch() -> nn.Module:
    """The first forward gives a weight values that do not depend on its own."""

    class Initializes(Autoencoder):
        fresh = True

        def forward(self, x: Tensor) -> Tensor:
            if self.fresh:
                self.encoder.bias.data.copy_(-F.linear(x, self.encoder.weight).mean(0))
                self.fresh = False
            return super().forward(x)

    return Initializes()


@right(TIE)
def clamped_in_forward() -> nn.Module:
    """A weight that is kept within bounds."""

    class Bounded(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            self.encoder.weight.data.clamp_(-0.2, 0.2)
            return super().forward(x)

    model = Bounded()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


@right(NOTHING)
def parts_of_one_buffer() -> nn.Module:
    """Two weights beside each other in one memory."""
    model, memory = Autoencoder(), torch.randn(48)
    model.encoder.weight.data = memory[:24].view(NARROW, WIDE)
    model.decoder.weight.data = memory[24:].view(WIDE, NARROW)
    return model


@right(PLAIN)
def buffer_over_a_bias() -> nn.Module:
    """A buffer that lies over another Parameter's memory, and moves with it; that has nothing to do with the tie."""

    class Gated(Stack):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gate", self.layers[2].bias.data)
            self.layers[1].weight = self.layers[0].weight

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.gate

    return Gated()


# -- what is random, or counts ----------------------------------------------------------------------------


class Noisy(Autoencoder):
    """Scaled by what a subclass draws."""

    def draw(self) -> float:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.draw()


def noisy(draw: object) -> nn.Module:
    model = Noisy()
    model.draw = draw
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


@right("1.decoder.weight = 1.encoder.weight.T")
def dropout() -> nn.Module:
    """torch's own numbers are seeded alike."""
    return nn.Sequential(nn.Dropout(0.5), tied_autoencoder())


@right(TIE)
def numbers_of_numpy_and_python() -> nn.Module:
    """So are NumPy's and Python's."""
    return noisy(lambda: 1 + np.random.rand() * random.random())


@right(TIE)
def generators_in_attributes() -> nn.Module:
    """Generators of its own are copied with the model."""

    class Draws(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.dice = torch.Generator().manual_seed(1)
            self.others = [np.random.default_rng(1), random.Random(1), np.random.RandomState(1)]

        def draw(self) -> float:
            one, two, three = self.others
            return 1 + float(torch.rand((), generator=self.dice)) + one.random() + two.random() + three.rand()

    model = Draws()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


@right(TIE)
def generator_in_a_closure() -> nn.Module:
    """So is one that a function encloses."""
    dice = torch.Generator().manual_seed(1)
    return noisy(lambda: 1 + float(torch.rand((), generator=dice)))


@right(TIE)
def counter_in_a_closure() -> nn.Module:
    """A warm-up that counts in a list, and one that counts in a variable of the function around it."""
    calls, last = [0], 0

    def draw() -> float:
        nonlocal last
        calls[0] += 1
        last += 1
        return calls[0] + last

    return noisy(draw)


@right(TIE)
def counter_in_an_attribute() -> nn.Module:
    """A schedule that counts its calls."""

    class Counts(Noisy):
        calls = 0

        def draw(self) -> float:
            self.calls += 1
            return self.calls

    model = Counts()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


# -- losses and dtypes ------------------------------------------------------------------------------------


GOAL = torch.randn(8, WIDE, generator=torch.Generator().manual_seed(5))
PENALIZED = tied_autoencoder()


@right(TIE, loss=lambda y: (y - GOAL).square().mean() + PENALIZED.encoder.weight.norm())
def loss_that_names_the_model() -> nn.Module:
    """A penalty on the model's weight, which the loss reaches by itself."""
    return PENALIZED


@right("In float32, as float64 fails with RuntimeError: no kernel for Double")
def float32_only() -> nn.Module:
    """A layer that knows one dtype."""

    class Single(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype != torch.float32:
                raise RuntimeError("no kernel for Double")
            return super().forward(x)

    model = Single()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model
