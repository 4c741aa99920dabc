"""What transformers, safetensors, torch and accelerate write of tied models: checked, shrunk, expanded, loaded.

For each of the tiny architectures of the zoo, the file of each writer goes through all of it, and the model that is
loaded from what comes out gives the outputs of the one that was saved.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from zoo import ZOO, Architecture, tensors

from tied.files import expand, load_file as load_all, shrink
from tied.files.audit import audit

FAST = {"LlamaForCausalLM", "T5ForConditionalGeneration"}
EACH = pytest.mark.parametrize(
    "architecture", [pytest.param(a, id=str(a), marks=() if str(a) in FAST else pytest.mark.slow) for a in ZOO]
)


def by_transformers(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / "model.safetensors"


def by_transformers_in_shards(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    return index if index.exists() else folder / "model.safetensors"


def by_safetensors(model: nn.Module, folder: Path) -> Path:
    save_model(model, str(folder / "model.safetensors"))
    return folder / "model.safetensors"


def by_torch(model: nn.Module, folder: Path) -> Path:
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt"


def by_torch_nested(model: nn.Module, folder: Path) -> Path:
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / "model.ckpt")
    return folder / "model.ckpt"


def by_accelerate(model: nn.Module, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it removes shared names, and says so
        Accelerator(cpu=True).save_model(model, folder)
    return folder / "model.safetensors"


WRITERS = [by_transformers, by_transformers_in_shards, by_safetensors, by_torch, by_torch_nested, by_accelerate]


def outputs(model: nn.Module, architecture: Architecture) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return list(tensors(model(**architecture.inputs())))


def loaded(architecture: Architecture, values: dict[str, Tensor]) -> nn.Module:
    """Load by plain torch into a model with other values; names that the file lacks have to be tied ones."""
    model = architecture.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    missing = model.load_state_dict(values, strict=False)
    assert not missing.unexpected_keys
    known = {id(tensor) for name, tensor in model.state_dict(keep_vars=True).items() if name in values}
    assert all(id(model.state_dict(keep_vars=True)[name]) in known for name in missing.missing_keys)
    return model


@EACH
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_writer(architecture: Architecture, write: Callable[[Any, Path], Path], tmp_path: Path) -> None:
    transformers.logging.set_verbosity_error()
    model = architecture.build()
    expected = outputs(model, architecture)
    (tmp_path / "old").mkdir()
    try:
        path = write(model, tmp_path / "old")
    except RuntimeError as error:
        pytest.skip(f"{write.__name__} refuses this model: {error}")
    report = audit(path)
    assert not [found for found in report.findings if found.severity == "error"], str(report)
    sharded = path.suffix == ".json"
    small, again = (tmp_path / (name if sharded else f"{name}.safetensors") for name in ("small", "again"))
    shrink(path, small)
    expand(small, again)
    assert not audit(small).findings, str(audit(small))
    if path.suffix == ".safetensors" and write is not by_safetensors:
        assert again.read_bytes() == path.read_bytes()
    plain = load_file(again) if not sharded else load_all(again)
    for values in (plain, load_all(small)):
        found = outputs(loaded(architecture, {n: t.clone() for n, t in values.items()}), architecture)
        for output, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(output, wanted, rtol=0, atol=0)
