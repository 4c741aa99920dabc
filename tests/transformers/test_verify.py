"""`tied.verify` on models of transformers: what they tie is one weight, until `load_state_dict(assign=True)`.

Each architecture is run on inputs of its own. Half-tied models give the same outputs, and are caught by AdamW; copies
that are only declared are caught by what transformers declares.
"""

import pytest
import torch
from torch import nn
from zoo import ZOO, Architecture

import tied
from tied.checking.verify import verify

FAST = {"GPT2LMHeadModel", "T5ForConditionalGeneration", "AlbertForMaskedLM"}
EACH = pytest.mark.parametrize(
    "architecture", [pytest.param(a, id=str(a), marks=() if str(a) in FAST else pytest.mark.slow) for a in ZOO]
)


def shared(model: nn.Module) -> list[set[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return [group for group in names.values() if len(group) > 1]


@EACH
def test_what_transformers_ties_is_one_weight(architecture: Architecture) -> None:
    model = architecture.build()
    torch.manual_seed(0)
    proof = verify(model, architecture.inputs())
    assert {name for group in proof.groups for name in group} <= {name for group in shared(model) for name in group}
    assert proof.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert proof.groups
    assert max(proof.differences.values()) <= 1e-12


@EACH
def test_so_it_is_when_adopted(architecture: Architecture) -> None:
    model = architecture.build()
    tied.adopt(model)
    torch.manual_seed(0)
    proof = verify(model, architecture.inputs())
    assert set(proof.ties) == {str(tie) for tie in tied.ties(model)}
    assert max(proof.differences.values()) <= 1e-12


@EACH
@pytest.mark.parametrize("cloned", [False, True], ids=["half-tied", "copies"])
def test_assign_is_caught(architecture: Architecture, cloned: bool) -> None:
    model = architecture.build()
    state = model.state_dict()
    model.load_state_dict({name: t.clone() for name, t in state.items()} if cloned else state, assign=True)
    torch.manual_seed(0)
    with pytest.raises(tied.SharingError, match="do not train as one weight: at step 1 of AdamW"):
        verify(model, architecture.inputs())
