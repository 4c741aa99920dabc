"""The callbacks look at the right times, stop a training that is wrong, and mend what can be mended.

Real trainers run a few steps on the CPU; each library is skipped, with the reason, where it is not installed.
"""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus import LanguageModel
from torch import Tensor, nn
from torch.nn import functional as F

import tied
from tied import callbacks
from tied.callbacks import Watch, errors, repair

TOKENS = torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(3))


def half_tied() -> LanguageModel:
    model = LanguageModel()
    model.head.weight = nn.Parameter(model.embed.weight.detach())
    return model


def cut() -> LanguageModel:
    model = LanguageModel()
    tied.tie(model, "head.weight", "embed.weight")
    model.head = nn.Linear(4, 9, bias=False)
    with torch.no_grad():
        model.head.weight.copy_(model.embed.weight)
    return model


# -- looking and mending ------------------------------------------------------------------------------


@pytest.mark.parametrize(("build", "code"), [(half_tied, "TIE101"), (cut, "TIE109")])
def test_watch(build: Callable[[], nn.Module], code: str) -> None:
    with pytest.raises(tied.SharingError, match=rf"Watch\(every=0, act='raise'\)(.|\n)*at step 7(.|\n)*{code}"):
        Watch().look(build(), "at step 7")
    model, watch = build(), Watch(act="repair")
    watch.look(model, "at step 7")
    assert [line.split(":")[0] for line in watch.repaired] == [f"{code} at step 7"]
    assert [str(tie) for tie in tied.ties(model)] == ["head.weight = embed.weight"]
    watch.look(model, "at step 8")
    assert len(watch.repaired) == 1


def test_message(golden: Callable[[str, str], None]) -> None:
    with pytest.raises(tied.SharingError) as caught:
        Watch(every=3).look(half_tied(), "at step 3")
    golden("callbacks/half-tied.txt", f"{caught.value}\n")


def test_sound_models_are_left_alone() -> None:
    for model in (LanguageModel(), nn.Linear(2, 2)):
        watch = Watch(act="repair")
        watch.look(model, "now")
        assert (watch.repaired, tied.ties(model)) == ([], ())


def test_what_would_lose_values_is_not_mended() -> None:
    model = cut()
    with torch.no_grad():
        model.head.weight.add_(1)
    with pytest.raises(tied.ConflictError, match="keep"):
        Watch(act="repair").look(model, "now")


def test_repair_in_the_middle_of_training_goes_on_as_one_parameter() -> None:
    """The second Parameter leaves the optimizer; by hand, one weight is trained from here on."""
    model = half_tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(run: Callable[[Tensor], Tensor], stepper: torch.optim.Optimizer, zero: Any) -> None:
        F.cross_entropy(run(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
        stepper.step()
        zero.zero_grad()

    F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()  # leaves gradients at both
    repair(model, errors(model), [None, optimizer, torch.optim.SGD([torch.zeros(1)])])
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    model.zero_grad()
    weight = model.embed.weight.detach().clone().requires_grad_()
    by_hand = torch.optim.SGD([weight], lr=0.1)
    for _ in range(3):
        step(model, optimizer, model)  # as trainers do: the model's gradients are set to zero, not the optimizer's
        step(lambda x: F.linear(torch.tanh(F.embedding(x, weight)), weight), by_hand, by_hand)
    torch.testing.assert_close(model.embed.weight, weight, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"every": -1}, {"act": "ignore"}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(tied.KindError, match="cannot be set up like this"):
        Watch(**settings)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'KerasCallback'"):
        callbacks.KerasCallback  # noqa: B018


def test_neither_library_is_imported_before_it_is_asked_for() -> None:
    code = "import sys, tied.callbacks; print(sorted({'transformers', 'lightning'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- transformers -------------------------------------------------------------------------------------


class Tokens(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.arange(6) + index
        return {"input_ids": tokens, "labels": tokens}


def gpt2() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 20}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, loss_type="ForCausalLM"))


def trainer(model: Any, folder: Path, *used: Any, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    settings |= {"save_strategy": "no", "logging_strategy": "no", "dataloader_pin_memory": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(output_dir=str(folder), **settings)
        data = {"train_dataset": Tokens(), "eval_dataset": Tokens()}
        return transformers.Trainer(model=model, args=arguments, callbacks=list(used), **data)


def train(made: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made.train(**options)


def halve(model: Any) -> Any:
    model.load_state_dict(model.state_dict(), assign=True)
    assert model.lm_head.weight is not model.transformer.wte.weight
    return model


def test_a_real_trainer_runs(tmp_path: Path) -> None:
    model, looks = gpt2(), []

    class Counting(callbacks.TransformersCallback):
        def look(self, model: nn.Module, when: str, optimizers: Any = ()) -> None:
            looks.append(when)
            super().look(model, when, optimizers)

    train(trainer(model, tmp_path, Counting(every=2)))
    assert looks == ["before training", "at the start of training", "at step 2", "at step 4", "at the end of training"]
    looks.clear()
    train(trainer(gpt2(), tmp_path, Counting()))
    assert looks == ["before training", "at the start of training", "at the end of training"]


def test_a_half_tied_model_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(tied.SharingError, match=r"TransformersCallback(.|\n)*before training(.|\n)*TIE101"):
        trainer(halve(gpt2()), tmp_path, callbacks.TransformersCallback())


def test_a_half_tied_model_is_mended_before_training(tmp_path: Path) -> None:
    """Then it trains as the model that was never cut, to the bit."""
    mended, whole, watch = halve(gpt2()), gpt2(), callbacks.TransformersCallback(act="repair")
    train(trainer(mended, tmp_path, watch))
    train(trainer(whole, tmp_path))
    assert len(watch.repaired) == 1
    assert torch.equal(mended.transformer.wte.weight, whole.transformer.wte.weight)
    assert torch.equal(mended.lm_head.weight, mended.transformer.wte.weight)


class OwnModel(nn.Module):
    """A model that is not of transformers, which a Trainer saves by safetensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.tanh(self.embed(input_ids)))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


@pytest.mark.parametrize("source", ["embed.weight", "2 * embed.weight"])
def test_a_trainer_saves_a_model_of_ones_own_and_loads_the_best(source: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = OwnModel()
    tied.tie(model, "head.weight", source)
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    made = trainer(model, tmp_path, callbacks.TransformersCallback(), **options, load_best_model_at_end=True)
    train(made)
    best = load_file(f"{made.state.best_model_checkpoint}/model.safetensors")
    assert list(best) == ["embed.weight"]
    assert torch.equal(model.embed.weight, best["embed.weight"])
    assert [str(tie) for tie in tied.ties(model)] == [f"head.weight = {source}"]
    other = OwnModel()
    tied.tie(other, "head.weight", source)
    other.load_state_dict(best)
    assert torch.equal(other.head.weight, model.head.weight)


def test_a_cut_in_the_middle_is_found(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class Cuts(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
            if state.global_step == 2:
                halve(model)

    with pytest.raises(tied.SharingError, match=r"at step 3(.|\n)*The training was stopped"):
        train(trainer(gpt2(), tmp_path, Cuts(), callbacks.TransformersCallback(every=1)))
    with pytest.raises(tied.SharingError, match="at the end of training"):
        train(trainer(gpt2(), tmp_path, Cuts(), callbacks.TransformersCallback()))


def test_a_resumed_run_is_looked_at(tmp_path: Path) -> None:
    train(trainer(gpt2(), tmp_path, max_steps=2, save_strategy="steps", save_steps=2))
    made = trainer(gpt2(), tmp_path, callbacks.TransformersCallback(), max_steps=3)
    load = made._load_optimizer_and_scheduler

    def load_and_cut(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        halve(made.model)

    made._load_optimizer_and_scheduler = load_and_cut
    with pytest.raises(tied.SharingError, match="at the start of training"):
        train(made, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# -- Lightning ----------------------------------------------------------------------------------------


def lightning_module(model: nn.Module) -> Any:
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed", exc_type=ImportError)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return F.cross_entropy(self.model(batch).flatten(0, 1), batch.flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    return Module()


def fit(module: Any, *used: Any) -> None:
    import lightning.pytorch as lightning

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = lightning.Trainer(max_steps=4, accelerator="cpu", devices=1, callbacks=list(used), **quiet)
        made.fit(module, torch.utils.data.DataLoader([TOKENS[0]] * 8, batch_size=2))


def shared(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    model = LanguageModel()
    model.head.weight = model.embed.weight
    return model


def test_a_real_lightning_trainer_runs() -> None:
    looks = []
    module = lightning_module(shared())

    class Counting(callbacks.LightningCallback):
        def look(self, model: nn.Module, when: str, optimizers: Any = ()) -> None:
            looks.append(when)
            super().look(model, when, optimizers)

    fit(module, Counting(every=2))
    assert looks == ["before training", "at the start of training", "at step 2", "at step 4", "at the end of training"]


def test_lightning_stops_and_mends() -> None:
    module = lightning_module(halve_plain(shared()))
    with pytest.raises(tied.SharingError, match=r"LightningCallback(.|\n)*before training(.|\n)*TIE101"):
        fit(module, callbacks.LightningCallback())
    watch, whole = callbacks.LightningCallback(act="repair"), lightning_module(shared())
    fit(module, watch)
    fit(whole)
    assert len(watch.repaired) == 1
    assert torch.equal(module.model.embed.weight, whole.model.embed.weight)


def halve_plain(model: nn.Module) -> nn.Module:
    model.load_state_dict(model.state_dict(), assign=True)
    return model


def test_lightning_finds_a_cut_in_the_middle() -> None:
    module = lightning_module(shared())
    import lightning.pytorch as lightning

    class Cuts(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                halve_plain(pl_module.model)

    with pytest.raises(tied.SharingError, match="at step 2"):
        fit(module, Cuts(), callbacks.LightningCallback(every=1))
