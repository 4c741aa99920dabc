"""What is saved comes back: every model of the corpus, in both layouts, into every kind of model.

The oracle is plain torch: the state dict of the untied model with the target computed by hand (`Case.oracle`).
"""

from pathlib import Path

import pytest
import torch
from corpus import CASES, Case
from safetensors.torch import load_file
from torch import Tensor, nn

import tied

LAYOUTS = ("compact", "expanded")


def tied_model(case: Case, seed: int = 0) -> nn.Module:
    model = case.build(seed)
    tied.tie(model, case.target, case.source)
    return model


def truth(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the untied model with the values of a tied one, by hand."""
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return own | {case.target: case.oracle(own).contiguous()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        torch.testing.assert_close(found[name], tensor, rtol=1e-12 if tensor.is_floating_point() else 0, atol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryTie:
    def test_comes_back_into_a_tied_model(self, case: Case, layout: str, tmp_path: Path) -> None:
        model, other = tied_model(case), tied_model(case, seed=1)
        tied.save(model, tmp_path / "m.safetensors", layout=layout)
        found = tied.load(other, tmp_path / "m.safetensors")
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name
        assert tied.ties(other) == tied.ties(model)
        assert not found.missing
        assert not found.unexpected
        assert not found.gaps
        assert found.dropped == ((case.target,) if layout == "expanded" else ())

    def test_comes_back_into_an_untied_model(self, case: Case, layout: str, tmp_path: Path) -> None:
        model, plain = tied_model(case), case.build(seed=1)
        tied.save(model, tmp_path / "m.safetensors", layout=layout)
        found = tied.load(plain, tmp_path / "m.safetensors")
        assert_same(plain.state_dict(), truth(case, model))
        assert set(found.loaded) == set(plain.state_dict())

    def test_an_untied_file_with_equal_values_comes_into_a_tied_model(
        self, case: Case, layout: str, tmp_path: Path
    ) -> None:
        model, other = tied_model(case), tied_model(case, seed=1)
        plain = case.build()
        plain.load_state_dict(truth(case, model))
        tied.save(plain, tmp_path / "m.safetensors", layout=layout)
        found = tied.load(other, tmp_path / "m.safetensors")
        assert_same(truth(case, other), truth(case, model))
        assert found.dropped == (case.target,)

    def test_is_read_by_load_file(self, case: Case, layout: str, tmp_path: Path) -> None:
        model = tied_model(case)
        tied.save(model, tmp_path / "m.safetensors", layout=layout)
        assert_same(tied.files.load_file(tmp_path / "m.safetensors"), truth(case, model))

    def test_is_read_by_safetensors(self, case: Case, layout: str, tmp_path: Path) -> None:
        model = tied_model(case)
        tied.save(model, tmp_path / "m.safetensors", layout=layout)
        expected = truth(case, model)
        if layout == "compact":
            del expected[case.target]
        assert_same(load_file(tmp_path / "m.safetensors"), expected)

    def test_is_assigned(self, case: Case, layout: str, tmp_path: Path) -> None:
        model, other = tied_model(case), tied_model(case, seed=1)
        tied.save(model, tmp_path / "m.safetensors", layout=layout)
        before = {id(p) for p in other.parameters()}
        tied.load(other, tmp_path / "m.safetensors", assign=True)
        assert_same(truth(case, other), truth(case, model))
        assert not before & {id(p) for p in other.parameters()}
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
