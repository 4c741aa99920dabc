"""`tied.check`: one look at a live model, a state dict or a file.

Owns: the public function, and the order in which the eyes look at a model; what a path means says `paths.py`.
Must not change anything.
Read next: `groups.py`, then `declarations.py`, `copies.py`, `semantics.py`, `optimizers.py`, `adapters.py`,
`forward_trace.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tied.checking.adapters import look_at_adapters
from tied.checking.collapse import collapse
from tied.checking.declarations import Apart, Seen, apart_finding, fix_of_half_tied, judge
from tied.checking.equal_copies import equal_groups
from tied.checking.forward_trace import NotTracedError, Seen as Traced, dummy_inputs, trace
from tied.checking.forward_uses import called, look_at_forward, used
from tied.checking.groups import count, shared, size_without_sharing
from tied.checking.inventory import Inventory
from tied.checking.optimizers import look_at_optimizers, optimizers_of
from tied.checking.paths import look_at_path
from tied.checking.semantics import look_at_meaning
from tied.errors import KindError, during
from tied.reporting.facts import Finding, Group, expression, quoted
from tied.reporting.report import Report
from tied.reporting.rules import chosen, finding, known_prefixes

UNSEEN = "With inputs, tied.check(model, inputs) also shows what is shared inside the forward."


def check(
    subject: object,
    inputs: Any = None,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """Look whether a model or a file really shares what it seems to share; change nothing.

    Memory is compared byte by byte over strides, not by pointers: disjoint views of one buffer share nothing, and
    a transposed or sliced view is found. Equal constants and fresh initializations are no news.

    Args:
        subject: A model (which need not know `tied`, and may be on meta), a state dict, or the path of a checkpoint,
            of a Python file, or of a folder of either; source code is read, not run.
        inputs: What one forward takes: a tensor, a tuple, or a dict of names. With them, sharing inside the forward
            is found: modules that are called several times, Parameters that are used at several places, uses without
            a gradient, and copies from one Parameter into another. A copy of the model is called, never the model.
        optimizer: Looked at too, or several in a list: whether what is shared is stepped once, with one setting.
        select: Codes of findings, or their beginnings, to report: `["TIE1", "TIE402"]`; None is all.
        ignore: Codes, or their beginnings, to leave out.

    Returns:
        The groups that share or should, the findings, and unique counts.

    Raises:
        KindError: `subject` is none of these, or a code is unknown.

    Example:
        >>> model = nn.ModuleDict({"encoder": nn.Linear(784, 256), "decoder": nn.Linear(256, 784)})
        >>> model["decoder"].weight = nn.Parameter(model["encoder"].weight.t())
        >>> report = check(model)
        >>> report.ok, report.parameters, report.findings[0].code
        (False, 201744, 'TIE101')
    """
    with during(f"check({type(subject).__name__ if not isinstance(subject, str) else repr(subject)})"):
        known_prefixes([*(select or ()), *ignore])
        if isinstance(subject, nn.Module):
            return _look(subject, inputs, optimizers_of(optimizer), select=select, ignore=ignore)
        if isinstance(subject, str | Path):
            return look_at_path(subject, select=select, ignore=ignore)
        if isinstance(subject, Mapping):
            from tied.files.auditing.audit import audit  # a look at a model does not wait for it

            return audit(subject, select=select, ignore=ignore)
        raise KindError(
            "Only models, state dicts and files can be looked at.",
            found=type(subject).__name__,
            expected="an nn.Module, a dict of tensors, or a path",
            fix="tied.check(model), or tied.check('model.safetensors')",
        )


def _look(
    model: nn.Module,
    inputs: Any,
    optimizers: tuple[Optimizer, ...],
    *,
    select: Sequence[str] | None,
    ignore: Sequence[str],
) -> Report:
    inventory = Inventory.of(model)
    seen = Seen(inventory, shared(inventory))
    judged = list(judge(seen))
    apart = {each.group.names: each for each in judged if isinstance(each, Apart)}
    equal = equal_groups(seen, {name for names in apart for name in names})
    groups = collapse([*seen.groups, *(each.group for each in apart.values()), *equal], inventory, entire=apart)
    traced, notes = _traced(inventory, inputs)
    in_forward = (*called(inventory.modules, traced.calls), *used(inventory, traced))
    findings = [each for each in judged if isinstance(each, Finding)]
    findings += [*_of_groups(seen, groups, apart), *look_at_meaning(seen), *look_at_adapters(seen)]
    findings += look_at_forward(inventory, traced)
    findings += look_at_optimizers(seen, optimizers) if optimizers else ()
    parameters, size = count(inventory)
    return Report(
        type(model).__name__,
        (*groups, *in_forward),
        chosen(findings, select=select, ignore=ignore),
        parameters=parameters,
        bytes=size,
        bytes_saved=size_without_sharing(inventory) - size,
        notes=notes,
    )


def _traced(inventory: Inventory, inputs: Any) -> tuple[Traced, tuple[str, ...]]:
    """Return what a forward shows; where there was none, say what it would show, and where it failed, why."""
    if inputs is None and dummy_inputs(inventory.model) is None:
        return Traced(), (UNSEEN,) if inventory.parameters else ()
    try:
        return trace(inventory.model, inputs), ()
    except NotTracedError as error:
        return Traced(), (UNSEEN if inputs is None else f"The forward was not looked at: it failed with {error}",)


def _of_groups(seen: Seen, groups: Sequence[Group], apart: Mapping[tuple[str, ...], Apart]) -> Iterator[Finding]:
    """Say what is wrong with memory that is shared half, or not at all; one finding for whole modules."""
    for group in groups:
        leaf = group.parts[0] if group.parts else group
        if leaf.names in apart:
            _, code, pair = apart[leaf.names]
            if code:
                yield apart_finding(seen, group, code, pair)
        elif group.state == "half-tied":
            yield _half_tied(seen, group, leaf)
        elif group.state == "equal":
            fix = f"tied.tie(model, {quoted(group.names[1])}, {quoted(expression(group, 1))})"
            yield finding("TIE105", group.names, f"{_listed(group)} hold equal values in separate memory.", fix)


def _half_tied(seen: Seen, group: Group, leaf: Group) -> Finding:
    buffers = [name for name in leaf.names if not seen.inventory.is_parameter(name)]
    if buffers:
        path, _, attribute = buffers[0].rpartition(".")
        what = f"{_listed(group)} lie over one memory, until the model is cast, moved or copied."
        fix = f"m = model.get_submodule({quoted(path)}); m.{attribute} = m.{attribute}.clone()"
        is_note = len(buffers) == len(leaf.names)
        return finding("TIE110", group.names, what, "" if is_note else fix, severity=None if is_note else "warning")
    verb = "hold" if group.parts else "are"
    what = (
        f"{_listed(group)} {verb} Parameters over one memory: an optimizer steps it several times, and casts part it."
    )
    return finding("TIE101", group.names, what, fix_of_half_tied(seen, group))


def _listed(group: Group) -> str:
    names = list(group.names) if len(group.names) < 4 else [*group.names[:2], f"{len(group.names) - 2} more"]
    return f"{', '.join(names[:-1])} and {names[-1]}"
