"""transformers' `from_pretrained` with a map of devices: models that tie in their constructor, and adopted ones."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from battery.subjects import TIES, ByHand, Pair, inputs
from tiny import build
from torch import Tensor

import tied

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and accelerate, about offloading


class Configuration(transformers.PretrainedConfig):
    model_type = "tied_pair"

    def __init__(self, kind: str = "identity", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind = kind


class Tied(transformers.PreTrainedModel):
    """A model of transformers that ties in its constructor."""

    config_class = Configuration
    _no_split_modules = ()

    def __init__(self, config: Configuration) -> None:
        super().__init__(config)
        self.pair = Pair(config.kind)
        self.post_init()
        tied.tie(self, "pair.b.weight", re.sub(r"\b(a\.weight|spare|turned)", r"pair.\1", TIES[config.kind][0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x)


LEAVES = ("a", "b", "c", "spare", "turned")
MAPS: dict[str, Any] = {
    "cpu": "cpu",
    "auto": "auto",
    "all": {"": "cpu"},
    "source on disk": {f"pair.{name}": "disk" if name == "a" else "cpu" for name in LEAVES},
    "target on disk": {f"pair.{name}": "disk" if name == "b" else "cpu" for name in LEAVES},
    "both on disk": {f"pair.{name}": "disk" if name in "ab" else "cpu" for name in LEAVES},
}


def by_hand(model: Tied) -> Tensor:
    oracle = ByHand(model.config.kind)
    state = model.state_dict()
    oracle.load_state_dict({name: state[f"pair.{name}"] for name in oracle.state_dict()})
    return oracle(inputs()).detach()


CASES = [
    (devices, kind)
    for devices in MAPS
    for kind in TIES
    if not (kind == "identity" and devices in ("source on disk", "target on disk"))  # accelerate's own errors, as plain
    and not (kind == "two sources" and devices == "both on disk")  # torch's error, as by hand: one of them is on meta
]


@pytest.mark.parametrize(("devices", "kind"), CASES)
def test_a_model_that_ties_itself_is_loaded_where_the_map_says(devices: str, kind: str, tmp_path: Path) -> None:
    """Nothing is initialized over what was loaded: marks of the source's Parameter are seen through its targets."""
    model = Tied(Configuration(kind)).double()
    with torch.no_grad():
        model.pair.a.weight.mul_(3)
    expected = by_hand(model)
    torch.testing.assert_close(model(inputs()).detach(), expected, rtol=1e-12, atol=1e-12)
    model.save_pretrained(tmp_path / "saved")
    loaded = Tied.from_pretrained(
        tmp_path / "saved", device_map=MAPS[devices], offload_folder=tmp_path / "disk", dtype=torch.float64
    )
    for _ in range(2):
        torch.testing.assert_close(loaded(inputs()).detach(), expected, rtol=1e-12, atol=1e-12)
    assert [str(tie) for tie in tied.ties(loaded)] == [str(tie) for tie in tied.ties(model)]


INSIDE = {"model.layers": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
LLAMA: dict[str, Any] = {
    "cpu": "cpu",
    "auto": "auto",
    "embedding and head on disk": {"model.embed_tokens": "disk", **INSIDE, "lm_head": "disk"},
    "layers on disk": {"model.embed_tokens": "cpu", **INSIDE, "model.layers": "disk", "lm_head": "cpu"},
}
IDS = torch.tensor([[1, 5, 7, 9]])


@pytest.mark.parametrize("devices", LLAMA)
def test_an_adopted_model_is_dispatched_as_the_untouched_one(devices: str, tmp_path: Path) -> None:
    made = build(transformers.LlamaForCausalLM, tie_word_embeddings=True)
    expected = made(input_ids=IDS).logits.detach()
    made.save_pretrained(tmp_path / "saved")

    def load() -> Any:
        return transformers.LlamaForCausalLM.from_pretrained(
            tmp_path / "saved", device_map=LLAMA[devices], offload_folder=tmp_path / "disk"
        )

    for adopted in (False, True):
        model = load()
        if adopted:
            tied.adopt(model)
        for _ in range(2):
            torch.testing.assert_close(model(input_ids=IDS).logits.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("devices", LLAMA)
def test_what_is_saved_from_an_adopted_model_is_loaded_by_a_map(devices: str, tmp_path: Path) -> None:
    made = build(transformers.LlamaForCausalLM, tie_word_embeddings=True)
    tied.adopt(made)
    with torch.no_grad():
        made.lm_head.weight.mul_(2)
    made.save_pretrained(tmp_path / "saved")
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "saved", device_map=LLAMA[devices], offload_folder=tmp_path / "disk"
    )
    torch.testing.assert_close(
        model(input_ids=IDS).logits.detach(), made(input_ids=IDS).logits.detach(), rtol=1e-6, atol=1e-6
    )
