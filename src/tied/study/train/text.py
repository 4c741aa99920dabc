"""A text as numbers of tokens, with its vocabulary.

Owns: reading, tokens, and the split into windows. Must not know models. Read next: `language.py`.
"""

from __future__ import annotations

import importlib
import lzma
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from tied.study.train.errors import DataError
from tied.study.train.plan import PYDOC, SHAKESPEARE
from tied.study.train.reading import unreadable

UNKNOWN = "<unk>"
TRAINING_PART = 0.85
RAREST = 3
"""A word that comes less often in the training part is unknown."""
FEWEST_WINDOWS = 10
WORDS = re.compile(r"\n+|\w+|[^\w\s]")
TIGHT = re.compile(r" ?(\n) ?| (?=[)\]},.;:!?])|(?<=[(\[{]) ")


@dataclass(frozen=True)
class Corpus:
    """A text, cut into a first part to train on and the rest, which is held out.

    Shapes:
        training, held_out: `(tokens,)`, numbers of the vocabulary.

    Attributes:
        vocabulary: The token of each number; the last is the unknown one, if there is any.
        kind: `words` or `characters`.
        source: Where the text is from.
    """

    training: torch.Tensor
    held_out: torch.Tensor
    vocabulary: tuple[str, ...]
    kind: str
    source: str

    @property
    def unknown_part(self) -> float:
        """The part of the held-out tokens that are not in the vocabulary."""
        if self.vocabulary[-1] != UNKNOWN:
            return 0.0
        return float((self.held_out == len(self.vocabulary) - 1).double().mean())

    def text(self, numbers: Sequence[int]) -> str:
        """Write tokens as text again, with spaces where they most likely were."""
        tokens = [self.vocabulary[number] for number in numbers]
        return "".join(tokens) if self.kind == "characters" else TIGHT.sub(r"\1", " ".join(tokens))


def windows(tokens: torch.Tensor, context: int) -> torch.Tensor:
    """Cut tokens `(tokens,)` into rows `(windows, context + 1)`; the last token of a row begins the next one.

    Example:
        >>> windows(torch.arange(6), 2).tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    return tokens.unfold(0, context + 1, context)


def read_corpus(data: str, *, kind: str, context: int) -> Corpus:
    """Read a text and number its tokens.

    Args:
        data: `"pydoc"`, `"shakespeare"` or a path; a file of such a name comes first.
        kind: `"words"` (words, punctuation marks, line breaks) or `"characters"`.
        context: Tokens in a window; both parts must have some windows.

    Raises:
        DataError: the file is missing, no UTF-8, or too short.

    Example:
        >>> corpus = read_corpus("pydoc", kind="words", context=64)
        >>> corpus.text(corpus.training[-4:].tolist()).isprintable()
        True
    """
    text, source = _text(data)
    tokens: Sequence[str] = WORDS.findall(text) if kind == "words" else text
    boundary = int(len(tokens) * TRAINING_PART)
    _long_enough(tokens, source, kind=kind, context=context)
    vocabulary = _vocabulary(tokens[:boundary], tokens, 1 if kind == "characters" else RAREST)
    known = {token: number for number, token in enumerate(vocabulary)}
    numbers = torch.tensor([known.get(token, len(vocabulary) - 1) for token in tokens])
    return Corpus(numbers[:boundary], numbers[boundary:], vocabulary, kind, source)


def _vocabulary(training: Sequence[str], tokens: Sequence[str], rarest: int) -> tuple[str, ...]:
    """List the tokens that are common in the training part, most common first; others are unknown."""
    counts = Counter(training)
    known = sorted((token for token, count in counts.items() if count >= rarest), key=lambda t: (-counts[t], t))
    return (*known, UNKNOWN) if set(tokens) - set(known) else tuple(known)


def _text(data: str) -> tuple[str, str]:
    path = Path(data)
    if data == PYDOC and not path.exists():
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
        return "\n\n".join(topics[name] for name in sorted(topics)), "pydoc_data.topics of Python's standard library"
    if data == SHAKESPEARE and not path.exists():
        packed = (resources.files("tied.study") / "data" / "shakespeare.txt.xz").read_bytes()
        return lzma.decompress(packed).decode(), "Hamlet, Macbeth, and Romeo and Juliet"
    try:
        return path.read_text(encoding="utf-8-sig"), str(path)
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in UTF-8.",
            found=str(error),
            expected="a text file in UTF-8",
            fix=f"iconv -f LATIN1 -t UTF-8 {path.name} > text.txt",
        ) from None


def _long_enough(tokens: Sequence[str], source: str, *, kind: str, context: int) -> None:
    needed = int(FEWEST_WINDOWS * (context + 1) / (1 - TRAINING_PART)) + 1
    if len(tokens) < needed:
        raise DataError(
            f"{source} is too short to train on and to hold out.",
            found=f"{len(tokens)} {kind}",
            expected=f"at least {needed}, for windows of {context}",
            fix="take a longer text, or a smaller --context",
        )
