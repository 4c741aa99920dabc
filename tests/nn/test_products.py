"""Products by either library are those of `torch.mm`, and the choice is what it says."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from tied.nn import HashedLinear, accumulate, products, structured
from tied.nn.products import add_product, linear, product, uses_onednn

needs_onednn = pytest.mark.skipif(not products._has_onednn(), reason="this torch has no oneDNN")


@pytest.fixture(params=["mm", "onednn"])
def library(request, monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", request.param)
    monkeypatch.setattr(products, "FEWEST_TO_ADD", 1)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """Count the products by oneDNN."""
    found, plain = [], products._ONEDNN

    def counted(*arguments):
        found.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(products, "_ONEDNN", counted)
    return found


def exact(left, right, bias=None):
    """The oracle: double precision."""
    found = left.double() @ right.double()
    return found if bias is None else found + bias.double()


def near(found, wanted, terms):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6 * terms, equal_nan=True)


LAYOUTS = {
    "rows": lambda m, n: torch.randn(m, n),
    "columns": lambda m, n: torch.randn(n, m).t(),
    "rows of a wider one": lambda m, n: torch.randn(m + 2, n + 3)[1:-1, 2:-1],
    "every other column": lambda m, n: torch.randn(m, 2 * n)[:, ::2],
    "one row, repeated": lambda m, n: torch.randn(1, n).expand(m, n),
    "one column, repeated": lambda m, n: torch.randn(m, 1).expand(m, n),
}


@pytest.mark.parametrize(("left", "right"), list(itertools.product(LAYOUTS, repeat=2)))
def test_products_of_any_layout(left, right, library, calls):
    one, other, bias = LAYOUTS[left](9, 13), LAYOUTS[right](13, 21), torch.randn(21)
    near(product(one, other), exact(one, other), 13)
    near(product(one, other, bias), exact(one, other, bias), 13)
    total = torch.ones(9, 21)
    add_product(total, one, other)
    near(total, 1 + exact(one, other), 13)
    assert bool(calls) is (library == "onednn")


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1)])
def test_smallest_products(shape, library):
    left, right = torch.ones(shape[0], shape[1]), torch.ones(shape[1], shape[2])
    assert torch.equal(product(left, right), left @ right)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-40])
def test_values_that_are_no_ordinary_numbers(value, library):
    left, right = torch.randn(9, 13), torch.randn(13, 21)
    right[3, 4] = value
    near(product(left, right), exact(left, right), 13)


@pytest.mark.parametrize("rows", [1, 3, 8, 100])
def test_sums_in_parts(rows, library, monkeypatch):
    monkeypatch.setattr(products, "ADDED_AT_ONCE", rows * 21)
    monkeypatch.setattr(products, "FEWEST_ROWS", 1)
    left, right, total = torch.randn(40, 37), torch.randn(37, 21), torch.randn(40, 21)
    wanted = total.double() + exact(left, right)
    add_product(total, left, right)
    near(total, wanted, 37)


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
def test_sums_may_be_wider(narrow):
    left, right = torch.randn(9, 13).to(narrow), torch.randn(13, 21).to(narrow)
    total = torch.zeros(9, 21, dtype=torch.float64)
    add_product(total, left, right)
    assert torch.equal(total, (left @ right).double())


@pytest.mark.parametrize("shape", [(13,), (9, 13), (2, 3, 13), (0, 13)])
def test_linear(shape, library):
    x, weight, bias = torch.randn(shape), torch.randn(21, 13), torch.randn(21)
    for each in (None, bias):
        found, wanted = linear(x, weight, each), functional.linear(x, weight, each)
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


# The choice


@pytest.fixture
def amd(monkeypatch):
    monkeypatch.setattr(products, "mkl_is_slow_here", lambda: True)


@needs_onednn
@pytest.mark.parametrize(
    ("rows", "between", "columns", "pays"),
    [
        (64, 512, 512, True),
        (8, 512, 512, True),
        (7, 512, 4096, False),
        (4096, 7, 4096, False),
        (4096, 512, 7, False),
        (128, 128, 128, True),
        (128, 128, 127, False),
    ],
)
def test_rule_of_size(amd, rows, between, columns, pays):
    assert uses_onednn(torch.empty(rows, between), torch.empty(between, columns)) is pays
    assert uses_onednn(torch.empty(2, rows // 2, between), torch.empty(between, columns)) is (pays and rows % 2 == 0)


@needs_onednn
@pytest.mark.parametrize(("between", "pays"), [(63, False), (64, True)])
def test_sums_of_few_products_are_left_to_mm(amd, calls, between, pays):
    add_product(torch.zeros(512, 512), torch.randn(512, between), torch.randn(between, 512))
    assert bool(calls) is pays


LARGE = torch.ones(256, 256)


@needs_onednn
def test_other_tensors_are_left_to_mm(amd):
    assert uses_onednn(LARGE, LARGE)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert not uses_onednn(LARGE.to(dtype), LARGE.to(dtype))
    assert not uses_onednn(LARGE, LARGE.double())
    assert not uses_onednn(LARGE.to("meta"), LARGE.to("meta"))


@needs_onednn
def test_it_can_be_forbidden(amd, monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", "mm")
    assert not uses_onednn(LARGE, LARGE)
    monkeypatch.undo()
    torch._C._set_mkldnn_enabled(False)
    try:
        monkeypatch.setattr(products, "LIBRARY", "onednn")
        assert not uses_onednn(LARGE, LARGE)
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_a_torch_without_it(amd, monkeypatch):
    monkeypatch.setattr(products, "_ONEDNN", None)
    monkeypatch.setattr(products, "LIBRARY", "onednn")
    assert torch.equal(product(LARGE, LARGE), LARGE @ LARGE)


@pytest.mark.parametrize(
    ("capability", "mkl", "maker", "slow"),
    [
        ("AVX512", True, "AuthenticAMD", True),
        ("AVX2", True, "AuthenticAMD", False),
        ("AVX512", False, "AuthenticAMD", False),
        ("AVX512", True, "GenuineIntel", False),
        ("AVX512", True, None, False),
    ],
)
def test_only_where_mkl_is_slow(monkeypatch, capability, mkl, maker, slow):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(products, "_maker", lambda: maker)
    assert products.mkl_is_slow_here.__wrapped__() is slow
    monkeypatch.setattr(products, "mkl_is_slow_here", lambda: slow)
    assert uses_onednn(LARGE, LARGE) is (slow and products._has_onednn())


def test_who_made_the_processor(monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t: 2\n", encoding="utf-8")
    plain = products.Path
    monkeypatch.setattr(products, "Path", lambda name: path if name == "/proc/cpuinfo" else plain(name))
    assert products._maker() == "AuthenticAMD"
    path.write_text("Processor: ARM\n", encoding="utf-8")
    assert products._maker() is None
    path.unlink()
    assert products._maker() is None


@needs_onednn
def test_nothing_that_autograd_watches_goes_where_it_has_no_derivative(monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", "onednn")
    for place in range(3):
        tensors = [torch.randn(9, 13), torch.randn(13, 21), torch.randn(21)]
        tensors[place].requires_grad_()
        product(*tensors).sum().backward()
        assert tensors[place].grad is not None


# Layers


@pytest.fixture
def dense(monkeypatch):
    """Return an `nn.Linear`, and one that computes by the faster products."""
    monkeypatch.setattr(products, "LIBRARY", "onednn")
    return functional.linear, accumulate.fast_linear


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@needs_onednn
@pytest.mark.parametrize("shape", [(13,), (9, 13), (2, 3, 13)])
@pytest.mark.parametrize("biased", [True, False])
def test_fast_linear(dense, calls, shape, biased):
    found = []
    for way in dense:
        x, weight, bias = leaves(shape, (21, 13), (21,))
        output = way(x, weight, bias if biased else None)
        output.square().sum().backward()
        found.append([output.detach(), *(leaf.grad for leaf in (x, weight, bias) if leaf.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert len(calls) == 3


@needs_onednn
@pytest.mark.parametrize("wanted", list(itertools.product((True, False), repeat=3)))
def test_only_wanted_gradients(dense, wanted):
    x, weight, bias = (t.requires_grad_(w) for t, w in zip(leaves((9, 13), (21, 13), (21,)), wanted, strict=True))
    output = dense[1](x, weight, bias)
    assert output.requires_grad is any(wanted)
    if any(wanted):
        output.sum().backward()
    assert [t.grad is not None for t in (x, weight, bias)] == list(wanted)


@needs_onednn
def test_second_derivatives(dense):
    found = []
    for way in dense:
        tensors = leaves((9, 13), (21, 13), (21,))
        grads = torch.autograd.grad(way(*tensors).pow(3).sum(), tensors, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), tensors))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-2)


@needs_onednn
def test_batched_gradients(dense, calls):
    found = []
    for way in dense:
        tensors = leaves((9, 13), (21, 13), (21,))
        toward = torch.randn(4, 9, 21, generator=torch.Generator().manual_seed(0))
        found.append(torch.autograd.grad(way(*tensors), tensors, toward, is_grads_batched=True))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1  # forward


@needs_onednn
@pytest.mark.parametrize("mode", ["autocast", "vmap", "grad", "inference", "subclass"])
def test_where_it_is_plain(dense, calls, mode):
    x, weight, bias = (leaf.detach() for leaf in leaves((9, 13), (21, 13), (21,)))
    results = []
    for way in dense:
        if mode == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                results.append(way(x, weight, bias))
        elif mode == "vmap":
            results.append(torch.func.vmap(way, in_dims=(0, None, None))(x, weight, bias))
        elif mode == "grad":
            results.append(torch.func.grad(lambda x, way=way: way(x, weight, bias).sum())(x))
        elif mode == "inference":
            with torch.inference_mode():
                results.append(way(x, weight, bias).clone())
        else:
            results.append(way(x, torch.Tensor._make_subclass(type("Own", (torch.Tensor,), {}), weight), bias))
    assert bool(calls) is (mode == "inference")
    torch.testing.assert_close(torch.Tensor(results[0].float()), torch.Tensor(results[1].float()), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_structured_layers_compute_by_it(calls, monkeypatch):
    monkeypatch.setattr(products, "LIBRARY", "onednn")
    layer, x = HashedLinear(13, 21, 40), torch.randn(9, 13)
    torch.testing.assert_close(layer(x), functional.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1
    assert structured.structured_linear.fast_linear is accumulate.fast_linear
    assert not isinstance(layer, nn.Linear)
