"""`tied.verify` on models of transformers: what they tie is one weight, until `load_state_dict(assign=True)`.

Each architecture is run on inputs of its own. Half-tied models give the same outputs, and are caught by AdamW; copies
that are only declared are caught by what transformers declares.
"""

import zlib

import pytest
import torch
from tiny import build, declaring_classes
from torch import Tensor, nn
from zoo import ZOO, Architecture

import tied
from tied.proving.verify import verify

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


# -- every class that declares ties ------------------------------------------------------------------


def reads_every_slot(model: nn.Module) -> Tensor:
    """A loss in which each slot is one use, whatever the forward of its class needs."""
    terms = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            dice = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            direction = torch.randn(parameter.shape, generator=dice, dtype=torch.float64).to(parameter)
            terms.append((parameter * direction).sum() + parameter.square().sum() / 2)
    return torch.stack(terms).sum()


def is_caught(model: nn.Module, *, cloned: bool) -> bool:
    state = model.state_dict()
    model.load_state_dict({name: t.clone() for name, t in state.items()} if cloned else state, assign=True)
    try:
        verify(model, loss=reads_every_slot, steps=1)
    except tied.SharingError:
        return True
    return False


@pytest.mark.slow
def test_assign_is_caught_in_every_class_that_can_be_built() -> None:
    looked_at, missed = 0, []
    for made in declaring_classes():
        try:
            model = build(made)
            model = model if shared(model) else build(made, tie_word_embeddings=True)
        except Exception:
            continue  # sizes that do not fit together
        if not any(model.get_parameter(name).requires_grad for group in shared(model) for name in group):
            continue  # nothing to tie, or nothing to train
        if sum(p.numel() for p in model.parameters()) > 1_500_000:
            continue
        looked_at += 1
        missed += [f"{made.__name__}, {cloned=}" for cloned in (False, True) if not is_caught(model, cloned=cloned)]
    assert missed == []
    assert looked_at > 200
