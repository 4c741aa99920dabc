"""Hostile files: an error that names the file and the offence; nothing is run, written or waited for."""

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file

import tied
from tied.files import expand, load_file, repair, shrink
from tied.files.auditing.audit import audit
from tied.files.reading.checkpoint import open_checkpoint
from tied.files.reading.transformers_config import read_configuration

EVERY = [audit, load_file, lambda path: shrink(path, path.parent / "new.safetensors")]


def refused(path, problem):
    """Check that every way to open the file refuses it, and leaves the folder as it was."""
    before = sorted(path.parent.iterdir())
    for look in EVERY:
        with pytest.raises(tied.FileError) as caught:
            look(path)
        assert problem in str(caught.value)
        assert path.name in str(caught.value)
        assert str(caught.value).isascii()
        assert "\x1b" not in str(caught.value)
        assert sorted(path.parent.iterdir()) == before


# -- indexes


def index(folder, content):
    path = folder / "model.safetensors.index.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/passwd", "x/a.safetensors", "..", ".", "", "a\0b", "C:\\a", "..\\a", "a\x1b[2J/b"],
)
def test_an_index_that_leads_out(name, tmp_path):
    (tmp_path / "x").mkdir()
    for place in (tmp_path.parent / "a.safetensors", tmp_path / "x" / "a.safetensors"):
        save_file({"w": torch.rand(3)}, place)
    refused(index(tmp_path, {"weight_map": {"w": name}}), "It leads out of its folder.")


def test_a_link_that_leads_out(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside.safetensors"
    folder.mkdir()
    save_file({"w": torch.rand(3)}, outside)
    (folder / "a.safetensors").symlink_to(outside)
    path = index(folder, {"weight_map": {"w": "a.safetensors"}})
    refused(path, "A shard leads out of its folder.")
    save_file({"w": torch.rand(3)}, folder / "b.safetensors")
    (folder / "a.safetensors").unlink()
    (folder / "a.safetensors").symlink_to("b.safetensors")
    assert set(load_file(path)) == {"w"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_under_many_names(link, tmp_path):
    save_file({"w": torch.rand(3)}, tmp_path / "a.safetensors")
    link(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    path = index(tmp_path, {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}})
    refused(path, "Two of its shards are one file.")


@pytest.mark.parametrize("more", ["[],", "{},", "1,"])
def test_an_index_that_lists_without_end(more, tmp_path):
    refused(index(tmp_path, '{"weight_map":{},"x":[' + more * 1_000_000 + "1]}"), "It lists too much.")


def test_a_configuration_that_lists_without_end(tmp_path):
    save_file({"w": torch.rand(3)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"tie_word_embeddings":true,"x":[' + "1," * 1_000_001 + "1]}")
    assert read_configuration(tmp_path) is None


def test_the_cache_of_hugging_face_is_no_leak(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"w": torch.rand(3)}, blobs / "0123")
    (snapshot / "a.safetensors").symlink_to("../../blobs/0123")
    (blobs / "4567").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/4567")
    assert set(load_file(snapshot)) == {"w"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("nonsense", "It is not the JSON of an index."),
        ("[]", "It is not an index."),
        ("{}", "It has no weight_map."),
        ('{"weight_map": 3}', "It has no weight_map."),
        ('{"weight_map": {"a": 3}}', "It has no weight_map."),
        ('{"weight_map": {}, "metadata": []}', "Its metadata is no object."),
        ('{"weight_map": {"a": "b", "a": "c"}}', "It is not the JSON of an index."),
        ("[" * 100_000, "It is not the JSON of an index."),
        ('{"a":' * 100_000, "It is not the JSON of an index."),
        ('{"weight_map": {"a": "missing.safetensors"}}', "A shard is missing."),
        (" " * (1 << 25) + "{}", "It is too long for an index."),
    ],
)
def test_a_broken_index(content, problem, tmp_path):
    refused(index(tmp_path, content), problem)


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(tied.FileError, match="No checkpoint lies in this folder"):
        audit(tmp_path)
    for name in "ab":
        save_file({"w": torch.rand(3)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(tied.FileError, match="Several checkpoints lie in this folder"):
        audit(tmp_path)


# -- .pt


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_code_in_a_pt_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.rand(3), "x": Runs()}, "a.pt")
    Path("b.bin").write_bytes(pickle.dumps(Runs()))
    assert set(load_file(tmp_path / "a.pt")) == {"w"}
    assert audit(tmp_path / "a.pt").notes == ("Not read, and not needed for the tensors: 'x' (posix.system).",)
    for look in EVERY:
        with pytest.raises(tied.FileError, match=r"none of torch\.save"):
            look(tmp_path / "b.bin")
    assert not Path("ran").exists()


def test_a_program_is_no_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    buffer = io.BytesIO()
    torch.save({"w": torch.rand(3)}, buffer)
    with zipfile.ZipFile(path, "w") as archive, zipfile.ZipFile(buffer) as whole:
        for part in whole.infolist():
            archive.writestr(part, whole.read(part))
        archive.writestr(f"{whole.namelist()[0].split('/')[0]}/constants.pkl", b"")
    refused(path, "It is a program, not a checkpoint.")


def test_a_zip_that_unfolds(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    assert path.stat().st_size < 1 << 16
    refused(path, "A part of it is compressed.")


def test_a_part_that_says_it_is_larger_than_it_is(tmp_path):
    """Stored as it is, by its word; but with another size unpacked."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.rand(300)}, path)
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\1\2", 0, raw.rindex(b"/data/0"))
    raw[entry + 24 : entry + 28] = (1201).to_bytes(4, "little")
    path.write_bytes(raw)
    refused(path, "A part of it is compressed.")


def test_a_zip_whose_parts_lie_over_each_other(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(50):
            twin = zipfile.ZipInfo(f"archive/data/{number}")
            twin.header_offset, twin.file_size, twin.compress_size, twin.CRC = (
                0,
                first.file_size,
                first.file_size,
                first.CRC,
            )
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    refused(path, "Its parts are larger than the file.")


def pt(path, pickled, name="archive/data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", b"little")
    return path


def test_a_pickle_that_is_too_long(tmp_path):
    refused(pt(tmp_path / "a.pt", bytes((1 << 26) + 1)), "It lists too much.")


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word


DOUBLED = b"N" + b"q\0h\0\x86" * 40  # a tuple of two of the tuples before it: 2**40 things
GROWN = b"](" + b"M\1\0" * 20_000 + b"e\x85q\1"  # a list, and then calls with it, five bytes each
ENDLESS = {
    "hashed": b"}" + DOUBLED + b"Ns.",
    "hashed at once": b"}(" + DOUBLED + b"Nu.",
    "in a set": b"c__builtin__\nset\n](" + DOUBLED + b"e\x85R.",
    "counted": GROWN + b"(ccollections\nCounter\nq\0" + b"h\0h\1R" * 2000 + b"t.",
    "made": GROWN + b"(ctorch\nSize\nq\0" + b"h\0h\1\x81" * 2000 + b"t.",
    "built": b"}("
    + b"".join(text(b"%05d" % i) + b"N" for i in range(20_000))
    + b"uq\0ccollections\nOrderedDict\n)R"
    + b"h\0b" * 2000
    + b".",
    "coded": b"c_codecs\nencode\n" + text(b"\xc3\xa9a" * 100_000) + text(b"punycode") + b"\x86R.",
    "coded by another": b"c_codecs\nencode\nq\0ctorch._tensor\n_rebuild_from_type_v2\n(h\0h\0"
    + text(b"\xc3\xa9a" * 100_000)
    + text(b"punycode")
    + b"\x86}tR.",
    "lists": b"](" + b"]" * 300_000 + b"e.",
    "sets": b"](" + b"\x8f" * 300_000 + b"e.",
    "marks": b"(" * 600_000 + b".",
    "names": b"(" + b"ctorch\nSize\n" * 300_000 + b"t.",
    "storages": b"(" + b"NQ" * 100_000 + b"t.",
    "versions": b"\x80\3" * 300_000 + b"N.",
    "nothing": b"(" + b"N" * 1_100_000 + b"t.",
}


HANGS = {
    **ENDLESS,
    "grows after it was counted": b"](" + b"]q\1\x85q\2" + b"h\1(" + b"M\1\0" * 250_000 + b"e"
    + b"ccollections\nCounter\nq\0" + b"h\0h\2R" * 40_000 + b"e.",
    "an instruction that torch lacks": b"N0" + b"}" + DOUBLED + b"Ns.",
    "keys of one hash": b"}(" + b"".join(
        b"\x8a\x0a" + (i * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for i in range(1, 60_000)
    ) + b"u.",
    "dicts that are copied": b"}(" + b"".join(text(b"%06d" % i) + b"N" for i in range(50_000))
    + b"uq\1(ccollections\nCounter\nq\0" + b"h\0h\1\x85R" * 100_000 + b"t.",
    "a far place of the memo": b"Nr\xff\xff\xff\xff.",
    "a long number": b"\x8b" + (900_000).to_bytes(4, "little") + b"\1" * 900_000 + b".",
    "digits": b"I" + b"1" * 900_000 + b"\n.",
    "deep lists": b"]" * 600_000 + b"a" * 599_999 + b".",
    "deep tuples": b"N" + b"\x85" * 900_000 + b".",
    "deep keys": b"}" + b"N" + b"\x85" * 900_000 + b"Ns.",
    "objects": b"(" + b"cx\ny\nq\0" + b"h\0)R" * 250_000 + b"t.",
    "sets": b"(" + b"\x8f" * 900_000 + b"t.",
}  # fmt: skip


@contextlib.contextmanager
def bounded(seconds, nbytes):
    """Fail what takes more processor time, or more memory, of this process."""

    def late(*_):
        raise AssertionError(f"more than {seconds} s")

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + nbytes, before[1]))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


SECONDS, BYTES = 3, 400 << 20  # several times what was measured; what these once took had no end


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of Linux")
@pytest.mark.parametrize("content", HANGS.values(), ids=HANGS)
@pytest.mark.parametrize("name", ["a.pt", "a.bin", ".metadata"])
def test_a_pickle_costs_no_more_than_its_size(content, name, tmp_path):
    """None of these runs code; each once kept a reader busy for minutes, for ever, or until the memory was full."""
    path = tmp_path / name
    if name == "a.pt":
        pt(path, b"\x80\2" + content)
    else:
        path.write_bytes(b"\x80\2" + content)
    with bounded(SECONDS, BYTES), contextlib.suppress(tied.FileError):
        assert load_file(tmp_path if name == ".metadata" else path) == {}


@pytest.mark.parametrize("name", ["torch\nTensor", "torch\nempty", "__builtin__\nbytearray", "torch\nFloatTensor"])
@pytest.mark.parametrize("code", [b"R", b"\x81"])
def test_a_pickle_that_asks_for_memory(name, code, tmp_path):
    """What was in this process's memory before would be written to the new file."""
    content = b"\x80\2}" + text(b"w") + b"c" + name.encode() + b"\n\x8a\5" + (1 << 33).to_bytes(5, "little")
    path = pt(tmp_path / "a.pt", content + b"\x85" + code + b"s.")
    assert load_file(path) == {}
    shrink(path, tmp_path / "b.safetensors")
    assert load_file(tmp_path / "b.safetensors") == {}


def test_a_vocabulary_beside_an_embedding_is_read(tmp_path):
    words = {f"word{i}": i for i in range(250_000)}
    pairs = [(i, i + 1) for i in range(250_000)]
    torch.save({"embed": torch.rand(10, 4), "vocabulary": words, "merges": pairs}, tmp_path / "a.pt")
    assert set(load_file(tmp_path / "a.pt")) == {"embed"}


def test_large_files_may_hold_more(tmp_path, monkeypatch):
    """What takes long to read anyway may take a while to unpickle."""
    monkeypatch.setattr("tied.files.reading.pickle_machine.MOST_STEPS", 500)
    torch.save({f"w{i}": torch.rand(3) for i in range(40)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "It would take too long to unpickle.")
    torch.save({f"w{i}": torch.rand(1000) for i in range(40)}, tmp_path / "a.pt")
    assert len(load_file(tmp_path / "a.pt")) == 40


def test_ten_thousand_tensors_are_read(tmp_path):
    storage = torch.rand(10_000)
    torch.save({f"model.layers.{i}.weight": storage[i : i + 1] for i in range(10_000)}, tmp_path / "a.pt")
    assert len(load_file(tmp_path / "a.pt")) == 10_000


def test_parts_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("tied.files.reading.zip_archive.MOST_DIRECTORY", 1000)
    torch.save({f"w{i}": torch.rand(3) for i in range(20)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "It has too many parts.")


def test_two_pickles(tmp_path):
    path = pt(tmp_path / "a.pt", b"\x80\2}.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("Archive/DATA.pkl", b"\x80\2}.")
    refused(path, "It is no checkpoint.")


@pytest.mark.parametrize("where", ["before", "between", "after"])
def test_a_directory_that_two_readers_see_differently(where, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.rand(3)}, path)
    raw = path.read_bytes()
    end = raw.rindex(b"PK\6\6")
    path.write_bytes({"before": raw[:4] + raw, "between": raw[:end] + b"12" + raw[end:], "after": raw + b"12"}[where])
    refused(path, "Its archive is broken.")


def test_a_pickle_that_grows(tmp_path, monkeypatch):
    """Lists, each of which holds the one before it twice: millions of names in a kilobyte."""
    monkeypatch.setattr("tied.files.reading.named_tensors.MOST_NODES", 5000)
    grown = [torch.rand(1)]
    for _ in range(25):
        grown = [grown, grown]
    torch.save({"w": grown}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "It is nested without end.")


def test_what_is_nested_deep(tmp_path):
    deep = torch.rand(1)
    for _ in range(31):
        deep = [deep]
    torch.save({"w": deep}, tmp_path / "a.pt")
    assert len(load_file(tmp_path / "a.pt")) == 1
    torch.save({"w": [deep]}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "It is nested without end.")


def test_names_that_grow(tmp_path, monkeypatch):
    """Dicts in dicts: few, and names as long as the way to each."""
    grown = {"k": torch.rand(1)}
    for _ in range(8):
        grown = {"x" * 100: grown, "y" * 100: grown}
    torch.save(grown, tmp_path / "a.pt")
    assert len(load_file(tmp_path / "a.pt")) == 256
    monkeypatch.setattr("tied.files.reading.named_tensors.MOST_LETTERS", 200_000)
    refused(tmp_path / "a.pt", "It is nested without end.")


def test_lists_that_are_looked_through_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tied.files.reading.named_tensors.MOST_LEAVES", 9_000)
    long = [3] * 1000
    torch.save({"w": torch.rand(1), "x": [long] * 20}, tmp_path / "a.pt")
    assert set(load_file(tmp_path / "a.pt")) == {"w"}
    torch.save({"w": torch.rand(1), "x": [[torch.rand(1), *long]] * 9}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "It is nested without end.")


def test_a_pickle_that_holds_itself(tmp_path):
    state = {"w": torch.rand(3)}
    state["again"] = [state]
    torch.save(state, tmp_path / "a.pt")
    assert set(load_file(tmp_path / "a.pt")) == {"w"}


def test_names_that_meet(tmp_path):
    torch.save({"a": {"b": torch.rand(3)}, "a.b": torch.rand(3)}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "Two tensors have one name.")


@pytest.mark.parametrize("cut", [0, 3, 4, 100, 1000, -1, -30])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pt_that_is_cut(cut, legacy, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.rand(300)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:cut])
    for look in EVERY:
        with pytest.raises(tied.FileError):
            look(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_pt_with_a_wrong_byte(data, tmp_path_factory):
    """Any one byte, anywhere: an error of ours, or tensors."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3), "n": {"b": torch.ones(2)}}, buffer)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("any") / "a.pt"
    path.write_bytes(raw)
    try:
        found = audit(path)
    except tied.FileError as error:
        found = error
    assert "a.pt" in str(found)


def test_a_pt_whose_part_says_another_size(tmp_path):
    """Found by the test above: `zipfile` reads on behind the end, and raises an EOFError without a word."""
    path, buffer = tmp_path / "a.pt", io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3), "n": {"b": torch.ones(2)}}, buffer)
    raw = bytearray(buffer.getvalue())
    raw[29] = 6
    path.write_bytes(raw)
    with pytest.raises(tied.FileError, match=r"a\.pt"):
        audit(path)


# -- names, maps, and everything at once


def test_names_with_escapes_and_markup(tmp_path):
    path = tmp_path / "a.safetensors"
    nasty = ["\x1b[2Jclear", "<script>alert(1)</script>", "a\rb", "‮right", "[bold]x[/bold]", "x" * 5000]
    weight = torch.rand(100, 10)
    save_file({name: weight.clone() for name in nasty}, path)
    found = audit(path)
    text = str(found)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "‮" not in text
    assert "<script>" not in found.to_html()
    assert json.loads(json.dumps(found.to_json()))["groups"][0]["names"] == list(found.groups[0].names)
    for line in shrink(path, tmp_path / "b.safetensors").lines:
        assert line.isprintable()


def entry(target, source, **more):
    return {"target": target, "source": source, "dtype": "F32", "shape": [3], **more}


@pytest.mark.parametrize(
    "ties",
    [
        [entry("b", "c"), entry("c", "b")],
        [entry("b", "b")],
        [entry("b", "a"), entry("b", "a")],
        [entry("b", "nowhere")],
        [entry("b", "a.expand(1000000000000, 3)")],
        [entry("b", "cat([a, a, a, a], 0)")],
        [entry("b", "__import__('os').system('touch ran')")],
        [entry("b", "a" + ".T" * 100_000)],
        [entry("b", "(" * 100_000)],
        [entry("b\ud800", "a")],
        [entry("__metadata__", "a")],
        [entry("b", "a", at=10**30)],
        [entry("b", "a", dtype="F99")],
    ],
    ids=lambda ties: ascii(ties)[:60],
)
def test_cyclic_and_contradictory_maps(ties, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.rand(3)}, path, {"tied": json.dumps({"version": 1, "layout": "compact", "ties": ties})})
    for look in (load_file, EVERY[2], lambda p: expand(p, tmp_path / "new.safetensors")):
        with pytest.raises(tied.FileError) as caught:
            look(path)
        assert "a.safetensors" in str(caught.value)
    assert [each.code for each in audit(path).findings] == ["TIE307"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    repair(path, tmp_path / "mended.safetensors")
    assert audit(tmp_path / "mended.safetensors").ok


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_file_is_audited_or_refused(data, tmp_path_factory):
    """A right file with a few wrong bytes, under every suffix."""
    path = tmp_path_factory.mktemp("any") / f"a{data.draw(st.sampled_from(['.safetensors', '.bin', '.pt', '']))}"
    header = json.dumps(
        {
            "__metadata__": {"tied": '{"version":1,"layout":"compact","ties":[' + json.dumps(entry("t", "a")) + "]}"},
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [12, 16]},
        }
    ).encode()
    raw = bytearray(struct.pack("<Q", len(header)) + header + bytes(range(16)))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    for look in (audit, open_checkpoint, lambda p: shrink(p, p.parent / "new.safetensors")):
        said = ""
        try:
            look(path)
        except tied.FileError as error:
            said = str(error)
        assert not said or path.name in said
        assert not said or [file.name for file in path.parent.iterdir()] == [path.name]
