"""What a layer says about its matrix: counts, scale, symmetry; what may be done with it and what raises."""

import math

import pytest
import torch
from structured_by_hand import FLIP, SHIFT, TURN, group, quietly
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import tied
from tied.nn import (
    BlockCirculantLinear,
    CirculantLinear,
    CodebookLinear,
    HashedLinear,
    KroneckerLinear,
    OrbitLinear,
    SetLinear,
    SymmetricLinear,
    ToeplitzLinear,
)
from tied.nn.structured import StructuredLinear, gather
from tied.nn.structured.permutation_equivariant import orbits

# -- counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (ToeplitzLinear(30, 20, bias=False), 49),
        (CirculantLinear(30, bias=False), 30),
        (BlockCirculantLinear(30, 20, 10, bias=False), 60),
        (KroneckerLinear(30, 20, bias=False), 5 * 4 + 6 * 5),
        (SymmetricLinear(30, bias=False), 465),
        (SetLinear(30), 3),
        (HashedLinear(30, 20, 7, bias=False), 7),
        (CodebookLinear(30, 20, 7, bias=False), 7),
        (quietly(30, 20, bias=False), 30),
        (quietly(30, 20, per="output", private="scale", bias=False), 50),
        (quietly(30, 20, private="scale", bias=False), 50),
        (quietly(30, 20, per="scalar", bias=False), 1),
        (quietly(30, 30, per="diagonal", bias=False), 30),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_count_of_parameters(layer, count):
    assert sum(parameter.numel() for parameter in layer.parameters()) == count


EIGHT = torch.arange(64).reshape(8, 8)
QUARTER, MIRROR = EIGHT.rot90().flatten().tolist(), EIGHT.flip(0).flatten().tolist()
GROUPS = {
    "trivial": ([range(6)], 36),
    "C8": ([torch.arange(8).roll(1)], 8),
    "D8": ([torch.arange(8).roll(1), torch.arange(8).flip(0)], 5),
    "S8": ([torch.arange(8).roll(1), [1, 0, 2, 3, 4, 5, 6, 7]], 2),
    "C4 on 8 × 8": ([QUARTER], 1024),
    "D4 on 8 × 8": ([QUARTER, MIRROR], 528),
}


@pytest.mark.parametrize("name", GROUPS)
def test_orbits_are_burnsides(name):
    generators, count = GROUPS[name]
    assert OrbitLinear(generators).theta.numel() == count
    if name == "S8":
        return  # 40320 elements
    lists = [torch.as_tensor(each).tolist() for each in generators]
    elements = group([(each, each) for each in lists])
    fixed = [sum(place == moved for place, moved in enumerate(p)) for p, _ in elements]
    assert sum(points**2 for points in fixed) == count * len(elements)


def test_trivial_group_is_a_dense_layer():
    layer, dense = OrbitLinear([range(6)], [range(4)]), nn.Linear(6, 4)
    layer.load_state_dict(
        {"theta": dense.weight.flatten(), "bias": dense.bias, "fingerprint": layer.fingerprint}, strict=True
    )
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), dense(x))


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_orbits_of_long_cycles_are_found_in_few_rounds(order):
    """The number of rounds grows with the logarithm of the length of a cycle."""
    cycle = {"ascending": torch.arange(4096), "descending": torch.arange(4096).flip(0), "random": torch.randperm(4096)}
    moved = torch.empty(4096, dtype=torch.long)
    moved[cycle[order]] = cycle[order].roll(-1)
    with Count(torch.ops.aten.minimum.default) as count:
        assert not orbits(moved[None]).any()
    assert 2 <= count.calls <= 2 * 2 * 12


class Count(TorchDispatchMode):
    """How often an operation was called."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.calls = operation, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += function is self.operation
        return function(*args, **(kwargs or {}))


def test_orbits_are_numbered_by_their_first_entries():
    index = OrbitLinear([[3, 1, 0, 2], SHIFT[0]]).index.flatten().tolist()
    assert list(dict.fromkeys(index)) == sorted(set(index))


# -- equivariance -------------------------------------------------------------------------------------


def assert_commutes(layer, inputs, outputs) -> None:
    x = torch.randn(5, len(inputs), dtype=torch.float64)
    torch.testing.assert_close(layer(x[:, inputs]), layer(x)[:, outputs], rtol=0, atol=1e-12)


def test_orbit_layers_commute_with_their_group():
    generators = [TURN.tolist(), FLIP.tolist()]
    layer = OrbitLinear(generators).double()
    for permutation in ([0, 3, 6, 1, 4, 7, 2, 5, 8], *generators):  # transposing is a product of the two
        assert_commutes(layer, list(permutation), list(permutation))
    assert_commutes(OrbitLinear([SHIFT[0]], [SHIFT[1]]).double(), *SHIFT)


def test_orbit_layer_does_not_commute_with_others():
    x, layer = torch.randn(5, 9, dtype=torch.float64), OrbitLinear([TURN]).double()
    assert (layer(x[:, FLIP]) - layer(x)[:, FLIP]).abs().max() > 0.01


def test_set_layers_commute_with_every_permutation():
    layer = SetLinear(20).double()
    for _ in range(5):
        permutation = torch.randperm(20).tolist()
        assert_commutes(layer, permutation, permutation)


@pytest.mark.parametrize("algorithm", ["fft", "dense"])
def test_circulant_layers_commute_with_shifts(algorithm):
    layer = CirculantLinear(9, bias=False, algorithm=algorithm).double()
    shift = torch.arange(9).roll(2).tolist()
    assert_commutes(layer, shift, shift)


def test_toeplitz_is_convolution():
    layer = ToeplitzLinear(7, 4, bias=False).double()
    x = torch.randn(5, 7, dtype=torch.float64)
    by_conv = nn.functional.conv1d(x[:, None], layer.theta.flip(0)[None, None], padding=3)[:, 0]
    torch.testing.assert_close(layer(x), by_conv, rtol=0, atol=1e-12)


def test_symmetric_layer_is_a_gradient():
    layer = SymmetricLinear(6, bias=False).double()
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(x @ layer.weight @ x / 2, x)
    torch.testing.assert_close(layer(x), gradient, rtol=0, atol=1e-12)


def test_singular_values_of_a_circulant_are_its_spectrum():
    layer = CirculantLinear(8).double()
    found = torch.linalg.svdvals(layer.weight)
    torch.testing.assert_close(found, torch.fft.fft(layer.theta).abs().sort(descending=True).values)


# -- the start ----------------------------------------------------------------------------------------

STARTS = {
    "Toeplitz": lambda: ToeplitzLinear(64, 48),
    "circulant": lambda: CirculantLinear(64),
    "block circulant": lambda: BlockCirculantLinear(64, 48, 8),
    "Kronecker": lambda: KroneckerLinear(64, 48),
    "symmetric": lambda: SymmetricLinear(64),
    "set": lambda: SetLinear(64),
    "orbit": lambda: OrbitLinear([EIGHT.rot90().flatten()]),
    "hashed": lambda: HashedLinear(64, 48, 100),
    "codebook": lambda: CodebookLinear(64, 48, 16),
    "input": lambda: quietly(64, 48),
    "input, scale": lambda: quietly(64, 48, private="scale"),
    "input, sign": lambda: quietly(64, 48, private="sign"),
    "output": lambda: quietly(64, 48, per="output"),
    "output, scale": lambda: quietly(64, 48, per="output", private="scale"),
    "scalar": lambda: quietly(64, 48, per="scalar"),
    "diagonal": lambda: quietly(64, 64, per="diagonal"),
}


@pytest.mark.parametrize("name", STARTS)
def test_outputs_start_with_the_variance_of_a_dense_layer(name):
    """Over many draws; the bias is left out, and has a test of its own."""
    layer, squares = STARTS[name](), []
    x = torch.randn(4000, 64)
    with torch.no_grad():
        for draw in range(400):
            layer.reset_parameters()
            batch = x[10 * draw : 10 * draw + 10]
            squares.append((layer(batch) - layer.bias_of_outputs()).square().mean())
    found = torch.stack(squares)
    wanted, error = 1 / 3, found.std() / math.sqrt(len(found))
    assert abs(found.mean() - wanted) < 4 * error + 0.005
    assert error < 0.04


@pytest.mark.parametrize("name", STARTS)
def test_biases_start_within_the_bound_of_the_fan_in(name):
    layer = STARTS[name]()
    drawn = []
    for _ in range(100):
        layer.reset_parameters()
        drawn.append(layer.bias.abs().max())
    assert 0.97 / 8 < max(drawn) <= 1 / 8


def test_reset_draws_everything_anew(scheme):
    layer = scheme.layer()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(7)
    layer.reset_parameters()
    for parameter in layer.parameters():
        assert (parameter.abs() < 2).all()


# -- reading and writing the matrix ---------------------------------------------------------------------


def test_writes_to_the_matrix_raise(scheme):
    layer = scheme.layer()
    before = layer.weight.detach().clone()
    for write in (nn.init.zeros_, lambda w: w.copy_(torch.ones(w.shape)), lambda w: w.__setitem__(0, 1)):
        with torch.no_grad(), pytest.raises(tied.WriteError, match="is built from fewer numbers"):
            write(layer.weight)
    with pytest.raises(tied.WriteError):
        layer.weight.mul_(2)
    with pytest.raises(tied.WriteError):
        layer.weight.data = torch.zeros(layer.weight.shape)
    assert torch.equal(layer.weight, before)


def test_the_message_of_a_write():
    with torch.no_grad(), pytest.raises(tied.WriteError) as caught:
        KroneckerLinear(6, 4).weight.zero_()
    assert str(caught.value) == WRITE


WRITE = """\
The matrix of KroneckerLinear is built from fewer numbers, so it cannot be written.
  found:    an in-place write to layer.weight
  expected: a write to left or right
  fix:      write to the parameters, or draw them anew with layer.reset_parameters()
The model was not changed."""


def test_assignments_to_the_matrix_raise(scheme):
    layer = scheme.layer()
    with pytest.raises(KeyError, match="attribute 'weight' already exists"):
        layer.weight = nn.Parameter(torch.zeros(layer.out_features, layer.in_features))
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(layer.out_features, layer.in_features)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.zeros(1)})


def test_freezing_through_the_matrix(scheme):
    layer = scheme.layer()
    layer.weight.requires_grad_(False)
    assert [name for name, parameter in layer.named_parameters() if parameter.requires_grad] == ["bias"]


def test_other_layers_may_share_the_numbers():
    """An index is the address of a buffer: a plain layer can be tied to the numbers by it."""
    model = nn.ModuleDict({"orbit": OrbitLinear([TURN]), "plain": nn.Linear(9, 9)})
    tied.tie(model, "plain.weight", "orbit.theta[orbit.index].T")
    assert torch.equal(model.plain.weight, model.orbit.weight.T)
    model = nn.ModuleDict({"small": KroneckerLinear(6, 4), "plain": nn.Linear(6, 4)})
    tied.tie(model, "plain.weight", "kron(small.left, small.right)")
    assert torch.equal(model.plain.weight, model.small.weight)


@pytest.mark.parametrize("make", [lambda: CirculantLinear(6), lambda: HashedLinear(6, 4, 3)])
def test_parametrized_numbers(make):
    layer = weight_norm(make(), "theta", dim=None)
    layer.parametrizations.theta.original0.data.fill_(2)
    torch.testing.assert_close(layer.theta.norm(), torch.tensor(2.0))
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
    layer.double().reset_parameters()
    assert layer.weight.dtype == torch.float64


# -- algorithms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("small", "large", "fast"),
    [
        (lambda: ToeplitzLinear(255, 4096), lambda: ToeplitzLinear(256, 256), "fft"),
        (lambda: CirculantLinear(127), lambda: CirculantLinear(128), "fft"),
        (lambda: BlockCirculantLinear(256, 512, 64), lambda: BlockCirculantLinear(512, 512, 64), "fft"),
        (lambda: BlockCirculantLinear(1024, 1024, 4), lambda: BlockCirculantLinear(256, 1024, 8), "fft"),
        (lambda: KroneckerLinear(100, 100), lambda: KroneckerLinear(128, 128), "factors"),
    ],
)
def test_auto_chooses_by_size(small, large, fast):
    assert (small().algorithm, large().algorithm) == ("dense", fast)


def test_what_needs_no_matrix_at_any_size():
    assert SetLinear(2).algorithm == quietly(2, 2).algorithm == "closed"


def test_forced_algorithms_are_used():
    layer, used = CirculantLinear(8), []
    layer.build = lambda: used.append("dense") or torch.zeros(8, 8)
    layer.multiply = lambda input: used.append("fft") or input
    for algorithm in ("dense", "fft", "auto"):
        layer.algorithm = algorithm
        layer(torch.zeros(1, 8))
    layer(torch.zeros(0, 8))  # no library transforms an empty batch
    assert used == ["dense", "fft", "dense", "dense"]
    assert layer.algorithm == "dense"


def test_fast_algorithms_hold_no_matrix():
    """The memory of a step grows with n, not with its square."""
    for make in (
        lambda n: ToeplitzLinear(n, n),
        CirculantLinear,
        lambda n: KroneckerLinear(n, n),
        SetLinear,
        lambda n: quietly(n, n, private="scale"),
    ):
        assert 4096 < largest_tensor(make(4096)) <= 8 * 4096
    assert largest_tensor(CirculantLinear(4096, algorithm="dense")) >= 4096**2  # so it would be seen


def largest_tensor(layer) -> int:
    """The most entries that any operation of one step returns."""
    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            tensors = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            largest[0] = max([largest[0], *(t.untyped_storage().nbytes() // 4 for t in tensors)])
            return result

    with Watch():
        layer(torch.randn(2, layer.in_features, requires_grad=True)).sum().backward()
    return largest[0]


@pytest.mark.parametrize("factors", [((8, 2), (3, 5)), ((2, 8), (5, 3)), ((2, 8), (3, 5)), ((8, 2), (5, 3))])
def test_kronecker_multiplies_in_the_cheaper_order(factors):
    (left_in, right_in), (left_out, right_out) = factors
    layer = KroneckerLinear(16, 15, in_factors=factors[0], out_factors=factors[1], algorithm="factors", bias=False)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, 16))
    left_first = left_out * left_in * right_in + left_out * right_in * right_out
    right_first = left_in * right_in * right_out + left_out * left_in * right_out
    assert counter.get_total_flops() == 2 * min(left_first, right_first)
    assert left_first != right_first


def test_half_precision(case):
    """Where FFT libraries lack a dtype the transforms compute in float32; the output has the layer's dtype."""
    scheme, layer = case
    x = torch.randn(6, layer.in_features, dtype=torch.float64)
    expected = layer(x)
    for dtype in (torch.bfloat16, torch.float16):
        half = scheme.layer(dtype=torch.float64, algorithm=layer.algorithm)
        half.load_state_dict(layer.state_dict())
        half.to(dtype)
        small = x.to(dtype).requires_grad_()
        output = half(small)
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), expected, rtol=0.05, atol=0.05)
        output.float().square().sum().backward()
        assert small.grad.dtype == dtype
        assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("compiled", [False, True])
def test_sums_of_gradients_do_not_stall_in_half_precision(compiled):
    layer = HashedLinear(64, 64, 1, bias=False, dtype=torch.bfloat16)
    signs = 1.0 - 2.0 * layer.index
    call = torch.compile(layer, backend="aot_eager") if compiled else layer
    call(torch.eye(64, dtype=torch.bfloat16)).backward(signs.T.bfloat16())
    assert layer.theta.grad.item() == 4096  # one by one, bfloat16 counts to 256


def test_autocast_gives_what_a_dense_layer_gives(case):
    _, layer = case
    layer = layer.float()
    x = torch.randn(3, layer.in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == layer(x.bfloat16()).dtype == layer(x.half()).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert layer.float()(x).dtype == torch.float32


def test_export_with_any_number_of_rows(case):
    _, layer = case
    rows = torch.export.Dim("rows")
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
    for count in (2, 7):
        x = torch.randn(count, layer.in_features, dtype=torch.float64)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_compiled_with_another_number_of_rows(case):
    _, layer = case
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for count in (2, 7):
        x = torch.randn(count, layer.in_features, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-12)


def test_every_layer_is_one_of_ours(scheme):
    layer = scheme.layer()
    assert isinstance(layer, StructuredLinear)
    assert f"in_features={layer.in_features}, out_features={layer.out_features}, bias=True" in repr(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_many_uses_add_up_in_single_precision(dtype):
    theta = torch.ones(2, dtype=dtype, requires_grad=True)
    gather(theta, torch.zeros(4096, dtype=torch.long)).sum().backward()
    assert theta.grad.tolist() == [4096, 0]  # one by one, bfloat16 would stop at 256
