"""Rows on training in two processes: what torch's wrappers make of a tie.

Each of the two takes half of every batch. Afterwards the outputs equal those of one parameter trained on whole
batches in one process. A recipe that is wrong in one process too is judged by its own training there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor, nn

from tied.study.matrix.kinds import KINDS
from tied.study.matrix.law import Check, Oracle, batch, bound, largest, near
from tied.study.matrix.row import Elsewhere, row, worded
from tied.study.matrix.subject import SEED, Subject
from tied.study.reference import CLIP_NORM, mean_squared_error, optimizer_for

THEME = "distributed"
WORLD = 2
STEPS = 3


def train(subject: Subject, run: Any, *, clips: bool, part: slice = slice(None)) -> Tensor:
    """Take three steps of AdamW on a part of every batch and return the outputs on a whole one, `(batch, ...)`."""
    held = list(run.parameters())
    optimizer = optimizer_for(held)
    for number in range(STEPS):
        inputs, goals = (whole[part] for whole in batch(subject, number))
        optimizer.zero_grad()
        mean_squared_error(run(inputs), goals).backward()
        if clips:
            nn.utils.clip_grad_norm_(held, CLIP_NORM)
        optimizer.step()
    with torch.no_grad():
        return run(batch(subject, STEPS)[0])


# -- the wrappers --------------------------------------------------------------------------------------


def _ddp(subject: Subject) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(subject.model)


def _shard(*modules: nn.Module | list[nn.Module]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for module in modules:
        fully_shard(module, mesh=mesh)


def _fsdp2_root(subject: Subject) -> nn.Module:
    _shard(subject.model)
    return subject.model


def _fsdp2_layers(subject: Subject) -> nn.Module:
    targets = [] if subject.column.target is None else [subject.target]
    _shard(subject.source, *targets, subject.model)
    return subject.model


def _fsdp2_group(subject: Subject) -> nn.Module:
    _shard([subject.source, subject.target], subject.model)
    return subject.model


def _wrapped_fully(module: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


def _fsdp1_root(subject: Subject) -> nn.Module:
    return _wrapped_fully(subject.model)


def _fsdp1_layers(subject: Subject) -> nn.Module:
    paths = [path for path in (subject.column.source, subject.column.target) if path is not None]
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(subject.model.get_submodule(parent), name, _wrapped_fully(subject.model.get_submodule(path)))
    return _fsdp1_root(subject)


WRAPPERS: dict[str, Callable[[Subject], nn.Module]] = {
    "ddp": _ddp,
    "fsdp2_root": _fsdp2_root,
    "fsdp2_layers": _fsdp2_layers,
    "fsdp2_group": _fsdp2_group,
    "fsdp1_root": _fsdp1_root,
    "fsdp1_layers": _fsdp1_layers,
}
CLIPPED = {name for name in WRAPPERS if not name.startswith("fsdp1")}
"""FSDP1 clips by a method of its own, which refuses float64: its rows train without clipping."""


# -- two processes -------------------------------------------------------------------------------------


def _work(names: tuple[str, str, str], rank: int, folder: str, answers: Connection) -> None:
    """Train in one of the processes; the answer is the outputs, or the error's lines."""
    import torch.distributed as dist

    kind, column, wrapper = names
    try:
        torch.set_num_threads(1)
        init = f"file:///{folder.lstrip('/')}/store"
        dist.init_process_group("gloo", init, timedelta(seconds=30), world_size=WORLD, rank=rank)
        subject = Subject.fresh(KINDS[kind], KINDS[kind].column(column))
        half = len(batch(subject, 0)[0]) // WORLD
        part = slice(rank * half, (rank + 1) * half)
        outputs = train(subject, WRAPPERS[wrapper](subject), clips=wrapper in CLIPPED, part=part)
        answer: dict[str, Any] = {"outputs": outputs.tolist()}
    except Exception as error:  # the parent raises it
        answer = {"error": worded(error)}
    answers.send_bytes(json.dumps(answer).encode())


def _loopback() -> None:
    """Have gloo talk through the loopback device: a host's own name may not resolve."""
    with suppress(OSError, AttributeError):
        names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        if names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])


def in_two(subject: Subject, wrapper: str) -> Tensor:
    """Train in two processes and return the outputs afterwards.

    Raises:
        Elsewhere: one of them failed.
    """
    _loopback()
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(how)
    pipes = [context.Pipe(duplex=False) for _ in range(WORLD)]
    with tempfile.TemporaryDirectory() as folder:
        names = (subject.kind.name, subject.column.key, wrapper)
        workers: list[BaseProcess] = [
            context.Process(target=_work, args=(names, rank, folder, sender)) for rank, (_, sender) in enumerate(pipes)
        ]
        for worker, (_, sender) in zip(workers, pipes, strict=True):
            worker.start()
            sender.close()
        try:
            return torch.tensor(_answer([receiver for receiver, _ in pipes]), dtype=torch.float64)
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _answer(receivers: list[Connection]) -> list[list[float]]:
    """Return the outputs of the first who has any; raise the first error."""
    while True:
        for receiver in wait(receivers):
            assert isinstance(receiver, Connection)
            try:
                answer = json.loads(receiver.recv_bytes())
            except EOFError:
                raise Elsewhere(["a process of the group died"]) from None
            if "error" in answer:
                raise Elsewhere(answer["error"])
            return answer["outputs"]


def _compared(subject: Subject, wrapper: str) -> list[Check]:
    outputs = in_two(subject, wrapper)
    alone = subject.another(SEED)
    expected, own = (train(alone, run, clips=wrapper in CLIPPED) for run in (Oracle(alone), alone.model))
    return [
        near("training", largest(outputs - expected), bound(subject), "the trained model's output"),
        near("as in one process", largest(outputs - own), bound(subject), "from the same in one process, the output"),
    ]


@row(THEME)
def ddp(subject: Subject) -> list[Check]:
    """`DistributedDataParallel(model)`, two gloo processes, three steps of AdamW."""
    return _compared(subject, "ddp")


@row(THEME)
def fsdp2_root(subject: Subject) -> list[Check]:
    """`fully_shard(model)`, two gloo processes, three steps of AdamW."""
    return _compared(subject, "fsdp2_root")


@row(THEME)
def fsdp2_layers(subject: Subject) -> list[Check]:
    """`fully_shard` of the source, of the target and of the model, two gloo processes, three steps of AdamW."""
    return _compared(subject, "fsdp2_layers")


@row(THEME)
def fsdp2_group(subject: Subject) -> list[Check]:
    """`fully_shard([source, target])` and of the model, two gloo processes, three steps of AdamW."""
    assert subject.target
    return _compared(subject, "fsdp2_group")


@row(THEME)
def fsdp1_root(subject: Subject) -> list[Check]:
    """`FullyShardedDataParallel(model)`, two gloo processes, three steps of AdamW."""
    return _compared(subject, "fsdp1_root")


@row(THEME)
def fsdp1_layers(subject: Subject) -> list[Check]:
    """`FullyShardedDataParallel` of source, target and model, two gloo processes, three steps of AdamW."""
    return _compared(subject, "fsdp1_layers")
