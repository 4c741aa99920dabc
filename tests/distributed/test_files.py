"""Two gloo processes save and load a sharded model as one process does: FSDP2 in one group and in several."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file
from torch import nn

import tied


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.encoder, self.decoder = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.encoder(self.embed(tokens))))


def _model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = _Model()
    tied.tie(model, {"decoder.weight": "encoder.weight.T", "head.weight": "2 * embed.weight"})
    return model


def _sharded(model: nn.Module, *groups: str) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for name in groups:
        fully_shard(model.get_submodule(name), mesh=mesh)
    return fully_shard(model, mesh=mesh)


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "fsdp2-root": _sharded,
    "fsdp2-apart": lambda m: _sharded(m, "encoder", "decoder"),
    "ddp": nn.parallel.DistributedDataParallel,
}


def _whole(model: nn.Module) -> dict[str, torch.Tensor]:
    inner = getattr(model, "module", model)
    state = {name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in inner.state_dict().items()}
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _each_way(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for way in WAYS:
        _one_way(rank, way, Path(folder) / f"{way}.safetensors")
    dist.barrier()
    os._exit(0)  # torch 2.13 sometimes aborts while it tears down threads of gloo; everything is asserted by now


def _one_way(rank: int, way: str, path: Path) -> None:
    expected = _whole(_model(0))
    tied.save(WAYS[way](_model(0)), path)
    dist.barrier()
    found = tied.files.load_file(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert torch.equal(found["decoder.weight"], expected["encoder.weight"].t())
    assert torch.equal(found["head.weight"], 2 * expected["embed.weight"])
    _loads(rank, way, path, expected)
    _loads(rank, way, path, expected, assign=True)
    only_targets = {n: t.contiguous() for n, t in found.items() if n not in ("embed.weight", "encoder.weight")}
    if rank == 0:
        save_file(only_targets, path.with_name("targets.safetensors"))
    dist.barrier()
    _loads(rank, way, path.with_name("targets.safetensors"), expected)


def _loads(rank: int, way: str, path: Path, expected: dict[str, torch.Tensor], **how: bool) -> None:
    model = WAYS[way](_model(rank + 1))
    kinds = [type(parameter.data) for parameter in model.parameters()]
    tied.load(model, path, **how)  # type: ignore[arg-type]
    assert [type(parameter.data) for parameter in model.parameters()] == kinds
    now = _whole(model)
    assert all(torch.equal(now[name], tensor) for name, tensor in expected.items()), (way, path, how)


@pytest.mark.distributed
def test_two_processes_save_and_load_as_one(tmp_path: Path) -> None:
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.start_processes(_each_way, (str(tmp_path),), nprocs=2, start_method="spawn")
    finally:
        os.environ.clear()
        os.environ.update(before)
