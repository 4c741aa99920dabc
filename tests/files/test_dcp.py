"""Distributed checkpoints: what is shared is written once, and torch's own reader finds every name of it."""

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sharing_zoo import BUILDERS, build
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load

import tied
from tied.distributed import save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # torch's own load, in one process

PLAIN = [b for b in BUILDERS if b.__name__ not in ("strided", "conjugate")]  # torch's own reader cannot write there


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.distcp"))


def read(folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read by torch alone, strictly, into memory of its own for each name."""
    found = {name: torch.zeros_like(tensor).contiguous() for name, tensor in like.items()}
    load(found, checkpoint_id=folder, no_dist=not dist.is_initialized())
    return found


@pytest.mark.parametrize("builder", PLAIN, ids=lambda b: b.__name__)
def test_torch_reads_every_name(builder: object, tmp_path: Path) -> None:
    state = build(builder).state_dict()  # type: ignore[arg-type]
    save(dict(state), tmp_path)
    for name, tensor in read(tmp_path, state).items():
        assert torch.equal(tensor, state[name]), name


def test_each_tensor_is_written_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(300, 300), torch.randn(300)
    state = {"a": {"w": weight, "b": bias}, "c": {"w": weight, "b": bias}, "again": weight, "turned": weight.t()}
    save(state, tmp_path / "shared")
    save({"a": {"w": weight, "b": bias}, "turned": weight.t()}, tmp_path / "alone")
    assert abs(size(tmp_path / "shared") - size(tmp_path / "alone")) < 1000
    names = {index.fqn for index in FileSystemReader(tmp_path / "shared").read_metadata().storage_data}
    assert names == {"a.w", "a.b", "c.w", "c.b", "again", "turned"}


def test_equal_values_are_not_one_tensor(tmp_path: Path) -> None:
    ones = torch.ones(300, 300)
    save({"a": ones, "b": ones.clone(), "c": ones[:200], "none": ones[:0], "empty": ones[:0]}, tmp_path)
    assert size(tmp_path) > 2 * ones.nbytes + 200 * 300 * 4


def test_a_conjugate_is_another_value(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, dtype=torch.complex64)}
    state["b"] = state["a"].conj()
    save(dict(state), tmp_path)
    assert torch.equal(read(tmp_path, state)["a"], state["a"])
    names = FileSystemReader(tmp_path).read_metadata().storage_data
    assert len({(place.relative_path, place.offset) for place in names.values()}) == 2


def test_a_tied_model_has_one_name(tmp_path: Path) -> None:
    model, other = (nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(5, 3)}) for _ in range(2))
    for each in (model, other):
        tied.tie(each, "b.weight", "a.weight.T")
    save(model.state_dict(), tmp_path)
    other.load_state_dict(read(tmp_path, other.state_dict()))
    assert torch.equal(other.b.weight, model.a.weight.T)


def _two(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(301, 64), nn.Linear(64, 301, bias=False), nn.Linear(301, 64, bias=False))
    model[1].weight = model[0].weight
    tied.tie(model, "2.weight", "0.weight.T")
    expected = model[0].weight.detach().clone()
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (2,)))
    assert set(model.state_dict()) == {"0.weight", "1.weight"}
    save(model.state_dict(), Path(folder) / "ckpt")
    dist.barrier()
    assert size(Path(folder) / "ckpt") < 1.2 * expected.nbytes
    whole = read(Path(folder) / "ckpt", {"0.weight": expected, "1.weight": expected})
    assert torch.equal(whole["0.weight"], expected)
    assert torch.equal(whole["1.weight"], expected)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    load(state, checkpoint_id=Path(folder) / "ckpt")
    model.load_state_dict(state)
    assert torch.equal(model[1].weight.full_tensor(), expected)
    dist.barrier()
    os._exit(0)  # torch 2.13 sometimes aborts while it tears down threads of gloo; everything is asserted by now


@pytest.mark.distributed
def test_two_processes_write_a_shared_and_sharded_tensor_once(tmp_path: Path) -> None:
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.start_processes(_two, (str(tmp_path),), nprocs=2, start_method="spawn")
    finally:
        os.environ.clear()
        os.environ.update(before)
