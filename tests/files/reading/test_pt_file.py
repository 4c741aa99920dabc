"""Files of `torch.save`, of every kind that people have: the tensors that torch.load gives, and nothing made but these.

The oracle is `torch.load(weights_only=False)`, of files that are written here.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import enum
import functools
import io
import json
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors import safe_open
from torch import nn

import tied
from tied.files import load_file, shrink
from tied.files.auditing.audit import audit
from tied.files.reading.checkpoint import open_checkpoint
from tied.files.reading.inert import Inert
from tied.files.reading.pickle_codes import load
from tied.files.reading.pickle_machine import Machine


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Config:
    width: int
    scale: torch.Tensor | None = None


class AttributeDict(dict):
    """As Lightning's."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.again = self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_buffer("mask", torch.ones(2, dtype=torch.bool))
        self.register_parameter("none", None)
        self.plain = torch.rand(3)
        self.activation = functools.partial(torch.clamp, min=0)


torch.manual_seed(0)
WEIGHT = torch.rand(4, 6)
TENSORS = {
    "plain": WEIGHT, "turned": WEIGHT.t(), "part": WEIGHT[1:3, ::2], "one": WEIGHT[2, 3], "none": WEIGHT[:0],
    "apart": WEIGHT.clone(), "expanded": torch.rand(1).expand(5), "parameter": nn.Parameter(WEIGHT),
    "half": WEIGHT.half(), "bfloat16": WEIGHT.bfloat16(), "float8": WEIGHT.to(torch.float8_e4m3fn),
    "double": WEIGHT.double(), "complex": torch.rand(3, dtype=torch.complex64),
    "conjugate": torch.rand(3, dtype=torch.complex64).conj(),
    "negative": torch.rand(3, dtype=torch.complex64).conj().imag,
    "wide": torch.rand(3, dtype=torch.complex128), "bool": WEIGHT > 0.5, "byte": torch.arange(5, dtype=torch.uint8),
    "uint16": torch.arange(5).to(torch.uint16), "scalar": torch.tensor(-3), "nan": torch.tensor([float("nan"), -0.0]),
}  # fmt: skip
OTHERS = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("x")),
    "a numpy scalar": np.float64(3.0),
    "a numpy array": np.arange(5.0),
    "pathlib.PurePosixPath": pathlib.PurePosixPath("a/b"),
    "datetime.datetime": datetime.datetime(2024, 1, 2),
    f"{__name__}.Color": Color.RED,
    f"{__name__}.Config": Config(3),
    f"{__name__}.AttributeDict": AttributeDict(a=1),
    "functools.partial": functools.partial(int, base=2),
    "builtins.slice": slice(1, 2),
    "builtins.complex": 1j,
    "builtins.float": float,
    "torch.float32": torch.float32,
    "torch.device": torch.device("cuda"),
    "a set": {1, 2},
}


def same(found, expected):
    """Compare bits."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        one, other = found[name].detach(), tensor.detach()
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        raw = [t.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format) for t in (one, other)]
        assert raw[0].reshape(-1).view(torch.uint8).equal(raw[1].reshape(-1).view(torch.uint8)), name


def saved(content, path, **how):
    torch.save(content, path, **how)
    return path


FORMS = [
    {},
    {"_use_new_zipfile_serialization": False},
    *({"pickle_protocol": protocol} for protocol in (3, 4, 5)),
    {"pickle_protocol": 4, "_use_new_zipfile_serialization": False},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_tensor_is_what_torch_gives(form, tmp_path):
    path = saved(TENSORS, tmp_path / "a.pt", **form)
    same(load_file(path), TENSORS)
    lost = ("uint16", "float8") if "_use_new_zipfile_serialization" in form else ()  # by torch, which cannot read these
    readable = {name: tensor for name, tensor in TENSORS.items() if name not in lost}
    same(readable, torch.load(saved(readable, tmp_path / "b.pt", **form), weights_only=False))
    stored = open_checkpoint(path).tensors
    memory = {name: one.tensor().untyped_storage().data_ptr() for name, one in stored.items()}
    assert memory["plain"] == memory["turned"] == memory["part"] == memory["one"] != memory["apart"]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("kind", "value"), OTHERS.items(), ids=OTHERS)
def test_what_else_people_store_is_named_and_not_made(kind, value, form, tmp_path):
    path = saved({"w": WEIGHT, "deep": [{"it": value}], "it": value}, tmp_path / "a.pt", **form)
    same(load_file(path), {"w": WEIGHT})
    said = f"Not read, and not needed for the tensors: 'deep.0.it' ({kind}), 'it' ({kind})."
    assert audit(path).notes == (said,)


def test_containers_are_gone_through(tmp_path):
    content = {
        "default": collections.defaultdict(list, {"a": WEIGHT}),
        "ordered": collections.OrderedDict(b=WEIGHT),
        "attributes": AttributeDict(c=WEIGHT),
        "config": Config(3, WEIGHT),
        "namespace": argparse.Namespace(d=[WEIGHT]),
        "bound": functools.partial(torch.add, other=WEIGHT),
        (1, "x"): WEIGHT,
        b"bytes": WEIGHT,
        Color.RED: WEIGHT,
        1 << 70: WEIGHT,
    }
    found = load_file(saved(content, tmp_path / "a.pt"))
    assert all(tensor.equal(WEIGHT) for tensor in found.values())
    names = ["default.a", "ordered.b", "attributes.c", "config.scale", "namespace.d.0", "bound.state.2.other"]
    names += ["(1, 'x')", "b'bytes'", f"{__name__}.Color(1,)", str(1 << 70)]
    assert list(found) == names


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_whole_module_has_the_names_of_its_state_dict(form, tmp_path):
    net = Net()
    same(load_file(saved(net, tmp_path / "a.pt", **form)), net.state_dict())
    prefixed = {f"model.{name}": tensor for name, tensor in net.state_dict().items()}
    same(load_file(saved({"model": net}, tmp_path / "b.pt", **form)), prefixed)
    same(load_file(saved(nn.DataParallel(net), tmp_path / "c.pt", **form)), nn.DataParallel(net).state_dict())
    other = Net()
    tied.load(other, tmp_path / "b.pt")
    same(other.state_dict(), net.state_dict())


def test_a_tied_module_has_the_names_of_its_state_dict(tmp_path):
    model = nn.ModuleDict({"e": nn.Embedding(7, 3), "h": nn.Linear(3, 7, bias=False), "d": nn.Linear(7, 3)})
    tied.tie(model, {"h.weight": "e.weight", "d.weight": "e.weight.T"})
    path = saved(model, tmp_path / "a.pt")
    same(load_file(path), model.state_dict())


@pytest.mark.parametrize(
    ("word", "tensor"),
    [
        ("sparse", lambda: torch.eye(3).to_sparse()),
        ("sparse", lambda: torch.eye(3).to_sparse_csr()),
        ("without values", lambda: torch.empty(3, device="meta")),
        ("expanded", lambda: torch.zeros(1).expand(10**12)),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_tensor_without_plain_elements_is_refused_by_name(word, tensor, tmp_path):
    path = saved({"good": WEIGHT, "bad": tensor()}, tmp_path / "a.pt")
    assert audit(path).notes == ("Not compared, as they have no plain elements: 'bad'.",)
    for look in (load_file, lambda p: shrink(p, tmp_path / "b.safetensors")):
        with pytest.raises(tied.FileError, match="'bad'") as caught:
            look(path)
        assert word in str(caught.value)
    assert not (tmp_path / "b.safetensors").exists()


def test_a_quantized_tensor_is_refused_by_name(tmp_path):
    """Its sizes would be taken from the pickle."""
    call = b"ctorch._utils\n_rebuild_qtensor\n(NK\0K\1\x85K\1\x85NNNtR"
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\2}X\1\0\0\0q" + call + b"s.")
    with pytest.raises(tied.FileError, match="'q' has no plain elements"):
        load_file(path)


# -- what trainers write


def lightning(net):
    optimizer = torch.optim.Adam(net.parameters())
    sum(parameter.sum() for parameter in net.parameters()).backward()
    optimizer.step()
    return {
        "epoch": 3, "global_step": 17, "pytorch-lightning_version": "2.5.0", "state_dict": net.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "seen": torch.tensor(3)}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()], "lr_schedulers": [{"last_epoch": 3}],
        "hyper_parameters": AttributeDict(width=3, path=pathlib.PurePosixPath("x")), "best": np.float64(2),
    }  # fmt: skip


def test_a_lightning_checkpoint_becomes_safetensors(tmp_path):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    done = shrink(saved(lightning(net), tmp_path / "a.ckpt"), tmp_path / "b.safetensors")
    same(dict(sorted(load_file(tmp_path / "b.safetensors").items())), dict(sorted(net.state_dict().items())))
    assert done.lines[:3] == (
        "left out 14 tensors of the training's state",
        "kept as JSON in the metadata: 'epoch', 'global_step', 'pytorch-lightning_version', 'lr_schedulers'",
        f"left out what is no tensor: 'hyper_parameters' ({__name__}.AttributeDict), 'best' (a numpy scalar)",
    )
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        values = json.loads(file.metadata()["values"])
    assert values == {
        "epoch": 3, "global_step": 17, "pytorch-lightning_version": "2.5.0", "lr_schedulers": [{"last_epoch": 3}],
    }  # fmt: skip


def test_an_archive_of_stable_baselines(tmp_path):
    """Checkpoints inside an archive, beside JSON."""
    net, path = Net(), tmp_path / "agent.zip"
    optimizer = torch.optim.Adam(net.parameters())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": "gASV"}}))
        for name, content in {"policy": net.state_dict(), "policy.optimizer": optimizer.state_dict()}.items():
            with archive.open(f"{name}.pth", "w", force_zip64=True) as part:
                torch.save(content, part)
    same(load_file(path), {f"policy.{name}": tensor for name, tensor in net.state_dict().items()})
    shrink(path, tmp_path / "b.safetensors")
    tied.load(Net(), path)


# -- Python 2, and the first versions of torch

STORAGE = b"(U\7storagectorch\nFloatStorage\nU\1aU\3cpuK\6NtQ"
MAGIC = b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.\x80\2}."


def old_file(path, content, keys=b"]U\1aa"):
    values = np.arange(6, dtype="<f4")
    path.write_bytes(MAGIC + content + b".\x80\2" + keys + b"." + struct.pack("<q", 6) + values.tobytes())
    return path


OLD = {
    "as a dict": b"\x80\2}U\1wctorch._utils\n_rebuild_tensor\n(" + STORAGE + b"K\0K\2K\3\x86K\3K\1\x86tRs",
    "as pairs": b"\x80\2ccollections\nOrderedDict\n]](U\1wctorch._utils\n_rebuild_tensor\n("
    + STORAGE + b"K\0K\2K\3\x86K\3K\1\x86tRea\x85R",
    "as lines": b"(dS'w'\nctorch._utils\n_rebuild_tensor\n(" + STORAGE + b"I0\n(I2\nI3\nt(I3\nI1\nttRs",
    "with a state": b"\x80\2}U\1wctorch\nFloatTensor\n)\x81(" + STORAGE + b"K\0K\2K\3\x86K\3K\1\x86tbs",
    "of a class": b"\x80\2c__main__\nOld\n)\x81}U\1wctorch._utils\n_rebuild_tensor\n("
    + STORAGE + b"K\0K\2K\3\x86K\3K\1\x86tRsb",
    "of an instance": b"(i__main__\nOld\n(dS'w'\nctorch._utils\n_rebuild_tensor\n("
    + STORAGE + b"I0\n(I2\nI3\nt(I3\nI1\nttRsb",
}  # fmt: skip


@pytest.mark.parametrize("content", OLD.values(), ids=OLD)
def test_old_files(content, tmp_path):
    found = load_file(old_file(tmp_path / "a.pth", content))
    same(found, {"w": torch.arange(6.0).reshape(2, 3)})


# -- nothing runs, and nothing is imported


ATTACKS = {
    "a call": b"cos\nsystem\nU\x09touch ran\x85R",
    "eval": b"c__builtin__\neval\nU\x18open('ran','w').close()()\x85R",
    "a chain": b"c__builtin__\ngetattr\ncos\nsystem\n\x86RU\x09touch ran\x85R",
    "another of torch": b"ctorch\nsave\nK\1U\3ran\x86R",
    "torch's own loader": b"ctorch.storage\n_load_from_bytes\nU\3abc\x85R",
    "hub": b"ctorch.hub\nload\nU\1.U\1x\x86R",
    "an import": b"cside_effect\nanything\n)R",
    "an import, not called": b"cside_effect\nanything\n",
    "an import of a class": b"cside_effect\nThing\n)\x81}b",
    "an import by the stack": b"U\x0bside_effectU\x08anything\x93)R",
    "an instance": b"(iside_effect\nanything\n",
    "an object": b"(cside_effect\nanything\no",
    "a dtype that is a module": b"ctorch._utils\n_rebuild_tensor_v3\n(NK\0))\x89Nctorch\nonnx\ntR",
    "a name with dots": b"cside_effect.deep\nanything.more\n)R",
    "a codec": b"c_codecs\nencode\nX\1\0\0\0aU\x0bside_effect\x86R",
    "a reducer": b"ccopyreg\n_reconstructor\n(cside_effect\nThing\nc__builtin__\nobject\nNtR",
    "a hook of torch": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncside_effect\nThing\n"
    + b"U\x09touch ran\x85NtR",
}


@pytest.mark.parametrize("content", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("name", ["a.pt", "a.bin", ".metadata"])
def test_no_attack_leaves_a_trace(content, name, tmp_path, monkeypatch):
    """Each of these runs, or is imported, with Python's own reader."""
    monkeypatch.chdir(tmp_path)
    for place in ("side_effect.py", "side_effect/__init__.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("open('ran', 'w').close()\ndef anything(): pass\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "c").mkdir()
    path = tmp_path / "c" / name
    if name == "a.pt":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\2}U\1x" + content + b"s.")
    else:
        path.write_bytes(b"\x80\2}U\1x" + content + b"s.")
    before = set(sys.modules)
    for look in (load_file, audit, lambda p: shrink(p, tmp_path / "c" / "b.safetensors")):
        with contextlib.suppress(tied.FileError):
            look(path.parent if name == ".metadata" else path)
    assert "side_effect" not in sys.modules
    assert "torch.onnx" in before or "torch.onnx" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "c" / "ran").exists()


def test_the_attack_is_one(tmp_path, monkeypatch):
    """Python's reader does what these say."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\2" + ATTACKS["a call"] + b".", encoding="utf-8")
    assert (tmp_path / "ran").exists()


# -- the machine against Python's own reader, where that makes plain containers


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, protocol=st.integers(0, 5))
def test_plain_values_are_what_python_reads(value, protocol):
    raw = pickle.dumps(value, protocol)
    found = load(Machine(raw, pathlib.Path("a"), size=len(raw)))
    if protocol or b"_codecs" not in raw:
        assert found == pickle.loads(raw)
        assert repr(found) == repr(pickle.loads(raw))


CODES = [bytes([code]) for code in range(256)]
PIECES = [
    *CODES,
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ccollections\nOrderedDict\n",
    b"U\1a",
    b"X\1\0\0\0b",
    b"K\3",
    b"q\0",
]
PIECES += [b"h\0", b")R", b"\x85R", b"}", b"]", b"(", b"s", b"a", b"N", b"cx\ny\n"]


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=60), legacy=st.booleans())
def test_any_instructions_are_read_or_refused(pieces, legacy, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "a.pt"
    content = b"\x80\2" + b"".join(pieces) + b"."
    if legacy:
        old_file(path, content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", content)
    for look in (audit, load_file):
        with contextlib.suppress(tied.FileError):
            look(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_wrong_bytes_of_a_rich_pickle_are_read_or_refused(data, tmp_path_factory):
    """The pickle of modules, optimizers and views, a few bytes changed; its checksum is right."""
    buffer = io.BytesIO()
    torch.save({"net": Net(), "views": [WEIGHT.t(), WEIGHT[1:]], "others": list(OTHERS.values())}, buffer)
    path = tmp_path_factory.mktemp("any") / "a.pt"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for part in old.namelist():
            raw = bytearray(old.read(part))
            for _ in range(data.draw(st.integers(1, 4)) if part.endswith("data.pkl") else 0):
                raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
            new.writestr(part, bytes(raw))
    with contextlib.suppress(tied.FileError):
        for tensor in load_file(path).values():
            assert tensor.untyped_storage().nbytes() < 10_000
            tensor.clone()


# -- tensors that do not lie in their file


def tensor_call(*, key=b"0", count=b"K\6", offset=b"K\0", size=b"K\2K\3\x86", stride=b"K\3K\1\x86"):
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + key + b"X\3\0\0\0cpu" + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89NtR"


LARGE = b"\x8a\x09" + (1 << 63).to_bytes(9, "little")
OUTSIDE = {
    "another key": ({"key": b"7"}, "A storage is not whole."),
    "more than is there": ({"count": b"K\7"}, "A storage is not whole."),
    "a count without end": ({"count": LARGE}, "A tensor lies in no storage."),
    "an offset": ({"offset": b"K\1"}, "A tensor is broken."),
    "a negative offset": ({"offset": b"J\xff\xff\xff\xff"}, "A tensor is broken."),
    "a size": ({"size": b"K\3K\3\x86"}, "A tensor is broken."),
    "a stride": ({"stride": b"K\4K\1\x86"}, "A tensor is broken."),
    "a negative stride": ({"stride": b"J\xff\xff\xff\xffK\1\x86"}, "A tensor is broken."),
    "sizes without strides": ({"stride": b"K\1\x85"}, "A tensor is broken."),
    "sizes that are truths": ({"size": b"\x88\x88\x86"}, "A tensor is broken."),
    "sizes without end": ({"size": LARGE + LARGE + b"\x86"}, "A tensor is broken."),
    "no sizes": ({"size": b"N"}, "A tensor is broken."),
}


def made(path, call):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\2}X\1\0\0\0w" + call + b"s.")
        archive.writestr("a/data/0", np.arange(6, dtype="<f4").tobytes())
    return path


def test_a_tensor_inside_its_storage(tmp_path):
    same(load_file(made(tmp_path / "a.pt", tensor_call())), {"w": torch.arange(6.0).reshape(2, 3)})


@pytest.mark.parametrize(("how", "problem"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_tensor_outside_its_storage(how, problem, tmp_path):
    with pytest.raises(tied.FileError) as caught:
        load_file(made(tmp_path / "a.pt", tensor_call(**how)))
    assert problem in str(caught.value)


def test_what_holds_its_holder_is_gone_through_once(tmp_path):
    parent = argparse.Namespace(w=WEIGHT)
    parent.child = argparse.Namespace(parent=parent, v=WEIGHT)
    assert set(load_file(saved({"it": parent}, tmp_path / "a.pt"))) == {"it.w", "it.child.v"}


def test_objects_look_like_what_lies_in_them(tmp_path):
    loaded = open_checkpoint(saved({"it": argparse.Namespace(lr=0.1)}, tmp_path / "a.pt")).files[0].loaded
    assert isinstance(loaded["it"], Inert)
    assert dict(loaded["it"]) == {"lr": 0.1}
    assert not isinstance(loaded["it"], types.SimpleNamespace)
