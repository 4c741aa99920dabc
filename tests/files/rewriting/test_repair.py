"""Each defect that an audit names is mended, or it is said why not; afterwards the audit is content."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tied
from tied.files import load_file as load_all, repair
from tied.files.auditing.audit import audit
from tied.files.reading.safetensors_header import read_header
from tied.files.rewriting import repair as module


class Model(torch.nn.Module):
    def __init__(self, target="encoder.weight.T"):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(30, 40), torch.nn.Linear(40, 30)
        tied.tie(self, "decoder.weight", target)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def new(tmp_path):
    return tmp_path / "new.safetensors"


def drifted(path, target="encoder.weight.T"):
    """Write a file that declares a tie which does not hold; return its tensors."""
    torch.manual_seed(0)
    tied.save(Model(target), path, layout="expanded")
    tensors, metadata = load_file(path), dict(read_header(path)[0].metadata)
    tensors["decoder.weight"] = torch.rand(30, 40)
    save_file(tensors, path, metadata)
    return tensors


def test_a_winner_has_to_be_named(path, new):
    drifted(path)
    before = path.read_bytes()
    with pytest.raises(tied.FileError) as caught:
        repair(path, new)
    assert (
        str(caught.value).split("\n", 1)[1]
        == (
            f"  '{path}': Two values are declared equal, and differ.\n"
            "  found:    'decoder.weight' and 'encoder.weight.T'\n"
            "  expected: nothing lost\n"
            "  fix:      name the winner: keep='source', 'target' or 'mean'\n"
            "Nothing was written."
        )
        or len(str(path)) > 90
    )
    assert not new.exists()
    assert path.read_bytes() == before
    with pytest.raises(tied.FileError, match="keep is unknown"):
        repair(path, new, keep="both")


@pytest.mark.parametrize("keep", ["source", "target", "mean"])
def test_the_winner_wins(keep, path, new):
    old = drifted(path)
    done = repair(path, new, keep=keep)
    source, target = old["encoder.weight"], old["decoder.weight"]
    expected = {"source": source, "target": target.T, "mean": ((source.double() + target.T.double()) / 2).float()}[keep]
    found = load_file(new)
    assert torch.equal(found["encoder.weight"], expected)
    assert torch.equal(found["decoder.weight"], expected.T)
    assert torch.equal(found["encoder.bias"], old["encoder.bias"])
    assert audit(path).findings[0].code == "TIE306"
    assert audit(new).ok
    wins = {"source": "its source", "target": "the target", "mean": "the mean"}[keep]
    assert done.lines == (f"made 'decoder.weight' equal to 'encoder.weight.T': {wins} won",)
    tied.load(Model(), new)


def test_a_target_that_no_source_gives(path, new):
    drifted(path, "encoder.weight.T.square()")
    tensors, metadata = load_file(path), dict(read_header(path)[0].metadata)
    tensors["decoder.weight"] -= 5
    save_file(tensors, path, metadata)
    with pytest.raises(tied.FileError, match="No source gives"):
        repair(path, new, keep="target")
    repair(path, new, keep="source")
    assert audit(new).ok


def test_several_targets_of_one_source(path, new):
    entries = [{"target": name, "source": "a.w", "dtype": "F32", "shape": [3]} for name in ("b.w", "c.w")]
    text = json.dumps({"version": 1, "layout": "expanded", "ties": entries})
    save_file({name: torch.rand(3) for name in ("a.w", "b.w", "c.w")}, path, {"tied": text})
    with pytest.raises(tied.FileError, match="Two targets of one source differ"):
        repair(path, new, keep="target")
    assert not new.exists()
    repair(path, new, keep="source")
    found = load_file(new)
    assert torch.equal(found["b.w"], found["a.w"])
    assert torch.equal(found["c.w"], found["a.w"])


def test_a_target_that_held_follows_its_source(path, new):
    entries = [{"target": name, "source": "a.w", "dtype": "F32", "shape": [3]} for name in ("b.w", "c.w")]
    text = json.dumps({"version": 1, "layout": "expanded", "ties": entries})
    value = torch.rand(3)
    save_file({"a.w": value, "b.w": value.clone(), "c.w": torch.ones(3)}, path, {"tied": text})
    repair(path, new, keep="target")
    assert all(torch.equal(tensor, torch.ones(3)) for tensor in load_file(new).values())


def test_a_broken_ledger_keeps_what_can_be(path, new):
    good = {"target": "b", "source": "a.T", "dtype": "F32", "shape": [4, 3]}
    bad = [
        {"target": "c", "source": "nowhere", "dtype": "F32", "shape": [3]},
        {"target": "d", "source": "a.nonsense()", "dtype": "F32", "shape": [3]},
        {"target": "b", "source": "a.T", "dtype": "F32", "shape": [4, 3]},
        "no entry",
    ]
    text = json.dumps({"version": 1, "layout": "compact", "ties": [good, *bad]})
    save_file({"a": torch.rand(3, 4)}, path, {"tied": text, "x": "y"})
    assert [each.code for each in audit(path).findings] == ["TIE307"]
    done = repair(path, new)
    assert [line.split(":")[0] for line in done.lines] == [
        f"dropped the tie of {name!r}" for name in ("c", "d", "b", "no entry")
    ]
    assert audit(new).ok
    assert set(load_all(new)) == {"a", "b"}
    assert read_header(new)[0].metadata["x"] == "y"


def ledger(ties, **more):
    return {"tied": json.dumps({"version": 1, "layout": "compact", "ties": ties} | more)}


def equal(target, source):
    return {"target": target, "source": source, "dtype": "F32", "shape": [3]}


def test_of_two_ties_of_one_target_the_first_stays(path, new):
    save_file(
        {"a": torch.rand(3), "b": torch.rand(3)}, path, ledger([equal("x", "a"), equal("x", "b"), equal("y", "b")])
    )
    assert repair(path, new).lines == ("dropped the tie of 'x': another one has this target.",)
    assert torch.equal(load_all(new)["x"], load_file(path)["a"])
    assert torch.equal(load_all(new)["y"], load_file(path)["b"])


def test_what_a_later_version_says_is_not_guessed(path, new):
    save_file({"a": torch.rand(3)}, path, ledger([equal("x", "a")], version=2))
    assert repair(path, new).lines == ("dropped the ledger: It has another version. Found: '2'.",)
    assert set(load_all(new)) == {"a"}


def test_a_ledger_whose_entries_are_right_is_written_anew(path, new):
    save_file({"a": torch.rand(3)}, path, ledger([equal("x", "a")], layout="other"))
    assert repair(path, new).lines == ("wrote the ledger anew: Its layout is unknown. Found: 'other'.",)
    assert set(load_all(new)) == {"a", "x"}


def test_many_broken_entries_take_linear_time(path, new, monkeypatch):
    save_file({"a": torch.rand(3)}, path, ledger([equal(f"x{i}", "nowhere" if i % 2 else "a") for i in range(500)]))
    read, looked = module.read_ledger, []
    monkeypatch.setattr(module, "read_ledger", lambda *given: looked.append(0) or read(*given))
    assert len(repair(path, new).lines) == 250
    assert len(looked) < 1000
    assert len(load_all(new)) == 251


@pytest.mark.parametrize("text", ["nonsense", "[]", "[" * 100_000, '{"version": 9, "layout": "compact", "ties": []}'])
def test_a_hopeless_ledger_goes(text, path, new):
    save_file({"a": torch.rand(3, 4)}, path, {"tied": text})
    (line,) = repair(path, new).lines
    assert line.startswith("dropped the ledger: ")
    assert read_header(new)[0].metadata == {}
    assert audit(new).ok


def test_a_vain_promise_of_save_model_is_forgotten(path, new):
    save_file({"bias": torch.rand(3)}, path, {"b.weight": "a.weight", "format": "pt"})
    assert repair(path, new).lines == (
        "forgot 'b.weight': the header says that it is a.weight, which is not there either",
    )
    assert audit(new).ok
    assert read_header(new)[0].metadata == {"format": "pt"}


def test_an_index_is_mended(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    save_file({"a": torch.rand(3), "extra": torch.rand(4), "b": torch.ones(5)}, old / "1.safetensors")
    save_file({"b": torch.rand(5)}, old / "2.safetensors")
    places = {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"}
    (old / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    done = repair(old, new)
    assert sorted(done.lines) == [
        "dropped 'b' from '1.safetensors': the index leads to another one",
        "forgot 'c': the index places it in 2.safetensors",
        "put 'extra' on the index: it lies in '1.safetensors'",
    ]
    assert audit(new).ok
    assert not audit(new).findings
    found = load_all(new)
    assert set(found) == {"a", "b", "extra"}
    assert torch.equal(found["b"], load_file(old / "2.safetensors")["b"])
    assert set(load_file(new / "1.safetensors")) == {"a", "extra"}


def lm(folder, ties, head):
    embedding = torch.rand(90, 16)
    folder.mkdir(exist_ok=True)
    tensors = {"model.embed_tokens.weight": embedding} | ({} if head is None else {"lm_head.weight": head(embedding)})
    save_file(tensors, folder / "model.safetensors")
    config = {"vocab_size": 90, "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": ties}
    (folder / "config.json").write_text(json.dumps(config))
    return embedding


def test_head_and_embedding_that_the_configuration_ties(tmp_path):
    embedding = lm(tmp_path / "a", True, torch.zeros_like)
    with pytest.raises(tied.FileError, match="declared equal, and differ"):
        repair(tmp_path / "a", tmp_path / "b.safetensors")
    repair(tmp_path / "a", tmp_path / "b.safetensors", keep="mean")
    found = load_file(tmp_path / "b.safetensors")
    assert torch.equal(found["lm_head.weight"], embedding / 2)
    assert torch.equal(found["model.embed_tokens.weight"], embedding / 2)


def test_what_only_the_configuration_can_mend_is_said(tmp_path):
    lm(tmp_path / "a", False, torch.clone)
    assert repair(tmp_path / "a", tmp_path / "b.safetensors").lines == (
        "left: 'lm_head.weight' and 'model.embed_tokens.weight' are equal; set tie_word_embeddings to true "
        "in config.json",
        "left: 1 tensor is stored twice, which tied shrink drops",
    )
    lm(tmp_path / "a", False, None)
    assert repair(tmp_path / "a", tmp_path / "c.safetensors").lines == (
        "left: no head is stored, though config.json unties it; nothing says what it was",
    )


def test_the_storages_of_a_pt_are_mended(tmp_path, new):
    weight = torch.rand(30, 20)
    state = {"a": weight, "b": weight.T, "slice": torch.rand(5000)[:10]}
    torch.save(state, tmp_path / "a.pt")
    done = repair(tmp_path / "a.pt", new)
    assert done.lines == (
        "dropped 19.5 KiB of the storage of 'slice' that no tensor shows",
        "dropped 'b', which is 'a.T': 2.3 KiB",
    )
    assert audit(new).ok
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_all(new).items())


def test_nothing_to_mend(path, new):
    save_file({"a": torch.rand(3)}, path, {"format": "pt"})
    assert repair(path, new).lines == ("nothing is wrong: the new file holds what the old one does",)
    assert new.read_bytes() == path.read_bytes()


def test_what_holds_up_to_rounding_stays_to_the_bit(path, new):
    """Only what contradicts itself is changed."""
    a = torch.rand(50)
    nearly = torch.nextafter(a.exp(), torch.full((50,), 9.0))
    entry = {"dtype": "F32", "shape": [50]}
    ties = [{"target": "b", "source": "a.exp()", **entry}, {"target": "d", "source": "c", **entry}]
    tensors = {"a": a, "b": nearly, "c": torch.rand(50), "d": torch.rand(50)}
    save_file(tensors, path, {"tied": json.dumps({"version": 1, "layout": "expanded", "ties": ties})})
    assert repair(path, new, keep="target").lines == ("made 'd' equal to 'c': the target won",)
    assert torch.equal(load_file(new)["b"], nearly)
    assert torch.equal(load_file(new)["c"], tensors["d"])


def test_one_of_two_forgotten_tensors_of_a_name_is_kept(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    save_file({"a": torch.rand(3), "extra": torch.zeros(2)}, old / "1.safetensors")
    save_file({"b": torch.rand(3), "extra": torch.ones(2)}, old / "2.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (old / "model.safetensors.index.json").write_text(json.dumps(index))
    assert repair(old, tmp_path / "new").lines == (
        "put 'extra' on the index: it lies in '1.safetensors'",
        "dropped 'extra' from '2.safetensors': the index leads to another one",
    )
    assert load_all(tmp_path / "new")["extra"].tolist() == [0, 0]


def test_the_map_of_save_model_stays_what_it_is(path, new):
    metadata = {"b": "a", "c.weight": "d.weight", "format": "pt"}
    save_file({"a": torch.rand(3)}, path, metadata)
    assert len(repair(path, new).lines) == 1
    assert read_header(new)[0].metadata == {"b": "a", "format": "pt"}
    assert set(load_all(new)) == {"a", "b"}
