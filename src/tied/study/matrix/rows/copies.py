"""Rows on copies: of the model, of a part of it, in another process, and averaged.

The files and bytes that are unpickled here were written by the same row a moment before.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch
from torch import nn

from tied.errors import TieWarning
from tied.study.matrix.law import Check, Oracle, batch, bound, largest, law, near
from tied.study.matrix.row import row
from tied.study.matrix.subject import Subject
from tied.study.reference import HIDDEN

THEME = "copy"


@row(THEME)
def deepcopy(subject: Subject) -> Subject:
    """`copy.deepcopy(model)`."""
    return subject.then(copy.deepcopy(subject.model))


@row(THEME)
@torch.no_grad()
def deepcopy_dec(subject: Subject) -> list[Check]:
    """`copy.deepcopy` of the second module alone: the copy computes the same, by itself, with weights it shows.

    It must not follow the original, and zeroing its `parameters()` must leave nothing: no hidden weight.
    """
    codes = torch.randn(8, HIDDEN, dtype=subject.dtype)
    expected = subject.target(codes)
    part = copy.deepcopy(subject.target)
    checks = [near("value", largest(part(codes) - expected), bound(subject), "the copy's output")]
    for parameter in subject.model.parameters():
        parameter.add_(1.0)
    checks += [near("apart", largest(part(codes) - expected), bound(subject), "after the original changed, the output")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TieWarning)  # that such a copy has a Parameter of its own is what is asked here
        for parameter in part.parameters():
            parameter.zero_()
    return [
        *checks,
        near("open", largest(part(codes)), 0.0, "with the copy's parameters() at zero, its output from zero"),
    ]


@row(THEME, "pickle")
def pickled(subject: Subject) -> Subject:
    """`pickle.loads(pickle.dumps(model))`."""
    return subject.then(pickle.loads(pickle.dumps(subject.model)))


@row(THEME)
def torch_save_module(subject: Subject) -> Subject:
    """`torch.save(model, ...)`, `torch.load(..., weights_only=False)`."""
    buffer = io.BytesIO()
    torch.save(subject.model, buffer)
    buffer.seek(0)
    return subject.then(torch.load(buffer, weights_only=False))


def _fill(model: nn.Module, inputs: torch.Tensor, answers: Connection) -> None:
    """Work in the other process: change all parameters in place, and answer with the output."""
    torch.set_num_threads(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
        answers.send_bytes(json.dumps(model(inputs).tolist()).encode())


@row(THEME)
def share_memory_spawn(subject: Subject) -> list[Check]:
    """`model.share_memory()`, sent to a spawned process that fills all parameters with 0.25 in place.

    Both processes then compute with the new values, and here the law holds.
    """
    context, (inputs, _) = torch.multiprocessing.get_context("spawn"), batch(subject, 1)
    answers, there = context.Pipe(duplex=False)
    process = context.Process(target=_fill, args=(subject.model.share_memory(), inputs, there))
    process.start()
    there.close()
    found, expected = torch.tensor(json.loads(answers.recv_bytes()), dtype=subject.dtype), Oracle(subject)
    process.join()
    with torch.no_grad():
        for leaf in expected.leaves.values():
            leaf.fill_(0.25)
        checks = [
            near("there", largest(found - expected(inputs)), bound(subject), "the output there"),
            near("here", largest(subject(inputs) - expected(inputs)), bound(subject), "the output here"),
        ]
    return [*checks, *law(subject)]


@row(THEME)
@torch.no_grad()
def ema(subject: Subject) -> list[Check]:
    """`torch.optim.swa_utils.AveragedModel`, updated twice: it computes with the average of the weights."""
    averaged, oracle = torch.optim.swa_utils.AveragedModel(subject.model), Oracle(subject)
    seen: list[dict[str, torch.Tensor]] = []
    for change in (0.1, 0.5):
        for leaf in subject.leaves().values():
            leaf.add_(change)
        averaged.update_parameters(subject.model)
        seen.append({name: leaf.clone() for name, leaf in subject.leaves().items()})
    for name, leaf in oracle.leaves.items():
        leaf.copy_((seen[0][name] + seen[1][name]) / 2)
    call: Callable[[torch.Tensor], torch.Tensor] = averaged
    inputs, _ = batch(subject, 1)
    found = largest(call(inputs) - oracle(inputs))
    return [near("average", found, bound(subject), "the averaged model's output")]
