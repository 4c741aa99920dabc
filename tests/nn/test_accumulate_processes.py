"""Two gloo processes that gather train as one process that does not."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.checkpoint import checkpoint

from tied.nn import TiedEmbedding, accumulate, lm_head, many_uses


class Loop(nn.Module):
    """A language model that runs one layer four times."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.recompute = TiedEmbedding(11, 4, bias=True), recompute
        self.cell = nn.Linear(4, 4)
        self.double()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        state = self.words(tokens)
        for _ in range(4):
            state = checkpoint(self.cell, state, use_reentrant=False) if self.recompute else self.cell(state)
            state = torch.tanh(state)
        return self.words.loss(state, tokens)


def _fsdp2(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


def _fsdp2_apart(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model.cell, mesh=mesh)  # type: ignore[arg-type]
    return fully_shard(model, mesh=mesh)  # type: ignore[return-value]


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "ddp-static": lambda m: nn.parallel.DistributedDataParallel(m, static_graph=True),
    "ddp-unused": lambda m: nn.parallel.DistributedDataParallel(m, find_unused_parameters=True),
    "ddp-recomputed": nn.parallel.DistributedDataParallel,
    "fsdp2-root": _fsdp2,
    "fsdp2-cell-apart": _fsdp2_apart,
}


def _train(model: nn.Module, pick: slice) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(3):
        tokens = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(tokens[pick]).backward()
        optimizer.step()


def _one_way(rank: int, way: str, folder: str) -> None:
    warnings.simplefilter("ignore")  # torch's own, about gloo and CPUs
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    alone = Loop()
    _train(alone, slice(None))
    accumulate.FEWEST_WEIGHTS, accumulate.ROWS_PER_WIDTH, lm_head.FEWEST_SCORES = 1, 1e9, 1
    model = WAYS[way](many_uses(Loop(recompute="recomputed" in way)))
    _train(model, slice(2 * rank, 2 * rank + 2))
    values = [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]
    gap = max(float((a - b).abs().max()) for a, b in zip(values, alone.parameters(), strict=True))
    assert gap <= 1e-12, f"{way}: {gap}"
    dist.barrier()
    os._exit(0)  # torch 2.13 sometimes aborts while it tears down threads of gloo; everything is asserted by now


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.start_processes(_one_way, (way, str(tmp_path)), nprocs=2, start_method="spawn")
