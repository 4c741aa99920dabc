"""The format: what `docs/format.md` says is what is read and written, and nothing else is accepted."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

import tied
from tied.algebra import parse
from tied.files.reading.file_ledger import (
    Equation,
    Ledger,
    name_of,
    read_ledger,
    reference,
    source_of,
    values_only,
)

PAGE = (Path(__file__).parents[3] / "docs" / "format.md").read_text(encoding="utf-8")
BLOCKS = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
SCHEMA = next(block for block in BLOCKS if "$schema" in block)
STORED = {"encoder.weight": ("F32", (256, 784)), "embed.weight": ("BF16", (50257, 64)), "odd..T": ("I64", ())}


def ledger(**changes: Any) -> dict[str, Any]:
    """A ledger of one equation; `changes` are of the ledger, or, with `tie_`, of the equation; `...` leaves out."""
    tie = {"target": "decoder.weight", "source": "encoder.weight.T", "dtype": "F32", "shape": [784, 256]}
    tie |= {key.removeprefix("tie_"): value for key, value in changes.items() if key.startswith("tie_")}
    whole = {"version": 1, "layout": "compact", "ties": [{k: v for k, v in tie.items() if v is not ...}]}
    whole |= {key: value for key, value in changes.items() if not key.startswith("tie_")}
    return {key: value for key, value in whole.items() if value is not ...}


def read(content: Any, stored: dict[str, Any] | None = None) -> Ledger | None:
    text = content if isinstance(content, str) else json.dumps(content)
    return read_ledger({"tied": text}, STORED if stored is None else stored, "m.safetensors")


class TestThePage:
    def test_its_example_is_read(self) -> None:
        found = read(BLOCKS[0])
        assert found is not None
        assert [str(equation.source) for equation in found.ties] == ["encoder.weight.T", "embed.weight"]
        assert [equation.kind for equation in found.ties] == ["tie", "copy"]
        assert json.loads(found.to_text()) == BLOCKS[0]

    def test_its_index_holds_a_ledger_as_text(self) -> None:
        index = next(block for block in BLOCKS if "weight_map" in block)
        assert read(index["metadata"]["tied"], {}) == Ledger("compact", ())

    def test_every_key_of_the_schema_is_written(self) -> None:
        equation = Equation("b", parse("a"), "F32", (2,), kind="copy", at=0)
        written = json.loads(Ledger("compact", (equation,), bare=True).to_text())
        assert written.keys() == SCHEMA["properties"].keys()
        assert written["ties"][0].keys() == SCHEMA["properties"]["ties"]["items"]["properties"].keys()
        assert not conflicts(written, SCHEMA)

    def test_what_save_writes_obeys_the_schema(self, tmp_path: Path) -> None:
        from safetensors import safe_open

        model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
        tied.tie(model, "b.weight", "2 * a.weight.T")
        tied.save(model, tmp_path / "m.safetensors")
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            assert not conflicts(json.loads(file.metadata()["tied"]), SCHEMA)


def conflicts(value: Any, schema: dict[str, Any]) -> list[str]:
    """Check a value against the few words of JSON Schema that the page uses."""
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    found: list[str] = []
    if "type" in schema and type(value) is not kinds[schema["type"]]:
        return [f"{value!r} is no {schema['type']}"]
    found += [f"{key} is missing" for key in schema.get("required", ()) if key not in value]
    if "const" in schema and value != schema["const"]:
        found.append(f"{value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is none of {schema['enum']}")
    if ("minimum" in schema and value < schema["minimum"]) or len(str(value)) < schema.get("minLength", 0):
        found.append(f"{value!r} is too small")
    for key, inner in schema.get("properties", {}).items():
        found += conflicts(value[key], inner) if key in value else []
    for item in value if "items" in schema else ():
        found += conflicts(item, schema["items"])
    return found


WRONG: dict[str, Any] = {
    "no JSON": "{",
    "a list": [],
    "a number": 3,
    "nested without end": "[" * 100_000,
    "a key twice": '{"version": 1, "version": 1, "layout": "compact", "ties": []}',
    "not a number": '{"version": NaN, "layout": "compact", "ties": []}',
    "a number without end": f'{{"version": {"9" * 5000}, "layout": "compact", "ties": []}}',
    "another version": ledger(version=2),
    "a version before": ledger(version=0),
    "true as version": ledger(version=True),
    "a broken version": ledger(version=1.0),
    "no version": ledger(version=...),
    "another layout": ledger(layout="tiny"),
    "a layout that is a list": ledger(layout=["compact"]),
    "no ties": ledger(ties=...),
    "ties that are an object": ledger(ties={}),
    "a tie that is a text": ledger(ties=["b = a"]),
    "bare as a number": ledger(bare=1),
    "no target": ledger(tie_target=...),
    "a target that is a list": ledger(tie_target=["a"]),
    "an empty target": ledger(tie_target=""),
    "half a character": ledger(tie_target="\ud800"),
    "the metadata as target": ledger(tie_target="__metadata__"),
    "no source": ledger(tie_source=...),
    "an empty source": ledger(tie_source=""),
    "a source that is code": ledger(tie_source="__import__('os').system('true')"),
    "a constant": ledger(tie_source="3"),
    "an unknown transform": ledger(tie_source="encoder.weight.inverse()"),
    "a detached source": ledger(tie_source="encoder.weight.T.detach()"),
    "a device": ledger(tie_source="encoder.weight.T.to('cuda:0')"),
    "a source on meta": ledger(tie_source="encoder.weight.T.to('meta')"),
    "a source that is not there": ledger(tie_source="encoder.wait.T"),
    "itself": ledger(tie_source="decoder.weight"),
    "itself, stored and turned": ledger(
        tie_target="encoder.weight", tie_source="encoder.weight.flip(0)", tie_shape=[256, 784]
    ),
    "a circle": ledger(
        ties=[
            {"target": "a", "source": "b", "dtype": "F32", "shape": [2]},
            {"target": "b", "source": "a", "dtype": "F32", "shape": [2]},
        ]
    ),
    "a chain": ledger(
        ties=[
            {"target": "a", "source": "encoder.weight", "dtype": "F32", "shape": [256, 784]},
            {"target": "b", "source": "a", "dtype": "F32", "shape": [256, 784]},
        ]
    ),
    "a target twice": ledger(ties=ledger()["ties"] * 2),
    "no dtype": ledger(tie_dtype=...),
    "an unknown dtype": ledger(tie_dtype="F33"),
    "another dtype": ledger(tie_dtype="F16"),
    "another dtype of a plain name": ledger(tie_source="encoder.weight", tie_shape=[256, 784], tie_dtype="F16"),
    "no shape": ledger(tie_shape=...),
    "a negative shape": ledger(tie_shape=[-784, -256]),
    "a broken shape": ledger(tie_shape=[784.0, 256]),
    "true in a shape": ledger(tie_shape=[True, 256]),
    "another shape": ledger(tie_shape=[256, 784]),
    "another shape of a plain name": ledger(tie_source="encoder.weight", tie_shape=[784, 256]),
    "a shape that cannot be": ledger(tie_source="encoder.weight.reshape(3, 5)", tie_shape=[3, 5]),
    "an unknown kind": ledger(tie_kind="twin"),
    "a negative place": ledger(tie_at=-1),
    "a broken place": ledger(tie_at=1.5),
    "true as place": ledger(tie_at=True),
    "a target stored as something else": ledger(tie_target="embed.weight"),
    "expanded, and not there": ledger(layout="expanded"),
    "more than memory": ledger(tie_source="encoder.weight.repeat(4000000, 1)", tie_shape=[1024000000, 784]),
    "more than memory on the way": ledger(
        tie_source="encoder.weight.repeat(4000000, 1)[:784, :256]", tie_shape=[784, 256]
    ),
    "too many entries": ledger(tie_source="encoder.weight.repeat(9000000000, 9000000000)[:784, :256]"),
}


class TestReading:
    @pytest.mark.parametrize("case", WRONG)
    def test_what_breaks_the_rules_is_refused(self, case: str) -> None:
        with pytest.raises(tied.FileError) as caught:
            read(WRONG[case])
        assert "m.safetensors" in caught.value.problem
        assert all((caught.value.found, caught.value.expected, caught.value.fix))
        str(caught.value).encode()

    def test_a_whole_message(self) -> None:
        with pytest.raises(tied.FileError) as caught:
            read(ledger(tie_source="encoder.wait.T"))
        assert str(caught.value) == (
            "'m.safetensors': Its ledger: 'decoder.weight' is not stored and cannot be restored.\n"
            "  found:    no 'encoder.wait'\n"
            "  expected: 'encoder.wait.T'\n"
            "  fix:      tied repair, or safetensors.torch.load_file, which reads what is stored\n"
            "Nothing was written."
        )

    @pytest.mark.parametrize("name", ["\x1b[2J", "<script>", "a\nb", "\u202egnp.exe"])
    def test_names_cannot_act_on_a_terminal(self, name: str) -> None:
        with pytest.raises(tied.FileError) as caught:
            read(ledger(tie_target=name, tie_source="gone"))
        assert str(caught.value).isascii()
        assert "\x1b" not in str(caught.value)

    def test_unknown_keys_are_ignored(self) -> None:
        assert read(ledger(author="me", tie_note=[1, {"a": None}])) == read(ledger())

    def test_a_file_without_one(self) -> None:
        assert read_ledger(None, STORED, "m") is None
        assert read_ledger({"format": "pt"}, STORED, "m") is None

    def test_the_map_of_save_model(self) -> None:
        found = read_ledger({"format": "embed.weight", "head": "embed.weight", "odd..T": "embed.weight"}, STORED, "m")
        assert found == Ledger("compact", (Equation("head", reference("embed.weight"), "BF16", (50257, 64)),))

    def test_a_stored_target_may_stay_in_a_compact_file(self) -> None:
        stored = STORED | {"decoder.weight": ("F32", (784, 256))}
        assert read(ledger(), stored)
        assert read(ledger(tie_source="computed.weight"), stored)
        assert read(ledger(layout="expanded"), stored)

    @pytest.mark.parametrize("source", ["embed.weight", "embed.weight[:]", 'embed["weight"]', '["embed.weight"]'])
    def test_ways_to_spell_a_name(self, source: str) -> None:
        found = read(ledger(tie_source=source, tie_dtype="BF16", tie_shape=[50257, 64]))
        assert found is not None
        assert found.ties[0].names == ("embed.weight",)

    def test_dtypes_that_torch_cannot_compute_with(self) -> None:
        stored = {"a": ("F4", (4, 4))}
        assert read(ledger(tie_source="a", tie_dtype="F4", tie_shape=[4, 4]), stored)
        with pytest.raises(tied.FileError, match="torch cannot compute"):
            read(ledger(tie_source="a.T", tie_dtype="F4", tie_shape=[4, 4]), stored)

    def test_expressions_without_end_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tie = {"source": "encoder.weight.T", "dtype": "F32", "shape": [784, 256]}
        few, more = (ledger(ties=[{"target": f"t{i}", **tie} for i in range(count)]) for count in (5, 6))
        for limit, most in {"MOST_STEPS": 5, "MOST_MARKS": 5 * (4 + 2)}.items():
            with monkeypatch.context() as limited:
                limited.setattr(f"tied.files.reading.file_ledger.{limit}", most)
                assert read(few)
                with pytest.raises(tied.FileError, match="expressions are too long"):
                    read(more)

    def test_a_chain_counts_as_often_as_it_is_inferred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tied.files.reading.file_ledger.MOST_STEPS", 8)
        tie = {"target": "t", "dtype": "F32", "shape": [256, 784]}
        assert read(ledger(ties=[tie | {"source": "encoder.weight.exp().exp()"}]))
        with pytest.raises(tied.FileError, match="expressions are too long"):
            read(ledger(ties=[tie | {"source": "encoder.weight.exp().exp().exp()"}]))

    def test_long_expressions_count_for_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tied.files.reading.file_ledger.MOST_MARKS", 1000)
        tie = {"target": "t", "dtype": "F32", "shape": [256, 784]}
        long = {count: ledger(ties=[tie | {"source": "+".join(["(bias)"] * count)}]) for count in (30, 60)}
        with pytest.raises(tied.FileError) as caught:
            read(long[30])
        assert "too long" not in str(caught.value)
        with pytest.raises(tied.FileError, match="expressions are too long"):
            read(long[60])

    def test_ties_without_end_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tied.files.reading.file_ledger.MOST_TIES", 5)
        tie = {"source": "encoder.weight", "dtype": "F32", "shape": [256, 784]}
        assert read(ledger(ties=[{"target": f"t{i}", **tie} for i in range(5)]))
        with pytest.raises(tied.FileError, match="It has too many ties"):
            read(ledger(ties=[{"target": f"t{i}", **tie} for i in range(6)]))

    def test_a_thousand_plain_names_are_not_parsed(self) -> None:
        calls: list[str] = []
        import tied.files.reading.file_ledger as module

        parsed, module.parse = module.parse, lambda text: calls.append(text) or parsed(text)
        try:
            tie = {"source": "encoder.weight", "dtype": "F32", "shape": [256, 784]}
            read(ledger(ties=[{"target": f"t{number}", **tie} for number in range(1000)]), STORED)
        finally:
            module.parse = parsed
        assert not calls


class TestOrder:
    def test_at_gives_the_order_back(self) -> None:
        names = ["b", "x", "a", "y", "c", "z"]
        ties = tuple(Equation(n, reference("a"), "F32", (2,), "copy", names.index(n)) for n in ("z", "x", "y"))
        assert Ledger("compact", ties).order(["b", "a", "c"]) == names

    def test_without_at_they_come_last(self) -> None:
        ties = (Equation("x", reference("a"), "F32", (2,)), Equation("y", reference("a"), "F32", (2,), at=0))
        assert Ledger("compact", ties).order(["b", "a"]) == ["y", "b", "a", "x"]

    def test_a_place_beyond_the_end_is_the_end(self) -> None:
        assert Ledger("compact", (Equation("x", reference("a"), "F32", (2,), at=10**15),)).order(["a"]) == ["a", "x"]


class TestExpanded:
    def test_ties_stay_and_copies_are_forgotten(self) -> None:
        kept = Equation("b", reference("a"), "F32", (2,), at=1)
        dropped = Equation("c", reference("a"), "F32", (2,), "copy", 2)
        found = Ledger("compact", (kept, dropped), bare=True).expanded()
        assert found == Ledger("expanded", (Equation("b", reference("a"), "F32", (2,)),))
        assert Ledger("compact", (dropped,)).expanded() is None


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@given(names)
def test_every_name_has_a_reference(name: str) -> None:
    assert name_of(reference(name).address) == name
    assert source_of(str(reference(name))) == reference(name)


@given(st.text(max_size=30))
def test_reading_a_source_is_parsing_it(text: str) -> None:
    try:
        expected = parse(text)
    except tied.TieError as error:
        with pytest.raises(type(error)):
            source_of(text)
    else:
        assert source_of(text) == expected


KEYS = st.sampled_from(["version", "layout", "ties", "target", "source", "dtype", "shape", "kind", "at", "bare"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
TREES = st.recursive(LEAVES, lambda t: st.lists(t, max_size=4) | st.dictionaries(KEYS, t, max_size=6), max_leaves=20)


@given(TREES)
def test_any_json_is_read_or_refused(content: Any) -> None:
    with contextlib.suppress(tied.FileError):
        read(json.dumps(content))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a.detach().T", "a.T"),
        ("2 * a.to('cpu').to(float16)", "2 * a.to(float16)"),
        ("cat([a.detach(), b])", "cat([a, b], 0)"),
    ],
)
def test_values_only(source: str, expected: str) -> None:
    assert values_only(parse(source)) == parse(expected)
