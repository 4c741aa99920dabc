"""Loading: foreign files, differing values and who wins, what does not fit, and nothing changed on failure."""

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from sharing_zoo import build, one_parameter_in_three, one_parameter_twice, transposed_alias
from snapshot import refused, snapshot
from torch import Tensor, nn

import tied
from tied.algebra import parse
from tied.files.models.reconcile import Winner, _connected


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x).relu())


def untied(seed: int = 0) -> AutoEncoder:
    torch.manual_seed(seed)
    return AutoEncoder().double()


def tied_model(seed: int = 0, source: str = "encoder.weight.T") -> AutoEncoder:
    model = untied(seed)
    tied.tie(model, "decoder.weight", source)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


class TestDifferingValues:
    """An untied file, whose two weights differ, into a tied model."""

    @pytest.fixture
    def file(self, path: Path) -> dict[str, Tensor]:
        state = untied().state_dict()
        save_file(state, path)
        return state

    def test_is_an_error_that_names_the_gap(self, path: Path, file: dict[str, Tensor]) -> None:
        model = tied_model(seed=1)
        gap = float((file["decoder.weight"] - file["encoder.weight"].T).norm() / file["decoder.weight"].norm())
        message = (
            f"load(model, '{path}')\n"
            "  'decoder.weight' and its source differ in the file, but the model has one tensor for both.\n"
            f"  found:    'decoder.weight' is {gap:.3g} of its norm away from encoder.weight.T\n"
            "  expected: equal values, or only one of the names\n"
            "  fix:      name the winner: on_conflict='source', 'target' or 'mean'\n"
            "The model was not changed."
        )
        with refused(model, tied.ConflictError, message):
            tied.load(model, path)

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("winner", ["source", "target", "mean"])
    def test_the_winner_is_taken_and_the_gaps_are_told(
        self, path: Path, file: dict[str, Tensor], winner: str, assign: bool
    ) -> None:
        model = tied_model(seed=1)
        found = tied.load(model, path, on_conflict=winner, assign=assign)
        mine, theirs = file["encoder.weight"], file["decoder.weight"].T
        expected = {"source": mine, "target": theirs, "mean": (mine + theirs) / 2}[winner]
        torch.testing.assert_close(model.encoder.weight.detach(), expected, rtol=1e-15, atol=1e-16)
        gaps = {
            "encoder.weight": float((mine - expected).norm() / mine.norm()),
            "decoder.weight": float((theirs - expected).norm() / theirs.norm()),
        }
        assert found.gaps == pytest.approx(gaps, abs=1e-12)
        assert found.dropped == ("decoder.weight",)
        assert f"encoder.weight: {found.gaps['encoder.weight']:.2g} from the file" in str(found)

    def test_an_unknown_winner(self, path: Path) -> None:
        model = tied_model()
        with refused(model, tied.KindError, None):
            tied.load(model, path, on_conflict="head")  # type: ignore[arg-type]

    def test_plain_sharing_is_no_less(self, path: Path) -> None:
        state = {"embed.weight": torch.randn(7, 3), "head.weight": torch.randn(7, 3)}
        save_file(state, path)
        model = build(one_parameter_twice)
        with refused(model, tied.ConflictError):
            tied.load(model, path)
        tied.load(model, path, on_conflict="mean")
        torch.testing.assert_close(model.embed.weight.detach(), (state["embed.weight"] + state["head.weight"]) / 2)
        assert model.embed.weight is model.head.weight

    def test_the_mean_is_over_all_at_once(self, path: Path) -> None:
        model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "abcd"}).double()
        tied.tie(model, {"b.weight": "a.weight", "c.weight": "2 * a.weight"})
        model.d.weight = model.a.weight
        file = {
            f"{name}.weight": torch.tensor([[value]]).double()
            for name, value in zip("abcd", (0, 3, 12, 5), strict=True)
        }
        save_file(file, path)
        tied.load(model, path, on_conflict="mean")
        assert model.a.weight.item() == pytest.approx((0 + 3 + 2 * 12 + 5) / (1 + 1 + 4 + 1), abs=1e-12)

    def test_targets_of_several_sources_are_settled_together(self, path: Path) -> None:
        model = nn.ModuleDict({"a": nn.Linear(1, 2, bias=False), "b": nn.Linear(1, 1, bias=False)})
        model.update({"c": nn.Linear(1, 3, bias=False), "d": nn.Linear(1, 1, bias=False)})
        tied.tie(model, {"d.weight": "b.weight", "c.weight": "cat([a.weight, b.weight], 0)"})
        file = {"a": [[0.0], [2.0]], "b": [[1.0]], "c": [[4.0], [4.0], [6.0]], "d": [[2.0]]}
        save_file({f"{name}.weight": torch.tensor(value) for name, value in file.items()}, path)
        tied.load(model, path, on_conflict="mean")
        assert model.a.weight.flatten().tolist() == [2, 3]
        assert model.b.weight.item() == (1 + 6 + 2) / 3

    def test_targets_that_differ_among_themselves_cannot_win(self, path: Path) -> None:
        model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "abc"})
        tied.tie(model, {"b.weight": "a.weight", "c.weight": "a.weight"})
        save_file(
            {f"{name}.weight": torch.tensor([[value]]) for name, value in zip("abc", (0.0, 1.0, 2.0), strict=True)},
            path,
        )
        with refused(model, tied.ConflictError):
            tied.load(model, path, on_conflict="target")

    def test_without_the_source_nobody_wins(self, path: Path) -> None:
        model = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in "abc"})
        tied.tie(model, {"b.weight": "a.weight", "c.weight": "a.weight"})
        save_file(
            {f"{name}.weight": torch.tensor([[value]]) for name, value in zip("bc", (1.0, 2.0), strict=True)}, path
        )
        for winner in ("error", "source"):
            with refused(model, tied.ConflictError):
                tied.load(model, path, on_conflict=winner)  # type: ignore[arg-type]
        tied.load(model, path, on_conflict="mean")
        assert model.a.weight.item() == 1.5

    def test_a_sum_has_no_mean(self, path: Path) -> None:
        model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abc"})
        tied.tie(model, "c.weight", "a.weight + b.weight")
        save_file({f"{name}.weight": torch.randn(2, 2) for name in "abc"}, path)
        with refused(model, tied.InverseError):
            tied.load(model, path, on_conflict="mean")
        tied.load(model, path, on_conflict="source")

    def test_rounding_is_no_difference_where_the_tie_computes(self, path: Path) -> None:
        model = tied_model(source="encoder.weight.T / 3")
        state = values(model)
        save_file(state | {"decoder.weight": state["encoder.weight"].T.contiguous() * (1 / 3)}, path)
        assert not tied.load(model, path).gaps
        save_file(state | {"decoder.weight": state["encoder.weight"].T.contiguous() * 0.3333}, path)
        with refused(model, tied.ConflictError):
            tied.load(model, path)


class TestTheTargetAlone:
    @pytest.mark.parametrize("source", ["encoder.weight.T", "2 * encoder.weight.T", "encoder.weight.T.flip(0)"])
    def test_gives_its_source(self, path: Path, source: str) -> None:
        truth = tied_model(source=source)
        state = values(truth) | {"decoder.weight": truth.decoder.weight.detach().contiguous().as_subclass(Tensor)}
        del state["encoder.weight"]
        save_file(state, path)
        for assign in (False, True):
            model = tied_model(seed=1, source=source)
            found = tied.load(model, path, assign=assign)
            assert_equal(values(model), values(truth))
            assert not found.missing
            assert found.dropped == ("decoder.weight",)

    def test_two_parts_of_one_source(self, path: Path) -> None:
        model = nn.ModuleDict({"all": nn.Embedding(5, 2), "low": nn.Embedding(3, 2), "high": nn.Embedding(3, 2)})
        tied.tie(model, {"low.weight": "all.weight[:3]", "high.weight": "all.weight[2:]"})
        rows = torch.randn(5, 2)
        save_file({"low.weight": rows[:3].clone(), "high.weight": rows[2:].clone()}, path)
        tied.load(model, path)
        assert torch.equal(model.all.weight, rows)

    def test_what_no_source_gives(self, path: Path) -> None:
        model = nn.ModuleDict({"a": nn.Linear(3, 1, bias=False), "b": nn.Linear(3, 4, bias=False)})
        tied.tie(model, "b.weight", "a.weight.expand(4, 3)")
        save_file({"b.weight": torch.randn(4, 3)}, path)
        with refused(model, tied.InverseError):
            tied.load(model, path)
        found = tied.load(model, path, on_conflict="mean")
        assert found.gaps["b.weight"] > 0.1

    def test_a_shared_buffer(self, path: Path) -> None:
        model = nn.ModuleDict({"a": nn.BatchNorm1d(4), "b": nn.BatchNorm1d(4)})
        tied.tie(model, "b", "a", buffers=True)
        state = {
            name.replace("a.", "b."): torch.rand_like(t.float()).to(t.dtype) for name, t in model.state_dict().items()
        }
        save_file(state, path)
        tied.load(model, path)
        assert torch.equal(model.a.running_mean, state["b.running_mean"])

    def test_not_enough_for_a_model_on_meta(self, path: Path) -> None:
        with torch.device("meta"):
            model = nn.ModuleDict({"a": nn.Embedding(5, 2), "b": nn.Embedding(3, 2)})
        tied.tie(model, "b.weight", "a.weight[:3]")
        save_file({"b.weight": torch.randn(3, 2)}, path)
        for winner in ("error", "mean"):
            with refused(model, tied.InverseError):
                tied.load(model, path, assign=True, on_conflict=winner)  # type: ignore[arg-type]

    def test_an_index_alone_is_no_source(self, path: Path) -> None:
        model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "abc"})
        model.register_buffer("order", torch.tensor([1, 0]))
        tied.tie(model, {"b.weight": "a.weight[order]", "c.weight": "a.weight[order]"})
        file = {"b.weight": torch.randn(2, 2), "c.weight": torch.randn(2, 2), "order": torch.tensor([0, 1])}
        save_file(file, path)
        for winner in ("error", "source", "target"):
            with refused(model, tied.ConflictError):
                tied.load(model, path, on_conflict=winner)  # type: ignore[arg-type]
        tied.load(model, path, on_conflict="mean")
        torch.testing.assert_close(model.a.weight.detach(), (file["b.weight"] + file["c.weight"]) / 2)


class TestForeignFiles:
    def test_safetensors_save_model_drops_a_name_and_says_so(self, path: Path) -> None:
        model = build(one_parameter_twice)
        save_model(model, str(path))
        assert set(tied.files.load_file(path)) == {"embed.weight", "head.weight"}
        plain = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
        for target in (plain, build(one_parameter_twice, seed=1)):
            found = tied.load(target, path)
            assert torch.equal(target.head.weight, model.embed.weight)
            assert torch.equal(target.embed.weight, model.embed.weight)
            assert not found.missing

    def test_a_file_without_a_ledger_that_lacks_a_name_is_refused_by_an_untied_model(self, path: Path) -> None:
        save_file(values(tied_model()), path)
        model = untied(seed=1)
        message = (
            f"load(model, '{path}')\n  '{path}' does not fit the model.\n"
            "  found:    1 missing in the file: 'decoder.weight'\n"
            "  expected: the names of the model, each once\n"
            "  fix:      load(model, path, strict=False), which says what it left out\nThe model was not changed."
        )
        with refused(model, tied.FileError, message if len(str(path)) < 58 else None):
            tied.load(model, path)
        before = model.decoder.weight.detach().clone()
        found = tied.load(model, path, strict=False)
        assert found.missing == ("decoder.weight",)
        assert torch.equal(model.decoder.weight, before)

    @pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
    def test_one_name_is_enough_for_two_slots(self, path: Path, kept: str) -> None:
        weight = torch.randn(7, 3)
        save_file({kept: weight}, path)
        model = build(one_parameter_twice)
        tied.load(model, path)
        assert torch.equal(model.embed.weight, weight)
        assert model.embed.weight is model.head.weight

    def test_source_and_target_may_be_the_other_way_round_in_the_file(self, path: Path) -> None:
        file, model = tied_model(), untied(seed=1)
        tied.save(file, path)
        tied.tie(model, "encoder.weight", "decoder.weight.T")
        tied.load(model, path)
        assert torch.equal(model.decoder.weight, file.encoder.weight.T)

    def test_another_tie_in_the_file_is_a_conflict(self, path: Path) -> None:
        tied.save(tied_model(source="2 * encoder.weight.T"), path)
        model = tied_model(seed=1)
        with refused(model, tied.ConflictError):
            tied.load(model, path)

    @pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
    @pytest.mark.parametrize(
        "nest",
        [
            lambda s: s,
            lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
            lambda s: {"model": s, "ema": {name: t + 1 for name, t in s.items()}},
            lambda s: {"model": {"state_dict": s}},
            lambda s: {f"module.{name}": t for name, t in s.items()},
            lambda s: {f"_orig_mod.{name}": t for name, t in s.items()},
            lambda s: {"module": {f"module._orig_mod.{name}": t for name, t in s.items()}},
            lambda s: {"model_state_dict": {name.replace(".", "._orig_mod.", 1): t for name, t in s.items()}},
        ],
        ids=["flat", "state_dict", "ema beside", "twice", "module.", "_orig_mod.", "both", "inside"],
    )
    def test_torch_files_and_nesting(self, tmp_path: Path, suffix: str, nest: Any) -> None:
        source = untied()
        torch.save(nest(source.state_dict()), tmp_path / f"m.{suffix}")
        for assign in (False, True):
            model = untied(seed=1)
            found = tied.load(model, tmp_path / f"m.{suffix}", assign=assign)
            assert_equal(values(model), values(source))
            assert not found.unexpected

    def test_a_model_that_has_a_child_called_module(self, path: Path) -> None:
        class Wrapper(nn.Module):
            def __init__(self, seed: int) -> None:
                super().__init__()
                self.module = untied(seed)

        tied.save(Wrapper(0), path)
        model = Wrapper(1)
        tied.load(model, path)
        assert_equal(values(model), values(Wrapper(0)))

    def test_shared_storage_in_a_torch_file_does_not_tie_an_untied_model(self, tmp_path: Path) -> None:
        torch.save(build(one_parameter_twice).state_dict(), tmp_path / "m.pt")
        plain = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
        tied.load(plain, tmp_path / "m.pt", assign=True)
        assert plain.embed.weight.untyped_storage().data_ptr() != plain.head.weight.untyped_storage().data_ptr()

    def test_restored_tensors_do_not_tie_an_untied_model(self, path: Path) -> None:
        tied.save(build(transposed_alias), path)
        plain = nn.ModuleDict({"encoder": nn.Linear(3, 5), "decoder": nn.Linear(5, 3)})
        tied.load(plain, path, assign=True)
        with torch.no_grad():
            plain.encoder.weight.zero_()
        assert plain.decoder.weight.any()

    def test_code_in_a_file_is_not_run(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.zeros(2), "odd": Path("x")}, tmp_path / "m.pt")
        model = untied()
        with refused(model, tied.FileError):
            tied.load(model, tmp_path / "m.pt")


class Picky(nn.Linear):
    """A module with code of its own, which refuses after others were loaded."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        raise ValueError("not today")


class TestNothingIsChangedOnFailure:
    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda s: s | {"extra": torch.zeros(1)}, "1 unknown to the model: 'extra'"),
            (lambda s: {n: t for n, t in s.items() if n != "encoder.bias"}, "1 missing in the file: 'encoder.bias'"),
            (lambda s: s | {"decoder.bias": torch.zeros(5).double()}, "shape (5,)"),
            (lambda s: s | {"decoder.bias": torch.zeros(6, dtype=torch.int64)}, "torch.int64"),
            (lambda s: s | {"decoder.bias": torch.zeros(6, dtype=torch.complex64)}, "torch.complex64"),
            (lambda s: s | {"decoder.weight": torch.zeros(4, 6).double()}, "shape (4, 6)"),
            (
                lambda s: {n.replace("bias", "offset"): t for n, t in s.items()},
                "2 missing in the file: 'encoder.bias', 'decoder.bias'; 2 unknown to the model: ",
            ),
        ],
    )
    @pytest.mark.parametrize("assign", [False, True])
    def test_a_file_that_does_not_fit(self, path: Path, change: Any, found: str, assign: bool) -> None:
        model = tied_model(seed=1)
        save_file(change(values(tied_model())), path)
        before = snapshot(model)
        with pytest.raises(tied.FileError) as caught:
            tied.load(model, path, assign=assign)
        assert caught.value.found.startswith(found)
        assert str(caught.value).endswith("The model was not changed.")
        assert snapshot(model) == before

    @pytest.mark.parametrize("assign", [False, True])
    def test_code_of_others_that_fails_half_way(self, path: Path, assign: bool) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), Picky(3, 3), nn.Linear(3, 3))
        save_file({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}, path)
        before, slots = values(model), [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
        with pytest.raises(ValueError, match="not today"):
            tied.load(model, path, assign=assign)
        assert_equal(values(model), before)
        assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == slots

    def test_a_device_without_assign(self, path: Path) -> None:
        model = tied_model()
        tied.save(model, path)
        with refused(model, tied.KindError):
            tied.load(model, path, device="cpu")
        tied.load(model, path, device="cpu", assign=True)

    def test_no_such_file(self, path: Path) -> None:
        model = tied_model()
        with refused(model, FileNotFoundError):
            tied.load(model, path)

    def test_a_broken_file(self, path: Path) -> None:
        path.write_bytes(b"\x10\0\0\0\0\0\0\0not a header")
        model = tied_model()
        with refused(model, tied.FileError):
            tied.load(model, path)

    @pytest.mark.filterwarnings("ignore:Lazy modules")
    def test_a_lazy_model(self, path: Path) -> None:
        save_file({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, path)
        model = nn.LazyLinear(2)
        with pytest.raises(tied.KindError, match="no shape yet"):
            tied.load(model, path)

    def test_meta_without_assign(self, path: Path) -> None:
        tied.save(untied(), path)
        with torch.device("meta"):
            model = AutoEncoder()
        with refused(model, tied.KindError):
            tied.load(model, path)


class TestRecurrentModules:
    """They keep their weights in a list too, which must follow."""

    def make(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.LSTM(4, 4), nn.LSTM(4, 4))
        model[1].weight_hh_l0 = model[0].weight_hh_l0
        return model

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("tie", [False, True])
    def test_what_is_loaded_is_what_computes(self, path: Path, assign: bool, tie: bool) -> None:
        truth, model = self.make(0), self.make(1)
        if tie:
            for each in (truth, model):
                tied.tie(each, "1.weight_ih_l0", "0.weight_ih_l0")
        tied.save(truth, path)
        tied.load(model, path, assign=assign)
        x = torch.randn(3, 2, 4)
        for number in (0, 1):
            assert torch.equal(model[number](x)[0], truth[number](x)[0])
        assert model[1].weight_hh_l0 is model[0].weight_hh_l0

    def test_a_failed_load_too(self, path: Path) -> None:
        model = nn.Sequential(nn.LSTM(4, 4), Picky(3, 3))
        save_file({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}, path)
        x = torch.randn(3, 2, 4)
        before = model[0](x)[0]
        with pytest.raises(ValueError, match="not today"):
            tied.load(model, path, assign=True)
        assert torch.equal(model[0](x)[0], before)


class TestMeta:
    @pytest.mark.parametrize("layout", ["compact", "expanded"])
    def test_a_tied_model_on_meta(self, path: Path, layout: Any) -> None:
        tied.save(tied_model(), path, layout=layout)
        with torch.device("meta"):
            model = AutoEncoder()
        tied.tie(model, "decoder.weight", "encoder.weight.T")
        tied.load(model, path, assign=True)
        assert_equal(values(model), values(tied_model()))

    def test_plain_sharing_on_meta(self, path: Path) -> None:
        for builder in (one_parameter_twice, one_parameter_in_three, transposed_alias):
            tied.save(build(builder), path)
            with torch.device("meta"):
                model = builder()
            tied.load(model, path, assign=True)
            assert_equal(values(model), values(build(builder)))
            if builder is one_parameter_twice:
                assert model.embed.weight is model.head.weight

    def test_what_no_file_holds_may_not_stay_there(self, path: Path) -> None:
        def make() -> nn.Module:
            model = nn.Linear(2, 2)
            model.register_buffer("cache", torch.zeros(3), persistent=False)
            return model

        tied.save(make(), path)
        with torch.device("meta"):
            model = make()
        with refused(model, tied.KindError):
            tied.load(model, path, assign=True)


class TestComputedSources:
    def normed(self, seed: int) -> AutoEncoder:
        model = tied_model(seed)
        nn.utils.parametrizations.weight_norm(model.encoder)
        return model

    def test_a_target_that_agrees_is_dropped(self, path: Path) -> None:
        truth, model = self.normed(0), self.normed(1)
        tied.save(truth, path)
        found = tied.load(model, path)
        assert found.dropped == ("decoder.weight",)
        assert torch.equal(model.decoder.weight, truth.decoder.weight)

    def test_one_that_differs_is_refused_and_all_is_put_back(self, path: Path) -> None:
        truth, model = self.normed(0), self.normed(1)
        tied.save(truth, path)
        state = tied.files.load_file(path)
        save_file(state | {"decoder.weight": state["decoder.weight"] + 1}, path)
        before = values(model)
        with pytest.raises(tied.ConflictError, match="the source is computed"):
            tied.load(model, path)
        assert_equal(values(model), before)
        found = tied.load(model, path, on_conflict="source")
        assert found.gaps["decoder.weight"] > 0.1
        assert torch.equal(model.decoder.weight, truth.decoder.weight)

    def test_a_layer_whose_source_lies_outside(self, path: Path) -> None:
        whole = tied_model()
        save_file({"weight": torch.zeros(6, 4).double(), "bias": torch.zeros(6).double()}, path)
        with refused(whole, tied.ConflictError):
            tied.load(whole.decoder, path)


class Signed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.register_buffer("signs", torch.tensor([[1.0, -1.0, 1.0]] * 3))
        tied.tie(self, "b.weight", "a.weight * signs")


@pytest.mark.parametrize("winner", ["target", "mean"])
def test_signs_are_constants(winner: Winner, tmp_path: Path) -> None:
    """A buffer in an expression with a Parameter is no unknown, although it is of floats."""
    model, wanted, own = Signed(), torch.rand(3, 3), torch.rand(3, 3)
    signs = model.signs.clone()
    save_file({"b.weight": wanted, "a.weight": own}, tmp_path / "a.safetensors")
    tied.load(model, tmp_path / "a.safetensors", on_conflict=winner, strict=False)
    assert torch.equal(model.signs, signs)
    expected = wanted * signs if winner == "target" else (wanted * signs + own) / 2
    torch.testing.assert_close(model.a.weight.detach(), expected, rtol=1e-6, atol=1e-7)


def test_a_cache_on_meta_is_left_where_nobody_is_strict(tmp_path: Path) -> None:
    def build(device: str) -> nn.Module:
        model = nn.Linear(2, 2, device=device)
        model.register_buffer("cache", torch.zeros(3, device=device), persistent=False)
        return model

    tied.save(build("cpu"), tmp_path / "a.safetensors")
    model = build("meta")
    with pytest.raises(tied.KindError, match="'cache' is on the meta device"):
        tied.load(model, tmp_path / "a.safetensors", assign=True)
    assert model.weight.is_meta
    tied.load(model, tmp_path / "a.safetensors", assign=True, strict=False)
    assert (model.weight.device.type, model.cache.device.type) == ("cpu", "meta")


def test_what_is_settled_together() -> None:
    """Targets are in one group if a chain of common sources leads from one to the other."""
    for order in permutations(["ab", "cd", "bc", "ef", "fe", "ea"]):
        _settled_together(order)


def _settled_together(order: tuple[str, ...]) -> None:
    targets = {pair: parse(" + ".join(pair)) for pair in order}
    found = {frozenset(group) for group in _connected(targets, set())}
    assert found == {frozenset(order)}
    apart = {frozenset(group) for group in _connected({p: e for p, e in targets.items() if p != "ea"}, set())}
    assert apart == {frozenset({"ab", "cd", "bc"}), frozenset({"ef", "fe"})}


def test_the_gap_from_zeros_is_the_distance(tmp_path: Path) -> None:
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
    tied.tie(model, "b", "a")
    save_file({"a": torch.full((4,), 3.0), "b": torch.zeros(4)}, tmp_path / "a.safetensors")
    assert tied.load(model, tmp_path / "a.safetensors", on_conflict="source").gaps == {"a": 0.0, "b": 6.0}


def test_an_expanded_tensor_without_elements(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_buffer("none", torch.zeros(1, 3).expand(0, 3))
        return model

    tied.save(model := build(), tmp_path / "a.safetensors")
    tied.load(other := build(), tmp_path / "a.safetensors")
    assert torch.equal(other.weight, model.weight)


@pytest.mark.parametrize("winner", ["source", "target", "mean"])
def test_without_a_conflict_nothing_is_rounded(winner: Winner, tmp_path: Path) -> None:
    model = nn.Module()
    for name in "abcd":
        model.register_parameter(name, nn.Parameter(torch.rand(1000)))
    tied.tie(model, {"b": "a", "c": "a", "d": "a"})
    value = torch.rand(1000) * 1e-42
    save_file({name: value.clone() for name in "abcd"}, tmp_path / "a.safetensors")
    assert not tied.load(model, tmp_path / "a.safetensors", on_conflict=winner).gaps
    assert torch.equal(model.a.view(torch.int32), value.view(torch.int32))
