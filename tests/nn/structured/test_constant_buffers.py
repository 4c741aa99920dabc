"""An index and signs are never stored and never lost, and a file that was made with other ones is refused."""

import copy
import io

import pytest
import torch
from structured_by_hand import SHIFT, TURN, leaves, quietly
from torch import nn

import tied
from tied.nn import HashedLinear, OrbitLinear, SymmetricLinear

LAYERS = {
    "hashed": lambda **o: HashedLinear(7, 5, 6, seed=3, **o),
    "orbit": lambda **o: OrbitLinear([TURN], **o),
    "symmetric": lambda **o: SymmetricLinear(5, **o),
    "signs": lambda **o: quietly(7, 5, private="sign", seed=5, **o),
}
FINGERPRINTS = {
    "hashed": 9157996016357106986,
    "orbit": 7469535555724316620,
    "symmetric": 7918572158356418628,
    "signs": 7386736811854819372,
}


@pytest.fixture(params=LAYERS)
def make(request):
    return LAYERS[request.param]


def fixed_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in layer.named_buffers() if name != "fingerprint"}


def assert_as_new(layer: nn.Module, make) -> None:
    new = make()
    assert {*fixed_of(layer)} == {*fixed_of(new)} != set()
    for name, value in fixed_of(new).items():
        assert torch.equal(layer.get_buffer(name), value), name
        assert layer.get_buffer(name).dtype == value.dtype
    assert torch.equal(layer.fingerprint, new.fingerprint)


def test_only_the_fingerprint_is_stored(make):
    layer = make()
    assert {*layer.state_dict()} == {"theta", "bias", "fingerprint"}
    assert not any(value.is_floating_point() for value in fixed_of(layer).values())


@pytest.mark.parametrize("name", LAYERS)
def test_fingerprints_are_the_same_for_ever(name):
    assert int(LAYERS[name]().fingerprint) == FINGERPRINTS[name]


def test_to_empty_keeps_them(make):
    layer = make()
    assert_as_new(layer.to_empty(device="cpu"), make)
    assert_as_new(nn.Sequential(make()).to_empty(device="cpu")[0], make)


def test_meta_and_back(make):
    layer = make(device="meta")
    assert all(value.is_meta for value in layer.buffers())
    assert_as_new(layer.to_empty(device="cpu"), make)
    assert_as_new(make().to("meta").to_empty(device="cpu"), make)
    with torch.device("meta"):
        layer = make()
    assert_as_new(layer.to_empty(device="cpu"), make)


def test_meta_loaded_by_assign(make):
    source, layer = make(), make(device="meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    assert_as_new(layer, make)
    x = torch.randn(3, layer.in_features)
    assert torch.equal(layer(x), source(x))


def test_parameters_put_there_from_outside(make):
    """As loaders do that replace one parameter after the other and never ask the module."""
    source, layer = make(), make(device="meta")
    for name in ("theta", "bias"):
        layer._parameters[name] = nn.Parameter(source.get_parameter(name).detach().clone())
    x = torch.randn(3, layer.in_features)
    assert torch.equal(layer(x), source(x))


def test_dtype_and_memory_sharing_leave_them(make):
    assert_as_new(make().to(torch.bfloat16).double(), make)
    layer = make().share_memory()
    assert all(value.is_shared() for value in layer.buffers())
    assert_as_new(layer, make)


OTHERS = {
    "seed": (lambda: HashedLinear(7, 5, 6, seed=3), lambda: HashedLinear(7, 5, 6, seed=4)),
    "shape": (
        lambda: HashedLinear(7, 5, 6, bias=False),
        lambda: HashedLinear(5, 7, 6, bias=False),
    ),
    "group": (  # the same number of orbits
        lambda: OrbitLinear([SHIFT[0]]),
        lambda: OrbitLinear([[1, 3, 0, 2]]),
    ),
    "signs": (lambda: quietly(7, 5, private="sign"), lambda: quietly(7, 5, private="sign", seed=1)),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_layer_is_refused(name, device, assign):
    made, here = OTHERS[name]
    file, layer = made().state_dict(), here().to(device)
    before = copy.deepcopy(layer.state_dict())
    assert {key: value.shape for key, value in file.items()} == {key: value.shape for key, value in before.items()}
    with pytest.raises(RuntimeError) as caught:
        layer.load_state_dict(file, assign=assign)
    assert "shares other entries (its fingerprint differs)" in str(caught.value)
    if device == "cpu":
        for key, value in layer.state_dict().items():
            assert torch.equal(value, before[key])
    here().load_state_dict(before if device == "cpu" else here().state_dict())


def test_the_message_of_a_refused_file():
    model = nn.ModuleDict({"fc": HashedLinear(7, 5, 6, seed=4)})
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict({f"fc.{key}": value for key, value in HashedLinear(7, 5, 6, seed=3).state_dict().items()})
    assert str(caught.value) == REFUSED


REFUSED = """\
Error(s) in loading state_dict for ModuleDict:
\tfc: the file was made by a layer that shares other entries (its fingerprint differs); nothing of it was loaded \
here. Construct the layer with the arguments it had then; now: in_features=7, out_features=5, bias=True, buckets=6, \
seed=4"""


def test_a_file_without_fingerprint_is_torchs_matter(make):
    layer, state = make(), make().state_dict()
    del state["fingerprint"]
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict(state)
    layer.load_state_dict(state, strict=False)
    assert torch.equal(layer.theta, state["theta"])


def test_signs_are_there_only_where_asked_for():
    assert {*quietly(7, 5).state_dict()} == {"theta", "bias"}
    assert not list(quietly(7, 5).buffers())


def test_index_on_meta_beside_numbers_is_refused():
    """Torch would read memory that nobody wrote."""
    from tied.nn.structured import gather

    with pytest.raises(tied.DeviceError) as caught:
        gather(torch.ones(3), torch.zeros(2, dtype=torch.long, device="meta"))
    assert "found:    values on cpu, an index on meta" in str(caught.value)


def test_tied_thetas(make):
    """The numbers of one layer may be those of another."""
    model = nn.ModuleDict({"a": make(), "b": make()})
    tied.tie(model, "b.theta", "a.theta")
    x = torch.randn(3, model.a.in_features)
    torch.testing.assert_close(model.b(x) - model.b.bias_of_outputs(), model.a(x) - model.a.bias_of_outputs())
    twin = copy.deepcopy(model).double()
    assert twin.b.theta is twin.a.theta
    model.to_empty(device="cpu")
    assert_as_new(model.b, make)


def test_saved_whole(make):
    layer = make()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert_as_new(torch.load(stream, weights_only=False), make)
    assert {*leaves(layer)} >= {"theta", "bias", "fingerprint"}
