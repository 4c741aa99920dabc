"""The audit finds exactly what is equal, and says what is promised and not so."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from safetensors.torch import save_file as write_as_it_is, save_model
from torch import nn

import tied
from tied.files import load_file
from tied.files.auditing import duplicates, fingerprint
from tied.files.auditing.audit import audit
from tied.files.auditing.compare import meet, same_elements, split
from tied.files.auditing.duplicates import Search, buckets
from tied.files.auditing.fingerprint import Fingerprints, column_sums, orders
from tied.files.auditing.fused_rows import find_rows
from tied.files.auditing.workers import Workers
from tied.files.reading.checkpoint import open_checkpoint

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int8, torch.uint8,
    torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def save_file(tensors, path, metadata=None):
    write_as_it_is(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}, path, metadata
    )


def bits(*shape, dtype=torch.float32, seed=0):
    """Random bits as a tensor: NaNs, infinities and negative zeros among them."""
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if dtype is torch.bool:
        raw &= 1
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def codes(found):
    return [(each.code, *each.names) for each in found.findings]


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def equal_pairs(tensors):
    """By hand: which pairs of names have the same bits, up to the order of axes and axes of size one."""

    def forms(tensor):
        tensor = tensor.squeeze()
        turns = itertools.permutations(range(tensor.dim()))
        return {(tuple(turned.shape), raw(turned)) for turned in (tensor.permute(turn) for turn in turns)}

    news = {
        n: t
        for n, t in tensors.items()
        if t.numel() > 1 and len(set(np.frombuffer(raw(t), f"V{t.itemsize}").tolist())) > 1
    }
    return {
        (one, other)
        for one, other in itertools.combinations(news, 2)
        if news[one].dtype == news[other].dtype and forms(news[one]) & forms(news[other])
    }


def found_pairs(path, **options):
    copies = [group for group in audit(path, **options).groups if group.state == "equal"]
    whole = [group for group in copies if not any("[" in transform for transform in group.transforms)]
    return {tuple(pair) for group in whole for pair in itertools.combinations(sorted(group.names), 2)}


# -- the law: what is found is what is equal


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prove", [False, True])
def test_copies_of_every_dtype_are_found(dtype, prove, path):
    one, square = bits(70, 130, dtype=dtype), bits(40, 40, dtype=dtype, seed=1)
    cube = bits(3, 4, 5, dtype=dtype, seed=2)
    near = one.clone().reshape(-1).view(torch.uint8)
    near[-1] ^= 1
    tensors = {
        "one": one, "copy": one.clone(), "turned": one.T.contiguous(), "near": near.view(dtype).reshape(70, 130),
        "square": square, "turned_square": square.T.contiguous(), "other": bits(40, 40, dtype=dtype, seed=3),
        "cube": cube, "turned_cube": cube.permute(2, 0, 1).contiguous(), "zeros": torch.zeros_like(one),
        "more": torch.zeros_like(one), "scalar": one[0, 0].clone(), "second": one[0, 0].clone(),
        "empty": one[:0].clone(), "void": one[:0].clone(), "wide": square[:, None].contiguous(),
    }  # fmt: skip
    save_file(tensors, path)
    expected = {tuple(sorted(pair)) for pair in equal_pairs(tensors)}
    assert len(expected) == 3 + 3 + 1
    assert found_pairs(path, prove=prove) == expected


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_small_tensors(data, tmp_path_factory):
    """Few values and few shapes, so that equal, nearly equal, symmetric and constant tensors all occur."""
    shapes = st.lists(st.sampled_from([1, 2, 3]), max_size=3)
    tensors = {
        f"t{number}": torch.tensor(
            data.draw(st.lists(st.sampled_from([0, 1]), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))),
            dtype=data.draw(st.sampled_from([torch.int8, torch.int64])),
        ).reshape(shape)
        for number, shape in enumerate(data.draw(st.lists(shapes, min_size=2, max_size=6)))
    }
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    save_file(tensors, path)
    assert found_pairs(path) == {tuple(sorted(pair)) for pair in equal_pairs(tensors)}


def test_bits_are_compared_not_values(path):
    nan = torch.tensor([float("nan"), 1.0])
    tensors = {"nan": nan, "same": nan.clone(), "zero": torch.tensor([0.0, 1.0]), "minus": torch.tensor([-0.0, 1.0])}
    save_file(tensors, path)
    assert found_pairs(path) == {("nan", "same")}


def test_what_looks_alike_in_every_sample_is_still_compared(path):
    """Almost all zero: the samples of all of these are equal, and symmetric too."""
    spot = torch.zeros(300, 300)
    spot[17, 211] = 1
    other = torch.zeros(300, 300)
    other[17, 212] = 1
    save_file({"spot": spot, "copy": spot.clone(), "turned": spot.T.contiguous(), "other": other}, path)
    for prove in (False, True):
        assert found_pairs(path, prove=prove) == {("copy", "spot"), ("copy", "turned"), ("spot", "turned")}


def test_transforms_give_the_tensor(path):
    """Each transform, applied by the language to the first name, gives the other, bit for bit."""
    first = bits(4, 6, seed=1)
    cube = bits(2, 3, 4, seed=2)
    tensors = {f"cube{i}": cube.permute(turn).contiguous() for i, turn in enumerate(itertools.permutations(range(3)))}
    tensors |= {"a": first, "b": first.T.contiguous(), "c": first.reshape(4, 1, 6).contiguous()}
    tensors |= {"d": first.T.reshape(1, 6, 4, 1).contiguous()}
    save_file(tensors, path)
    for group in audit(path).groups:
        for name, transform in zip(group.names[1:], group.transforms[1:], strict=True):
            expression = tied.parse(f"{group.names[0]}{'' if transform == 'identity' else transform}")
            given_back = expression.value({expression.sources()[0]: tensors[group.names[0]]})
            assert given_back.shape == tensors[name].shape
            assert raw(given_back) == raw(tensors[name])


def test_rows_are_found(path):
    fused, bias, table = bits(96, 32), bits(96, seed=1), bits(1000, 32, seed=2)
    table[:2] = 0
    tensors = {
        "fused": fused, "q": fused[:32].clone(), "k": fused[32:64].clone(), "v": fused[64:].clone(),
        "bias": bias, "k_bias": bias[32:64].clone(), "short": bias[:31].clone(),
        "table": table, "head": table[:900].clone(), "almost": table[100:200].clone(), "zeros": torch.zeros(5, 32),
        "count": torch.arange(100), "few": torch.arange(50), "bytes": torch.arange(60).to(torch.uint8).reshape(20, 3),
        "rows": torch.arange(12, 27).to(torch.uint8).reshape(5, 3),
    }  # fmt: skip
    tensors["almost"][-1, -1] = 3
    tensors["beyond"] = torch.cat([table[-10:], bits(10, 32, seed=9)])
    save_file(tensors, path)
    expected = {("q", "fused", 0, 32), ("k", "fused", 32, 64), ("v", "fused", 64, 96), ("k_bias", "bias", 32, 64)}
    expected |= {("head", "table", 0, 900), ("rows", "bytes", 4, 9)}
    for seed in range(10):
        with Workers() as workers:
            rows = find_rows(open_checkpoint(path).tensors, workers=workers, prints=Fingerprints(seed))
        assert {(one.part, one.whole, one.start, one.stop) for one in rows} == expected


def test_nothing_is_read_when_no_two_shapes_match(path, monkeypatch):
    save_file({"a": torch.rand(3, 4), "b": torch.rand(5, 6), "c": torch.rand(7), "d": torch.rand(4, 3).half()}, path)

    def read(self):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("tied.files.reading.checkpoint.MappedTensor.words", read)
    assert audit(path).ok
    save_file({"a": torch.rand(3, 4), "b": torch.rand(4, 3)}, path)
    with pytest.raises(AssertionError, match="a tensor was read"):
        audit(path)


def test_only_candidates_are_compared(path, monkeypatch):
    """Operation counts: 40 tensors of one shape, two of them equal; two are read whole, the others sampled."""
    tensors = {f"t{i}": bits(64, 64, seed=i) for i in range(40)}
    save_file(tensors | {"copy": tensors["t7"].clone()}, path)
    compared = []
    monkeypatch.setattr(duplicates, "split", lambda arrays, a, b: compared.append(len(arrays)) or split(arrays, a, b))
    assert len(found_pairs(path)) == 1
    assert compared == [2]


# -- the sums


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("shape", [(7,), (40, 70), (50, 50), (33, 9000), (5, 6, 7, 2), (300, 1, 20)])
def test_sums_are_those_of_every_transposition(dtype, shape):
    prints, words = Fingerprints(3), np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)
    known = {prints.sums(words, order) for order in orders(shape)}
    for turn in itertools.permutations(range(len(shape))):
        turned = np.ascontiguousarray(words.transpose(turn))
        assert {prints.sums(turned, order) for order in orders(turned.shape)} == known


def test_sums_are_what_they_say():
    """By hand, in Python's integers: the sum of all elements, times the weights of their places, modulo 2**64."""
    prints, words = Fingerprints(3), np.random.default_rng(0).integers(0, 2**32, (70, 50), np.uint32)
    (left, _), (right, _) = (prints.weights(axis, 0, n).astype(object) for axis, n in ((1, 70), (0, 50)))
    (sum_,) = prints.sums(words, (1, 0))
    assert sum_ == int(left @ words.astype(object) @ right) % 2**64
    parts = [prints.sums(words, (1, 0), slice(a, b)) for a, b in ((0, 1), (1, 33), (33, 70))]
    assert sum(part for (part,) in parts) % 2**64 == sum_


def test_tensors_of_more_axes_have_two_sums():
    prints, words = Fingerprints(3), np.random.default_rng(0).integers(0, 2**16, (7, 6, 5), np.uint16)
    weights = [prints.weights(axis, 0, n).astype(object) for axis, n in ((2, 7), (0, 6), (1, 5))]
    for number, found in enumerate(prints.sums(words, (2, 0, 1))):
        by_hand = words.astype(object)
        for each in weights:
            by_hand = np.tensordot(each[number], by_hand, 1)
        assert found == int(by_hand) % 2**64
    assert len(prints.sums(words, (2, 0, 1))) == fingerprint.SUMS == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("columns", [*range(1, 20), 1001])
def test_packed_sums_are_those_of_single_words(dtype, columns):
    """In Python's integers, with the largest words and weights; the rows begin at all alignments."""
    largest = np.iinfo(dtype).max
    words = np.random.default_rng(columns).integers(largest // 2, largest, (9, columns + 3), dtype, endpoint=True)
    words[4] = largest
    weights = np.array([2**64 - 1, 2**63, *range(7)], np.uint64)
    for part in (words[:, :columns], words[:, 3:], np.ascontiguousarray(words[:, 1 : columns + 1])):
        by_hand = weights.astype(object) @ part.astype(object) % 2**64
        assert column_sums(part, weights).tolist() == by_hand.tolist()


def test_wide_tensors_are_summed_piece_by_piece(monkeypatch):
    prints, words = Fingerprints(3), np.random.default_rng(0).integers(0, 2**32, (7, 1000), np.uint32)
    whole = prints.sums(words, (0, 1))
    monkeypatch.setattr(fingerprint, "_WIDE", 96)
    assert prints.sums(words, (0, 1)) == whole


@pytest.mark.parametrize("change", [1, 1 << 15, 1 << 16, 1 << 31], ids=hex)
def test_sums_see_any_change(change):
    """One bit anywhere, and the same bit in many places: the hard cases of sums modulo a power of two."""
    words = np.random.default_rng(0).integers(0, 2**32, (64, 80), np.uint32)
    for seed in range(20):
        prints = Fingerprints(seed)
        before = prints.sums(words, (0, 1))
        draw = np.random.default_rng(seed)
        for count in (1, 2, 64 * 80):
            other = words.copy()
            places = draw.permutation(words.size)[:count]
            other.reshape(-1)[places] ^= np.uint32(change)
            assert prints.sums(other, (0, 1)) != before


def test_a_false_sum_is_found_out_by_proof(path, monkeypatch):
    one, other = bits(30, 40), bits(30, 40, seed=1)
    save_file({"one": one, "other": other.T.contiguous()}, path)
    monkeypatch.setattr(Fingerprints, "sample", lambda self, words, order: b"alike" * 13)
    monkeypatch.setattr(Fingerprints, "sums", lambda self, words, order, rows=None: (0, 0))
    assert found_pairs(path) == {("one", "other")}
    assert found_pairs(path, prove=True) == set()


def test_proof_tells_candidates_apart_piece_by_piece(path, monkeypatch):
    """Four that the samples cannot tell apart, two by two the same, two of them different in their last rows only."""
    one = bits(60, 70)
    other = one.clone()
    other[-1, -1] += 1
    save_file({"one": one, "other": other, "one.T": one.T.contiguous(), "other.T": other.T.contiguous()}, path)
    monkeypatch.setattr(Fingerprints, "sample", lambda self, words, order: b"alike" * 13)
    monkeypatch.setattr("tied.files.auditing.duplicates.RANGE", 1000)
    assert found_pairs(path, prove=True) == {("one", "one.T"), ("other", "other.T")}


def test_rows_are_those_of_the_largest_tensor(path):
    large = bits(90, 8)
    save_file({"part": large[20:30], "middle": large[10:50], "large": large}, path)
    found = [(one.names[0], one.names[1:], one.transforms[1:]) for one in audit(path).groups]
    assert found == [("large", ("middle", "part"), ("[10:50]", "[20:30]"))]


def test_rows_of_a_transposed_copy_are_said_of_the_first(path):
    whole = bits(90, 8)
    save_file({"a": whole.T, "b": whole, "c": whole, "part": whole[20:60], "turned": whole[20:60].T}, path)
    found = [(group.names, group.transforms) for group in audit(path).groups]
    assert found == [
        (("a", "b", "c"), ("identity", ".T", ".T")),
        (("part", "turned"), ("identity", ".T")),
        (("a", "part"), ("identity", ".T[20:60]")),
    ]


def test_splitting_and_meeting():
    arrays = [np.array(one, np.uint8) for one in ([1, 2, 3], [1, 2, 4], [1, 2, 3], [0, 2, 3])]
    assert split(arrays, 0, 3) == [[0, 2], [1], [3]]
    assert split(arrays, 1, 2) == [[0, 1, 2, 3]]
    assert meet([split(arrays, 0, 1), split(arrays, 1, 3)]) == [[0, 2], [1], [3]]
    assert same_elements(np.arange(600).reshape(2, 300).T, np.arange(600).reshape(2, 300).T.copy())


def test_large_tensors_are_cut_into_pieces_of_work(path, monkeypatch):
    for module in ("compare", "duplicates"):
        monkeypatch.setattr(f"tied.files.auditing.{module}.RANGE", 1000)
    monkeypatch.setattr("tied.files.auditing.compare.TILE", 300)
    monkeypatch.setattr("tied.files.auditing.workers.SMALL", 100)
    one = bits(60, 70)
    near = one.clone()
    near[-1, -1] += 1
    save_file({"one": one, "near": near, "same": one.clone(), "turned": one.T.contiguous()}, path)
    assert found_pairs(path) == {("one", "same"), ("one", "turned"), ("same", "turned")}


# -- promises


def write_index(folder, places, metadata=None):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": metadata or {}, "weight_map": places}))
    return index


def test_an_index_that_lies(tmp_path):
    save_file({"a": torch.rand(3), "extra": torch.rand(4)}, tmp_path / "1.safetensors")
    save_file({"b": torch.rand(5)}, tmp_path / "2.safetensors")
    write_index(tmp_path, {"a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors"})
    found = audit(tmp_path)
    assert codes(found) == [("TIE305", "c"), ("TIE308", "extra")]
    assert found.parameters == 8


def test_a_file_beside_an_index_of_its_name(tmp_path):
    """transformers reads the file; so does every reader here, and it is said."""
    save_file({"a": torch.ones(3)}, tmp_path / "1.safetensors")
    write_index(tmp_path, {"a": "1.safetensors"})
    assert codes(audit(tmp_path)) == []
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert load_file(tmp_path)["a"].tolist() == [0, 0, 0]
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = audit(path)
        assert [(f.code, f.names, f.message, f.fix) for f in found.findings] == [
            (
                "TIE308",
                (),
                "'model.safetensors.index.json' stands beside 'model.safetensors': a reader takes one of them.",
                "remove the one that is not meant",
            )
        ]
    (other,) = audit(tmp_path / "model.safetensors.index.json").findings
    assert other.message.startswith("'model.safetensors' stands beside 'model.safetensors.index.json'")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_file_that_transformers_would_read(kind, tmp_path):
    """Of all that may lie in a folder, the one that its `from_pretrained` opens."""
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=7, n_positions=5)
    one, other = transformers.GPT2LMHeadModel(config), transformers.GPT2LMHeadModel(config)
    one.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path / "shards", max_shard_size=500)
    if kind == "bin":
        torch.save(one.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
        torch.save(other.state_dict(), tmp_path / "shard.bin")
        index = {"metadata": {}, "weight_map": dict.fromkeys(other.state_dict(), "shard.bin")}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        for path in (tmp_path / "shards").glob("*.safetensors*"):
            path.rename(tmp_path / path.name)
        torch.save(other.state_dict(), tmp_path / "pytorch_model.bin")
    expected = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).transformer.wte.weight
    assert torch.equal(expected, one.transformer.wte.weight)
    assert torch.equal(load_file(tmp_path)["transformer.wte.weight"], expected)


def test_copies_across_shards(tmp_path):
    weight = bits(300, 40)
    save_file({"embed": weight}, tmp_path / "1.safetensors")
    save_file({"head": weight.T.contiguous()}, tmp_path / "2.safetensors")
    write_index(tmp_path, {"embed": "1.safetensors", "head": "2.safetensors"})
    assert codes(audit(tmp_path / "model.safetensors.index.json")) == [("TIE302", "embed", "head")]


def test_the_map_of_save_model_is_a_promise(path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 4), "b": torch.nn.Linear(3, 4)})
    model["b"].weight = model["a"].weight
    save_model(model, path)
    found = audit(path)
    assert found.ok
    assert [(group.state, group.names) for group in found.groups] == [("tied", ("a.weight", "b.weight"))]
    assert found.bytes_saved == 48
    save_file({"bias": torch.rand(3)}, path, {"b.weight": "a.weight", "title": "a.b c", "format": "pt"})
    assert codes(audit(path)) == [("TIE305", "b.weight")]


def tied_model():
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(30, 40), "decoder": torch.nn.Linear(40, 30)})
    tied.tie(model, "decoder.weight", "encoder.weight.T")
    return model


def test_files_of_tied_are_clean(path):
    model = tied_model()
    for layout in ("compact", "expanded"):
        tied.save(model, path, layout=layout)
        found = audit(path)
        assert found.ok, str(found)
        assert not found.findings
    tied.save(model, path)
    assert audit(path).bytes_saved == 30 * 40 * 4


def test_a_declared_tie_that_does_not_hold(path):
    tied.save(tied_model(), path, layout="expanded")
    checkpoint = open_checkpoint(path)
    tensors = {name: one.tensor().clone() for name, one in checkpoint.tensors.items()}
    tensors["decoder.weight"][0, 0] += 1
    save_file(tensors, path, dict(checkpoint.metadata))
    found = audit(path)
    assert codes(found) == [("TIE306", "decoder.weight", "encoder.weight")]
    assert found.groups[0].state == "drifted"


def test_a_broken_ledger_is_a_finding_and_the_rest_is_looked_at(path):
    weight = bits(100, 100)
    text = json.dumps({"version": 1, "layout": "compact", "ties": [
        {"target": "x", "source": "nowhere", "dtype": "F32", "shape": [3]}]})  # fmt: skip
    save_file({"a": weight, "b": weight.clone()}, path, {"tied": text})
    assert [each.code for each in audit(path).findings] == ["TIE307", "TIE301"]


def lm(tmp_path, *, ties, head=None, name="LlamaForCausalLM", **more):
    embedding = bits(90, 16, seed=5)
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.rand(16)}
    tensors |= (
        {} if head is None else {"lm_head.weight": embedding.clone() if head == "equal" else bits(90, 16, seed=6)}
    )
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"vocab_size": 90, "architectures": [name], **more} | (
        {} if ties is None else {"tie_word_embeddings": ties}
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    return [each.code for each in audit(tmp_path).findings]


def test_the_configuration_is_compared(tmp_path):
    assert lm(tmp_path, ties=True) == []
    assert lm(tmp_path, ties=True, head="equal") == ["TIE301"]
    assert lm(tmp_path, ties=True, head="other") == ["TIE309"]
    assert lm(tmp_path, ties=False, head="other") == []
    assert lm(tmp_path, ties=False, head="equal") == ["TIE310"]
    assert lm(tmp_path, ties=False) == ["TIE305"]
    assert lm(tmp_path, ties=False, name="LlamaModel") == []
    assert lm(tmp_path, ties=None, head="other") == []
    assert lm(tmp_path, ties=None, text_config={"tie_word_embeddings": True, "vocab_size": 90}, head="other") == [
        "TIE309"
    ]
    (tmp_path / "config.json").write_text("[" * 10_000)
    assert audit(tmp_path).ok


# -- .pt


def test_storages_of_a_pt(tmp_path):
    path = tmp_path / "a.pt"
    buffer, weight = torch.rand(40_000), torch.rand(200, 300)
    state = {
        "first": buffer[:20_000].view(100, 200), "second": buffer[20_000:].view(200, 100),  # one storage, disjoint
        "weight": weight, "turned": weight.T, "copy": weight.clone(),
        "slice": torch.rand(500_000)[:1000].view(10, 100),
    }  # fmt: skip
    optimizer = {
        "state": {0: {"exp_avg": weight.clone(), "step": torch.tensor(3.0)}},
        "param_groups": [{"params": [0]}],
    }
    torch.save({"epoch": 3, "model": state, "optimizer": optimizer}, path)
    found = audit(path)
    assert codes(found) == [
        ("TIE301", "model.weight", "model.copy"),
        ("TIE311", "model.slice"),
        ("TIE312", "model.turned"),
    ]
    assert found.bytes == 4 * (40_000 + 60_000 + 60_000 + 1000)
    assert found.optimizer_bytes == 4 * 60_001
    assert str(found).splitlines()[0] == (
        f"{path}: 161,000 parameters, 628.9 KiB, and 234.4 KiB of an optimizer's state; sharing saves 234.4 KiB"
    )


def trained_by_adam() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 30)).sum().backward()
    optimizer.step()
    return model, optimizer


def flattened(state: dict) -> dict:
    return {f"state.{number}.{key}": value for number, own in state["state"].items() for key, value in own.items()}


@pytest.mark.parametrize(
    "nested",
    [
        lambda model, state: {"model": model, "optimizer": state},
        lambda model, state: {"state_dict": model, "optimizer_states": [state], "epoch": 3},  # lightning's
        lambda model, state: {"model": model, "optimizers": {"all": state}},
        lambda model, state: {"model": model, "optim": flattened(state)},  # torch.distributed's, flattened
        lambda model, state: {"model": model, "trainer": (0, [{"inner": state}])},
        lambda model, state: {"module": model, "optimizer_state_dict": {"exp_avg": [torch.rand(1244), state]}},
    ],
)
def test_an_optimizers_state_is_counted_apart(nested, tmp_path):
    model, optimizer = trained_by_adam()
    path = tmp_path / "a.ckpt"
    torch.save(nested(model.state_dict(), optimizer.state_dict()), path)
    found = audit(path)
    known = 4 * 1244 * ("module" in torch.load(path))
    assert (found.parameters, found.bytes, found.bytes_saved) == (620, 2480, 0)
    assert found.optimizer_bytes == 4 * (2 * 620 + 2) + known
    assert found.to_json()["optimizer_bytes"] == found.optimizer_bytes


def test_a_file_of_nothing_but_an_optimizer_has_no_model(tmp_path):
    torch.save(trained_by_adam()[1].state_dict(), tmp_path / "optimizer.bin")
    found = audit(tmp_path / "optimizer.bin")
    assert (found.parameters, found.bytes, found.optimizer_bytes) == (0, 0, 4968)


@pytest.mark.parametrize("name", ["optimizer.weight", "optimum", "my_optimizer_weight"])
def test_a_weight_is_no_optimizers_state_by_its_name(name, tmp_path):
    torch.save({name: torch.rand(5)}, tmp_path / "a.pt")
    assert (audit(tmp_path / "a.pt").parameters, audit(tmp_path / "a.pt").optimizer_bytes) == (5, 0)


def test_what_has_no_plain_elements_is_said(tmp_path):
    path = tmp_path / "a.pt"
    state = {"sparse": torch.eye(4).to_sparse(), "wide": torch.ones(1).expand(10**12), "w": torch.rand(3)}
    torch.save(state, path)
    found = audit(path)
    assert found.ok
    assert found.notes == ("Not compared, as they have no plain elements: 'sparse', 'wide'.",)


def test_a_state_dict_is_audited_as_a_file_is():
    weight = torch.rand(50, 60)
    state = {"a": weight, "b": weight.T.contiguous(), "c": weight[:10]}
    assert codes(audit(state)) == [("TIE302", "a", "b"), ("TIE312", "c")]
    assert codes(tied.check(state)) == codes(audit(state))


def test_codes_are_chosen(path):
    weight = bits(100, 100)
    save_file({"a": weight, "b": weight.clone()}, path)
    assert audit(path, select=["TIE301"]).findings
    assert not audit(path, ignore=["TIE3"]).findings
    with pytest.raises(tied.KindError):
        audit(path, select=["TIE999"])


def test_small_copies_are_one_note(path):
    tensors = {f"{k}{i}": bits(5, seed=i) for i in range(8) for k in "ab"}
    save_file(tensors | {"large": bits(200, 200)}, path)
    found = audit(path)
    assert found.ok
    (note,) = found.findings
    assert (note.code, note.severity, len(note.names)) == ("TIE304", "note", 8)
    assert note.message == (
        "8 small tensors are stored twice, 160 B in all: 'b0' is 'a0'; 'b1' is 'a1'; 'b2' is 'a2'; 'b3' is 'a3'; "
        "'b4' is 'a4'; ...."
    )


def test_the_whole_report(golden, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embed, fused = bits(500, 64), bits(96, 64, seed=1)
    tensors = {
        "embed.weight": embed, "head.weight": embed.clone(), "decoder.weight": embed.T.contiguous(),
        "attention.weight": fused, "attention.key.weight": fused[32:64].clone(), "norm.weight": torch.ones(64),
        "bias": bits(64, seed=2), "second.bias": bits(64, seed=2), "a\x1b[2J<b>": bits(500, 64, seed=3),
        "c\x1b[2J": bits(500, 64, seed=3),
    }  # fmt: skip
    save_file(tensors, "model.safetensors")
    golden("check-file.txt", str(audit("model.safetensors")) + "\n")


def test_torch_is_not_imported_for_a_plain_file(path):
    """A second is longer than most files take to read."""
    import subprocess

    save_file({"a": torch.rand(3, 4), "b": torch.rand(4, 3)}, path, {"format": "pt"})
    code = f"import sys; from tied.files.auditing.audit import audit; audit({str(path)!r})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(tied.__file__).parents[1])


def test_buckets_keep_what_torch_cannot_turn_apart(path):
    from tied.files.reading.safetensors_header import Header

    header = Header.of({"a": ("F4", (4, 8)), "b": ("F4", (8, 4)), "c": ("F4", (4, 8)), "d": ("F6_E2M3", (4, 8))})
    content = np.random.default_rng(0).integers(0, 256, 16, np.uint8).tobytes()
    path.write_bytes(header.to_bytes() + content * 3 + bytes(24))
    assert [list(bucket) for bucket in buckets(open_checkpoint(path).tensors)] == [["a", "c"]]
    assert found_pairs(path) == {("a", "c")}


def test_a_search_is_the_same_for_every_seed(path):
    save_file({"a": bits(30, 40), "b": bits(30, 40).T.contiguous(), "c": bits(30, 40, seed=1)}, path)
    tensors = open_checkpoint(path).tensors
    with Workers() as workers:
        found = [Search(workers, Fingerprints(seed)).copies(tensors) for seed in range(5)]
    assert all(one == found[0] for one in found)


# -- whole modules ------------------------------------------------------------------------------------


def stacked(layers: int, *, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    layer = {"attention.weight": torch.randn(8, 8), "norm.weight": torch.randn(8), "norm.count": torch.tensor(3)}
    return {f"layers.{n}.{name}": tensor.clone() for n in range(layers) for name, tensor in layer.items()}


def test_modules_that_correspond_are_one_line_and_one_finding():
    layers = stacked(12)
    report = audit({name: layers[name] for name in sorted(layers)})
    (group,), (found,) = report.groups, report.findings
    assert len(group.parts) == 2
    assert "layers.1.* … layers.11.* = layers.0.*" in str(report)
    assert (found.code, found.names) == ("TIE301", group.names)
    assert found.message == (
        "'layers.1.*', 'layers.10.*' and 9 more are 'layers.0.*', bit for bit: 3.1 KiB in 22 tensors are stored again."
    )


def test_modules_that_correspond_in_part_are_not_one():
    pair = {f"{m}.{name}": t.clone() for m in ("net", "best") for name, t in stacked(1).items()}
    assert [group.names for group in audit(pair).groups] == [("net", "best")]
    pair["best.layers.0.norm.weight"] += 1
    (group,) = audit(pair).groups
    assert group.names == ("net.layers.0.attention.weight", "best.layers.0.attention.weight")
