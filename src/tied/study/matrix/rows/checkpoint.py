"""Rows on checkpoints: what is saved and loaded, by torch, safetensors and accelerate.

Where a file comes from elsewhere, it has the names of the plain model: the source's, and the target's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tied.study.matrix.law import Check, Oracle, batch, bound, largest, law, near
from tied.study.matrix.row import row
from tied.study.matrix.subject import OTHER_SEED, Subject
from tied.study.reference import clipped_step, mean_squared_error, optimizer_for

THEME = "checkpoint"
ASSIGN_FIX = "pytorch pull request 188347 keeps Parameters registered twice under assign=True"


@contextmanager
def _folder() -> Generator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _through_file(state: dict[str, Any]) -> dict[str, Any]:
    with _folder() as folder:
        torch.save(state, folder / "model.pt")
        return torch.load(folder / "model.pt", weights_only=True)


def arrived(original: Subject, loaded: Subject) -> list[Check]:
    """Check that the loaded model computes what the original does, and then the law."""
    inputs, _ = batch(original, 1)
    with torch.no_grad():
        found = largest(original(inputs) - loaded(inputs))
    return [near("arrived", found, bound(original), "the loaded model's output"), *law(loaded)]


def _on_meta(subject: Subject) -> Subject:
    with torch.device("meta"):
        return subject.another()


@row(THEME)
def load_state_dict(subject: Subject) -> list[Check]:
    """`torch.save` of the state dict, `load_state_dict` into a newly built model."""
    fresh = subject.another()
    fresh.model.load_state_dict(_through_file(subject.model.state_dict()))
    return arrived(subject, fresh)


@row(THEME, since=ASSIGN_FIX)
def load_assign(subject: Subject) -> list[Check]:
    """`torch.save` of the state dict, `load_state_dict(assign=True)` into a newly built model."""
    fresh = subject.another()
    fresh.model.load_state_dict(_through_file(subject.model.state_dict()), assign=True)
    return arrived(subject, fresh)


@row(THEME, since=ASSIGN_FIX)
def load_assign_meta(subject: Subject) -> list[Check]:
    """`torch.save` of the state dict, `load_state_dict(assign=True)` into a model built on meta."""
    fresh = _on_meta(subject)
    fresh.model.load_state_dict(_through_file(subject.model.state_dict()), assign=True)
    return arrived(subject, fresh)


def foreign(subject: Subject, *, source: bool = True, target: bool = True) -> dict[str, Tensor]:
    """Return the state dict of a plain model with the subject's values: with both keys, or one of them."""
    leaves, names = Oracle(subject).leaves, subject.names
    state = {name: leaves[leaf].detach() for leaf, name in names.items() if source or leaf != "weight"}
    if target:
        state[subject.column.target_key] = subject.matrix(leaves["weight"].detach()).clone()
    return state


def _loaded(subject: Subject, state: dict[str, Tensor]) -> list[Check]:
    fresh = subject.another()
    fresh.model.load_state_dict(_through_file(state))
    return arrived(subject, fresh)


@row(THEME)
def ckpt_both_keys(subject: Subject) -> list[Check]:
    """Load a plain model's file in which source and target agree."""
    return _loaded(subject, foreign(subject))


@row(THEME)
def ckpt_source_key(subject: Subject) -> list[Check]:
    """Load a file that has the weight under the source's name only."""
    return _loaded(subject, foreign(subject, target=False))


@row(THEME)
def ckpt_target_key(subject: Subject) -> list[Check]:
    """Load a file that has the weight under the target's name only."""
    return _loaded(subject, foreign(subject, source=False))


@row(THEME, refusal="one weight cannot have both values")
def ckpt_disagree(subject: Subject) -> list[Check]:
    """Load a plain model's file in which source and target differ. An error is the right answer."""
    state = foreign(subject)
    state[subject.column.target_key] += 1
    subject.another().model.load_state_dict(_through_file(state))
    return [Check("refused", False, "two different values for one weight were loaded without a word")]


def _through_safetensors(subject: Subject, state: dict[str, Tensor]) -> list[Check]:
    from safetensors.torch import load_file, save_file

    fresh = subject.another()
    with _folder() as folder:
        save_file(state, folder / "model.safetensors")
        fresh.model.load_state_dict(load_file(folder / "model.safetensors"))
    return arrived(subject, fresh)


@row(THEME)
def safetensors_save_file(subject: Subject) -> list[Check]:
    """`safetensors.torch.save_file(model.state_dict(), ...)`, `load_file`, `load_state_dict`."""
    return _through_safetensors(subject, subject.model.state_dict())


@row(THEME)
def safetensors_model(subject: Subject) -> list[Check]:
    """`safetensors.torch.save_model(model, ...)`, `load_model` into a newly built model."""
    from safetensors.torch import load_model, save_model

    fresh = subject.another()
    with _folder() as folder:
        save_model(subject.model, str(folder / "model.safetensors"))
        load_model(fresh.model, folder / "model.safetensors")
    return arrived(subject, fresh)


@row(THEME)
def safetensors_cross(subject: Subject) -> list[Check]:
    """Load somebody else's safetensors file, which stores the weight once, with `load_file` and `load_state_dict`."""
    return _through_safetensors(subject, foreign(subject, target=False))


@row(THEME)
def dcp(subject: Subject) -> list[Check]:
    """`torch.distributed.checkpoint.save` and `load` of the model's state dict, in one process."""
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    fresh = subject.another()
    with _folder() as folder:
        save(subject.model.state_dict(), checkpoint_id=folder)
        state = fresh.model.state_dict()
        load(state, checkpoint_id=folder)
    fresh.model.load_state_dict(state)
    return arrived(subject, fresh)


def _stepped(subject: Subject) -> torch.optim.Optimizer:
    optimizer, (inputs, goals) = optimizer_for(subject.model.parameters()), batch(subject, 1)
    clipped_step(optimizer, lambda: mean_squared_error(subject(inputs), goals))
    return optimizer


@row(THEME)
def dcp_api(subject: Subject) -> list[Check]:
    """`get_state_dict(model, optimizer)`, saved and loaded, then `set_state_dict` on a new model and optimizer."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    fresh = subject.another()
    optimizer, new = _stepped(subject), _stepped(fresh)
    with _folder() as folder:
        model, steps = get_state_dict(subject.model, optimizer)
        save({"model": model, "optimizer": steps}, checkpoint_id=folder)
        model, steps = get_state_dict(fresh.model, new)
        load({"model": model, "optimizer": steps}, checkpoint_id=folder)
        set_state_dict(fresh.model, new, model_state_dict=model, optim_state_dict=steps)
    return arrived(subject, fresh)


@row(THEME, needs="accelerate", since=ASSIGN_FIX)
def accelerate_empty(subject: Subject) -> list[Check]:
    """Build under `accelerate.init_empty_weights`, then `load_checkpoint_in_model` from a file of the state dict."""
    from accelerate import init_empty_weights, load_checkpoint_in_model

    with init_empty_weights():
        fresh = subject.another(OTHER_SEED)
    with _folder() as folder:
        torch.save(subject.model.state_dict(), folder / "model.bin")
        load_checkpoint_in_model(fresh.model, str(folder / "model.bin"), device_map={"": "cpu"})
    return arrived(subject, fresh)
