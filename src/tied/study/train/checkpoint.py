"""Checkpoints of a run: whole or not there, the newest one good for going on.

Owns: the folder of one run. Must not train. Read next: `job.py`.

A checkpoint is a folder of its own, written beside its place and then renamed, so that a process that is killed
at any time leaves the last whole one.

    tied-seed-0/
      model.safetensors           the result, by `tied.save`: after the last epoch, or the best one with patience
      checkpoint-00000480/        to go on from: the weights, and the optimizer with the epochs so far
        model.safetensors
        training.pt
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import torch
from torch import nn

from tied.files.models.load import load
from tied.files.models.save import save
from tied.study.train.loop import Training
from tied.study.train.reading import unreadable

MODEL, TRAINING = "model.safetensors", "training.pt"
PREFIX = "checkpoint-"


def write_checkpoint(training: Training, folder: Path) -> Path:
    """Write all that is needed to go on; older checkpoints go when it is in its place.

    Returns:
        The checkpoint's folder, named by the number of steps.
    """
    place = folder / f"{PREFIX}{training.step:08}"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
        try:
            write_model(training.processes.plain(training.model), beside)
            stream = io.BytesIO()
            torch.save(training.state(), stream)
            (beside / TRAINING).write_bytes(stream.getvalue())
            beside.chmod(0o755)
            beside.rename(place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    for old in checkpoints(folder):
        if old != place:
            shutil.rmtree(old)
    return place


def write_model(model: nn.Module, folder: Path) -> Path:
    """Write the weights only, with the ties in the header."""
    save(model, folder / MODEL)
    return folder / MODEL


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"), key=lambda path: int(path.name.removeprefix(PREFIX)))


def restore(training: Training, folder: Path) -> bool:
    """Go on from the newest checkpoint of the folder.

    Returns:
        Whether there is one; if not, the training is as it was.

    Raises:
        DataError: the checkpoint is broken.
    """
    found = checkpoints(folder)
    if not found:
        return False
    try:
        state = torch.load(found[-1] / TRAINING, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, KeyError) as error:
        raise unreadable(found[-1] / TRAINING, str(error).split("\n")[0]) from None
    load(training.processes.plain(training.model), found[-1] / MODEL)
    training.restore(state)
    return True
