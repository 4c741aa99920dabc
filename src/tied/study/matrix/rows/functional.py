"""Rows on graphs (compiled and exported models) and on functional use (`torch.func`, checkpointing, autocast)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from tied.study.matrix.law import Check, Oracle, batch, bound, counted, largest, near, relative
from tied.study.matrix.row import row
from tied.study.matrix.subject import SEED, Subject
from tied.study.reference import mean_squared_error

GRAPH, THEME = "graph", "functional"
FUNCTIONAL_FIX = "pytorch pull request 195593 mends functional_call where a submodule is registered twice"
BF16 = 2e-2
"""Relative: bfloat16 carries 8 bits."""


@row(GRAPH, "compile")
def compiled(subject: Subject) -> Subject:
    """`model.compile(fullgraph=True, backend="aot_eager")`: no graph breaks, and it trains."""
    subject.model.compile(fullgraph=True, backend="aot_eager")
    return subject


@row(GRAPH)
def export_unflatten(subject: Subject) -> Subject:
    """`torch.export.export(model, ...)`, `torch.export.unflatten`, and the result trains."""
    program = torch.export.export(subject.model, (batch(subject, 1)[0],))
    return subject.then(torch.export.unflatten(program))


@row(THEME, since=FUNCTIONAL_FIX)
def functional_call_grad(subject: Subject) -> list[Check]:
    """`torch.func.grad` through `functional_call` with other values for all parameters.

    The output is the formula's, and the gradient for the source is the sum over both uses.
    """
    oracle, (inputs, goals) = Oracle(subject), batch(subject, 1)
    with torch.no_grad():
        for leaf in oracle.leaves.values():
            leaf.mul_(0.5)
    given = {name: 0.5 * parameter.detach() for name, parameter in subject.model.named_parameters()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(subject.model, parameters, (inputs,))

    output, gradients = run(given), grad(lambda parameters: mean_squared_error(run(parameters), goals))(given)
    mean_squared_error(oracle(inputs), goals).backward()
    found = relative(gradients[subject.names[subject.main]], oracle.leaves[subject.main].grad)
    return [
        near("output", largest(output - oracle(inputs)), bound(subject), "the output"),
        near("gradient of functional_call", found, bound(subject), "the gradient (relative)"),
    ]


@row(THEME, since=FUNCTIONAL_FIX)
def vmap_ensemble(subject: Subject) -> list[Check]:
    """The ensembling tutorial: `stack_module_state` of three models, and `vmap` over a copy on meta."""
    members = [subject.another(seed) for seed in range(3)]
    state, buffers = stack_module_state([member.model for member in members])
    shell, (inputs, _) = copy.deepcopy(subject.model).to("meta"), batch(subject, 1)
    outputs = vmap(lambda p, b: functional_call(shell, (p, b), (inputs,)))(state, buffers)
    expected = torch.stack([Oracle(member)(inputs) for member in members])
    return [near("outputs", largest(outputs - expected), bound(subject), "the ensemble's output"), counted(subject)]


@row(THEME)
def checkpointing(subject: Subject) -> Subject:
    """`torch.utils.checkpoint.checkpoint(model, ..., use_reentrant=False)`: activations are computed twice."""
    return subject.called_as(lambda inputs: _checkpointed(subject, inputs))


def _checkpointed(subject: Subject, inputs: Tensor) -> Tensor:
    outputs = checkpoint(subject.model, inputs, use_reentrant=False)
    assert isinstance(outputs, Tensor)
    return outputs


@row(THEME)
def autocast_bf16(subject: Subject) -> list[Check]:
    """Forward and backward under `torch.autocast("cpu", torch.bfloat16)`, to bfloat16's accuracy."""
    single = subject.another(SEED, torch.float32)
    oracle, (inputs, goals) = Oracle(single), batch(single, 1)
    outputs: list[Tensor] = []
    for run in (single, oracle):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(run(inputs).float())
        mean_squared_error(outputs[-1], goals).backward()
    gradient = relative(single.leaves()[single.main].grad, oracle.leaves[single.main].grad)
    return [
        near("value", relative(outputs[0], outputs[1]), BF16, "the output (relative)"),
        near("gradient", gradient, BF16, "the source's gradient (relative)"),
    ]


@row(THEME)
@torch.no_grad()
def autocast_cache(subject: Subject) -> list[Check]:
    """Two forwards in one autocast region, where torch caches casts, equal one without the cache."""
    single = subject.another(SEED, torch.float32)
    inputs, _ = batch(single, 1)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = single(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = max(largest(single(inputs) - expected) for _ in range(2))
    return [near("cached", found, 0.0, "the output")]
