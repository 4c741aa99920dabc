"""ONNX: an exported model computes the same, and holds a tied weight once where the exporter allows it."""

import numpy
import pytest
import torch
from corpus import MAIN, Case, tied_model
from torch import nn

import tied

onnx = pytest.importorskip("onnxscript", exc_type=ImportError)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # torch's exporter uses what torch deprecates


def exported(model: nn.Module, case: Case, **options: object) -> object:
    return torch.onnx.export(model.eval(), (case.inputs(),), dynamo=True, verbose=False, **options)


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_the_exported_model_computes_the_same(case: Case) -> None:
    from onnx.reference import ReferenceEvaluator

    model = tied_model(case)
    program = exported(model, case)
    session = ReferenceEvaluator(program.model_proto)
    (output,) = session.run(None, {session.input_names[0]: case.inputs().numpy()})
    numpy.testing.assert_allclose(output, model(case.inputs()).detach().numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_without_constant_folding_the_weight_is_there_once(case: Case) -> None:
    """With it, the exporter stores the transposed or computed value beside the source: its choice, not ours.

    Of an identity it writes both names, as of plain sharing.
    """
    if case.is_identity:
        plain = case.build()
        plain.get_submodule(case.target.rpartition(".")[0]).weight = plain.get_parameter(case.source)
        held = [set(exported(m, case, optimize=False).model.graph.initializers) for m in (tied_model(case), plain)]
        assert held[0] == held[1]
        return
    model = tied_model(case)
    held = exported(model, case, optimize=False).model.graph.initializers
    assert {name for name in held if name in dict(model.named_parameters())} <= set(dict(model.named_parameters()))
    assert case.target not in held
    sizes = sum(int(numpy.prod(value.shape)) for name, value in held.items() if value.shape)
    own = sum(t.numel() for t in model.state_dict().values())
    untied = case.build()
    assert sizes < own + sum(p.numel() for n, p in untied.named_parameters() if n == case.target)


def test_the_size_can_fail() -> None:
    case = MAIN[0]
    model = tied_model(case)
    tied.untie(model)
    held = exported(model, case, optimize=False).model.graph.initializers
    assert case.target in held
