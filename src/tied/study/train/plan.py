"""What to train: plain values, which are also the options of the command line.

Owns: the plans, their defaults and what each field means. Must not import torch: `tied train --help` answers
at once. Read next: `task.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tied.study.train.errors import PlanError

PYDOC, SHAKESPEARE, DIGITS = "pydoc", "shakespeare", "digits"
NETWORKS = ("lstm", "transformer")
TOKENS = ("words", "characters")
DENSE_SIZES, CONV_SIZES = (128, 16), (32, 8)


def option(default: Any, help: str) -> Any:
    """Declare a field with its default and with the words that the command line shows."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every training has in common.

    Two runs of one plan give the same figures; with `tie=False` a plan is its own untied twin.
    """

    kind: ClassVar[str] = ""

    tie: bool = option(True, "Tie the weights; or train the untied twin.")
    epochs: int = option(1, "Passes over the training part.")
    batch_size: int = option(64, "Samples per step, over all processes together.")
    lr: float = option(0.002, "Learning rate of AdamW.")
    seed: int = option(0, "Of the start, the batch order and the noise.")
    patience: int = option(0, "Stop after that many epochs without a new best, and keep the best; 0: never.")

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            PlanError: a field has a value that makes no sense; the message names it as the command line does.
        """
        self._require_at_least(1, "epochs", "batch_size")
        self._require_at_least(0, "seed", "patience")
        self._require("lr", lambda rate: math.isfinite(rate) and rate > 0, "more than 0")

    @property
    def word(self) -> str:
        """How the weights are, in a word."""
        return "tied" if self.tie else "untied"

    @property
    def name(self) -> str:
        """What a run of this plan is called, and its folder."""
        return f"{self.word}-seed-{self.seed}"

    def _require(self, name: str, fits: Callable[[Any], bool], expected: str) -> None:
        value = getattr(self, name)
        if not fits(value):
            raise PlanError(name, value, expected)

    def _require_at_least(self, least: int, *names: str) -> None:
        for name in names:
            self._require(name, lambda count: count >= least, f"{least} or more")

    def _require_part(self, name: str) -> None:
        self._require(name, lambda part: 0 <= part < 1, "at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True)
class AutoencoderPlan(Plan):
    """An autoencoder on images or on rows of numbers.

    Example:
        >>> AutoencoderPlan(denoise=0.3).sizes
        ()
        >>> AutoencoderPlan(sizes=(0,))
        Traceback (most recent call last):
        tied.study.train.PlanError: --sizes must be positive integers, such as 128,16, not 0
    """

    kind: ClassVar[str] = "autoencoder"

    data: str = option(DIGITS, "digits; a folder of images; an .npy or .npz; a .csv or .parquet of numbers.")
    sizes: tuple[int, ...] = option((), "Widths of the hidden layers and of the code [128,16]; channels with --conv.")
    conv: bool = option(False, "Convolutions of stride 2 instead of dense layers.")
    denoise: float = option(0.0, "Part of the inputs that is set to zero in training.")
    loops: int = option(0, "Times that one more block, always the same, is run behind the encoder.")
    epochs: int = option(200, "Passes over the training part.")

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        super().__post_init__()
        if not all(type(size) is int and size >= 1 for size in self.sizes):
            raise PlanError("sizes", ",".join(map(str, self.sizes)), "positive integers, such as 128,16")
        self._require_part("denoise")
        self._require_at_least(0, "loops")

    @property
    def widths(self) -> tuple[int, ...]:
        """The sizes, or the default ones where none are given."""
        return self.sizes or (CONV_SIZES if self.conv else DENSE_SIZES)


@dataclass(frozen=True, kw_only=True)
class LanguagePlan(Plan):
    """A small language model on a text."""

    kind: ClassVar[str] = "lm"

    data: str = option(
        PYDOC, "pydoc (Python's own help texts), shakespeare (three tragedies), or a text file in UTF-8."
    )
    tokens: str = option("words", "words or characters.")
    network: str = option("lstm", "lstm or transformer.")
    width: int = option(128, "Width of the embedding and of every layer.")
    layers: int = option(1, "How many layers.")
    loops: int = option(0, "Times that one transformer block, always the same, is run; instead of --layers.")
    dropout: float = option(0.3, "Part of the activations that is dropped in training.")
    context: int = option(64, "Tokens that the model sees at a time.")
    epochs: int = option(6, "Passes over the training part.")
    lr: float = option(0.004, "Learning rate of AdamW.")
    batch_size: int = option(16, "Windows of text per step, over all processes together.")

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        super().__post_init__()
        for name, known in (("tokens", TOKENS), ("network", NETWORKS)):
            self._require(name, known.__contains__, " or ".join(known))
        self._require_at_least(1, "width", "layers", "context")
        self._require_at_least(0, "loops")
        self._require_part("dropout")
        if self.loops and self.network != "transformer":
            raise PlanError("loops", self.loops, "0 with --network lstm")
