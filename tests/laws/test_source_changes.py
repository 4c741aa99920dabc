"""A source that is pruned, normed, parametrized, adapted or quantized, for every kind of tie; and other processes.

After each change the target is its expression of what the source's own layer computes with now, by hand, and the
gradients reach what the source is computed from.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from corpus import MAIN, Case, tied_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import tied

pytestmark = pytest.mark.filterwarnings("ignore")  # torch deprecates its older norms and its quantization


class Halve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


CHANGES: dict[str, Callable[[nn.Module, str], object]] = {
    "prune": lambda m, name: prune.l1_unstructured(m, name, 0.5),
    "weight norm": parametrizations.weight_norm,
    "old weight norm": lambda m, name: torch.nn.utils.weight_norm(m, name),
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": lambda m, name: torch.nn.utils.spectral_norm(m, name),
    "own": lambda m, name: parametrize.register_parametrization(m, name, Halve()),
}


def source(model: nn.Module) -> tuple[nn.Module, str, str]:
    """Return the owner of the first source, its attribute, and the whole name."""
    address = tied.ties(model)[0].source.sources()[0]
    return model.get_submodule(".".join(address[:-1])), address[-1], ".".join(address)


def target(model: nn.Module, case: Case) -> Tensor:
    owner, _, name = case.target.rpartition(".")
    return getattr(model.get_submodule(owner), name)


def by_hand(model: nn.Module, case: Case, present: Tensor) -> Tensor:
    """The target in plain torch, where the first source is `present`."""
    return case.oracle({**dict(model.named_parameters()), **dict(model.named_buffers()), source(model)[2]: present})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("case", MAIN, ids=str)
def test_the_target_follows_a_computed_source(case: Case, change: str) -> None:
    model = tied_model(case).eval()
    owner, name, _ = source(model)
    CHANGES[change](owner, name)
    owner.eval()
    if "old" in change:
        for hook in owner._forward_pre_hooks.values():
            hook(owner, ())  # what the forward of the source would do first
    expected = by_hand(model, case, getattr(owner, name))
    torch.testing.assert_close(target(model, case).detach(), expected.detach(), rtol=1e-12, atol=1e-14)
    own = [p for p in owner.parameters(recurse=True) if p.requires_grad]
    ours = torch.autograd.grad(target(model, case).square().sum(), own, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected.square().sum(), own, allow_unused=True)
    assert any(gradient is not None for gradient in ours)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in MAIN if "in_proj" not in c.source], ids=str)
def test_an_adapter_around_the_source_is_none_of_the_targets(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft", exc_type=ImportError)
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # it passes by adapters, tied or not
    model = tied_model(case).eval()
    where = source(model)[2].rpartition(".")[0]
    plain = target(model, case).detach().clone()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=[where], r=2, init_lora_weights=False)).eval()
    assert torch.equal(target(model, case), plain)
    with pytest.raises(tied.WriteError, match="around the source of a tie cannot be merged"):
        adapted.merge_and_unload()
    before = adapted(case.inputs()).detach()
    tied.untie(model)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(case.inputs()), before, rtol=1e-10, atol=1e-12)
    assert torch.equal(target(merged, case), plain)


@pytest.mark.parametrize("case", MAIN, ids=str)
def test_dynamic_quantization_is_right_or_refused(case: Case) -> None:
    model = tied_model(case).float()
    inputs = case.inputs().float() if case.inputs().is_floating_point() else case.inputs()
    expected, refusal = model(inputs), ""
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    quantized.train()  # torch's fast path of transformers takes no quantized layers, tied or not
    try:
        found = quantized(inputs)
    except tied.TieError as error:
        refusal = error.fix
    assert "tied.untie" in refusal if refusal else (found - expected).abs().max() <= 0.1 * expected.abs().max()


def _elsewhere(_rank: int, models: list[nn.Module], answers: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = []
    for model, case in zip(models, MAIN, strict=True):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)  # in shared memory
        found.append((target(model, case).detach(), [str(tie) for tie in tied.ties(model)]))
    torch.save(found, answers)


def test_models_in_shared_memory_are_tied_in_a_spawned_process(tmp_path: Path) -> None:
    models = [tied_model(case).share_memory() for case in MAIN]
    before = [target(model, case).detach().clone() for model, case in zip(models, MAIN, strict=True)]
    mp.start_processes(_elsewhere, (models, str(tmp_path / "answers")), nprocs=1, start_method="spawn")
    found = torch.load(io.BytesIO((tmp_path / "answers").read_bytes()), weights_only=True)
    for model, case, old, (value, names) in zip(models, MAIN, before, found, strict=True):
        assert names == [str(tie) for tie in tied.ties(model)]
        torch.testing.assert_close(target(model, case).detach(), value, rtol=0, atol=0)
        assert not torch.equal(value, old)
