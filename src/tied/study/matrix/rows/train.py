"""Rows on training itself: no operation, and no excuse for a recipe that is wrong from the start."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from tied.study.matrix.law import Check, Oracle, batch, bound, follows, gradient, near, training, value
from tied.study.matrix.row import row
from tied.study.matrix.subject import SEED, Subject
from tied.study.reference import clipped_step, mean_squared_error, optimizer_for

THEME = "train"
FIVE = 5
plain_step = partial(clipped_step, most=math.inf)


def _tied_after(subject: Subject, make: Callable[..., torch.optim.Optimizer]) -> list[Check]:
    untied = subject.kind.start(SEED, torch.float64)
    optimizer = make(untied.parameters(), lr=0.05)
    for number in range(FIVE):
        inputs, goals = batch(subject, number)
        plain_step(optimizer, lambda x=inputs, y=goals: mean_squared_error(untied(x), y))
    late = subject.then(subject.column.build(untied))
    return [value(late), follows(late)]


@row(THEME, absolute=True)
def tie_after_5sgd(subject: Subject) -> list[Check]:
    """Train the untied model for five steps of SGD, then tie: the source's values hold, and are followed."""
    return _tied_after(subject, torch.optim.SGD)


@row(THEME, absolute=True)
def tie_after_5adam(subject: Subject) -> list[Check]:
    """Train the untied model for five steps of Adam, then tie: the source's values hold, and are followed."""
    return _tied_after(subject, torch.optim.Adam)


@row(THEME, absolute=True)
def sgd5(subject: Subject) -> list[Check]:
    """Five steps of plain SGD equal those of one parameter."""
    return [training(subject, lambda held: torch.optim.SGD(held, lr=0.05), plain_step, FIVE)]


@row(THEME, absolute=True)
def adam5(subject: Subject) -> list[Check]:
    """Five steps of Adam equal those of one parameter."""
    return [training(subject, lambda held: torch.optim.Adam(held, lr=0.01), plain_step, FIVE)]


@row(THEME, absolute=True)
def sgd_mom_wd5(subject: Subject) -> list[Check]:
    """Five steps of SGD with momentum and weight decay equal those of one parameter."""
    make = lambda held: torch.optim.SGD(held, lr=0.05, momentum=0.9, weight_decay=0.1)  # noqa: E731
    return [training(subject, make, plain_step, FIVE)]


@row(THEME, absolute=True)
def grad_sum(subject: Subject) -> list[Check]:
    """After one backward, the source's gradient is the sum over both uses."""
    return [gradient(subject)]


@row(THEME, absolute=True)
def params_once(subject: Subject) -> list[Check]:
    """`sum(p.numel() for p in model.parameters())` counts the weight once."""
    found, wanted = sum(parameter.numel() for parameter in subject.model.parameters()), Oracle(subject).count()
    return [Check("counted", found == wanted, f"{found:,} numbers, {wanted:,} in the formula")]


@row(THEME, absolute=True)
def optstate_once(subject: Subject) -> list[Check]:
    """After one step of AdamW, its state holds one running mean for each number of the formula."""
    optimizer, (inputs, goals) = optimizer_for(subject.model.parameters()), batch(subject, 1)
    clipped_step(optimizer, lambda: mean_squared_error(subject(inputs), goals))
    found, wanted = sum(state["exp_avg"].numel() for state in optimizer.state.values()), Oracle(subject).count()
    return [Check("state", found == wanted, f"{found:,} running means, {wanted:,} numbers in the formula")]


@row(THEME, absolute=True)
def clip_grad_norm(subject: Subject) -> list[Check]:
    """`clip_grad_norm_(model.parameters(), ...)` finds the gradient norm of one parameter."""
    oracle, (inputs, goals) = Oracle(subject), batch(subject, 1)
    norms = [
        clipped_step(optimizer_for(run.parameters()), lambda run=call: mean_squared_error(run(inputs), goals))
        for run, call in ((subject.model, subject), (oracle, oracle))
    ]
    found = abs(norms[0] - norms[1])
    return [near("norm", found, bound(subject), f"the norm {norms[0]:.4g}, where it should be {norms[1]:.4g},")]
