"""`tied.testing`: each assertion passes what is right, refuses what is wrong, and says why."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from corpus import CASES, Autoencoder, Case, LanguageModel, loss, tied_model
from snapshot import snapshot
from torch import Tensor, nn
from torch.nn import functional as F

import tied
from tied.testing import assert_gradient_is_sum, assert_not_tied, assert_same_step, assert_tied

TOKENS = torch.randint(0, 9, (5, 7), generator=torch.Generator().manual_seed(3))


def shared() -> LanguageModel:
    model = LanguageModel()
    model.head.weight = model.embed.weight
    return model


def half_tied() -> LanguageModel:
    model = LanguageModel()
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    return model


def equal_copies() -> LanguageModel:
    model = LanguageModel()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    return model


def declared() -> LanguageModel:
    model = LanguageModel()
    tied.tie(model, "head.weight", "embed.weight")
    return model


NAMES = ("embed.weight", "head.weight")


# -- assert_tied --------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [shared, declared])
def test_what_is_tied(build) -> None:
    model = build()
    before = snapshot(model)
    assert_tied(model)
    assert_tied(model, *NAMES)
    assert_tied(model, *reversed(NAMES))
    assert_tied(nn.ModuleList([model]), "[0].embed.weight", "0.head.weight")
    assert snapshot(model) == before


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_declared_tie_is_tied(case: Case) -> None:
    model = tied_model(case)
    assert_tied(model)
    for tie in tied.ties(model):
        for source in tie.source.sources():
            assert_tied(model, ".".join(source), case.target)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (half_tied, "half-tied: several Parameters over one memory, 'embed.weight' and 'head.weight'"),
        (equal_copies, "equal copies: equal values in separate memory"),
        (LanguageModel, "different tensors"),
        (lambda: LanguageModel().to("meta"), "separate tensors on meta"),
    ],
)
def test_what_is_not_tied(build, words: str) -> None:
    with pytest.raises(AssertionError) as caught:
        assert_tied(build(), *NAMES)
    assert isinstance(caught.value, tied.SharingError)
    assert caught.value.found == words


def test_message(golden) -> None:
    messages = []
    for act in (
        lambda: assert_tied(equal_copies(), *NAMES),
        lambda: assert_tied(half_tied()),
        lambda: assert_tied(LanguageModel()),
        lambda: assert_not_tied(shared(), *NAMES),
        lambda: assert_not_tied(half_tied()),
        lambda: assert_tied(shared(), "embed.weight"),
        lambda: assert_tied(shared(), "embed.weight", "heat.weight"),
        lambda: assert_tied(shared(), "embed", "extra"),
        lambda: assert_gradient_is_sum(LanguageModel(), TOKENS),
    ):
        with pytest.raises(tied.TieError) as caught:
            act()
        messages.append(f"{type(caught.value).__name__}: {caught.value}\n")
    golden("testing/messages.txt", "\n".join(messages))


def test_equal_transposed_copies() -> None:
    model = Autoencoder()
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().t().clone())
    with pytest.raises(tied.SharingError, match="equal copies"):
        assert_tied(model, "encoder.weight", "decoder.weight")
    model.decoder.weight = nn.Parameter(model.encoder.weight.detach().t())
    with pytest.raises(tied.SharingError, match="half-tied"):
        assert_tied(model, "encoder.weight", "decoder.weight")


def test_a_tie_that_was_cut() -> None:
    model = declared()
    model.head = nn.Linear(4, 9, bias=False)
    with pytest.raises(tied.SharingError, match="TIE109"):
        assert_tied(model)


def test_modules() -> None:
    layer = nn.Linear(3, 3)
    assert_tied(nn.ModuleDict({"a": layer, "b": layer}), "a", "b")
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3, bias=False)})
    assert_not_tied(model, "a", "b")
    model["b"].weight = model["a"].weight
    with pytest.raises(tied.SharingError, match=r"'a.bias' and 'b.bias' are not tied"):
        assert_tied(model, "a", "b")
    with pytest.raises(tied.SharingError, match=r"'a.weight' and 'b.weight' share memory"):
        assert_not_tied(model, "a", "b")
    with pytest.raises(tied.KindError, match="do not have tensors of the same names"):
        assert_tied(model, "a", "c")
    tied.tie(model, "b", "a")
    assert_tied(model, "a", "b")


def test_three_names() -> None:
    model = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
    model[1].weight = model[0].weight
    assert_not_tied(model, "0.weight", "2.weight")
    for names in (("0.weight", "1.weight", "2.weight"), ("2.weight", "0.weight", "1.weight")):
        with pytest.raises(tied.SharingError):
            assert_tied(model, *names)
        with pytest.raises(tied.SharingError):
            assert_not_tied(model, *names)


def test_buffers() -> None:
    model = nn.ModuleList([nn.BatchNorm1d(3), nn.BatchNorm1d(3)])
    assert_not_tied(model, "0.running_mean", "1.running_mean")
    model[1].running_mean = model[0].running_mean
    assert_tied(model, "0.running_mean", "1.running_mean")


@pytest.mark.parametrize("build", [shared, declared, half_tied])
def test_assert_not_tied(build) -> None:
    with pytest.raises(AssertionError):
        assert_not_tied(build())
    with pytest.raises(AssertionError):
        assert_not_tied(build(), *NAMES)
    assert_not_tied(build(), "embed.weight", "extra")
    assert_not_tied(equal_copies())


# -- steps and gradients ------------------------------------------------------------------------------


class ByHand(nn.Module):
    """The language model in which one tensor is used twice."""

    def __init__(self, weight: Tensor, extra: Tensor) -> None:
        super().__init__()
        self.weight, self.extra = nn.Parameter(weight.detach().clone()), nn.Parameter(extra.detach().clone())

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.embedding(tokens, self.weight)), self.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
def test_same_step_as_by_hand(optimizer: str) -> None:
    for build in (shared, declared):
        model = build()
        expected = ByHand(model.embed.weight, model.extra)
        before = snapshot(model)
        assert_same_step(model, expected, TOKENS, optimizer=optimizer)
        assert_same_step(expected, model, TOKENS, optimizer=optimizer)
        assert snapshot(model) == before
    for build in (half_tied, equal_copies):
        model = build()
        expected = ByHand(model.embed.weight, model.extra)
        if not (build is half_tied and optimizer == "sgd"):  # two plain steps over one memory are one
            with pytest.raises(AssertionError, match="The two models differ after the step"):
                assert_same_step(model, expected, TOKENS, optimizer=optimizer)


def test_same_step_sees_tensors_and_losses() -> None:
    model, other = LanguageModel(), LanguageModel()
    with pytest.raises(tied.SharingError, match="differ before the step") as caught:
        assert_same_step(model, other, TOKENS)
    assert "the loss is off by" in caught.value.found
    other.load_state_dict(model.state_dict())
    assert_same_step(model, other, TOKENS)
    with torch.no_grad():
        other.extra.add_(1)  # in no loss
    with pytest.raises(tied.SharingError, match=r"extra is off by 1"):
        assert_same_step(model, other, TOKENS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_sum(case: Case) -> None:
    assert_gradient_is_sum(tied_model(case), case.inputs(), loss=loss)


def test_gradient_is_not_sum() -> None:
    assert_gradient_is_sum(shared(), TOKENS)
    model = half_tied()
    with pytest.raises(AssertionError, match=r"gradient of 'embed.weight' is not the sum") as caught:
        assert_gradient_is_sum(model, TOKENS, loss=lambda y: y.square().mean())
    one, two = (model.embed.weight.detach().double().requires_grad_() for _ in range(2))
    F.linear(torch.tanh(F.embedding(TOKENS, one)), two).square().mean().backward()
    norms = [float(g.norm()) for g in (one.grad, one.grad + two.grad, one.grad, two.grad)]
    assert caught.value.found.startswith(f"norm {norms[0]:.4g}, off by {float(two.grad.abs().max()):.3g}")
    parts = f"{norms[2]:.4g} of embed.weight, {norms[3]:.4g} of head.weight"
    assert caught.value.expected == f"norm {norms[1]:.4g}, the sum of parts of norm {parts}"


def test_gradient_of_partial_overlap() -> None:
    buffer = torch.randn(14)
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[0].weight.data, model[1].weight.data = buffer[:8].view(4, 2), buffer[6:].view(2, 4)
    with pytest.raises(AssertionError, match="is not the sum"):
        assert_gradient_is_sum(model, torch.randn(3, 2))


# -- the plugin ---------------------------------------------------------------------------------------

USE = """
import torch
from torch import nn
import tied

def build():
    model = nn.ModuleDict({"embed": nn.Embedding(7, 3), "head": nn.Linear(3, 7, bias=False)})
    model.head.weight = model.embed.weight
    return model

def test_keeps(tied_guard):
    model = tied_guard(build())
    model.double()
    assert model is tied_guard(model)

def test_cuts(tied_guard):
    tied_guard(build()).to("meta")

def test_cuts_behind_the_back(tied_guard):
    model = tied_guard(build())
    model.head._parameters["weight"] = nn.Parameter(torch.zeros(7, 3))

def test_is_over_after_the_test():
    build().to("meta")
"""


def python(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(tied.__file__).parents[1])}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_fixture_of_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_use.py").write_text(USE, encoding="utf-8")
    done = python("-m", "pytest", "-q", "-p", "no:tied", "-p", "tied.testing.plugin", folder=tmp_path)
    assert "1 failed, 3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_use.py::test_cuts - tied.ConflictError: guard(model)" in done.stdout
    assert "ERROR test_use.py::test_cuts_behind_the_back - tied.ConflictError" in done.stdout


def test_the_plugin_costs_nothing_at_the_start() -> None:
    done = python("-c", "import sys, tied.testing.plugin; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_plugin_is_found_by_its_entry_point() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\ntied = "tied.testing.plugin"\n' in text
    found = [point.value for point in entry_points(group="pytest11") if point.name == "tied"]
    assert found in ([], ["tied.testing.plugin"])  # none where an older installation is in use


def test_unknown_names() -> None:
    import tied.testing

    with pytest.raises(AttributeError, match="no attribute 'assert_glued'"):
        tied.testing.assert_glued  # noqa: B018
