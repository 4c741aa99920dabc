"""One commit point: an exception at any line of a call leaves the model as it was, or as the call leaves it.

A tracer raises KeyboardInterrupt at one line of `tied`, or of torch below it, per run. Only the lines between the
first change of the model and the last are many; before and after them a few stand for all, except in the slow run.
"""

import copy
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from interrupts import description, identities, interrupted, lines_of, trained
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

import tied
from tied.binding import bind


class Net(nn.Module):
    """An autoencoder, two towers and a recurrent layer, all of which the forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        self.other = nn.Linear(4, 3)
        self.towers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3))
        self.gru = nn.GRU(4, 4, bidirectional=True)
        self.spare = nn.Parameter(torch.randn(5))
        self.register_buffer("index", torch.randint(-1, 5, (4, 3)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.decoder(torch.tanh(self.encoder(x) + self.other(x)))
        for tower in self.towers:
            y = tower(y)
        return self.gru(y)[0] + self.spare.sum()


INPUTS = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)


def nothing(model: Any) -> None:
    """Leave the model as it is built."""


@dataclass(frozen=True)
class Call:
    """A call on a model that was prepared for it."""

    name: str
    act: Callable[[Any], object]
    prepare: Callable[[Any], object] = nothing

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """Return the prepared model, the same one at each call."""
        torch.manual_seed(0)
        model = Net().double()
        self.prepare(model)
        return model.eval()

    def outcome(self, model: nn.Module) -> object:
        """Return what comes of one more call: nothing, or the kind of the error."""
        try:
            self.act(model)
        except tied.TieError as error:
            return type(error)
        return None


def tying(*equations: tuple[str, str], keep: Any = "source") -> Callable[[Any], object]:
    return lambda model: tied.tie(model, dict(equations), keep=keep)


TRANSPOSED = ("decoder.weight", "encoder.weight.T")
IDENTITY = ("other.weight", "encoder.weight")
TOWER = ("towers.1", "towers.0")


def by_assignment(model: Any) -> None:
    with tied.tying(model) as m:
        m.decoder.weight = m.encoder.weight.T
        m.other.weight = m.encoder.weight


def replace_target(model: Any) -> None:
    tying(TRANSPOSED, IDENTITY)(model)
    model.decoder, model.other = nn.Linear(3, 4).double(), nn.Linear(4, 3).double()


def overwrite(model: Any) -> None:
    tying(TRANSPOSED, ("towers.1.0.weight", "2 * towers.0.0.weight"))(model)
    model.decoder._parameters["weight"] = nn.Parameter(torch.ones(4, 3).double())
    model.towers[1][0].__class__ = nn.Linear


def overwrite_computed(model: Any) -> None:
    tied.tie(model, "towers.1.0.weight", "2 * towers.0.0.weight")
    orthogonal(model.towers[0][0])
    model.towers[1][0]._parameters["weight"] = nn.Parameter(2 * torch.eye(4).double())


def share(model: Any) -> None:
    model.other.weight = model.encoder.weight
    model.towers[1][0].weight = model.towers[0][0].weight
    model.towers[1][0].bias = model.towers[0][0].bias


def half_tie(model: Any) -> None:
    model.decoder.weight = nn.Parameter(model.encoder.weight.data.t())
    model.towers[2][0].weight.data.copy_(model.towers[0][0].weight.data)


TIES = [
    Call("tie an identity", tying(IDENTITY)),
    Call("tie a transposed weight", tying(TRANSPOSED)),
    Call("tie a scaled weight", tying(("other.weight", "2 * encoder.weight"))),
    Call("tie a gathered weight", tying(("decoder.weight", "spare[index]"))),
    Call("tie to two sources", tying(("decoder.weight", "cat([encoder.weight.T[:2], other.weight.T[2:]], 0)"))),
    Call("tie several", tying(TRANSPOSED, IDENTITY, ("towers.1.0.weight", "towers.0.0.weight.T"))),
    Call("tie a module", lambda model: tied.tie(model, *TOWER, buffers=True)),
    Call("tie a recurrent weight", tying(("gru.weight_hh_l0_reverse", "gru.weight_hh_l0"))),
    Call("tie a recurrent weight, flipped", tying(("gru.weight_hh_l0_reverse", "gru.weight_hh_l0.flip(0)"))),
    Call("tie, keep the target", tying(TRANSPOSED, keep="target")),
    Call("tie, keep the mean", tying(TRANSPOSED, IDENTITY, keep="mean")),
    Call("tie a source of a target", tying(("encoder.weight", "decoder.weight.T")), tying(IDENTITY)),
    Call("tie a source of a transposed target", tying(("encoder.weight", "other.weight")), tying(TRANSPOSED)),
    Call("tie by assignment", by_assignment),
    Call("tie layers", lambda model: tied.tie_layers(model, "towers", private=["*.1.*"])),
    Call("bind", lambda model: bind(model.decoder, "weight", "e.weight.T", {"e": model.encoder})),
    Call("adopt", tied.adopt, share),
    Call("adopt half-tied and equal", lambda model: tied.adopt(model, half_tied=True, equal=True), half_tie),
]
BACK = [
    Call("untie an identity", lambda model: tied.untie(model, "other.weight"), tying(IDENTITY, TRANSPOSED)),
    Call("untie a transposed weight", lambda model: tied.untie(model, "decoder.weight"), tying(IDENTITY, TRANSPOSED)),
    Call("untie a module", lambda model: tied.untie(model, "towers.1"), lambda m: tied.tie(m, *TOWER, buffers=True)),
    Call("untie all", tied.untie, tying(IDENTITY, TRANSPOSED, ("gru.weight_hh_l0_reverse", "gru.weight_hh_l0.flip(0)"))),
    Call("alias", tied.alias, tying(IDENTITY, TOWER)),
    Call("retie what was replaced", lambda model: tied.retie(model, keep="source"), replace_target),
    Call("retie what was replaced, keep it", lambda model: tied.retie(model, keep="target"), replace_target),
    Call("retie what was overwritten", lambda model: tied.retie(model, keep="source"), overwrite),
    Call("retie what was overwritten, keep it", lambda model: tied.retie(model, keep="target"), overwrite),
    Call("retie, keep what a source computes", lambda model: tied.retie(model, keep="target"), overwrite_computed),
]
CALLS = [*TIES, *BACK]


def chosen(call: Call) -> list[int]:
    """Return a line for every state that the model passes through, and some that see none change."""
    model = call.model()
    count, changing = lines_of(lambda: call.act(model), model)
    assert changing, "the call changes nothing, or the tracer does not see it"
    return sorted({*changing, *range(0, count, count // 12), count - 1})


def check_every_line(call: Call, lines: Callable[[Call], Iterable[int]]) -> None:
    """Interrupt a call at each line: the model is as before or done, and another call completes it."""
    reference = call.model()
    fresh = description(reference, INPUTS)
    call.act(reference)  # which also fills the caches, so that each run from now on takes the same lines
    done = description(reference, INPUTS)
    again, twice = call.outcome(reference), description(reference, INPUTS)
    final = trained(reference, INPUTS)
    assert fresh != done
    assert twice == done
    for number in lines(call):
        model = call.model()
        before = identities(model)
        assert interrupted(lambda: call.act(model), at=number), number  # noqa: B023
        found = description(model, INPUTS)
        if found == fresh:
            assert identities(model) == before, number
            assert call.outcome(model) is None, number
        else:
            assert found == done, number
            assert call.outcome(model) == again, number
        assert description(model, INPUTS) == done, number
        assert trained(model, INPUTS) == final, number


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_is_done_or_leaves_the_model_as_it_was(call: Call) -> None:
    check_every_line(call, chosen)
