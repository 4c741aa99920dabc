"""Saving what plain torch shares, refusing what no file can hold, and never leaving a part of a file."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from sharing_zoo import BUILDERS, Builder, build, lstm, memory, one_parameter_twice, transposed_alias, unique_bytes
from torch import Tensor, nn
from torch.masked import masked_tensor

import tied
from tied.files.auditing import shared_memory
from tied.files.auditing.shared_memory import views
from tied.files.models import save as saving
from tied.files.models.payload import Payload
from tied.files.rewriting import atomic_write

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "float16", "bfloat16"]
DTYPES += ["float32", "float64", "complex64"]
DTYPES += ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, every tensor with memory of its own: what the file has to give back."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def stored_bytes(path: Path) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.__name__)
class TestPlainSharing:
    @pytest.mark.parametrize("layout", ["compact", "expanded"])
    def test_comes_back(self, builder: Builder, layout: str, tmp_path: Path) -> None:
        model, other = build(builder), build(builder, seed=1)
        groups, before = memory(other), plain(model)
        tied.save(model, tmp_path / "m.safetensors", layout=layout)
        assert_same_bits(plain(model), before)
        assert_same_bits(tied.files.load_file(tmp_path / "m.safetensors"), before)
        found = tied.load(other, tmp_path / "m.safetensors")
        assert_same_bits(plain(other), before)
        assert memory(other) == groups
        assert not found.missing
        assert not found.unexpected
        assert not found.gaps

    def test_is_assigned_and_still_shared(self, builder: Builder, tmp_path: Path) -> None:
        model, other = build(builder), build(builder, seed=1)
        groups = memory(other)
        shared = {n: id(p) for n, p in other.named_parameters(remove_duplicate=False)}
        tied.save(model, tmp_path / "m.safetensors")
        tied.load(other, tmp_path / "m.safetensors", assign=True)
        assert_same_bits(plain(other), plain(model))
        if builder.__name__ not in NOT_EXPRESSED:
            assert memory(other) == groups
        now = {n: id(p) for n, p in other.named_parameters(remove_duplicate=False)}
        for one in now:
            assert {o for o in now if now[o] == now[one]} == {o for o in now if shared[o] == shared[one]}

    def test_stands_once_on_the_disk(self, builder: Builder, tmp_path: Path) -> None:
        model = build(builder)
        tied.save(model, tmp_path / "m.safetensors")
        found = stored_bytes(tmp_path / "m.safetensors")
        if builder.__name__ in NOT_EXPRESSED:
            assert found > unique_bytes(model)
        elif builder.__name__ != "strided":  # an expanded tensor is stored unfolded
            assert found == unique_bytes(model)


NOT_EXPRESSED = ("half_of_each", "conjugate")  # half of the one is half of the other; a view with other bits


class TestValues:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
    def test_every_dtype(self, dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
        kind = getattr(torch, dtype)
        width = torch.empty(0, dtype=kind).element_size()
        raw = torch.randint(0, 2 if dtype == "bool" else 256, (*shape, width), dtype=torch.uint8)
        tensor = raw.reshape(-1).view(kind).reshape(shape)
        model = nn.Module()
        model.register_buffer("one", tensor)
        model.register_buffer("turned", tensor.reshape(shape).t() if len(shape) == 2 else tensor.clone())
        model.register_buffer("odd", torch.ones(3, dtype=torch.bool))
        tied.save(model, tmp_path / "m.safetensors")
        assert_same_bits(tied.files.load_file(tmp_path / "m.safetensors"), plain(model))
        expected = plain(model)
        if len(shape) == 2 and tensor.numel():  # a transposed alias
            del expected["turned"]
        assert_same_bits(load_file(tmp_path / "m.safetensors"), expected)

    def test_nan_and_negative_zero_keep_their_bits(self, tmp_path: Path) -> None:
        model = nn.Module()
        odd = torch.tensor([0x7FC00001, -0x3FFFFF, -(2**31), 1], dtype=torch.int32).view(torch.float32)
        model.weight = nn.Parameter(odd.reshape(2, 2))
        model.turned = nn.Parameter(model.weight.detach().t())
        tied.save(model, tmp_path / "m.safetensors")
        assert_same_bits(tied.files.load_file(tmp_path / "m.safetensors"), plain(model))

    def test_a_tensor_with_its_sign_turned(self, tmp_path: Path) -> None:
        values = torch.randn(3)
        tied.save(with_buffer(torch._neg_view(values)), tmp_path / "m.safetensors")
        assert torch.equal(load_file(tmp_path / "m.safetensors")["odd"], -values)


class TestHeader:
    def texts(self, path: Path) -> dict[str, str]:
        with safe_open(path, framework="pt") as file:
            return file.metadata()

    def test_the_ledger_stands_in_it(self, tmp_path: Path) -> None:
        tied.save(build(transposed_alias), tmp_path / "m.safetensors", metadata={"epoch": "3"})
        texts = self.texts(tmp_path / "m.safetensors")
        assert json.loads(texts.pop("tied")) == {
            "version": 1,
            "layout": "compact",
            "ties": [{"target": "decoder.weight", "source": "encoder.weight.T", "dtype": "F32", "shape": [3, 5]}],
        }
        assert texts == {"format": "pt", "epoch": "3"}

    def test_a_model_without_sharing_has_none(self, tmp_path: Path) -> None:
        tied.save(nn.Linear(3, 3), tmp_path / "m.safetensors")
        assert self.texts(tmp_path / "m.safetensors") == {"format": "pt"}

    def test_a_computed_source_is_stored_at_its_target(self, tmp_path: Path) -> None:
        model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        tied.tie(model, "decoder.weight", "encoder.weight.T")
        nn.utils.parametrizations.weight_norm(model.encoder)
        tied.save(model, tmp_path / "m.safetensors")
        stored = load_file(tmp_path / "m.safetensors")
        torch.testing.assert_close(stored["decoder.weight"], model.encoder.weight.t(), rtol=0, atol=0)
        (entry,) = json.loads(self.texts(tmp_path / "m.safetensors")["tied"])["ties"]
        assert entry["source"] == "encoder.weight.T"

    def test_a_part_of_a_model_has_the_value_of_what_lies_outside(self, tmp_path: Path) -> None:
        model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        tied.tie(model, "decoder.weight", "2 * encoder.weight.T")
        tied.save(model.decoder, tmp_path / "m.safetensors")
        assert torch.equal(load_file(tmp_path / "m.safetensors")["weight"], 2 * model.encoder.weight.t())
        assert "tied" not in self.texts(tmp_path / "m.safetensors")
        found = tied.load(model.decoder, tmp_path / "m.safetensors")
        assert found.dropped == ("weight",)

    def test_devices_and_gradients_are_no_values(self, tmp_path: Path) -> None:
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        tied.tie(model, "b.weight", "a.weight.detach().T.to('cpu')")
        tied.save(model, tmp_path / "m.safetensors")
        (entry,) = json.loads(self.texts(tmp_path / "m.safetensors")["tied"])["ties"]
        assert entry["source"] == "a.weight.T"

    def test_a_tied_module_at_two_places_has_both_names(self, tmp_path: Path) -> None:
        model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        model["again"] = model.b
        tied.tie(model, "b.weight", "a.weight.T")
        tied.save(model, tmp_path / "m.safetensors")
        found = tied.files.load_file(tmp_path / "m.safetensors")
        assert torch.equal(found["again.weight"], model.a.weight.t())
        assert torch.equal(found["b.weight"], model.a.weight.t())


class TestWrappers:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda m: torch.compile(m, backend="eager"),
            nn.DataParallel,
            lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
        ],
        ids=["compile", "DataParallel", "both"],
    )
    def test_names_are_those_of_the_model_inside(self, wrap: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
        model, other = build(transposed_alias), build(transposed_alias, seed=1)
        tied.save(wrap(model), tmp_path / "m.safetensors")
        assert list(load_file(tmp_path / "m.safetensors")) == [n for n in model.state_dict() if n != "decoder.weight"]
        tied.load(wrap(other), tmp_path / "m.safetensors")
        assert_same_bits(plain(other), plain(model))

    def test_a_compiled_part(self, tmp_path: Path) -> None:
        model, other = build(lstm), nn.Sequential(build(lstm, seed=1))
        whole = nn.Sequential(torch.compile(model, backend="eager"))
        tied.save(whole, tmp_path / "m.safetensors")
        tied.load(other, tmp_path / "m.safetensors")
        assert_same_bits(plain(other[0]), plain(model))
        again = nn.Sequential(torch.compile(build(lstm, seed=2), backend="eager"))
        tied.load(again, tmp_path / "m.safetensors")
        assert torch.equal(again[0]._orig_mod.weight_hh_l1, model.weight_hh_l1)


class Stateful(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: object) -> None: ...


def with_buffer(tensor: Tensor) -> nn.Module:
    model = nn.Module()
    model.register_buffer("odd", tensor)
    return model


BY_TORCH = "torch.save(model.state_dict(), 'model.pt')"
REFUSED = {
    "meta": (
        lambda: nn.Linear(2, 2, device="meta"),
        "weight",
        "a tensor on the meta device, without values",
        "load the model first",
    ),
    "lazy": (
        lambda: nn.LazyLinear(2),
        "weight",
        "a parameter of a lazy module, without a shape",
        "run one forward through the model first",
    ),
    "extra state": (
        lambda: Stateful(2, 2),
        "_extra_state",
        "dict, not a tensor",
        "return a tensor from get_extra_state, which is stored as any other; or keep it elsewhere",
    ),
    "sparse": (
        lambda: with_buffer(torch.eye(2).to_sparse()),
        "odd",
        "a tensor of layout torch.sparse_coo",
        "make it dense first: tensor.to_dense()",
    ),
    "complex128": (
        lambda: with_buffer(torch.zeros(2, dtype=torch.complex128)),
        "odd",
        "torch.complex128, which safetensors does not know",
        BY_TORCH,
    ),
    "quantized": (
        lambda: with_buffer(torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)),
        "odd",
        "torch.qint8, which safetensors does not know",
        BY_TORCH,
    ),
    "subclass": (
        lambda: with_buffer(masked_tensor(torch.ones(2), torch.ones(2, dtype=torch.bool))),
        "odd",
        "a MaskedTensor, which has a format of its own",
        BY_TORCH,
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    @pytest.mark.filterwarnings("ignore:Lazy modules", "ignore:.*quantize", "ignore:The PyTorch API of MaskedTensors")
    def test_what_no_file_can_hold(self, case: str, tmp_path: Path) -> None:
        make, name, found, fix = REFUSED[case]
        with pytest.raises(tied.KindError) as caught:
            tied.save(make(), tmp_path / "m.safetensors")
        assert str(caught.value) == (
            f"save(model, '{tmp_path}/m.safetensors')\n  '{name}' cannot be saved.\n  found:    {found}\n"
            f"  expected: a dense tensor with values\n  fix:      {fix}\nThe model was not changed."
        )
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("arguments", "found"),
        [
            ({"layout": "small"}, "'small'"),
            ({"metadata": {"epoch": 3}}, "'epoch': 3"),
            ({"metadata": {"tied": "{}"}}, "the key 'tied'"),
            ({"max_shard_size": "5 elephants"}, "'5 elephants'"),
            ({"max_shard_size": 0}, "0"),
            ({"max_shard_size": True}, "True"),
        ],
    )
    def test_odd_arguments(self, arguments: dict[str, object], found: str, tmp_path: Path) -> None:
        with pytest.raises(tied.KindError) as caught:
            tied.save(nn.Linear(2, 2), tmp_path / "m.safetensors", **arguments)  # type: ignore[arg-type]
        assert caught.value.found == found
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["m.pt", "m.bin", "m.CKPT"])
    def test_another_format(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(tied.KindError, match="saved as safetensors"):
            tied.save(nn.Linear(2, 2), tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "m").write_text("mine")
        with pytest.raises(tied.KindError, match="a file without a suffix"):
            tied.save(nn.Linear(2, 2), tmp_path / "m")
        assert (tmp_path / "m").read_text() == "mine"

    def test_a_name_that_no_header_holds(self, tmp_path: Path) -> None:
        model = nn.Module()
        model.register_buffer("__metadata__", torch.zeros(1))
        with pytest.raises(tied.KindError, match="a name that no header can hold"):
            tied.save(model, tmp_path / "m.safetensors")


class TestWholeOrNotAtAll:
    def test_a_failure_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "m.safetensors"
        tied.save(build(one_parameter_twice), path)
        before = path.read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            tied.save(build(one_parameter_twice, seed=1), path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def test_nothing_has_its_name_before_all_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[list[str]] = []
        flush = os.fsync

        def look(handle: int) -> None:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                seen.append(sorted(path.name[:6] for path in tmp_path.iterdir()))
            flush(handle)

        monkeypatch.setattr(atomic_write.os, "fsync", look)
        tied.save(nn.Linear(20, 20), tmp_path, max_shard_size=1000)
        assert seen == [[".tied-"] * 3] * 3
        assert len(list(tmp_path.iterdir())) == 3

    def test_old_shards_are_never_read_with_new_ones(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tied.save(nn.Linear(20, 20), tmp_path, max_shard_size=1000)

        def killed(*_: object) -> None:
            raise OSError("killed before the first shard takes its place")

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(OSError, match="killed"):
            tied.save(nn.Linear(20, 20), tmp_path, max_shard_size=1000)
        assert not (tmp_path / "model.safetensors.index.json").exists()

    def test_old_shards_of_a_named_file_go(self, tmp_path: Path) -> None:
        path = tmp_path / "ema.safetensors"
        tied.save(nn.Sequential(*(nn.Linear(20, 20) for _ in range(4))), path, max_shard_size="1KB")
        (tmp_path / "other-00001-of-00009.safetensors").touch()
        tied.save(nn.Linear(20, 20), path, max_shard_size="1KB")
        names = ["ema-00001-of-00002", "ema-00002-of-00002", "ema", "other-00001-of-00009"]
        assert sorted(file.name.split(".")[0] for file in tmp_path.iterdir()) == sorted(names)

    def test_an_old_file_never_hides_new_shards(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """transformers takes the file where there is one, index or not."""
        tied.save(nn.Linear(20, 20), tmp_path)
        unlink, seen = Path.unlink, list[str]()

        def killed(path: Path, *, missing_ok: bool = False) -> None:
            if (tmp_path / "model-00001-of-00002.safetensors").exists():
                raise OSError("killed after the new ones took their places")
            seen.append(path.name)
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", killed)
        tied.save(model := nn.Linear(20, 20), tmp_path, max_shard_size=1000)
        assert "model.safetensors" in seen
        assert torch.equal(tied.files.load_file(tmp_path)["weight"], model.weight)

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "m.safetensors").symlink_to(tmp_path / "real" / "x.safetensors")
        tied.save(nn.Linear(2, 2), tmp_path / "m.safetensors")
        assert (tmp_path / "m.safetensors").is_symlink()
        assert len(load_file(tmp_path / "real" / "x.safetensors")) == 2

    def test_the_mode_is_that_of_any_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "other").touch()
        tied.save(nn.Linear(2, 2), tmp_path / "m.safetensors")
        assert (tmp_path / "m.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode

    def test_a_file_may_be_saved_over_what_was_assigned_from_it(self, tmp_path: Path) -> None:
        path, model = tmp_path / "m.safetensors", build(one_parameter_twice)
        tied.save(model, path)
        expected = plain(model)
        tied.load(model, path, assign=True)
        tied.save(model, path)
        assert_same_bits(plain(model), expected)
        assert_same_bits(tied.files.load_file(path), expected)


class TestViews:
    def test_an_expanded_tensor_is_as_large_as_what_it_repeats(self) -> None:
        whole = torch.zeros(3, 4)
        found = views({"many": whole[:1].expand(50, 4), "whole": whole})
        assert {name: str(source) for name, source in found.items()} == {"many": "whole[0].unsqueeze(0).expand(50, 4)"}

    def test_a_base_is_looked_for_where_it_can_be(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Thousands of views, none of which holds another, are told apart without comparing each with each."""
        buffer, compared = torch.zeros(500), list[int]()
        relation = shared_memory.relation
        monkeypatch.setattr(shared_memory, "relation", lambda one, other: compared.append(0) or relation(one, other))
        assert not views({str(start): buffer[start : start + 100] for start in range(400)})
        assert not compared
        assert len(views({"all": buffer} | {str(start): buffer[start : start + 100] for start in range(400)})) == 400
        assert len(compared) == 400


def test_who_does_not_write_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes one writes."""
    monkeypatch.setattr(saving, "payload", lambda *_: Payload({"w": torch.ones(1)}, (), writes=False))
    tied.save(nn.Linear(1, 1), tmp_path / "m.safetensors")
    tied.save(nn.Linear(1, 1), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_the_format_can_be_named(tmp_path: Path) -> None:
    tied.save(nn.Linear(1, 1), tmp_path / "m.safetensors", metadata={"format": "np"})
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "np"}


class TestShards:
    def test_index_and_names_are_the_usual(self, tmp_path: Path) -> None:
        model = build(transposed_alias)
        tied.save(model, tmp_path / "new", max_shard_size=80, metadata={"epoch": "3"})
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
        index = json.loads((tmp_path / "new" / names[2]).read_text())
        assert index["weight_map"] == {
            "encoder.weight": names[0],
            "encoder.bias": names[0],
            "decoder.bias": names[1],
        }
        assert list(index["weight_map"]) == sorted(index["weight_map"])
        assert index["metadata"]["total_size"] == 4 * (15 + 5 + 3)
        assert json.loads(index["metadata"]["tied"])["ties"][0]["source"] == "encoder.weight.T"
        with safe_open(tmp_path / "new" / names[0], framework="pt") as file:
            assert file.metadata() == {"format": "pt", "epoch": "3"}
        assert_same_bits(tied.files.load_file(tmp_path / "new"), plain(model))
        other = build(transposed_alias, seed=1)
        tied.load(other, tmp_path / "new")
        assert_same_bits(plain(other), plain(model))

    def test_a_stem_of_ones_own(self, tmp_path: Path) -> None:
        tied.save(nn.Linear(20, 20), tmp_path / "ema.safetensors", max_shard_size="1KB")
        assert (tmp_path / "ema.safetensors.index.json").exists()
        parts = [load_file(tmp_path / f"ema-0000{number}-of-00002.safetensors") for number in (1, 2)]
        assert_same_bits(tied.files.load_file(tmp_path / "ema.safetensors.index.json"), parts[0] | parts[1])

    @pytest.mark.parametrize("sizes", [(None, 80), (80, None), (25, 80), (80, 25)])
    def test_the_earlier_checkpoint_goes(self, sizes: tuple[int | None, int | None], tmp_path: Path) -> None:
        (tmp_path / "model-ema.safetensors").write_text("mine")
        for seed, size in enumerate(sizes):
            model = build(transposed_alias, seed=seed)
            tied.save(model, tmp_path, max_shard_size=size)
        (tmp_path / "model-ema.safetensors").unlink()
        found = tied.files.load_file(tmp_path)
        assert_same_bits(found, plain(model))
        assert len(list(tmp_path.iterdir())) == {None: 1, 80: 3, 25: 4}[sizes[1]]
