"""Models that look as if a weight were shared, and do not train as if it were; each says why."""

import functools
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import tied

from .planted import NARROW, TOKENS, WIDE, Autoencoder, Half, LanguageModel, Stack, bench

WRONG, wrong = bench()
PARTED = r"'encoder.weight' and 'decoder.weight' do not train as one weight: at step 1 of AdamW in float64"
CUT_OFF = r"'encoder.weight' does not train as one weight: a use of it in the forward is cut off from its gradient"
STRAY = r"computes with a Parameter that is not in model.parameters\(\)"


# -- two Parameters over one memory -----------------------------------------------------------------------


@wrong(PARTED)
def parameter_of_transpose() -> nn.Module:
    """Two Parameters over one memory: each is stepped by its own part of the gradient."""
    model = Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.t())
    return model


@wrong(r"'embed.weight' and 'head.weight' do not train as one weight", TOKENS)
def parameter_of_the_weight() -> nn.Module:
    """`nn.Parameter(w)` makes another Parameter of the same memory."""
    model = LanguageModel()
    model.head.weight = nn.Parameter(model.embed.weight)
    return model


@wrong(PARTED)
def data_of_transpose() -> nn.Module:
    """`.data =` shares the memory, not the Parameter."""
    model = Autoencoder()
    model.decoder.weight.data = model.encoder.weight.data.t()
    return model


@wrong(r"'encoder.weight' and 'decoder.weight' do not train as one weight: at step 1(.|\n)*without the part of decoder")
def one_of_them_with_a_hook_that_halves() -> nn.Module:
    """Half-tied, and the gradients of the two are scaled by different amounts."""
    model = parameter_of_transpose()
    model.decoder.weight.register_hook(lambda gradient: gradient / 2)
    return model


@wrong(PARTED)
def one_of_them_is_frozen() -> nn.Module:
    """The frozen end moves with the memory of the other, whose gradient lacks its part."""
    model = parameter_of_transpose()
    model.decoder.weight.requires_grad_(False)
    return model


@wrong(PARTED)
def the_source_is_frozen() -> nn.Module:
    """`requires_grad_(False)` on one end does not freeze the memory."""
    model = parameter_of_transpose()
    model.encoder.weight.requires_grad_(False)
    return model


@wrong(r"'encoder.bias' do not train as one weight")
def a_row_as_a_bias() -> nn.Module:
    """A part of a weight is stepped twice."""
    model = Autoencoder()
    model.encoder.bias = nn.Parameter(model.decoder.weight.detach()[0])
    return model


@wrong(r"'encoder.weight' and 'decoder.weight' do not train as one weight")
def overlapping_parts_of_a_buffer() -> nn.Module:
    """Neither covers the other; the middle is stepped twice."""
    model, memory = Autoencoder(), torch.randn(36)
    model.encoder.weight.data = memory[:24].view(NARROW, WIDE)
    model.decoder.weight.data = memory[12:].view(WIDE, NARROW)
    return model


@wrong(r"'layers.0.weight', 'layers.1.weight' and 'layers.2.weight' do not train as one weight")
def a_parameter_for_each_layer() -> nn.Module:
    """One memory in a loop of Parameters: stepped three times."""
    model = Stack()
    for layer in model.layers[1:]:
        layer.weight = nn.Parameter(model.layers[0].weight.detach())
    return model


@wrong(r"do not train as one weight", torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)))
def half_tied_recurrence() -> nn.Module:
    """The recurrent weights of two LSTMs over one memory."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.LSTM(4, 4), nn.LSTM(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x)[0])[0]

    model = Two()
    model.two.weight_hh_l0 = nn.Parameter(model.one.weight_hh_l0.detach())
    return model


@wrong(r"'embed.weight' and 'head.weight' do not train as one weight", TOKENS)
def drifts_after_load_with_assign() -> nn.Module:
    """`load_state_dict(assign=True)` gives each name a Parameter of its own over one memory."""
    model = LanguageModel()
    model.head.weight = model.embed.weight
    model.load_state_dict(model.state_dict(), assign=True)
    return model


@wrong(r"'layers.0.weight' and 'layers.1.weight_v' do not train as one weight")
def weight_norm_on_one_side() -> nn.Module:
    """The old `weight_norm` makes Parameters of its own over the shared memory."""
    import warnings

    model = Stack()
    model.layers[1].weight = model.layers[0].weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.layers[1])
    return model


@wrong(r"'student.layers.0.weight' and 'teacher.module.layers.0.weight' do not train as one weight")
def average_over_the_memory_of_its_model() -> nn.Module:
    """An average that lies over the model's own memory averages nothing, and is stepped besides."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = Stack()
            self.teacher = AveragedModel(self.student)
            for own, averaged in zip(self.student.parameters(), self.teacher.module.parameters(), strict=True):
                averaged.data = own.data

        def forward(self, x: Tensor) -> Tensor:
            return self.student(x) - self.teacher(x) / 2

    return Both()


# -- copies that a forward or a hook makes ----------------------------------------------------------------


def copy_weight(model: nn.Module, *_: object) -> None:
    model.decoder.weight.data.copy_(model.encoder.weight.data.t())


def hooked(hook: object) -> nn.Module:
    model = Autoencoder()
    model.register_forward_pre_hook(hook)
    return model


@wrong(PARTED)
def hook_that_is_given_the_model() -> nn.Module:
    """What is trained of the copy is thrown away, and the weight lacks the copy's part of the gradient."""
    return hooked(copy_weight)


@wrong(PARTED)
def hook_that_encloses_the_model() -> nn.Module:
    """As most hooks that copy: the model is reached by a closure."""
    model = Autoencoder()
    model.register_forward_pre_hook(lambda *_: copy_weight(model))
    return model


@wrong(PARTED)
def hook_that_encloses_the_weight() -> nn.Module:
    """The closure holds the Parameter, not the module."""
    model = Autoencoder()
    weight = model.encoder.weight

    def hook(decoder: nn.Module, _: object) -> None:
        with torch.no_grad():
            decoder.weight.copy_(weight.t())

    model.decoder.register_forward_pre_hook(hook)
    return model


@wrong(PARTED)
def hook_by_partial() -> nn.Module:
    """The model is an argument of `functools.partial`."""
    model = Autoencoder()
    model.decoder.register_forward_pre_hook(functools.partial(lambda held, *_: copy_weight(held), model))
    return model


@wrong(PARTED)
def hook_by_default_argument() -> nn.Module:
    """The model is a default."""
    model = Autoencoder()

    def hook(_: object, __: object, held: nn.Module = model) -> None:
        copy_weight(held)

    model.decoder.register_forward_pre_hook(hook)
    return model


@wrong(PARTED)
def hook_by_method() -> nn.Module:
    """The hook is a method of the model."""

    class Copies(Autoencoder):
        def __init__(self) -> None:
            super().__init__()
            self.decoder.register_forward_pre_hook(self.copy)

        def copy(self, *_: object) -> None:
            copy_weight(self)

    return Copies()


@wrong(PARTED)
def hook_by_method_of_a_trainer() -> nn.Module:
    """The hook is a method of something that holds the model, in a list."""

    class Trainer:
        def __init__(self, model: nn.Module) -> None:
            self.models = [model]

        def copy(self, *_: object) -> None:
            copy_weight(self.models[0])

    model = Autoencoder()
    trainer = Trainer(model)
    model.register_forward_pre_hook(lambda *_: trainer.copy())
    return model


GLOBAL: list[nn.Module] = []


def copy_global(*_: object) -> None:
    copy_weight(GLOBAL[-1])


@wrong(PARTED)
def hook_by_a_global() -> nn.Module:
    """The hook names a global, as in a script."""
    GLOBAL.append(hooked(copy_global))
    return GLOBAL[-1]


class ReadsGlobal(Half):
    def decode(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, GLOBAL[-1].encoder.weight.t())


@wrong(r"computes with the model's own tensors(.|\n)*the copy reads encoder.weight of the original")
def forward_that_names_a_global() -> nn.Module:
    """No copy of it reads its own weight: neither EMA nor a checkpoint keeps the tie."""
    GLOBAL.append(ReadsGlobal())
    return GLOBAL[-1]


@wrong(PARTED)
def hook_after_the_backward() -> nn.Module:
    """A full backward hook copies."""
    model = Autoencoder()
    model.decoder.register_full_backward_hook(lambda *_: copy_weight(model))
    return model


@wrong(PARTED)
def hook_after_the_gradient() -> nn.Module:
    """A hook of the Parameter copies when its gradient is there."""
    model = Autoencoder()
    model.encoder.weight.register_post_accumulate_grad_hook(lambda *_: copy_weight(model))
    return model


@wrong(PARTED)
def copy_in_forward() -> nn.Module:
    """The forward itself copies."""

    class Copies(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.decoder.weight.copy_(self.encoder.weight.t())
            return super().forward(x)

    return Copies()


@wrong(r"'decoder.weight' and 'encoder.weight' do not train as one weight")
def copy_the_other_way() -> nn.Module:
    """The encoder is overwritten by the decoder: the last one to write wins."""

    class Copies(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            self.encoder.weight.data.copy_(self.decoder.weight.data.t())
            return super().forward(x)

    return Copies()


@wrong(r"'decoder.weight' is overwritten in each forward, so that what its optimizer steps is lost")
def copy_of_a_multiple() -> nn.Module:
    """What is copied is no Parameter as it is."""

    class Copies(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            self.decoder.weight.data.copy_(2 * self.encoder.weight.data.t())
            return super().forward(x)

    return Copies()


@wrong(PARTED)
def memory_laid_over_in_a_hook() -> nn.Module:
    """A hook gives the copy the memory of the weight."""

    def hook(model: nn.Module, _: object) -> None:
        model.decoder.weight.data = model.encoder.weight.data.t()

    return hooked(hook)


@wrong(CUT_OFF + r"(.|\n)*decoder.weight, a frozen copy(.|\n)*'decoder.weight', 'encoder.weight.T.detach\(\)'")
def copy_into_a_frozen_weight() -> nn.Module:
    """The gradient goes through the frozen copy, and has no part for it."""
    model = hooked(copy_weight)
    model.decoder.weight.requires_grad_(False)
    return model


# -- a use past the gradient --------------------------------------------------------------------------------


@wrong(CUT_OFF + r"(.|\n)*aten.mm reads it by .data, .detach\(\) or a copy")
def data_in_forward() -> nn.Module:
    """`.data` takes the use out of the graph."""

    class Cut(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            return F.linear(hidden, self.encoder.weight.data.t())

    return Cut()


@wrong(CUT_OFF)
def detach_in_forward() -> nn.Module:
    """So does `.detach()`, also of a multiple."""

    class Cut(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            return F.linear(hidden, 2 * self.encoder.weight.t().detach())

    return Cut()


@wrong(CUT_OFF)
def copy_without_a_gradient() -> nn.Module:
    """A contiguous copy made under `no_grad`."""

    class Cut(Half):
        def decode(self, hidden: Tensor) -> Tensor:
            with torch.no_grad():
                weight = self.encoder.weight.t().contiguous()
            return F.linear(hidden, weight)

    return Cut()


@wrong(r"'head.weight' does not train as one weight: a use of it(.|\n)*aten.embedding reads it", TOKENS)
def lookup_in_the_data_of_the_head() -> nn.Module:
    """There is nothing before the look-up that could have a gradient; it is missing all the same."""

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(NARROW, 9)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(F.embedding(tokens, self.head.weight.data)))

    return Cut()


@wrong(CUT_OFF)
def stale_cache() -> nn.Module:
    """The first forward keeps a copy, which no later step changes."""

    class Caches(Half):
        cache = None

        def decode(self, hidden: Tensor) -> Tensor:
            if self.cache is None:
                self.cache = self.encoder.weight.detach().t().clone()
            return F.linear(hidden, self.cache)

    return Caches()


@wrong(CUT_OFF)
def buffer_instead_of_a_parameter() -> nn.Module:
    """A buffer over the weight's memory moves with it, and gives no gradient."""

    class Buffered(Half):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", self.encoder.weight.data.t())

        def decode(self, hidden: Tensor) -> Tensor:
            return F.linear(hidden, self.weight)

    return Buffered()


@wrong(CUT_OFF)
def functional_call_with_detached_tensors() -> nn.Module:
    """The state dict of the encoder holds no graph."""

    class Called(Half):
        def __init__(self) -> None:
            super().__init__()
            self.shell = [nn.Linear(NARROW, WIDE, bias=False).requires_grad_(False)]

        def decode(self, hidden: Tensor) -> Tensor:
            weight = self.encoder.state_dict()["weight"]
            return functional_call(self.shell[0], {"weight": weight.t()}, (hidden,))

    return Called()


# -- a Parameter that no optimizer sees -------------------------------------------------------------------


@wrong(STRAY)
def old_parameter_in_a_list() -> nn.Module:
    """The list keeps the Parameter that was there before the slot got another."""

    class Keeps(Half):
        def __init__(self) -> None:
            super().__init__()
            self.kept = [self.encoder.weight]
            self.encoder.load_state_dict({n: t.clone() for n, t in self.encoder.state_dict().items()}, assign=True)

        def decode(self, hidden: Tensor) -> Tensor:
            return F.linear(hidden, self.kept[0].t())

    return Keeps()


@wrong(STRAY)
def old_parameter_in_a_closure() -> nn.Module:
    """The same, in the closure of a function that is an attribute."""
    model = Half()
    weight = model.encoder.weight
    model.decode = lambda hidden: F.linear(hidden, weight.t())
    model.encoder.weight = nn.Parameter(weight.detach().clone())
    return model


@wrong(r"'decoder.weight' is another Parameter after each forward, which no optimizer has")
def new_parameter_in_each_forward() -> nn.Module:
    """The optimizer steps the one that was there at first."""

    class Replaces(Autoencoder):
        def forward(self, x: Tensor) -> Tensor:
            self.decoder.weight = nn.Parameter(self.encoder.weight.t())
            return super().forward(x)

    return Replaces()


# -- claimed, and cut -------------------------------------------------------------------------------------


@wrong(PARTED, ties={"decoder.weight": "encoder.weight.T"})
def tied_initialization() -> nn.Module:
    """An equal copy, of which the user says that it shall be one weight."""
    model = Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().t().clone())
    return model


@wrong(r"different values before the first step(.|\n)*tied.retie")
def tie_whose_module_was_replaced() -> nn.Module:
    """The tie went with the module that read it."""
    model = Autoencoder()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    model.decoder = nn.Linear(NARROW, WIDE)
    return model


@wrong(r"'embed.weight' and 'head.weight' do not train as one weight(.|\n)*tie_weights\(\)", TOKENS)
def declared_as_transformers_do_and_not_tied() -> nn.Module:
    """The configuration asks for a tie, which a copy undid."""
    model = LanguageModel()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    model._tied_weights_keys = model.all_tied_weights_keys = {"head.weight": "embed.weight"}
    model.config = SimpleNamespace(tie_word_embeddings=True)
    return model
