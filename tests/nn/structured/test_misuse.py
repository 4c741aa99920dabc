"""Bad input to the constructors and to forward: whole messages, and nothing changed."""

import pytest
import torch
from structured_by_hand import SHIFT
from torch import nn

import tied
from tied.nn import (
    BlockCirculantLinear,
    BroadcastLinear,
    CirculantLinear,
    CodebookLinear,
    HashedLinear,
    KroneckerLinear,
    OrbitLinear,
    SetLinear,
    SymmetricLinear,
    ToeplitzLinear,
)

S, K, A, D, I = tied.ShapeError, tied.KindError, tied.AddressError, tied.DtypeError, tied.InverseError  # noqa: E741
CASES = {
    "size 0": (S, lambda: ToeplitzLinear(0, 3)),
    "size of floats": (S, lambda: ToeplitzLinear(3, 3.0)),
    "size of a square": (S, lambda: CirculantLinear(-1)),
    "size true": (S, lambda: SetLinear(True)),
    "size text": (S, lambda: SymmetricLinear("8")),
    "block too wide": (S, lambda: BlockCirculantLinear(12, 8, 3)),
    "block zero": (S, lambda: BlockCirculantLinear(12, 8, 0)),
    "prime width": (S, lambda: KroneckerLinear(13, 8)),
    "prime height": (S, lambda: KroneckerLinear(8, 13)),
    "factors of another width": (S, lambda: KroneckerLinear(12, 8, in_factors=(3, 5))),
    "three factors": (S, lambda: KroneckerLinear(12, 8, in_factors=(3, 2, 2))),
    "a number for factors": (S, lambda: KroneckerLinear(12, 8, in_factors=3)),
    "negative factors": (S, lambda: KroneckerLinear(12, 8, out_factors=(-2, -4))),
    "diagonal of a rectangle": (S, lambda: BroadcastLinear(5, 4, per="diagonal")),
    "private diagonal": (K, lambda: BroadcastLinear(4, 4, per="diagonal", private="scale")),
    "per column": (A, lambda: BroadcastLinear(5, 4, per="inputs")),
    "private bias": (A, lambda: BroadcastLinear(5, 4, private="bias")),
    "no such algorithm": (A, lambda: CirculantLinear(8, algorithm="fast")),
    "algorithm of another layer": (A, lambda: HashedLinear(8, 8, 4, algorithm="fft")),
    "signs have no closed form": (A, lambda: BroadcastLinear(8, 8, private="sign", algorithm="closed")),
    "complex": (D, lambda: CirculantLinear(8, dtype=torch.complex64)),
    "integers": (D, lambda: SetLinear(8, dtype=torch.int64)),
    "no buckets": (S, lambda: HashedLinear(8, 8, 0)),
    "seed too large": (S, lambda: HashedLinear(8, 8, 4, seed=2**64)),
    "seed negative": (S, lambda: BroadcastLinear(8, 8, private="sign", seed=-1)),
    "no values": (S, lambda: CodebookLinear(8, 8, 0)),
    "from a convolution": (K, lambda: CodebookLinear.from_linear(nn.Conv2d(2, 3, 3))),
    "from a layer without weight": (K, lambda: CodebookLinear.from_linear(nn.ReLU())),
    "from a layer that diverged": (I, lambda: CodebookLinear.from_linear(diverged())),
    "fit to another shape": (S, lambda: CodebookLinear(4, 3).fit(torch.zeros(4, 3))),
    "reassign to another shape": (S, lambda: CodebookLinear(4, 3).reassign(torch.zeros(3))),
    "a number for generators": (S, lambda: OrbitLinear(3)),
    "no generators": (S, lambda: OrbitLinear([])),
    "not a permutation": (S, lambda: OrbitLinear([[0, 1, 1]])),
    "permutation of other numbers": (S, lambda: OrbitLinear([SHIFT[0]], [[1, 2]])),
    "empty permutation": (S, lambda: OrbitLinear([[]])),
    "permutations of two lengths": (S, lambda: OrbitLinear([[1, 0], [1, 2, 0]])),
    "generators without partner": (S, lambda: OrbitLinear([[1, 0], [0, 1]], [[1, 0]])),
    "permutation of floats": (S, lambda: OrbitLinear([torch.tensor([1.0, 0.0])])),
    "one permutation, not a list of them": (S, lambda: OrbitLinear([1, 0, 2])),
    "a matrix of permutations": (S, lambda: OrbitLinear([torch.eye(3, dtype=torch.long)])),
    "too few features": (S, lambda: ToeplitzLinear(4, 3)(torch.zeros(2, 5))),
    "one feature, which would be broadcast": (S, lambda: SetLinear(4)(torch.zeros(2, 1))),
    "a number": (S, lambda: CirculantLinear(1)(torch.tensor(1.0))),
    "input of another dtype": (D, lambda: BroadcastLinear(4, 3, per="output")(torch.zeros(2, 4).double())),
    "integer input": (D, lambda: SetLinear(4)(torch.zeros(2, 4, dtype=torch.long))),
    "complex input": (D, lambda: CirculantLinear(4)(torch.zeros(2, 4, dtype=torch.complex64))),
    "input on another device": (tied.DeviceError, lambda: KroneckerLinear(4, 4)(torch.zeros(2, 4, device="meta"))),
    "layer on another device": (tied.DeviceError, lambda: HashedLinear(4, 4, 2, device="meta")(torch.zeros(2, 4))),
}


def diverged() -> nn.Linear:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, float("nan"))
    return layer


@pytest.mark.parametrize("name", CASES)
def test_class(name):
    kind, call = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value).endswith("The model was not changed.")


def test_messages(golden):
    said = []
    for name, (kind, call) in CASES.items():
        with pytest.raises(kind) as caught:
            call()
        said.append(f"# {name}\n{kind.__name__}: {caught.value}\n")
    golden("structured-misuse.txt", "\n".join(said))


def test_algorithm_is_checked_when_set_too():
    layer = CirculantLinear(8, algorithm="fft")
    with pytest.raises(tied.AddressError, match="did you mean 'dense'"):
        layer.algorithm = "dens"
    assert layer.algorithm == "fft"


def test_unknown_options_are_pythons_errors():
    with pytest.raises(TypeError, match="unexpected keyword argument 'biass'"):
        ToeplitzLinear(3, 3, biass=False)


def test_refused_codes_leave_the_layer():
    layer = CodebookLinear(4, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    wrong = torch.zeros(3, 4)
    wrong[1, 2] = float("inf")
    for call in (layer.fit, layer.reassign):
        with pytest.raises(tied.InverseError, match="1 entries that are not finite"):
            call(wrong)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_inputs_under_autocast_are_still_checked():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for dtype in (torch.float64, torch.long):
            with pytest.raises(tied.DtypeError):
                SetLinear(4)(torch.zeros(2, 4, dtype=dtype))
