"""What is stored twice goes, and comes back bit for bit; whatever goes wrong, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file as write_as_it_is, save_model

import tied
from tied.files import expand, load_file as load_all, repair, shrink
from tied.files.auditing.audit import audit
from tied.files.auditing.consistency import head_and_embedding, same_values
from tied.files.auditing.pt_storages import _wasted
from tied.files.reading.checkpoint import open_checkpoint
from tied.files.reading.safetensors_header import Header, read_header

SOURCE = Path(tied.__file__).parents[1]


def save_file(tensors, path, metadata=None):
    write_as_it_is(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path, metadata
    )


def bits(*shape, seed=0, dtype=torch.float32):
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(one, other):
    """Tell whether two dicts of tensors have the same names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape, raw(one[n])) == (other[n].dtype, other[n].shape, raw(other[n])) for n in one
    )


def many():
    """Every way in which one tensor is another."""
    embed, fused, cube = bits(50, 30), bits(96, 32, seed=1), bits(2, 3, 4, seed=2)
    return {
        "decoder.weight": embed.T, "embed.weight": embed, "head.weight": embed, "fused": fused, "q": fused[:32],
        "k": fused[32:64], "k.again": fused[32:64], "cube": cube, "turned": cube.permute(2, 0, 1),
        "wide": embed[:, None], "own": bits(7, 7, seed=3), "ones": torch.ones(9), "more": torch.ones(9),
        "n": torch.tensor(3), "none": embed[:0],
        "strange name.T[0]": embed, "é\"": fused, "half": bits(40, 40, seed=4, dtype=torch.bfloat16),
        "half.T": bits(40, 40, seed=4, dtype=torch.bfloat16).T, "eight": bits(9, 8, dtype=torch.float8_e4m3fn),
        "eight.copy": bits(9, 8, dtype=torch.float8_e4m3fn), "i": torch.arange(12).reshape(3, 4),
        "j": torch.arange(12).reshape(3, 4).T,
    }  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


# -- the law


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}], ids=str)
def test_expand_undoes_shrink_to_the_byte(metadata, path, tmp_path):
    save_file(many(), path, metadata)
    small, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    done = shrink(path, small)
    assert small.stat().st_size == done.after < path.stat().st_size * 0.7
    assert done.before == sum(tensor.nbytes for tensor in many().values())
    expand(small, again)
    assert again.read_bytes() == path.read_bytes()
    assert same(load_all(small), {name: tensor.contiguous() for name, tensor in many().items()})
    assert audit(small).ok
    assert not audit(small).findings
    assert set(load_file(small)) < set(many())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_small_tensors(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    shapes = st.lists(st.sampled_from([1, 2, 3]), max_size=3)
    names = st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=1, max_size=6)
    tensors = {}
    for name in data.draw(names.filter(lambda found: "__metadata__" not in found)):
        shape = data.draw(shapes)
        values = data.draw(
            st.lists(st.sampled_from([0, 1]), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
        )
        tensors[name] = torch.tensor(values, dtype=data.draw(st.sampled_from([torch.int8, torch.int64]))).reshape(shape)
    save_file(tensors, folder / "a.safetensors")
    shrink(folder / "a.safetensors", folder / "b.safetensors")
    expand(folder / "b.safetensors", folder / "c.safetensors")
    assert (folder / "c.safetensors").read_bytes() == (folder / "a.safetensors").read_bytes()
    assert same(load_all(folder / "b.safetensors"), tensors)


def test_dtypes_that_torch_lacks_are_copied(path, tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 24, np.uint8).tobytes()
    header = Header.of({"a": ("F6_E2M3", (4, 8)), "b": ("F6_E2M3", (4, 8)), "c": ("F4", (6, 8)), "d": ("F4", (6, 8))})
    path.write_bytes(header.to_bytes() + content * 4)
    assert len(shrink(path, tmp_path / "b.safetensors").lines) == 2
    expand(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == path.read_bytes()


def test_nothing_twice_is_a_copy(path, tmp_path):
    save_file({"a": torch.rand(3), "b": torch.rand(4)}, path, {"format": "pt"})
    done = shrink(path, tmp_path / "b.safetensors")
    assert done.lines == ("nothing is stored twice: the new file holds what the old one does",)
    assert (tmp_path / "b.safetensors").read_bytes() == path.read_bytes()
    assert expand(path, tmp_path / "c.safetensors").lines == (
        "every name is stored: the new file holds what the old one does",
    )
    assert (tmp_path / "c.safetensors").read_bytes() == path.read_bytes()


def test_rows_of_a_transposed_copy_are_rows_of_the_other(path, tmp_path):
    whole = torch.randn(90, 8)
    tensors = {"a": whole.T.contiguous(), "b": whole, "part": whole[20:60].clone()}
    save_file(tensors, path)
    small, again = tmp_path / "small.safetensors", tmp_path / "again.safetensors"
    shrink(path, small)
    assert set(load_file(small)) == {"a"}
    expand(small, again)
    assert again.read_bytes() == path.read_bytes()


def test_shrinking_twice_changes_nothing(path, tmp_path):
    save_file(many(), path)
    shrink(path, tmp_path / "b.safetensors")
    shrink(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


def test_a_file_that_was_shrunk_and_got_more_copies(path, tmp_path):
    weight, other = bits(40, 30), bits(50, 20, seed=1)
    save_file({"a": weight, "ab": weight, "b": weight, "c": other, "d": other.T}, path)
    known = [{"target": "ab", "source": "a", "dtype": "F32", "shape": [40, 30], "kind": "copy", "at": 1}]
    text = json.dumps({"version": 1, "layout": "compact", "ties": known})
    save_file({"a": weight, "b": weight, "c": other, "d": other.T}, tmp_path / "half.safetensors", {"tied": text})
    shrink(tmp_path / "half.safetensors", tmp_path / "small.safetensors")
    expand(tmp_path / "small.safetensors", tmp_path / "again.safetensors")
    assert same(load_file(tmp_path / "again.safetensors"), load_file(path))
    assert list(read_header(tmp_path / "again.safetensors")[0].tensors) == list(read_header(path)[0].tensors)


def test_the_order_is_that_of_the_data(path, tmp_path):
    """A header may list its tensors in another order than they lie in; what comes back lies as it lay."""
    weight = bits(4, 4).numpy().tobytes()
    content = {
        name: {"dtype": "F32", "shape": [4, 4], "data_offsets": [begin, begin + 64]}
        for name, begin in (("a", 128), ("b", 0), ("c", 64))
    }
    header = json.dumps(content).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + weight + bytes(64) + weight)
    shrink(path, tmp_path / "small.safetensors")
    expand(tmp_path / "small.safetensors", tmp_path / "again.safetensors")
    again, _ = read_header(tmp_path / "again.safetensors")
    assert again.by_offset() == read_header(path)[0].by_offset() == ["b", "c", "a"]
    assert same(load_file(tmp_path / "again.safetensors"), load_file(path))


# -- ties that a model declared


class Model(torch.nn.Module):
    def __init__(self, target="encoder.weight.T"):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(30, 40), torch.nn.Linear(40, 30)
        tied.tie(self, "decoder.weight", target)


def test_an_expanded_file_of_tied_becomes_a_compact_one(path, tmp_path):
    model = Model()
    tied.save(model, path, layout="expanded")
    shrink(path, tmp_path / "small.safetensors")
    other = Model()
    tied.load(other, tmp_path / "small.safetensors")
    assert torch.equal(other.encoder.weight, model.encoder.weight)
    assert "decoder.weight" not in load_file(tmp_path / "small.safetensors")
    expand(tmp_path / "small.safetensors", tmp_path / "again.safetensors")
    assert same(load_file(tmp_path / "again.safetensors"), load_file(path))


def test_a_tie_that_computes_is_not_dropped_unless_its_bits_come_back(path, tmp_path):
    model = Model("3 * encoder.weight.T")
    tied.save(model, path, layout="expanded")
    tensors, metadata = load_file(path), dict(read_header(path)[0].metadata)
    tensors["decoder.weight"] = torch.nextafter(tensors["decoder.weight"], torch.tensor(9.0))
    save_file(tensors, path, metadata)
    with pytest.raises(tied.FileError, match="up to rounding only"):
        shrink(path, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()


def test_what_does_not_hold_is_refused(path, tmp_path):
    tied.save(Model(), path, layout="expanded")
    tensors, metadata = load_file(path), dict(read_header(path)[0].metadata)
    tensors["decoder.weight"][0] = 0
    save_file(tensors, path, metadata)
    with pytest.raises(tied.FileError, match="declares a tie that does not hold"):
        shrink(path, tmp_path / "small.safetensors")
    save_file(tensors, path, {"tied": "{}"})
    for change in (shrink, expand):
        with pytest.raises(tied.FileError, match="Its ledger"):
            change(path, tmp_path / "small.safetensors")


def test_the_map_of_save_model_is_kept(path, tmp_path):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(30, 40) for name in "abc"})
    model["b"].weight = model["a"].weight
    with torch.no_grad():
        model["c"].weight.copy_(model["a"].weight)
    save_model(model, path)
    shrink(path, tmp_path / "small.safetensors")
    restored = load_all(tmp_path / "small.safetensors")
    assert same({n: restored[n] for n in sorted(restored)}, dict(sorted(model.state_dict().items())))
    assert [name for name in load_file(tmp_path / "small.safetensors") if "weight" in name] == ["a.weight"]


def test_a_head_that_config_json_unties_stays(tmp_path):
    weight = bits(90, 16)
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"embed_tokens.weight": weight, "lm_head.weight": weight, "third": weight}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False, "vocab_size": 90}))
    shrink(folder, tmp_path / "a.safetensors")
    assert set(load_file(tmp_path / "a.safetensors")) == {"embed_tokens.weight", "lm_head.weight"}
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": True, "vocab_size": 90}))
    shrink(folder, tmp_path / "b.safetensors")
    assert set(load_file(tmp_path / "b.safetensors")) == {"embed_tokens.weight"}


# -- folders and .pt


def shards(folder):
    folder.mkdir()
    tensors = many()
    names = sorted(tensors)
    files = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    places = {name: file for file, held in files.items() for name in held}
    index = {"metadata": {"total_size": 123, "note": "x"}, "weight_map": {name: places[name] for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
    return folder


def test_a_folder_of_shards_and_back(tmp_path):
    old, small, again = shards(tmp_path / "old"), tmp_path / "small", tmp_path / "again"
    shrink(old, small)
    assert same(load_all(small), {name: tensor.contiguous() for name, tensor in load_all(old).items()})
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        t.nbytes for f in small.glob("*.safetensors") for t in load_file(f).values()
    )
    assert set(index["weight_map"]) == {n for f in small.glob("*.safetensors") for n in load_file(f)} < set(many())
    expand(small, again)
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in old.iterdir()
    }
    assert audit(small).ok


def test_an_index_without_metadata(tmp_path):
    old = shards(tmp_path / "old")
    index = json.loads((old / "model.safetensors.index.json").read_text())
    del index["metadata"]
    (old / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n")
    shrink(old, tmp_path / "small")
    expand(tmp_path / "small", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors.index.json").read_bytes() == (
        old / "model.safetensors.index.json"
    ).read_bytes()


def test_a_pt_becomes_safetensors(tmp_path):
    weight = torch.rand(30, 20)
    state = {
        "a": weight,
        "b": weight.T,
        "c": weight.clone(),
        "part": weight[3:7],
        "own": torch.rand(3),
        "gap": weight[:, ::2],
    }
    optimizer = {"state": {0: {"exp_avg": weight.clone()}}, "param_groups": [{"lr": 1.0, "params": [0]}]}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": optimizer}, tmp_path / "a.pt")
    done = shrink(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert done.lines[-2:] == ("left out 1 tensor of the training's state", "kept as JSON in the metadata: 'epoch'")
    assert same(load_all(tmp_path / "b.safetensors"), {name: tensor.contiguous() for name, tensor in state.items()})
    assert set(load_file(tmp_path / "b.safetensors")) == {"a", "own"}
    expand(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert set(load_file(tmp_path / "c.safetensors")) == set(state)


@pytest.mark.parametrize("nested", [False, True])
def test_only_a_key_that_nests_is_taken_off(nested, tmp_path):
    """`model.` may be the beginning of every name of a flat state dict, and is part of the names then."""
    weight = torch.rand(8, 4)
    state = {"embed.weight": weight, "head.weight": weight.clone()}
    flat = {f"model.{name}": tensor for name, tensor in state.items()}
    torch.save({"model": state} if nested else flat, tmp_path / "a.pt")
    shrink(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert same(load_all(tmp_path / "b.safetensors"), state if nested else flat)


@pytest.mark.parametrize(
    "tensor", [torch.rand(3, dtype=torch.complex128), torch.eye(3).to_sparse(), torch.ones(1).expand(10**12)]
)
def test_a_pt_that_safetensors_cannot_hold(tensor, tmp_path):
    torch.save({"a": tensor}, tmp_path / "a.pt")
    with pytest.raises(tied.FileError, match="cannot hold 'a'"):
        shrink(tmp_path / "a.pt", tmp_path / "b.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


# -- what goes wrong


def test_a_place_that_is_taken(path, tmp_path):
    save_file({"a": torch.rand(3)}, path)
    before = path.read_bytes()
    for target in (path, tmp_path / "there.safetensors"):
        target.touch()
        with pytest.raises(tied.FileError) as caught:
            shrink(path, target)
        assert "Something stands there already." in str(caught.value)
    with pytest.raises(tied.FileError, match="The new file is safetensors"):
        shrink(path, tmp_path / "there.pt")
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [shrink, expand, repair])
def test_a_full_disk_leaves_nothing(change, path, tmp_path, monkeypatch):
    save_file({"a": bits(100, 100), "b": bits(100, 100, seed=1)}, path)
    before = path.read_bytes()
    monkeypatch.setattr("tied.files.rewriting.rewrite.CHUNK", 1000)
    written = []

    def full(stage, done, total):
        written.append(done)
        if done > 30_000:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        change(path, tmp_path / "b.safetensors", tell=full)
    assert len(written) > 20
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_disk_that_lies_is_found_out(path, tmp_path, monkeypatch):
    save_file({"a": bits(100, 100)}, path)
    import tied.files.rewriting.rewrite as rewriting

    real = rewriting._mapped

    def flipped(stream, target):
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
        stream.flush()
        return real(stream, target)

    monkeypatch.setattr(rewriting, "_mapped", flipped)
    with pytest.raises(tied.FileError, match="'a' was not written as it is"):
        shrink(path, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_wrong_equation_is_found_out(path, tmp_path, monkeypatch):
    """The sums of the search may err, once in a hundred million; the file is not written then."""
    save_file({"a": bits(30, 40), "b": bits(30, 40, seed=1).T}, path)
    monkeypatch.setattr("tied.files.auditing.fingerprint.Fingerprints.sample", lambda self, words, order: b"alike" * 13)
    monkeypatch.setattr(
        "tied.files.auditing.fingerprint.Fingerprints.sums", lambda self, words, order, rows=None: (0, 0)
    )
    with pytest.raises(tied.FileError, match="'b' would be lost"):
        shrink(path, tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()


def test_a_folder_that_cannot_be_written(path, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    save_file({"a": bits(3)}, path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            shrink(path, tmp_path / "b.safetensors")
    finally:
        tmp_path.chmod(0o700)


def test_a_new_folder_goes_with_what_failed(tmp_path):
    old = shards(tmp_path / "old")

    def stop(stage, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shrink(old, tmp_path / "small", tell=stop)
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGKILL"])
def test_a_signal_leaves_no_half_file(name, path, tmp_path):
    save_file({"a": bits(3000, 3000), "b": bits(3000, 3000)}, path)
    code = (
        "import sys, time; import tied.files.rewriting.rewrite as r; r.CHUNK = 100_000\n"
        "real = r.Steps.add\n"
        "def slow(self, n):\n    time.sleep(0.02)\n    print('step', flush=True)\n    return real(self, n)\n"
        "r.Steps.add = slow\n"
        "from tied.cli import main; main()"
    )
    target = tmp_path / "out.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "shrink", str(path), str(target)], cwd=SOURCE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "step\n"
    process.send_signal(getattr(signal, name))
    process.stdout.close()
    status = process.wait(30)
    assert status == (-9 if name == "SIGKILL" else 130)
    left = [file.name for file in tmp_path.iterdir() if file != path]
    assert all(file.startswith(".tied-") for file in left)
    assert bool(left) == (name == "SIGKILL")


def test_memory_is_that_of_one_tensor(tmp_path):
    """Eight tensors of 4 MB, of which a process may hold less than two beyond what it starts with."""
    path = tmp_path / "a.safetensors"
    save_file({f"t{i}": bits(500, 2000, seed=i // 2) for i in range(8)}, path)
    code = (
        "import resource, sys; from pathlib import Path; from tied.files import shrink, expand\n"
        "import tied.files.rewriting.shrink, tied.files.rewriting.expand\n"
        "def own():\n    return int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0])\n"
        "before, most = own(), [0]\n"
        "def tell(*_): most[0] = max(most[0], own() - before)\n"
        "a, b, c = map(Path, sys.argv[1:])\n"
        "shrink(a, b, tell=tell); expand(b, c, tell=tell)\n"
        "assert a.read_bytes() == c.read_bytes()\n"
        "print(most[0] // 1024)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say what a process holds")
    names = [str(tmp_path / f"{name}.safetensors") for name in "abc"]
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8


def test_progress_counts_every_byte(path, tmp_path):
    save_file({"a": bits(100, 100), "b": bits(100, 100)}, path)
    seen = []
    shrink(path, tmp_path / "b.safetensors", tell=lambda *step: seen.append(step))
    assert seen[-1] == ("checking", 40_000, 40_000)
    assert ("writing", 40_000, 40_000) in seen


def test_a_folder_that_was_there_stays(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    save_file({"a": torch.rand(3)}, old / "1.safetensors")
    (old / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    monkeypatch.setattr("tied.files.rewriting.rewrite._write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shrink(old, new)
    assert not new.exists()
    new.mkdir()
    with pytest.raises(ZeroDivisionError):
        shrink(old, new)
    assert new.is_dir()


def test_a_state_without_groups_is_no_optimizer(tmp_path):
    weight = torch.rand(30, 20)
    torch.save({"state": {"a": weight, "b": weight.clone()}, "groups": []}, tmp_path / "a.pt")
    assert shrink(tmp_path / "a.pt", tmp_path / "b.safetensors").lines[0].startswith("dropped 'state.b'")


def test_what_a_storage_wastes():
    """Each byte that some tensor shows counts once, however the tensors lie over each other."""
    buffer = torch.zeros(20)
    assert dict(_wasted({"a": buffer[0:10], "b": buffer[2:4], "c": buffer[8:12]})) == {"a": 8 * 4}
    assert dict(_wasted({"b": buffer[2:4], "a": buffer[0:10], "c": buffer[8:20]})) == {}


def test_head_and_embedding_are_those_that_are_certain(path):
    tensors = {"lm_head.weight": torch.rand(9, 4), "model.embed_tokens.weight": torch.rand(9, 4)}
    save_file(tensors, path)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    assert head_and_embedding(open_checkpoint(path).tensors, 9) == names
    save_file(tensors | {"draft.lm_head.weight": torch.rand(9, 4)}, path)
    assert head_and_embedding(open_checkpoint(path).tensors, 9) == (None, names[1])


def test_the_same_bits_of_another_dtype_are_another_value(path):
    value = torch.rand(3)
    save_file({"a": value, "b": value.view(torch.int32), "c": value.clone()}, path)
    found = open_checkpoint(path).tensors
    assert same_values(found["a"], found["c"])
    assert not same_values(found["a"], found["b"])
