"""Symbolic traces of forwards that read a tied weight themselves, and what cannot be shown in one."""

import copy

import pytest
import torch
from battery.subjects import TIES, inputs, tied_pair
from torch import Tensor, nn

import tied

TRANSFORMS = pytest.mark.parametrize("kind", [kind for kind in TIES if kind != "identity"])


class Part(nn.Module):
    """Reads a weight whose source is outside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight)


@TRANSFORMS
def test_a_source_outside_of_what_is_traced_is_refused(kind: str) -> None:
    model = tied_pair(kind)
    with pytest.raises(tied.KindError) as error:
        torch.fx.symbolic_trace(Part(model.b))
    outside = "a.weight and spare" if kind == "two sources" else "a.weight"
    assert str(error.value) == (
        "A symbolic trace cannot show how 'b.weight' is computed.\n"
        f"  found:    {TIES[kind][0]}, and {outside} is no Parameter of the traced module\n"
        "  expected: sources that the traced module holds\n"
        "  fix:      trace the model that holds both ends, or call tied.untie(model) first\n"
        "The model was not changed."
    )
    tied.untie(model)
    graph = torch.fx.symbolic_trace(Part(model.b))
    assert torch.equal(graph(inputs()), nn.functional.linear(inputs(), model.b.weight))


@pytest.mark.parametrize("kind", ["gathered", "two sources"])
def test_a_copy_of_a_graph_without_a_source_is_refused(kind: str) -> None:
    model = tied_pair(kind)
    graph = torch.fx.symbolic_trace(model)  # keeps what its nodes name, and no buffer that a layer reads
    with pytest.raises(tied.KindError) as error:
        copy.deepcopy(graph)
    assert str(error.value) == (
        "A copy of this graph would train apart: the graph does not hold all that a tied weight is computed from.\n"
        f"  found:    a layer with weight = {TIES[kind][0]}\n"
        "  expected: a graph that holds every source of its ties\n"
        "  fix:      copy the model, and trace the copy; or call tied.untie(model) first\n"
        "The model was not changed."
    )
    copied = torch.fx.symbolic_trace(copy.deepcopy(model))
    assert torch.equal(copied(inputs()), model(inputs()))
    tied.untie(model)
    torch.testing.assert_close(copy.deepcopy(torch.fx.symbolic_trace(model))(inputs()), copied(inputs()))


@TRANSFORMS
def test_a_trace_that_failed_changes_nothing(kind: str) -> None:
    model = tied_pair(kind)
    expected = model(inputs())
    with pytest.raises(tied.KindError):
        torch.fx.symbolic_trace(Part(model.b))
    assert torch.equal(model(inputs()), expected)
