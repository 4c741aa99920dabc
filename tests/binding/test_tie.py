"""Declaring: what `tie` takes, what it refuses, and that a refusal changes nothing."""

import copy
import pickle

import pytest
import torch
from snapshot import refused, snapshot
from torch import nn

import tied


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(4, 6)
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.theta = nn.Parameter(torch.randn(7))
        self.register_buffer("index", torch.randint(0, 7, (6, 4)))


@pytest.fixture
def model() -> Model:
    return Model()


def test_returns_the_new_ties(model: Model) -> None:
    made = tied.tie(model, {"decoder.weight": "encoder.weight.t()", "head.weight": "embed.weight"})
    assert [str(tie) for tie in made] == ["decoder.weight = encoder.weight.T", "head.weight = embed.weight"]
    assert made == tied.ties(model)


def test_class_name_and_isinstance_stay(model: Model) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    assert isinstance(model.decoder, nn.Linear)
    assert type(model.decoder).__name__ == "Linear"
    assert repr(model.decoder) == "Linear(in_features=4, out_features=6, bias=True, weight=encoder.weight.T)"
    assert model.head.weight is not model.embed.weight
    tied.tie(model, "head.weight", "embed.weight")
    assert model.head.weight is model.embed.weight


def test_an_expression_object_is_as_good_as_text(model: Model) -> None:
    tied.tie(model, "decoder.weight", 2 * tied.ref("encoder.weight").T)
    assert torch.equal(model.decoder.weight, 2 * model.encoder.weight.t())


def test_addresses_with_brackets() -> None:
    stack = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    assert str(tied.tie(stack, "1.weight", "0.weight")[0]) == "1.weight = 0.weight"
    named = nn.ModuleDict({"my block": nn.Linear(3, 3), "T": nn.Linear(3, 3)})
    made = tied.tie(named, "T.weight", '["my block"].weight.T')
    assert str(made[0]) == 'T.weight = ["my block"].weight.T'
    assert torch.equal(named["T"].weight, named["my block"].weight.t())


def test_chains_resolve_to_their_root(model: Model) -> None:
    model.third = nn.Linear(6, 4)
    tied.tie(model, "third.weight", "decoder.weight.T")
    assert [str(t) for t in tied.ties(model)] == ["third.weight = decoder.weight.T"]
    made = tied.tie(model, "decoder.weight", "2 * encoder.weight.T")
    assert [str(t) for t in made] == ["decoder.weight = 2 * encoder.weight.T"]
    assert {str(t) for t in tied.ties(model)} == {str(made[0]), "third.weight = 2 * encoder.weight"}
    assert torch.equal(model.third.weight, 2 * model.encoder.weight)


def test_chain_within_one_call(model: Model) -> None:
    model.third = nn.Linear(6, 4)
    made = tied.tie(model, {"third.weight": "decoder.weight.T", "decoder.weight": "encoder.weight.T"})
    assert [str(t) for t in made] == ["third.weight = encoder.weight", "decoder.weight = encoder.weight.T"]


def test_several_sources_get_gradients(model: Model) -> None:
    model.left, model.right = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 4))
    tied.tie(model, "decoder.weight", "left @ right")
    model.decoder(torch.randn(2, 4)).sum().backward()
    assert model.left.grad is not None
    assert model.right.grad is not None


# -- keep ---------------------------------------------------------------------------------------------


def test_keep_source_leaves_the_source(model: Model) -> None:
    before = model.encoder.weight.detach().clone()
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    assert torch.equal(model.encoder.weight, before)


def test_keep_target_gives_the_source_the_targets_value(model: Model) -> None:
    target, source = model.decoder.weight.detach().clone(), model.encoder.weight
    tied.tie(model, "decoder.weight", "encoder.weight.T", keep="target")
    assert torch.equal(model.decoder.weight, target)
    assert model.encoder.weight is source, "the optimizer's Parameter is the same object"


def test_keep_target_keeps_what_the_target_does_not_read(model: Model) -> None:
    rest = model.embed.weight[6:].detach().clone()
    model.decoder.weight.data.fill_(3.0)
    tied.tie(model, "decoder.weight", "embed.weight[:6]", keep="target")
    assert torch.equal(model.embed.weight[:6], torch.full((6, 4), 3.0))
    assert torch.equal(model.embed.weight[6:], rest)


def test_keep_mean_is_the_mean_for_an_identity(model: Model) -> None:
    mean = (model.embed.weight + model.head.weight).detach() / 2
    tied.tie(model, "head.weight", "embed.weight", keep="mean")
    torch.testing.assert_close(model.head.weight.detach(), mean)


def test_keep_mean_is_least_squares(model: Model) -> None:
    """Two targets and the source's own slot, against the normal equations by hand."""
    model.double()
    model.third = nn.Linear(6, 4).double()
    own, first, second = (w.detach().clone() for w in (model.encoder.weight, model.decoder.weight, model.third.weight))
    tied.tie(model, {"decoder.weight": "encoder.weight.T", "third.weight": "3 * encoder.weight"}, keep="mean")
    expected = (own + first.t() + 3 * second) / (1 + 1 + 9)
    torch.testing.assert_close(model.encoder.weight.detach(), expected, rtol=1e-12, atol=1e-14)


def test_keep_target_refuses_targets_that_disagree(model: Model) -> None:
    model.third = nn.Linear(6, 4)
    with refused(
        model,
        tied.ConflictError,
        """
tie(model, {'decoder.weight': 'encoder.weight.T', 'third.weight': 'encoder.weight'}, keep='target')
  The targets ask for different values of one source.
  found:    no source keeps 'decoder.weight' as it is
  expected: targets that agree
  fix:      keep="mean" for the least-squares source, or keep="source"
The model was not changed.""",
    ):
        tied.tie(model, {"decoder.weight": "encoder.weight.T", "third.weight": "encoder.weight"}, keep="target")


def test_keep_target_refuses_what_no_source_gives(model: Model) -> None:
    model.vector = nn.Parameter(torch.randn(4))
    with refused(model, tied.InverseError):
        tied.tie(model, "decoder.weight", "vector.expand(6, 4)", keep="target")
    with refused(model, tied.InverseError):
        tied.tie(model, "decoder.weight", "encoder.weight.exp().T", keep="target")


def test_keep_must_be_one_of_three(model: Model) -> None:
    with refused(model, tied.ConflictError):
        tied.tie(model, "decoder.weight", "encoder.weight.T", keep="first")


# -- refusals: the whole message, and nothing changed --------------------------------------------------

REFUSALS: dict[str, tuple[object, object, type[Exception], str]] = {
    "address": (
        "decoder.weight",
        "encodr.weight.T",
        tied.AddressError,
        """
tie(model, 'decoder.weight', 'encodr.weight.T')
  'encodr.weight.T' is not a parameter, buffer or module of Model.
  found:    the model has no 'encodr'
  expected: one of 'decoder', 'embed', 'encoder', 'head', 'index' ...
  fix:      did you mean 'encoder' or 'decoder'?
The model was not changed.""",
    ),
    "leaf": (
        "decoder.wieght",
        "encoder.weight.T",
        tied.AddressError,
        """
tie(model, 'decoder.wieght', 'encoder.weight.T')
  'decoder.wieght' is not a parameter, buffer or module of Model.
  found:    'decoder' has no 'wieght'
  expected: one of 'bias', 'weight'
  fix:      did you mean 'weight'?
The model was not changed.""",
    ),
    "shape": (
        "decoder.weight",
        "encoder.weight",
        tied.ShapeError,
        """
tie(model, 'decoder.weight', 'encoder.weight')
  'encoder.weight' does not have the shape of 'decoder.weight'.
  found:    shape (4, 6)
  expected: shape (6, 4)
  fix:      did you mean 'encoder.weight.T'?
The model was not changed.""",
    ),
    "shape-slice": (
        "decoder.weight",
        "embed.weight",
        tied.ShapeError,
        """
tie(model, 'decoder.weight', 'embed.weight')
  'embed.weight' does not have the shape of 'decoder.weight'.
  found:    shape (9, 4)
  expected: shape (6, 4)
  fix:      did you mean 'embed.weight[:6]'?
The model was not changed.""",
    ),
    "shape-expand": (
        "decoder.weight",
        "encoder.bias",
        tied.ShapeError,
        """
tie(model, 'decoder.weight', 'encoder.bias')
  'encoder.bias' does not have the shape of 'decoder.weight'.
  found:    shape (4)
  expected: shape (6, 4)
  fix:      did you mean 'encoder.bias.expand(6, 4)'?
The model was not changed.""",
    ),
    "impossible": (
        "decoder.weight",
        "encoder.weight @ embed.weight",
        tied.ShapeError,
        """
tie(model, 'decoder.weight', 'encoder.weight @ embed.weight')
  'encoder.weight @ embed.weight' cannot be computed.
  found:    encoder.weight: (4, 6), embed.weight: (9, 4)
  expected: a and b must have same reduction dim, but got [4, 6] X [9, 4]
  fix:      use a transform that fits these shapes
The model was not changed.""",
    ),
    "self": (
        "decoder.weight",
        "2 * decoder.weight",
        tied.CycleError,
        """
tie(model, 'decoder.weight', '2 * decoder.weight')
  'decoder.weight' would define itself.
  found:    'decoder.weight' on both sides
  expected: a source other than the target
  fix:      name the tensor that owns the memory as the source
The model was not changed.""",
    ),
    "cycle": (
        {"decoder.weight": "encoder.weight.T", "encoder.weight": "decoder.weight.T"},
        None,
        tied.CycleError,
        """
tie(model, {'decoder.weight': 'encoder.weight.T', 'encoder.weight': 'decoder.weight.T'})
  These ties go round in a circle, so that none of them owns any memory.
  found:    decoder.weight = encoder.weight = decoder.weight
  expected: at least one tensor that is not a target
  fix:      leave one of these ties out; tied.untie(model, target) undoes one that is in force
The model was not changed.""",
    ),
    "buffer": (
        "norm.running_mean",
        "norm.running_var",
        tied.KindError,
        """
tie(model, 'norm.running_mean', 'norm.running_var')
  'norm.running_mean' is a buffer, and buffers stay private unless you ask.
  found:    a buffer of BatchNorm1d
  expected: a parameter as the target
  fix:      share it on purpose: tie(..., buffers=True)
The model was not changed.""",
    ),
    "module-to-tensor": (
        "decoder.weight",
        "encoder",
        tied.KindError,
        """
tie(model, 'decoder.weight', 'encoder')
  'encoder' is a module, where a tensor is needed.
  found:    Linear
  expected: a tensor such as 'encoder.weight'
  fix:      name a tensor, or tie module to module: tie(model, 'tower_b', 'tower_a')
The model was not changed.""",
    ),
    "tensor-to-module": (
        "decoder",
        "encoder.weight",
        tied.KindError,
        """
tie(model, 'decoder', 'encoder.weight')
  'decoder' is a module, and 'encoder.weight' is not one.
  found:    a parameter as the source
  expected: a module as the source of a module
  fix:      tie tensor to tensor: tie(model, 'decoder.weight', ...)
The model was not changed.""",
    ),
    "different-modules": (
        "head",
        "encoder",
        tied.ShapeError,
        """
tie(model, 'head', 'encoder')
  'head' and 'encoder' are not built alike.
  found:    only 'encoder' has bias
  expected: the same names in both modules
  fix:      tie the parts that they have in common, one by one or by a pattern
The model was not changed.""",
    ),
    "index-range": (
        "decoder.weight",
        "theta[:5][index]",
        tied.ShapeError,
        """
tie(model, 'decoder.weight', 'theta[:5][index]')
  The index 'index' points outside 'theta[:5]'.
  found:    values from 0 to 6
  expected: 0 to 4, or -1 for a zero
  fix:      correct the index buffer
The model was not changed.""",
    ),
    "index-dtype": (
        "decoder.weight",
        "theta[encoder.weight.T]",
        tied.ShapeError,
        """
tie(model, 'decoder.weight', 'theta[encoder.weight.T]')
  'theta[encoder.weight.T]' cannot be computed.
  found:    theta: (7), encoder.weight.T: (6, 4)
  expected: an index holds whole numbers, this one holds torch.float32
  fix:      use a transform that fits these shapes
The model was not changed.""",
    ),
    "dtype": (
        "decoder.weight",
        "encoder.weight.T.to(float16)",
        tied.DtypeError,
        """
tie(model, 'decoder.weight', 'encoder.weight.T.to(float16)')
  'encoder.weight.T.to(float16)' and 'decoder.weight' differ in dtype.
  found:    torch.float16
  expected: torch.float32
  fix:      convert one of the modules, or read it as 'encoder.weight.T.to(float16).to(float32)'
The model was not changed.""",
    ),
    "syntax": (
        "decoder.weight",
        "encoder.weight.transposed()",
        tied.ParseError,
        """
tie(model, 'decoder.weight', 'encoder.weight.transposed()')
  'transposed' is not a transform.
  found:    .transposed, at position 16 of 'encoder.weight.transposed()'
  expected: 'transpose'
  fix:      write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'
The model was not changed.""",
    ),
    "no-match": (
        "layers.*.mlp",
        "encoder",
        tied.AddressError,
        """
tie(model, 'layers.*.mlp', 'encoder')
  The pattern 'layers.*.mlp' matches nothing in Model besides its source.
  found:    no module and no parameter of that form
  expected: a pattern such as 'layers.*.mlp', where * is a part of one name
  fix:      list the names with dict(model.named_parameters())
The model was not changed.""",
    ),
    "not-text": (
        "decoder.weight",
        torch.zeros(6, 4),
        tied.KindError,
        None,
    ),
    "no-source": ("decoder.weight", None, tied.KindError, None),
    "empty-dict": ({}, None, tied.KindError, None),
    "dict-and-source": ({"decoder.weight": "encoder.weight.T"}, "encoder.weight", tied.KindError, None),
    "empty-target": ("", "encoder.weight", tied.ParseError, None),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refuses(model: Model, name: str) -> None:
    target, source, error, message = REFUSALS[name]
    model.index.copy_(torch.arange(24).reshape(6, 4) % 7)
    with refused(model, error, message):
        tied.tie(model, target, source)


def test_refuses_a_target_tied_twice(model: Model) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    with refused(
        model,
        tied.TwiceTiedError,
        """
tie(model, 'decoder.weight', 'embed.weight[:6]')
  'decoder.weight' is tied already.
  found:    decoder.weight = encoder.weight.T
  expected: one definition for each target
  fix:      tied.untie(model, 'decoder.weight') first
The model was not changed.""",
    ):
        tied.tie(model, "decoder.weight", "embed.weight[:6]")


def test_refuses_a_cycle_through_an_earlier_tie(model: Model) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    with refused(model, tied.CycleError):
        tied.tie(model, "encoder.weight", "decoder.weight.T")


def test_refuses_two_devices(model: Model) -> None:
    model.decoder.to("meta")
    with refused(
        model,
        tied.DeviceError,
        """
tie(model, 'decoder.weight', 'encoder.weight.T')
  'decoder.weight' and what it is tied to live on different devices.
  found:    cpu and meta
  expected: one device
  fix:      give the meta part memory first: module.to_empty(device='cpu')
The model was not changed.""",
    ):
        tied.tie(model, "decoder.weight", "encoder.weight.T")


def test_refuses_computed_targets(model: Model) -> None:
    nn.utils.parametrizations.weight_norm(model.decoder)
    with refused(
        model,
        tied.KindError,
        """
tie(model, 'decoder.weight', 'encoder.weight.T')
  'decoder.weight' is computed, not a parameter, so it cannot be defined twice.
  found:    'decoder.weight' comes from a parametrization, pruning or a norm of ParametrizedLinear
  expected: a plain parameter as the target
  fix:      remove that from the target first, or tie what it is computed from
The model was not changed.""",
    ):
        tied.tie(model, "decoder.weight", "encoder.weight.T")


def test_refuses_lazy_modules() -> None:
    model = nn.ModuleDict({"a": nn.LazyLinear(3), "b": nn.LazyLinear(3)})
    with pytest.raises(tied.KindError, match="run one forward through the model, then tie"):
        tied.tie(model, "a.weight", "b.weight")


def test_refuses_what_is_no_module() -> None:
    with pytest.raises(tied.KindError, match="Only modules of Python code can be tied"):
        tied.tie({"a": 1}, "a", "b")


def test_all_or_nothing(model: Model) -> None:
    with refused(model, tied.ShapeError):
        tied.tie(model, {"decoder.weight": "encoder.weight.T", "head.weight": "encoder.weight"}, keep="target")


def test_a_class_that_cannot_be_extended_undoes_everything(model: Model) -> None:
    class Stiff(nn.Linear):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "__class__":
                raise TypeError("no")
            super().__setattr__(name, value)

    model.stiff = Stiff(4, 6)
    source = model.encoder.weight.detach().clone()
    model.decoder.weight.data = model.stiff.weight.data.clone()
    with pytest.raises(tied.KindError, match="cannot be extended"):
        tied.tie(model, {"decoder.weight": "encoder.weight.T", "stiff.weight": "encoder.weight.T"}, keep="target")
    assert tied.ties(model) == ()
    assert type(model.decoder) is nn.Linear
    assert isinstance(model.stiff.weight, nn.Parameter)
    assert torch.equal(model.encoder.weight, source)
    assert list(model.decoder._parameters) == ["weight", "bias"]


def test_refuses_an_index_that_no_file_holds(model: Model) -> None:
    model.loose = torch.zeros(6, 4, dtype=torch.int64)
    with refused(model, tied.KindError):
        tied.tie(model, "decoder.weight", "theta[loose]")


# -- shared already, and computed sources --------------------------------------------------------------


def test_plain_sharing_becomes_a_tie(model: Model) -> None:
    model.head.weight = model.embed.weight
    before = model.embed.weight
    tied.tie(model, "head.weight", "embed.weight")
    assert model.head.weight is before
    assert list(model.state_dict()).count("head.weight") == 1, "as in plain torch"
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    assert model.head.weight is model.embed.weight is not before


@pytest.mark.parametrize("compute", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_source_that_becomes_computed_is_followed(model: Model, compute: str) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    model.eval()
    getattr(nn.utils.parametrizations, compute)(model.encoder)
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())
    assert [str(t) for t in tied.ties(model)] == ["decoder.weight = encoder.weight.T"]


def test_a_computed_source_can_be_tied_to(model: Model) -> None:
    nn.utils.parametrizations.weight_norm(model.encoder)
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    model.decoder(torch.randn(2, 4)).sum().backward()
    assert model.encoder.parametrizations.weight.original1.grad is not None


def test_a_parametrization_of_another_attribute_of_the_target(model: Model) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    nn.utils.parametrize.register_parametrization(model.decoder, "bias", nn.Softplus())
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())
    tied.untie(model)
    assert isinstance(model.decoder.weight, nn.Parameter)
    assert snapshot(model)


@pytest.mark.parametrize("tie_first", [False, True])
@pytest.mark.parametrize("untie_first", [False, True])
def test_parametrizations_come_and_go(model: Model, tie_first: bool, untie_first: bool) -> None:
    """Torch puts back the first base of the class when the last parametrization goes: it must still read late."""
    actions = [
        lambda: tied.tie(model, "decoder.weight", "encoder.weight.T"),
        lambda: nn.utils.parametrize.register_parametrization(model.decoder, "bias", nn.Softplus()),
    ]
    for act in actions if tie_first else reversed(actions):
        act()
    assert torch.equal(model.decoder.weight, model.encoder.weight.t())
    twin = copy.deepcopy(model)
    assert torch.equal(twin.decoder.weight, twin.encoder.weight.t())
    undo = [
        lambda: tied.untie(model),
        lambda: nn.utils.parametrize.remove_parametrizations(model.decoder, "bias"),
    ]
    for act in undo if untie_first else reversed(undo):
        act()
        value = model.decoder.weight
        assert torch.equal(value, model.encoder.weight.t())
    assert isinstance(model.decoder, nn.Linear)
    assert untie_first or type(model.decoder) is nn.Linear
    assert sorted(n for n, _ in model.decoder.named_parameters()) == ["bias", "weight"]
    nn.init.zeros_(twin.encoder.weight)
    assert not twin.decoder.weight.any(), "the copy is not touched"


def test_a_source_that_is_gone_says_so(model: Model) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    del model.encoder
    with pytest.raises(tied.SourceGoneError, match=r"left Model, and nothing stands at 'encoder'"):
        model.decoder(torch.randn(2, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_a_source_on_meta_beside_real_tensors_is_refused(bias: bool) -> None:
    """Torch 2.13 multiplies a CPU tensor by a meta one without an error, and returns uninitialized memory."""
    model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 6, bias=bias), "c": nn.Linear(2, 2)})
    tied.tie(model, "b.weight", "a.weight.T")
    model["a"].to("meta")
    with pytest.raises(tied.SourceGoneError, match=r"'b\.weight' reads a source on the meta device"):
        model["b"](torch.zeros(2, 4))
    model.to("meta")
    assert model["b"].weight.is_meta


def test_modules_tied_as_a_whole_keep_their_buffers_private() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    made = tied.tie(model, "b", "a")
    assert [str(t) for t in made] == ["b.weight = a.weight", "b.bias = a.bias"]
    model["a"](torch.randn(5, 3) + 7)
    assert torch.equal(model["b"].running_mean, torch.zeros(3))


def test_buffers_are_shared_where_asked() -> None:
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)})
    tied.tie(model, "b", "a", buffers=True)
    model["b"](torch.randn(5, 3) + 7)
    assert model["a"].running_mean.abs().min() > 0.1
    assert int(model["a"].num_batches_tracked) == 1
    assert list(dict([*model.named_parameters(), *model.named_buffers()])) == [
        f"a.{n}" for n in nn.BatchNorm1d(3).state_dict()
    ]
    tied.untie(model)
    assert list(model["b"].state_dict()) == list(model["a"].state_dict())
    assert "running_mean" in dict(model["b"].named_buffers())


def test_recurrent_modules() -> None:
    """torch caches the weights of LSTMs in a list, which a tie must not leave stale."""
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.LSTM(3, 4)})
    tied.tie(model, "b", "a")
    x = torch.randn(5, 2, 3)
    for _ in range(2):
        assert torch.equal(model["a"](x)[0], model["b"](x)[0])
        nn.init.normal_(model["a"].weight_hh_l0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.normal_(twin["a"].weight_hh_l0)
        assert torch.equal(twin["a"](x)[0], twin["b"](x)[0])
        assert twin["b"].double()._flat_weights[0].dtype == torch.float32, "the weights are the other module's"
    alone = copy.deepcopy(model["b"])
    assert type(alone) is nn.LSTM
    assert torch.equal(alone(x)[0], model["b"](x)[0])
    tied.untie(model)
    assert torch.equal(model["a"](x)[0], model["b"](x)[0])
    nn.init.normal_(model["b"].weight_hh_l0)
    assert not torch.equal(model["a"](x)[0], model["b"](x)[0])
