"""Two gloo processes train every layer as one process trains what is written by hand: DDP and FSDP2.

Three steps of AdamW in float64, each process with half of the batch, against plain torch with the whole batch.
"""

import warnings
from collections.abc import Callable
from functools import partial
from os import _exit
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from layers_under_law import LAYERS, Layer
from torch import nn
from torch.utils._pytree import tree_leaves

ROWS = 4
# What is called beside `forward`: a group of FSDP2 has to be told of it
METHODS = {"RevIN": ("normalize", "denormalize"), "TiedEmbedding": ("logits", "loss")}


def _shard(model: nn.Module, *, apart: bool) -> nn.Module:
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    children = [child for child in _parts(model) if any(True for _ in child.parameters())] if apart else []
    for part in (*children, model):
        fully_shard(part, mesh=mesh)  # type: ignore[arg-type]
        for method in METHODS.get(type(part).__name__.removeprefix("FSDP"), ()):
            register_fsdp_forward_method(part, method)
    return model


def _parts(model: nn.Module) -> list[nn.Module]:
    """Return what people give groups of their own: the layers of a list, and every other child."""
    parts: list[nn.Module] = []
    for child in model.children():
        parts += _parts(child) if isinstance(child, nn.ModuleList) else [child]
    return parts


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp2-root": partial(_shard, apart=False),
    "fsdp2-apart": partial(_shard, apart=True),
}


def _rows(layer: Layer, step: int, start: int, count: int) -> tuple[torch.Tensor, ...]:
    inputs = layer.arguments(step)
    whole = [x.index_select(layer.batch, torch.arange(ROWS) % x.shape[layer.batch]) for x in inputs]
    return tuple(x.narrow(layer.batch, start, count) for x in whole)


def _train(call: Callable[..., object], parameters: list[torch.Tensor], layer: Layer, start: int, count: int) -> None:
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.1)
    if "transformer" in layer.name or "Attention" in layer.name:  # a key's bias has no gradient but rounding
        optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        leaves = tree_leaves(call(*_rows(layer, step, start, count)))
        sum(leaf.square().mean() + leaf.sin().mean() for leaf in leaves).backward()  # type: ignore[union-attr]
        optimizer.step()


def _gap(layer: Layer, way: str, rank: int) -> float:
    """Return how far the layer, trained by both processes, is from what was trained by hand in one."""
    model, by_hand = layer.model(), layer.model()
    names = [name for name, p in by_hand.named_parameters() if p.requires_grad]
    tensors = {name: value.detach().clone() for name, value in by_hand.state_dict().items()}
    learned = [tensors[name].requires_grad_() for name in names]
    _train(lambda *inputs: layer.by_hand(tensors, *inputs), learned, layer, 0, ROWS)
    wrapped = WAYS[way](model)
    _train(wrapped, [p for p in wrapped.parameters() if p.requires_grad], layer, rank * ROWS // 2, ROWS // 2)
    found = dict(model.named_parameters())
    values = [found[name].full_tensor() if hasattr(found[name], "full_tensor") else found[name] for name in names]
    return max(float((one - other).detach().abs().max()) for one, other in zip(values, learned, strict=True))


def _one_way(rank: int, way: str, folder: str) -> None:
    warnings.simplefilter("ignore")  # torch's own, about gloo and CPUs
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    gaps = {str(layer): _gap(layer, way, rank) for layer in LAYERS}
    assert max(gaps.values()) <= 1e-12, f"{way}: {gaps}"
    dist.barrier()
    _exit(0)  # torch 2.13 sometimes aborts while it tears down threads of gloo; everything is asserted by now


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.start_processes(_one_way, (way, str(tmp_path)), nprocs=2, start_method="spawn")
