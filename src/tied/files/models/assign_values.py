"""Putting values into a model, all of them or none, and keeping what plain torch shares.

Owns: the one place of `files` that changes a model. Must not decide what the values are. Read next: `load.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _NormBase

from tied.binding.commit.transaction import Transaction
from tied.binding.late_reading import Late
from tied.binding.state_dict_hooks import reconcile_before
from tied.files.models.model_names import Names, has_memory
from tied.files.reading.file_ledger import name_of
from tied.sharding import is_sharded, spread


def install(names: Names, values: Mapping[str, Tensor], *, assign: bool) -> None:
    """Put values into the slots of these names; sharing by plain torch stays, also with `assign`.

    Args:
        names: Of the model, as they were read off before.
        values: By name; of the right shapes and kinds.
        assign: Whether to put the tensors themselves into the model, as torch does.
    """
    if is_plain(names.model):
        _put(names, values, assign=assign)
    else:
        _load(names, values, assign=assign)
    if assign:
        _share_again(names, values)


def _put(names: Names, values: Mapping[str, Tensor], *, assign: bool) -> None:
    """Do what torch would do, slot by slot; torch's own loop takes quadratic time over many children."""
    for name, value in values.items():
        present = names.values[name]
        if not assign:
            unfolded(present.detach(), present).copy_(unfolded(value, present))
            continue
        is_parameter = isinstance(present, Parameter)
        _set(names, name, Parameter(value, requires_grad=present.requires_grad) if is_parameter else value)


def _load(names: Names, values: Mapping[str, Tensor], *, assign: bool) -> None:
    """Have torch load, with the code that modules bring along."""
    folded = {} if assign else {name: value for name, value in values.items() if is_folded(names.values[name])}
    state = {names.keys[n]: spread(t, names.values[n]) for n, t in values.items() if n not in folded}
    names.model.load_state_dict(state, strict=False, assign=assign)
    for name, value in folded.items():
        unfolded(names.values[name].detach(), names.values[name]).copy_(unfolded(value, names.values[name]))


def is_folded(tensor: Any) -> bool:
    """Tell whether an axis of a tensor is expanded: one element stands at many places, and torch cannot copy there."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True) if has_memory(tensor) and not is_sharded(tensor) else ()
    return any(size > 1 and stride == 0 for size, stride in pairs)


def unfolded(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor without the repetitions along the axes that are expanded in `like`."""
    for axis, stride in enumerate(like.stride()):
        tensor = tensor.narrow(axis, 0, 1) if stride == 0 and tensor.shape[axis] else tensor
    return tensor


def _share_again(names: Names, values: Mapping[str, Tensor]) -> None:
    """Put new Parameters where old ones shared memory with one that was replaced."""
    for name, source in names.sources.items():
        changed = [name_of(address) for address in source.sources() if name_of(address) in values]
        if name not in names.keys or not changed:  # a target, which reads its source anyway
            continue
        shared: Any = getattr(*_slot(names, changed[0]))
        old = names.values[name]
        if old is not names.values[changed[0]]:
            view = source.value({source.sources()[0]: shared.detach()})
            shared = Parameter(view, requires_grad=old.requires_grad) if isinstance(old, Parameter) else view
        _set(names, name, shared)


def _slot(names: Names, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = names.keys[name].rpartition(".")
    return names.model.get_submodule(path), attribute


def _set(names: Names, name: str, value: Tensor) -> None:
    """Set an attribute as anybody would: a recurrent module has to see it."""
    module, attribute = _slot(names, name)
    setattr(module, attribute, value)


def untouched_on_failure(model: nn.Module, *, in_place: bool) -> Transaction:
    """Return a block that puts everything back where it fails.

    Args:
        model: All Parameters and buffers of it are remembered.
        in_place: Whether their values may be overwritten, so that they are copied first: as much memory again.
    """
    undo = Transaction(model.modules())
    held = [t for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
    for tensor in {id(t): t for t in held if in_place and not t.is_meta}.values():
        undo.keep(tensor)
    return undo


def is_plain(model: nn.Module) -> bool:
    """Tell whether loading would run nothing but torch's own copy from tensor to tensor."""
    if torch.__future__.get_swap_module_params_on_conversion() or any(is_sharded(p) for p in model.parameters()):
        return False
    return all(code in _PLAIN_CODE for module in model.modules() for code in _loading_code(module))


def may_fail(model: nn.Module) -> bool:
    """Tell whether loading runs code that is neither torch's nor ours, and so may fail half way."""
    return any(_is_foreign(code) for module in model.modules() for code in _loading_code(module))


def _loading_code(module: nn.Module) -> Iterator[Any]:
    kind: Any = type(module)
    yield from (kind.load_state_dict, kind._load_from_state_dict, kind.set_extra_state)
    yield from (getattr(hook, "hook", hook) for hook in module._load_state_dict_pre_hooks.values())
    yield from module._load_state_dict_post_hooks.values()


_MODULE: Any = nn.Module
_PLAIN_CODE = {
    _MODULE.load_state_dict,
    _MODULE._load_from_state_dict,
    _MODULE.set_extra_state,
    _NormBase._load_from_state_dict,  # which fills in for files older than num_batches_tracked
    Late._load_from_state_dict,  # for keys of targets, which are settled by now
    reconcile_before,
}


def _is_foreign(code: Any) -> bool:
    return (getattr(code, "__module__", None) or "").partition(".")[0] not in ("torch", "tied")
