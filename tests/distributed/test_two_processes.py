"""Two gloo processes train a tied model as one process does: DDP, FSDP2 in every grouping, FSDP1.

Each way is run for a transposed autoencoder and for an embedding with its head (identity, no bias), three steps of
AdamW in float64, each process with half of the batch. The oracle is the same tied model in one process with the
whole batch, whose own law is `tests/laws/test_training.py`.
"""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from corpus import CASES, MAIN, Case
from torch import nn

import tied

TIES = [*MAIN, *(c for c in CASES if c.model.__name__ == "LanguageModel" and c.source.endswith("]") and c not in MAIN)]


def _shard(model: nn.Module, *groups: object) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for group in (*groups, model):
        fully_shard(group, mesh=mesh)  # type: ignore[arg-type]
    return model


def _first(model: nn.Module) -> nn.Module:
    return getattr(model, "encoder", None) or model.embed


def _second(model: nn.Module) -> nn.Module:
    return getattr(model, "decoder", None) or model.head


def _fsdp1(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp2-root": _shard,
    "fsdp2-one-group": lambda m: _shard(m, [_first(m), _second(m)]),
    "fsdp2-groups-apart": lambda m: _shard(m, _first(m), _second(m)),
    "fsdp2-target-apart": lambda m: _shard(m, _second(m)),
    "fsdp2-source-apart": lambda m: _shard(m, _first(m)),
    "fsdp1-root": _fsdp1,
}


def _mean_loss(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return a mean over samples, so that processes average to the whole."""
    output = model(inputs)
    return output.square().mean() + output.sin().mean()


def _trained(model: nn.Module, case: Case, pick: Callable[[torch.Tensor], torch.Tensor]) -> None:
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    if case.model.__name__ == "Transformer":  # a key's bias has no gradient but rounding, which Adam would blow up
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        _mean_loss(model, pick(case.inputs(step)[:4])).backward()
        optimizer.step()


def _tied(case: Case) -> nn.Module:
    model = case.build()
    for name in ("delta", "left", "right", "vector", "extra"):  # spare parameters: DDP wants every one used
        if hasattr(model, name) and name not in case.source:
            delattr(model, name)
    tied.tie(model, case.target, case.source)
    return model


def _values(model: nn.Module) -> list[torch.Tensor]:
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


def _one_way(rank: int, way: str, folder: str) -> None:
    warnings.simplefilter("ignore")  # torch's own, about gloo and CPUs
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{way}", rank=rank, world_size=2)
    for case in TIES:
        model, alone = _tied(case), _tied(case)
        wrapped = WAYS[way](model)
        _trained(alone, case, lambda x: x)
        _trained(wrapped, case, lambda x: x[2 * rank : 2 * rank + 2])
        if way == "fsdp1-root":
            with wrapped.summon_full_params(wrapped):  # type: ignore[attr-defined]
                got = [p.detach().clone() for p in wrapped.parameters()]
        else:
            got = _values(wrapped)
        gap = max(float((a - b).abs().max()) for a, b in zip(got, _values(alone), strict=True))
        assert gap <= 1e-12, f"{way}, {case}: {gap}"
    dist.barrier()
    os._exit(0)  # torch 2.13 sometimes aborts while it tears down threads of gloo; everything is asserted by now


@pytest.mark.distributed
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way: str, tmp_path: Path) -> None:
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.start_processes(_one_way, (way, str(tmp_path)), nprocs=2, start_method="spawn")
    finally:
        os.environ.clear()
        os.environ.update(before)
