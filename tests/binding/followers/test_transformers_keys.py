"""What transformers believes is tied follows `tie` and `untie`: what is saved, what is loaded, what is tied again."""

from pathlib import Path

import pytest
import torch
from zoo import ZOO

import tied

transformers = pytest.importorskip("transformers")


def build(name: str) -> torch.nn.Module:
    (architecture,) = (a for a in ZOO if str(a) == name)
    return architecture.build()


def stored(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_a_tie_that_transformers_does_not_know_is_stored_once(tmp_path: Path) -> None:
    model = build("LlamaForCausalLM")
    of_class = dict(type(model)._tied_weights_keys)
    tied.tie(model, "model.layers.1.mlp", "model.layers.0.mlp")
    model.save_pretrained(tmp_path)
    assert not {name for name in stored(tmp_path) if name.startswith("model.layers.1.mlp")}
    assert "TIE106" not in {finding.code for finding in tied.check(model).findings}
    tied.untie(model, "model.layers.1.mlp")
    model.save_pretrained(tmp_path / "untied")
    assert {name for name in stored(tmp_path / "untied") if name.startswith("model.layers.1.mlp")}
    assert type(model)._tied_weights_keys == of_class, "the class is left alone"
    assert model.config.tie_word_embeddings


def test_a_failed_call_enters_nothing() -> None:
    model = build("LlamaForCausalLM")
    keys, expanded = dict(model._tied_weights_keys), dict(model.all_tied_weights_keys)
    with pytest.raises(tied.ShapeError):
        tied.tie(
            model,
            {
                "model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight",
                "model.layers.1.mlp.down_proj.weight": "model.layers.0.mlp.up_proj.weight",
            },
        )
    assert (model._tied_weights_keys, model.all_tied_weights_keys) == (keys, expanded)


def test_loading_with_a_winner_enters_nothing() -> None:
    model = build("LlamaForCausalLM")
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    keys = dict(model._tied_weights_keys)
    tied.load_state_dict(model, model.state_dict(), keep="source")
    assert model._tied_weights_keys == keys


def test_what_is_untied_stays_so_through_a_file(tmp_path: Path) -> None:
    model = build("LlamaForCausalLM")
    tied.adopt(model)
    tied.untie(model, "lm_head.weight")
    assert model.config.tie_word_embeddings is False
    assert {finding.code for finding in tied.check(model).findings} <= {"TIE105"}, "a note that the two are equal still"
    assert tied.check(model).ok
    model.tie_weights()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    for save in (model.save_pretrained, lambda folder: tied.save(model, folder)):
        folder = tmp_path / str(save.__name__)
        save(folder)
        loaded = type(model).from_pretrained(folder)
        assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
        assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_where_one_switch_ties_several_the_others_stay_tied(tmp_path: Path) -> None:
    model = build("BartForConditionalGeneration")
    tied.adopt(model)
    with pytest.warns(tied.TieWarning) as said:
        tied.untie(model, "lm_head.weight")
    assert [str(each.message) for each in said] == [
        "transformers ties BartForConditionalGeneration's lm_head.weight again when a model that was saved with equal "
        "values is loaded: tie_word_embeddings is one switch for everything that the class ties, and it stays on for "
        "the rest. What differs from its source when it is saved stays apart."
    ]
    model.save_pretrained(tmp_path / "equal")
    assert tied.check(type(model).from_pretrained(tmp_path / "equal")).groups[0].names[-1] == "lm_head.weight", (
        "as said"
    )
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.tie_weights()
    assert model.lm_head.weight is not model.model.shared.weight
    assert model.model.encoder.embed_tokens.weight is model.model.shared.weight
    assert "TIE102" not in {finding.code for finding in tied.check(model).findings}
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(loaded.model.shared.weight, model.model.shared.weight)
    assert loaded.model.encoder.embed_tokens.weight is loaded.model.shared.weight
