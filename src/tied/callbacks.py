"""Callbacks: trainers of other libraries look after shared weights.

Owns: `TransformersCallback` and `LightningCallback`. Must not import either library before its callback is asked for.
Read next: `checking/check.py`, which looks, and `binding/retie.py`, which mends.

    from tied.callbacks import TransformersCallback

    Trainer(model=model, args=arguments, callbacks=[TransformersCallback(every=100)])
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from tied.binding import adopt, retie
from tied.binding.followers.optimizers import able_to_follow
from tied.binding.state_dict_hooks import name_once
from tied.checking.check import check
from tied.errors import KindError, SharingError, during
from tied.reporting.facts import Finding

Act = Literal["raise", "repair"]

if TYPE_CHECKING:
    TransformersCallback: Any
    LightningCallback: Any


class Watch:
    """What both callbacks do: look at a model before training, after loading, every so many steps, and at the end.

    Args:
        every: Look after every so many steps too; 0 does not.
        act: "raise", or "repair": put cut ties back and make one Parameter of two over one memory, in place, and
            raise only where that would lose values.

    Raises:
        SharingError: something does not share what it seems to share; a finding of `tied.check`, "TIE1..".
    """

    def __init__(self, every: int = 0, act: Act = "raise") -> None:
        """Check the settings."""
        super().__init__()
        if act not in ("raise", "repair") or every < 0:
            raise KindError(
                "A callback cannot be set up like this.",
                found=f"every={every!r}, act={act!r}",
                expected='every=0 or more, act="raise" or "repair"',
                fix=f"{type(self).__name__}(every=100, act='raise')",
            )
        self.every, self.act = every, act
        self.repaired: list[str] = []

    def look(self, model: nn.Module, when: str, optimizers: Iterable[Any] = ()) -> None:
        """Look at a model now; `when` is for the message. What is mended reaches the optimizers."""
        with during(f"{type(self).__name__}(every={self.every}, act={self.act!r})"):
            found = errors(model)
            if found and self.act == "repair":
                repair(model, found, optimizers)
                self.repaired += [f"{finding.code} {when}: {', '.join(finding.names)}" for finding in found]
                found = errors(model)
            if found:
                raise _broken(model, found, when)


def errors(model: nn.Module) -> list[Finding]:
    """Return what is wrong with the sharing of a model now."""
    report = check(model, select=["TIE1"])
    return [finding for finding in report.findings if finding.severity == "error"]


def repair(model: nn.Module, found: list[Finding], optimizers: Iterable[Any] = ()) -> None:
    """Put ties back, as far as no value is lost, and have the optimizers follow.

    A Parameter that the model does not hold any more loses its gradient, so that an optimizer that still knows
    it steps it no more.
    """
    before, following = list(model.parameters()), able_to_follow(optimizers, model)
    retie(model, optimizer=following)
    for module in model.modules() if not any(finding.code == "TIE102" for finding in found) else ():
        if hasattr(module, "_tied_weights_keys") and hasattr(module, "tie_weights"):
            getattr(module, "tie_weights")()  # noqa: B009  (of transformers, which type checkers do not see)
    adopt(model, half_tied=any(finding.code == "TIE101" for finding in errors(model)), optimizer=following)
    kept = {id(parameter) for parameter in model.parameters()}
    for parameter in before:
        if id(parameter) not in kept:
            parameter.grad = None


def _broken(model: nn.Module, found: list[Finding], when: str) -> SharingError:
    error = SharingError(
        f"{type(model).__name__} does not share what it seems to share, {when}.",
        found="; ".join(f"{finding.code}: {finding.message}" for finding in found[:4]),
        expected="no finding of severity error",
        fix=found[0].fix or "tied.check(model) shows the whole report",
    )
    error.changed = "The training was stopped."
    return error


# -- the two libraries --------------------------------------------------------------------------------------


def _of_transformers() -> type:
    TrainerCallback: Any = importlib.import_module("transformers").TrainerCallback

    class TransformersCallback(Watch, TrainerCallback):
        """Looks after the shared weights of a `transformers.Trainer`'s model."""

        def on_init_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
            """Look before there is an optimizer: the best time to mend.

            A Trainer saves a model that is not of transformers by safetensors, which takes no two names for one
            tensor: from now on its state dict names each tie once.
            """
            self.look(model, "before training")
            if not hasattr(model, "save_pretrained"):
                name_once(model)

        def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **more: Any) -> None:
            """Look after a checkpoint was loaded."""
            self.look(model, "at the start of training", [more.get("optimizer")])

        def on_step_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **more: Any) -> None:
            """Look every so many steps."""
            if self.every and state.global_step % self.every == 0:
                self.look(model, f"at step {state.global_step}", [more.get("optimizer")])

        def on_train_end(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
            """Look after the best checkpoint was loaded."""
            self.look(model, "at the end of training")

    return TransformersCallback


def _of_lightning() -> type:
    package = "lightning.pytorch" if importlib.util.find_spec("lightning") else "pytorch_lightning"
    Callback: Any = importlib.import_module(f"{package}.callbacks").Callback

    class LightningCallback(Watch, Callback):
        """Looks after the shared weights of a `LightningModule`."""

        def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
            """Look before there is an optimizer: the best time to mend."""
            self.look(pl_module, "before training")

        def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
            """Look after a checkpoint was loaded."""
            self.look(pl_module, "at the start of training", trainer.optimizers)

        def on_train_batch_end(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
            """Look every so many steps."""
            if self.every and trainer.global_step % self.every == 0:
                self.look(pl_module, f"at step {trainer.global_step}", trainer.optimizers)

        def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
            """Look once more."""
            self.look(pl_module, "at the end of training")

    return LightningCallback


_CLASSES = {"TransformersCallback": _of_transformers, "LightningCallback": _of_lightning}


def __getattr__(name: str) -> Any:
    """Make the class of a callback when it is first used, so that its library is imported only then."""
    if name not in _CLASSES:
        raise AttributeError(f"module 'tied.callbacks' has no attribute '{name}'")
    globals()[name] = made = _CLASSES[name]()
    made.__module__, made.__qualname__ = __name__, name
    return made
