"""The gradient of a source is the sum over its uses, and the adjoint of the transform gives each part."""

import pytest
import torch
from corpus import CASES, Case, Reference, loss, tied_model
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tied.algebra import adjoint, parse
from tied.algebra.parser import parse_address


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_the_sum_over_uses(case: Case) -> None:
    """Untie, take the gradient of every use by itself, send the target's back by hand-written adjoint, and add."""
    model = tied_model(case)
    loss(model(case.inputs())).backward()
    apart = case.build()
    apart.load_state_dict({**model.state_dict(), case.target: case.oracle(dict(model.state_dict()))})
    loss(apart(case.inputs())).backward()
    parts = {name: p.grad for name, p in apart.named_parameters()}
    tensors = {parse_address(n): t for n, t in apart.state_dict().items()}
    sent = adjoint(parse(case.source), parts.pop(case.target), tensors)
    for name, parameter in model.named_parameters():
        total = [g for g in (parts[name], sent.get(parse_address(name))) if g is not None]
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        torch.testing.assert_close(ours, sum(total, torch.zeros_like(parameter)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_the_reference(case: Case) -> None:
    model = tied_model(case)
    reference = Reference(case, model)
    loss(model(case.inputs())).backward()
    loss(reference(case.inputs())).backward()
    for name, parameter in model.named_parameters():
        other = reference.tensors[name].grad
        assert (parameter.grad is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(parameter.grad, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck_and_gradgradcheck(case: Case) -> None:
    model = tied_model(case)
    sources = {".".join(a) for a in parse(case.source).sources()} & {n for n, _ in model.named_parameters()}
    names, leaves = zip(
        *((n, p.detach().requires_grad_()) for n, p in model.named_parameters() if n in sources), strict=True
    )
    inputs = case.inputs()[:2]

    def output(*tensors: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, tensors, strict=True)), (inputs,))

    if "detach" in case.source:
        return  # finite differences see through detach, derivatives must not
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no second derivative
        assert torch.autograd.gradcheck(output, leaves)
        assert torch.autograd.gradgradcheck(output, leaves)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameters_and_state_hold_each_weight_once(case: Case) -> None:
    model, untied = tied_model(case), case.build()
    assert dict(model.named_parameters()).keys() == dict(untied.named_parameters()).keys() - {case.target}
    assert model.state_dict().keys() == untied.state_dict().keys() - (set() if case.is_identity else {case.target})
    assert [id(p) for p in model.parameters()] == list(dict.fromkeys(id(p) for p in model.parameters()))
