"""A header means what safetensors says it means, or is refused with the file, the tensor and the offence."""

import json
import os
import time
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.torch import save_file

import tied
from tied.files.reading.dtypes import BITS, FROM_TORCH, torch_dtype
from tied.files.reading.safetensors_header import Header, byte_count, parse_header, read_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def text_of(content: object) -> bytes:
    return json.dumps(content).encode()


def file_of(raw: bytes, data: int = 8) -> bytes:
    return len(raw).to_bytes(8, "little") + raw + bytes(data)


def test_what_safetensors_writes_is_read_and_written_again_to_the_byte(tmp_path):
    tensors = {
        "weight": torch.rand(3, 4),
        'é"\\\n\t\x7f\x01😀': torch.rand(0, 4),
        "": torch.tensor(3),
        "half": torch.rand(5).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "complex": torch.rand(2, dtype=torch.complex64),
        "eight": torch.zeros(3, dtype=torch.uint8).view(torch.float8_e5m2),
    }
    path = tmp_path / "a.safetensors"
    for metadata in (None, {}, {"format": "pt", "é": '"'}):
        save_file(tensors, path, metadata)
        header, start = read_header(path)
        assert header.metadata == metadata
        assert {name: entry.shape for name, entry in header.tensors.items()} == {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
        if len(metadata or {}) < 2:  # safetensors shuffles metadata
            assert header.to_bytes() == path.read_bytes()[:start]
        for name, (_, _, begin, end) in header.tensors.items():
            raw = path.read_bytes()[start + begin : start + end]
            expected = tensors[name].contiguous().reshape(-1).view(torch.uint8)
            assert raw == expected.numpy().tobytes()


def test_every_dtype_of_safetensors_is_known_under_its_width():
    for name, bits in BITS.items():
        shape = [8]
        header = text_of({"w": {"dtype": name, "shape": shape, "data_offsets": [0, bits]}})
        deserialize(file_of(header, bits))
        assert parse_header(header, bits, "x").tensors["w"].nbytes == bits
        found = torch_dtype(name)
        if found is not None and name != "F4":
            assert found.itemsize * 8 == bits
    assert {torch_dtype(name) for name in FROM_TORCH.values()} >= {torch.bool, torch.float16, torch.uint16}


REFUSED = {
    "no json": (b"nonsense", "The JSON of the header breaks off."),
    "a list": (b"[]", "The JSON of the header breaks off."),
    "cut": (b'{"a":', "The entry of tensor 'a' cannot be read."),
    "no end": (text_of({"a": ENTRY})[:-1], "The JSON of the header breaks off."),
    "something after": (text_of({"a": ENTRY}) + b"{}", "Something follows the JSON of its header."),
    "trailing comma": (text_of({"a": ENTRY})[:-1] + b",}", "A name in the header is missing."),
    "name twice": (b'{"a":%b,"a":%b}' % ((text_of(ENTRY),) * 2), "A name stands twice in the header."),
    "metadata twice": (b'{"__metadata__":{"a":"","a":""}}', "A name stands twice in __metadata__."),
    "two metadatas": (b'{"__metadata__":{},"__metadata__":{}}', "A name stands twice in the header."),
    "metadata no text": (b'{"__metadata__":{"a":1}}', "A text of __metadata__ is missing."),
    "metadata nested": (b'{"__metadata__":{"a":{}}}', "A text of __metadata__ is missing."),
    "metadata null": (b'{"__metadata__":null}', "The JSON of __metadata__ breaks off."),
    "bad escape": (b'{"\\q":1}', "A name in the header is not a valid text."),
    "control character": (b'{"a\n":1}', "A name in the header is not a valid text."),
    "half a character": (b'{"\\ud800":1}', "Half a character stands in a name in the header."),
    "no utf-8": (b'{"\xff":1}', "Its header is not UTF-8."),
    "a key missing": (text_of({"a": {"dtype": "F32", "shape": [2]}}), "The entry of tensor 'a' has the keys"),
    "a key too many": (text_of({"a": ENTRY | {"x": 1}}), "The entry of tensor 'a' has the keys"),
    "a key twice": (b'{"a":{"shape":[2],"dtype":"F32","dtype":"F32","data_offsets":[0,8]}}', "has the keys"),
    "dtype no text": (text_of({"a": ENTRY | {"dtype": 3}}), "has no text for its dtype"),
    "dtype unknown": (text_of({"a": ENTRY | {"dtype": "F33"}}), "The dtype of tensor 'a' is unknown."),
    "negative size": (text_of({"a": ENTRY | {"shape": [-2]}}), "has no list of sizes for its shape"),
    "fractional size": (text_of({"a": ENTRY | {"shape": [2.0]}}), "has no list of sizes for its shape"),
    "true size": (text_of({"a": ENTRY | {"shape": [True, 2]}}), "has no list of sizes for its shape"),
    "size too large": (text_of({"a": ENTRY | {"shape": [2**64]}}), "has no list of sizes for its shape"),
    "huge number": (b'{"a":{"dtype":"F32","shape":[1%b],"data_offsets":[0,8]}}' % (b"0" * 5000), "is not JSON"),
    "overflow": (text_of({"a": ENTRY | {"shape": [2**33, 2**33]}}), "has more elements than can be counted"),
    "overflow to zero": (text_of({"a": ENTRY | {"shape": [2**33, 2**33, 0]}}), "has more elements than can be counted"),
    "half a byte": (text_of({"a": ENTRY | {"dtype": "F4", "shape": [3]}}), "has a last byte that is not full"),
    "too many dimensions": (text_of({"a": ENTRY | {"shape": [1] * 64 + [2]}}), "has too many dimensions"),
    "no place": (text_of({"a": ENTRY | {"data_offsets": [0]}}), "has no place for its data_offsets"),
    "negative place": (text_of({"a": ENTRY | {"data_offsets": [-8, 0]}}), "has no place for its data_offsets"),
    "backward place": (text_of({"a": ENTRY | {"data_offsets": [8, 0]}}), "The place of tensor 'a' does not fit"),
    "place too small": (text_of({"a": ENTRY | {"data_offsets": [0, 4]}}), "The place of tensor 'a' does not fit"),
    "nested lists": (b'{"a":' + b"[" * 100_000, "The entry of tensor 'a' cannot be read."),
    "nested objects": (b'{"a":' * 100_000, "The entry of tensor 'a' cannot be read."),
    "nested in shape": (b'{"a":{"shape":' + b"[" * 3000 + b"]" * 3000 + b"}}", "cannot be read"),
    "overlap": (text_of({"a": ENTRY, "b": ENTRY}), "Two tensors overlap."),
    "gap": (text_of({"a": ENTRY | {"data_offsets": [4, 12]}}), "Bytes between tensors belong to none."),
    "empty in the middle": (
        text_of({"a": ENTRY, "e": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}),
        "Two tensors overlap.",
    ),
    "out of range": (
        text_of({"a": ENTRY | {"shape": [4], "data_offsets": [0, 16]}}),
        "It is shorter than its header says.",
    ),
    "bytes left": (
        text_of({"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}}),
        "Bytes at its end belong to no tensor.",
    ),
}


@pytest.mark.parametrize(("raw", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_broken_header_is_refused(raw, problem, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(file_of(raw))
    with pytest.raises(tied.FileError) as caught:
        read_header(path)
    assert problem in caught.value.problem
    assert "a.safetensors" in caught.value.problem
    assert all((caught.value.found, caught.value.expected, caught.value.fix))
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isascii()
    assert str(caught.value).endswith("Nothing was written.")
    if raw not in STRICTER:
        with pytest.raises(SafetensorError):
            deserialize(file_of(raw))


STRICTER = {REFUSED[key][0] for key in ("a key too many", "too many dimensions", "metadata null")} | {
    REFUSED[key][0] for key in ("name twice", "metadata twice", "two metadatas")
}


def test_the_whole_message():
    with pytest.raises(tied.FileError) as caught:
        parse_header(text_of({"a\x1b[2J": ENTRY, "b": ENTRY}), 8, "models/x.safetensors")
    assert str(caught.value) == (
        "'models/x.safetensors': Two tensors overlap.\n"
        "  found:    'b' begins at 0, 'a\\x1b[2J' ends at 8\n"
        "  expected: tensors back to back\n"
        "  fix:      no reader accepts this: ask whoever wrote the file for another one\n"
        "Nothing was written."
    )


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "It is too short to be a safetensors file."),
        (b"1234567", "It is too short to be a safetensors file."),
        ((2**63).to_bytes(8, "little") + b"{}", "Its header is too long."),
        ((100_000_000).to_bytes(8, "little") + b"{}", "Its header is too long."),
        ((9).to_bytes(8, "little") + b"{}", "It ends within its header."),
        (bytes(8), "The JSON of the header breaks off."),
    ],
)
def test_a_broken_start_is_refused(raw, problem, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with pytest.raises(tied.FileError) as caught:
        read_header(path)
    assert problem in caught.value.problem


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_regular_files_are_opened(kind, tmp_path):
    path = tmp_path / "a.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for ever
    else:
        path.symlink_to("/dev/zero")  # reading it would never end
    with pytest.raises(tied.FileError, match="It is not a regular file") as caught:
        read_header(path)
    assert kind in caught.value.found


def test_a_long_header_ends_the_scan_at_its_limit(monkeypatch):
    monkeypatch.setattr("tied.files.reading.strict_json.MOST_TEXTS", 1000)
    few = b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(1000)) + b"}}"
    assert len(parse_header(few, 0, "x").metadata) == 1000
    with pytest.raises(tied.FileError, match="Too many names stand in __metadata__"):
        parse_header(few[:-2] + b',"z":""}}', 0, "x")


def many(count, entry=b'{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}'):
    return b"{" + b",".join(b'"t%d":%s' % (i, entry % (i, i + 1)) for i in range(count)) + b"}"


def test_a_hundred_thousand_tensors_are_read_and_not_many_more():
    assert len(parse_header(many(100_000), 100_000, "x").tensors) == 100_000
    with pytest.raises(tied.FileError, match="It lists too much") as caught:
        parse_header(many(150_000), 150_000, "x")
    assert caught.value.found == "1050000 commas and brackets"


def test_any_order_of_the_fields_is_read_without_json(monkeypatch):
    monkeypatch.setattr("tied.files.reading.strict_json.MOST_ODD", 0)
    for fields in permutations(['"dtype":"U8"', '"shape":[1]', '"data_offsets":[%d,%d]']):
        assert len(parse_header(many(9, f"{{{','.join(fields)}}}".encode()), 9, "x").tensors) == 9


@pytest.mark.parametrize(("name", "problem"), [("t0", "stands twice"), ("__metadata__", "is missing")])
def test_what_is_usual_is_looked_at_too(name, problem):
    """In the middle of a long header, where all entries look alike."""
    raw = many(5).replace(b'"t3"', f'"{name}"'.encode())
    with pytest.raises(tied.FileError, match=problem):
        parse_header(raw, 5, "x")


def test_odd_entries_are_few(monkeypatch):
    monkeypatch.setattr("tied.files.reading.strict_json.MOST_ODD", 5)
    odd = b'{"dtype":"\\u00558","shape":[1],"data_offsets":[%d,%d]}'
    assert len(parse_header(many(5, odd), 5, "x").tensors) == 5
    with pytest.raises(tied.FileError, match="Too much of it is written in ways of its own"):
        parse_header(many(6, odd), 6, "x")
    escaped = many(6).replace(b'"t', b'"\\u0074')
    assert len(parse_header(escaped.replace(b"\\u0074", b"t", 1), 6, "x").tensors) == 6
    with pytest.raises(tied.FileError, match="Too much of it is written in ways of its own"):
        parse_header(escaped, 6, "x")


def test_other_orders_and_spaces_mean_the_same():
    raw = b' \n{ "__metadata__" : { "a" : "b" } ,\t"w" : { "data_offsets" : [ 0 , 8 ] , '
    raw += b'"shape" : [ 2 ] , "dtype" : "F32" } } '
    assert parse_header(raw, 8, "x") == Header.of({"w": ("F32", (2,))}, {"a": "b"})


def test_byte_counts():
    assert byte_count("F32", ()) == 4
    assert byte_count("F64", (3, 0, 5)) == 0
    assert byte_count("F6_E2M3", (4,)) == 3
    with pytest.raises(ValueError, match="negative"):
        byte_count("F32", (-1,))
    with pytest.raises(ValueError, match="more bytes"):
        byte_count("F64", (2**62,))


def test_the_offsets_give_the_order():
    raw = text_of({"b": ENTRY | {"data_offsets": [8, 16]}, "a": ENTRY})
    header = parse_header(raw, 16, "x")
    assert list(header.tensors) == ["b", "a"]
    assert header.by_offset() == ["a", "b"]


# Against safetensors itself

NAMES = st.text(max_size=4) | st.sampled_from(["__metadata__", "a", "b", "w.weight"])
SIZES = st.integers(-2, 6) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 2.5, True, "3", None])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F33", 3]),
        "shape": st.lists(SIZES, max_size=3),
        "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
    }
)


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """Headers that are right, or wrong in one place."""
    content: dict[str, object] = {}
    begin = 0
    for name in draw(st.lists(st.text(max_size=3), unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from(sorted(BITS))), draw(st.lists(st.integers(0, 4), max_size=3))
        end = begin + int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
        content[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [begin, end + draw(st.sampled_from([0] * 9 + [1]))],
        }
        begin = end
    if draw(st.booleans()):
        content["__metadata__"] = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
    raw = json.dumps(content, ensure_ascii=draw(st.booleans())).encode(errors="replace")
    return raw + bytes(draw(st.sampled_from([b"", b" ", b"x"])))


RANDOM = st.dictionaries(NAMES, ENTRIES | st.dictionaries(st.text(max_size=2), st.text(max_size=2)), max_size=3).map(
    lambda content: json.dumps(content, ensure_ascii=False).encode(errors="replace")
)


@settings(max_examples=400, deadline=None)
@given(raw=st.one_of(plausible(), RANDOM, st.binary(max_size=60)), extra=st.integers(0, 64), data=st.data())
def test_what_is_accepted_means_the_same_to_safetensors(raw, extra, data):
    ends = [int(text) for text in __import__("re").findall(rb"(\d{1,4})\]\}", raw)]
    size = max(ends, default=extra) + (extra == 1)
    if data.draw(st.booleans()) and raw:
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + 1 :]
    try:
        header = parse_header(raw, size, "x")
    except tied.FileError:
        return
    content = {} if not raw.strip() else dict(deserialize(file_of(raw, size)))
    assert {name: (entry.dtype, list(entry.shape)) for name, entry in header.tensors.items()} == {
        name: (info["dtype"], info["shape"]) for name, info in content.items()
    }
    assert parse_header(header.to_bytes()[8:], size, "x") == header


def test_a_refusal_is_quick_and_small(tmp_path):
    """Eight megabytes of what never ends: refused at the first offence."""
    path = tmp_path / "a.safetensors"
    for piece in (b'{"a":', b"[", b'{"a":{"shape":[0,', b'{"' + b"x" * 100, b" ", b'{"a":{"dtype":"' + b"F" * 50):
        raw = (piece * ((1 << 23) // len(piece)))[: 1 << 23]
        path.write_bytes(file_of(raw, 0))
        begin = time.process_time()
        with pytest.raises(tied.FileError):
            read_header(path)
        assert time.process_time() - begin < 5  # a hang, not a speed, is what this would show
