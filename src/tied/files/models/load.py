"""Loading: any checkpoint into any model, whole or not at all.

Owns: `load`. Must not know how a file is laid out (`files/rewriting/expanded_view.py`), nor how differing values are
settled (`reconcile.py`). Read next: `assign_values.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tied.algebra import Expression
from tied.algebra.projection import agree
from tied.binding.state_dict_hooks import _present
from tied.errors import ConflictError, FileError, KindError, during, nearest
from tied.files.models.assign_values import install, is_folded, may_fail, unfolded, untouched_on_failure
from tied.files.models.model_names import Names, plain_name
from tied.files.models.reconcile import WINNERS, Reconciled, Winner, distance, reconcile
from tied.files.reading.file_ledger import name_of, reference
from tied.files.reading.refusal import shown
from tied.files.rewriting.expanded_view import Expansion
from tied.sharding import gathered

EXTRA_STATE = "_extra_state"


@dataclass(frozen=True)
class Loaded:
    """What a load did; true in every name of the model.

    Attributes:
        loaded: The names whose values came from the file.
        dropped: The names that the file has and the model reads from elsewhere: targets, which own no memory.
        gaps: The names whose values in the file differed from what the model has now, each with its distance,
            relative to its norm: what projection, or the choice of a winner, cost.
        missing: The names of the model that the file has not; only where `strict=False`.
        unexpected: The names of the file that the model has not; only where `strict=False`.
    """

    loaded: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    gaps: dict[str, float] = field(default_factory=dict[str, float])
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line, and one for each name that is not as the file has it."""
        counts = {"dropped": self.dropped, "missing": self.missing, "unexpected": self.unexpected}
        said = [f"{len(self.loaded)} loaded", *(f"{len(names)} {word}" for word, names in counts.items() if names)]
        return "\n".join([", ".join(said), *(f"{name}: {gap:.2g} from the file" for name, gap in self.gaps.items())])


def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    on_conflict: Winner = "error",
    device: torch.device | str | None = None,
    assign: bool = False,
) -> Loaded:
    """Load a checkpoint into a model, whatever shares in the one and in the other.

    Law: afterwards every name of the model reads what the file has for it, bit for bit, unless two names that are
    one tensor in the model differ in the file: that is an error, or settled by `on_conflict` and reported. A tie
    stays a tie, and so does sharing by plain torch. All or nothing: a load that fails leaves the model as it was. Only
    Ctrl-C while values are copied leaves some of them loaded, as in torch, unless `assign=True`: load again.

    A file that stores a value once is loaded into an untied model too: what is missing is restored by the
    ledger in the file. A file of an untied model is loaded into a tied one if its values agree.

    Args:
        model: Changed in place.
        path: A safetensors file, a folder, an index, a file of `torch.save`, or a folder of
            `torch.distributed.checkpoint`; of these two nothing but tensors is read. A state dict may be nested in it
            under a usual key, and its names may begin with `module.`.
        strict: Whether names that only the file has, or only the model, are an error.
        on_conflict: Who wins where a target and its source differ: `"source"`, `"target"`, or `"mean"`, the
            least-squares source over all of them; `"error"` for nobody.
        device: Where the tensors go with `assign=True`; the CPU where not given.
        assign: Whether the tensors of the file become the model's, as in torch: with the dtypes of the file, read
            only when they are used. Needed for a model on the meta device.

    Returns:
        What was loaded and dropped, and how far projected names are from the file.

    Raises:
        FileError: The file is broken, or does not fit the model.
        ConflictError: Two names of one tensor differ, and nobody was named to win.
        InverseError: No source gives what the file has for a target.
        KindError: An argument, or the model, does not allow it.

    Example:
        >>> import tempfile, tied
        >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
        >>> model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        >>> tied.save(model, path)  # not tied: four tensors
        >>> _ = tied.tie(model, "decoder.weight", "encoder.weight.T")
        >>> found = load(model, path, on_conflict="mean")
        >>> found.dropped, sorted(found.gaps)
        (('decoder.weight',), ['decoder.weight', 'encoder.weight'])
    """
    with during(f"load(model, {os.fspath(path)!r})"):
        try:
            return _load(_Asked(strict, on_conflict, device, assign), model, path)
        except FileError as error:
            error.changed = "The model was not changed."
            raise


@dataclass(frozen=True)
class _Asked:
    """How a load is to be done."""

    strict: bool
    winner: Winner
    device: torch.device | str | None
    assign: bool

    def __post_init__(self) -> None:
        if self.winner not in WINNERS:
            expected = ", ".join(map(repr, WINNERS))
            raise KindError("on_conflict names no winner.", found=repr(self.winner), expected=expected, fix="'error'")
        if self.device is not None and not self.assign:
            raise KindError(
                "The values go where the model's tensors lie, not to a device.",
                found=f"device={str(self.device)!r} without assign=True",
                expected="one or the other",
                fix=f"load(model, path, device={str(self.device)!r}, assign=True)",
            )


def _load(asked: _Asked, model: nn.Module, path: str | os.PathLike[str]) -> Loaded:
    names = Names.of(model)
    _check_lazy(names)
    file = Expansion.open(path)
    with torch.no_grad():
        places = _weights_of(file, {*names.values, *names.sources, *names.computed})
        given = _given(asked, names, file, places)
        _check_fit(names, given, path)
        free = {name: tensor for name, tensor in given.items() if name not in names.computed}
        sources = {name: source for name, source in names.sources.items() if name not in names.computed}
        found = reconcile(free, sources, present=_presents(names), fixed=_fixed(names), winner=asked.winner)
        loaded = _report(names, found, given, places)
        if asked.strict and (loaded.missing or loaded.unexpected):
            raise _misfit(loaded, path)
        _check_memory(asked, names, found)
        computed = {name: given[name] for name in names.computed if name in given}
        outside = {name: computed.pop(name) for name in list(computed) if name not in names.sources}
        loaded.gaps.update(_computed_gaps(asked, names, outside))
        with untouched_on_failure(names.model, in_place=not asked.assign and (bool(computed) or may_fail(names.model))):
            install(names, found.values, assign=asked.assign)
            loaded.gaps.update(_computed_gaps(asked, names, computed))
    return loaded


# -- what the file has ------------------------------------------------------------------------------


def _given(asked: _Asked, names: Names, file: Expansion, places: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the file's tensors that the model knows, but for those which both say are computed from others."""
    given: dict[str, Tensor] = {}
    known = {origin: name for name, origin in places.items()}
    for name, origin in places.items():
        if name not in names.values and name not in names.sources and name not in names.computed:
            continue
        if origin not in file.stored and names.sources.get(name) == _renamed(file.equations[origin].source, known):
            continue
        given[name] = file.own(origin).to(asked.device or "cpu") if asked.assign else file.tensor(origin)
    return given


def _renamed(source: Expression, known: Mapping[str, str]) -> Expression:
    """Return an expression over names of the file as one over names of the model."""
    return source.substitute({a: reference(known.get(name_of(a), name_of(a))) for a in source.sources()})


def _check_fit(names: Names, given: Mapping[str, Tensor], path: object) -> None:
    """Refuse tensors of another shape, or of a kind that would be converted in silence."""
    for name, tensor in given.items():
        if name.endswith(EXTRA_STATE):  # whatever its module takes
            continue
        there = _expected(names, name)
        if tensor.shape != there.shape:
            problem, found, expected = "another shape", f"shape {tuple(tensor.shape)}", f"shape {tuple(there.shape)}"
        elif _kind(tensor) != _kind(there):
            problem, found, expected = "another kind of numbers", str(tensor.dtype), str(there.dtype)
        elif (
            name in names.stored
            and is_folded(there)
            and not torch.equal(unfolded(tensor, there).expand_as(tensor), tensor)
        ):
            problem, found, expected = "more different entries", "different ones", "equal ones along an expanded axis"
        else:
            continue
        problem = f"{shown(str(path))}: {shown(name)} has {problem} than in the model."
        raise FileError(problem, found=found, expected=expected, fix="build the model as it was when it was saved")


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"


def _expected(names: Names, name: str) -> Tensor:
    """Return what a name is in the model, on meta where it is an expression."""
    if name in names.computed:
        return names.computed[name].read()
    if name in names.sources:
        source = names.sources[name]
        values = {a: names.values[name_of(a)] for a in source.sources()}
        return source.infer({a: torch.empty(v.shape, dtype=v.dtype, device="meta") for a, v in values.items()})
    return names.values[name]


# -- what the model has -----------------------------------------------------------------------------


def _presents(names: Names) -> Callable[[str], Tensor]:
    """Return what reads a present value whole; what is on meta has none."""

    def present(name: str) -> Tensor:
        value = names.values[name]
        return _present(gathered(value), torch.device("cpu") if value.is_meta else value.device)

    return present


def _fixed(names: Names) -> set[str]:
    """Return the buffers that are constants in an expression of something else: indices, signs."""
    fixed: set[str] = set()
    for name, source in names.sources.items():
        read = [name_of(address) for address in source.sources()]
        if name in names.computed or len(read) < 2:
            continue
        buffers = {other for other in read if not isinstance(names.values[other], nn.Parameter)}
        whole = buffers == set(read)
        fixed |= {other for other in buffers if not whole or not names.values[other].is_floating_point()}
    return fixed


def _check_lazy(names: Names) -> None:
    lazy = [name for name, value in names.values.items() if is_lazy(value)]
    if lazy:
        raise KindError(
            f"{shown(lazy[0])} has no shape yet.",
            found="a parameter of a lazy module",
            expected="an initialized one",
            fix="run one forward through the model, then load",
        )


def _check_memory(asked: _Asked, names: Names, found: Reconciled) -> None:
    """Refuse a model that has no memory where values would go, or would stay without after the load."""
    empty = [name for name in found.values if getattr(names.values[name], "is_meta", False)]
    if empty and not asked.assign:
        raise KindError(
            f"{shown(empty[0])} is on the meta device, which cannot take values.",
            found=f"{len(empty)} tensors without memory",
            expected="memory, or leave to put the file's tensors into the model",
            fix="load(model, path, assign=True)",
        )
    left = [
        name for name, buffer in names.model.named_buffers() if buffer.is_meta and plain_name(name) not in names.keys
    ]
    if left and asked.strict:
        raise KindError(
            f"{shown(left[0])} is on the meta device, and no file holds it.",
            found="a buffer that is not persistent",
            expected="a buffer with values",
            fix="build that module on a device, or strict=False and fill the buffer afterwards",
        )


def _report(names: Names, found: Reconciled, given: Mapping[str, Tensor], places: Mapping[str, str]) -> Loaded:
    known = {*names.values, *names.sources, *names.computed}
    return Loaded(
        loaded=tuple(found.values),
        dropped=tuple(name for name in given if name not in found.values),
        gaps=dict(found.gaps),
        missing=tuple(name for name in names.stored if name not in found.values),
        unexpected=tuple(name for name in places if name not in known),
    )


def _misfit(loaded: Loaded, path: object) -> FileError:
    sides = {"missing in the file": loaded.missing, "unknown to the model": loaded.unexpected}
    near = nearest(loaded.missing[0], loaded.unexpected) if loaded.missing else ""
    asked = f"is {shown(loaded.missing[0])} called {near} in the file? Or " if near else ""
    return FileError(
        f"{shown(str(path))} does not fit the model.",
        found="; ".join(f"{len(names)} {word}: {_few(names)}" for word, names in sides.items() if names),
        expected="the names of the model, each once",
        fix=f"{asked}load(model, path, strict=False), which says what it left out",
    )


def _few(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more


def _computed_gaps(asked: _Asked, names: Names, computed: Mapping[str, Tensor]) -> dict[str, float]:
    """Compare targets whose sources no file names with what the file has for them, now that all is loaded."""
    gaps: dict[str, float] = {}
    for name, tensor in computed.items():
        link = names.computed[name]
        value = link.read().detach().as_subclass(Tensor).to(tensor.device)
        if agree(value, tensor.to(value.dtype), link.expression):
            continue
        if asked.winner != "source":
            raise ConflictError(
                f"{shown(name)} and its source differ, and the source is computed, so that it cannot follow.",
                found=f"{shown(name)} is {distance(value, tensor):.3g} of its norm away from {link.expression}",
                expected="equal values",
                fix="on_conflict='source', or tied.untie(model, target) first",
            )
        gaps[name] = distance(value, tensor)
    return gaps


# -- which names of the file are the model's -------------------------------------------------------------

NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params", "policy")
PREFIXES = ("module.", "_orig_mod.")

Taken = dict[str, str]
"""Names as the model has them, each with the name in the file."""


def _weights_of(file: Expansion, wanted: Collection[str]) -> Taken:
    """Return the names of the file that are the model's weights, with the names in the file.

    Of all places where a state dict may be nested (`{"model": ..., "optimizer": ...}`), and of all prefixes that
    every name of it has, those are taken that fit most of the wanted names; where none fits, all names as they are.
    What lies beside a nested state dict is no weight and is left out.

    Args:
        file: The checkpoint.
        wanted: The names that the model has.
    """
    one = file.checkpoint.files[0] if len(file.checkpoint.files) == 1 else None
    names = {plain_name(name): name for name in file.names()}
    if len(names) < len(file.names()):  # with and without the segment of torch.compile: both stay as they are
        names = {name: name for name in file.names()}
    found = list(_places(names, one.loaded if one is not None else None))
    return max(found, key=lambda place: len(place.keys() & set(wanted)))


def _places(names: Taken, tree: Any) -> Iterator[Taken]:
    yield names
    inside = cast("Mapping[Any, Any]", tree) if isinstance(tree, Mapping) else {}
    for key in NESTED:
        if isinstance(inside.get(key), Mapping):
            yield from _places(_below(names, f"{key}."), inside[key])
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            yield from _places(_below(names, prefix), None)


def _below(names: Taken, prefix: str) -> Taken:
    return {name.removeprefix(prefix): whole for name, whole in names.items() if name.startswith(prefix)}
