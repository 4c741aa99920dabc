"""Distributed checkpoints: what is shared is written once, and torch's own reader finds every name of it."""

import os
import pickle
import shlex
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sharing_zoo import BUILDERS, build
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load, save as save_by_torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict

import tied
from tied.distributed import save

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),  # torch's own load, in one process
    pytest.mark.filterwarnings("ignore:.*lie over one memory"),
]

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
    with pytest.warns(UserWarning, match=r"'a\.w', 'turned' lie over one memory, but are not one tensor"):
        save(state, tmp_path / "shared")
    with pytest.warns(UserWarning, match=r"tied\.tie\(model, target, source\)"):
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


# -- read by tied: any model, one process or several


class Shared(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.norm = nn.BatchNorm1d(4)


def by_torch(state: dict[str, object], folder: Path) -> None:
    save_by_torch(state, checkpoint_id=folder, no_dist=not dist.is_initialized())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("write", [save, by_torch])
@pytest.mark.parametrize("tie", [False, True])
def test_a_model_is_loaded(nested: bool, write: Callable[..., object], tie: bool, tmp_path: Path) -> None:
    model, other = Shared(0), Shared(1)
    model.head.weight = model.embed.weight
    model.norm.num_batches_tracked.fill_(7)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(parameter.square().sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    state = model.state_dict()
    write({"model": state, "optimizer": optimizer.state_dict(), "epoch": 3} if nested else state, tmp_path)
    if tie:
        tied.tie(other, "head.weight", "embed.weight")
    found = tied.load(other, tmp_path)
    assert found.missing == found.unexpected == ()
    assert found.dropped == (("head.weight",) if tie else ())
    assert torch.equal(other.head.weight, model.embed.weight)
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert other.norm.num_batches_tracked == 7
    names = {name.removeprefix("model.") for name in tied.files.load_file(tmp_path) if "optimizer" not in name}
    assert names == set(state)


def test_strict_is_strict(tmp_path: Path) -> None:
    save(nn.Linear(2, 3).state_dict(), tmp_path)
    with pytest.raises(tied.FileError, match="does not fit the model"):
        tied.load(nn.Linear(2, 3, bias=False), tmp_path)
    model = nn.Linear(2, 3, device="meta")
    tied.load(model, tmp_path, assign=True)
    assert model.bias.device.type == "cpu"


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    dtypes = [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64, torch.complex64]
    state = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in dtypes}
    state |= {"none": torch.zeros(0, 3), "one": torch.tensor(3.0)}
    save(dict(state), tmp_path)
    found = tied.files.load_file(tmp_path)
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {n: (t.dtype, t.shape) for n, t in state.items()}
    assert all(torch.equal(found[name].view(torch.uint8), t.view(torch.uint8)) for name, t in state.items() if t.dim())


def test_what_else_wants_a_file_says_so(tmp_path: Path) -> None:
    save(nn.Linear(2, 3).state_dict(), tmp_path)
    with pytest.raises(tied.FileError, match="It is a distributed checkpoint") as caught:
        tied.check(tmp_path)
    folder = shlex.quote(str(tmp_path))
    known = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt, then name model.pt"
    assert caught.value.fix == known


def test_the_way_out_counts_an_optimizers_state_apart(tmp_path: Path) -> None:
    model = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 30)).sum().backward()
    optimizer.step()
    weights, state = get_state_dict(model, optimizer)
    save_by_torch({"model": weights, "optim": state}, checkpoint_id=tmp_path / "chunks", no_dist=True)
    dcp_to_torch_save(tmp_path / "chunks", tmp_path / "model.pt")
    found = tied.check(tmp_path / "model.pt")
    assert (found.parameters, found.bytes, found.optimizer_bytes) == (620, 2480, 4 * (2 * 620 + 2))


class Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def spoil(folder: Path, change: Callable[[Metadata], object]) -> None:
    path = folder / ".metadata"
    content = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(content) or content))


def place(content: Metadata, **how: object) -> None:
    index = next(iter(content.storage_data))
    content.storage_data[index] = replace(content.storage_data[index], **how)


def entry(content: Metadata) -> TensorStorageMetadata:
    found = content.state_dict_metadata["weight"]
    assert isinstance(found, TensorStorageMetadata)
    return found


def lose_rows(content: Metadata) -> None:
    entry(content).size = torch.Size([4, 2])


def huge(content: Metadata) -> None:
    entry(content).size = torch.Size([1 << 40, 1 << 40])


SPOILED: dict[str, tuple[Callable[[Metadata], object], str]] = {
    "code": (lambda _: Runs(), "It is broken."),
    "another class": (lambda _: nn.Linear(1, 1), "It is broken."),
    "nothing": (lambda _: {"a": 3}, "It is broken."),
    "up": (lambda c: place(c, relative_path="../__0_0.distcp"), "It leads out of its folder."),
    "absolute": (lambda c: place(c, relative_path="/etc/passwd"), "It leads out of its folder."),
    "packed": (lambda c: place(c, transform_descriptors=["zstd"]), "Its chunks are packed."),
    "elsewhere": (lambda c: place(c, offset=3), "It is broken."),
    "gap": (lose_rows, "It is broken."),
    "huge": (huge, "It is broken."),
}


@pytest.mark.parametrize(("change", "problem"), SPOILED.values(), ids=SPOILED)
def test_a_hostile_folder(
    change: Callable[[Metadata], object], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a"
    save({"weight": torch.rand(3, 2)}, folder)
    spoil(folder, change)
    model = nn.Linear(2, 3, bias=False)
    before = model.weight.clone()
    with pytest.raises(tied.FileError, match=problem):
        tied.load(model, folder)
    assert torch.equal(model.weight, before)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_name_that_only_begins_like_a_known_one(tmp_path: Path) -> None:
    save({"weight": torch.rand(3, 2)}, tmp_path)
    module, name = b"pathlib", b"Path.home"
    called = b"".join(b"\x8c" + bytes([len(text)]) + text for text in (module, name)) + b"\x93)R"
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + called + b".")
    with pytest.raises(tied.FileError, match=r"It is broken\."):
        tied.load(nn.Linear(2, 3, bias=False), tmp_path)


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    save({"weight": torch.rand(3, 2)}, tmp_path / "a")
    (tmp_path / "a" / "__0_0.distcp").rename(tmp_path / "outside")
    (tmp_path / "a" / "__0_0.distcp").symlink_to(tmp_path / "outside")
    with pytest.raises(tied.FileError, match=r"It leads out of its folder\."):
        tied.load(nn.Linear(2, 3, bias=False), tmp_path / "a")


@pytest.mark.parametrize("other", [torch.rand(3, 2).half(), torch.rand(1, 2), torch.rand(2)])
def test_a_chunk_of_another_tensor(other: Tensor, tmp_path: Path) -> None:
    """One that torch would spread over the place, or convert, in silence."""

    def swap(content: Metadata) -> None:
        one, two = (next(i for i in content.storage_data if i.fqn == name) for name in ("weight", "x"))
        content.storage_data[one] = content.storage_data[two]

    save({"weight": torch.rand(3, 2), "x": other}, tmp_path)
    spoil(tmp_path, swap)
    with pytest.raises(tied.FileError, match="something else than F32"):
        tied.load(nn.Linear(2, 3, bias=False), tmp_path, strict=False)


@pytest.mark.parametrize("cut", [0, 10, -1, -40])
def test_a_folder_that_is_cut(cut: int, tmp_path: Path) -> None:
    for name in (".metadata", "__0_0.distcp"):
        folder = tmp_path / name.strip("._")
        save({"weight": torch.rand(3, 2)}, folder)
        (folder / name).write_bytes((folder / name).read_bytes()[:cut])
        with pytest.raises(tied.FileError):
            tied.load(nn.Linear(2, 3, bias=False), folder)


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
    _loads_by_tied(Path(folder), model, expected)
    dist.barrier()
    os._exit(0)  # torch 2.13 sometimes aborts while it tears down threads of gloo; everything is asserted by now


def _loads_by_tied(folder: Path, model: nn.Module, expected: Tensor) -> None:
    """Load what torch and what we wrote, in chunks of two processes, into a sharded model and a whole one."""
    by_torch(model.state_dict(), folder / "torch")
    dist.barrier()
    for written in ("ckpt", "torch"):
        whole = nn.Sequential(nn.Embedding(301, 64), nn.Linear(64, 301, bias=False), nn.Linear(301, 64, bias=False))
        tied.load(whole, folder / written, strict=False)
        assert torch.equal(whole[0].weight, expected)
        assert torch.equal(whole[1].weight, expected)
        with torch.no_grad():
            model[0].weight.zero_()  # type: ignore[operator, union-attr]
        tied.load(model, folder / written)
        assert torch.equal(model[1].weight.full_tensor(), expected)  # type: ignore[operator, union-attr]
        assert torch.equal(model.state_dict()["0.weight"].full_tensor(), expected)


@pytest.mark.distributed
def test_two_processes_write_a_shared_and_sharded_tensor_once(tmp_path: Path) -> None:
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        mp.start_processes(_two, (str(tmp_path),), nprocs=2, start_method="spawn")
    finally:
        os.environ.clear()
        os.environ.update(before)
