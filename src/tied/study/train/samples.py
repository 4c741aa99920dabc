"""Images or rows of numbers, ready to be trained on.

Owns: the value, its checks, its scale and its split. Must not open files. Read next: `reading.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tied.study.train.errors import DataError

FEWEST = 10
TRAINING_PART = 0.8


@dataclass(frozen=True)
class Samples:
    """Images or rows of numbers, as they are in the file.

    Shapes:
        values: `(count, channels, height, width)` for images, `(count, columns)` for rows.
        labels: `(count,)`, small integers; empty where there are none.

    Attributes:
        values: In float32, finite.
        labels: Numbers of the names.
        names: What each label is called.
        source: Where they are from, for messages and reports.
    """

    values: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...]
    source: str

    @classmethod
    def of(
        cls, values: np.ndarray, labels: Sequence[object] | np.ndarray = (), *, source: str = "the array"
    ) -> Samples:
        """Take an array: images `(count, height, width[, channels])` or rows `(count, columns)`.

        Four axes are images with the channels last, or first where only the second axis can be channels.

        Args:
            values: Integers, floats or booleans.
            labels: One for each sample, of any type with a text; or none.
            source: What messages call it.

        Raises:
            DataError: too few samples, another number of axes, a value that is no finite number, samples that
                are all the same, or labels of another number.
        """
        array = _numbers(np.asarray(values), source)
        if array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
            raise _shape_error(array, source)
        if len(array) < FEWEST:
            raise _few(len(array), source)
        if array.ndim > 2:
            array = _channels_first(array)
        _finite(array, source)
        tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        if bool((tensor == tensor[0]).all()):
            raise DataError(
                f"{source}: all samples are the same.",
                found=f"{len(tensor)} equal samples",
                expected="samples that differ",
                fix="check how the data was written",
            )
        return cls(tensor, *_numbered(labels, len(tensor), source), source)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.values)

    @property
    def are_images(self) -> bool:
        """Whether a sample has height and width."""
        return self.values.ndim == 4

    def take(self, indices: torch.Tensor) -> Samples:
        """Return the samples at `indices`, in that order."""
        labels = self.labels[indices] if len(self.labels) else self.labels
        return replace(self, values=self.values[indices], labels=labels)

    def split(self, seed: int) -> tuple[Samples, Samples]:
        """Split at random into four fifths to train on and one fifth held out."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        boundary = int(len(self) * TRAINING_PART)
        return self.take(order[:boundary]), self.take(order[boundary:])

    def scaled_by(self, training: Samples) -> Samples:
        """Return the samples on the scale of the training part.

        Images: the darkest value there is 0, the brightest 1. Rows: each column has mean 0 and variance 1
        there; a constant column becomes zero.
        """
        known = training.values
        if self.are_images:
            low, high = known.min(), known.max()
            return replace(self, values=(self.values - low) / (high - low).clamp_min(torch.finfo(known.dtype).tiny))
        deviation, mean = torch.std_mean(known.double(), dim=0, correction=0)
        still = deviation <= 1e-6 * known.double().abs().amax(0)
        values = (self.values - mean) / deviation.masked_fill(still, 1)
        return replace(self, values=values.masked_fill(still, 0).float())


def _numbers(array: np.ndarray, source: str) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{source} does not hold numbers.",
            found=f"dtype {array.dtype}",
            expected="integers, floats or booleans",
            fix="array.astype('float32'), if the values are numbers",
        )
    return array


def _shape_error(array: np.ndarray, source: str) -> DataError:
    return DataError(
        f"{source} holds neither images nor rows.",
        found=f"shape {array.shape}",
        expected="images (count, height, width[, channels]) or rows (count, columns)",
        fix="array.reshape(count, columns)",
    )


def _few(count: int, source: str) -> DataError:
    return DataError(
        f"{source} holds too few samples to train on and to hold out.",
        found=f"{count} sample{'' if count == 1 else 's'}",
        expected=f"at least {FEWEST}; hundreds are better",
        fix="add samples",
    )


def _channels_first(array: np.ndarray) -> np.ndarray:
    """Return images as `(count, channels, height, width)`."""
    if array.ndim == 3:
        return array[:, None]
    last = array.shape[3] in (1, 2, 3, 4) or array.shape[1] not in (1, 2, 3, 4)
    return np.moveaxis(array, 3, 1) if last else array


def _finite(array: np.ndarray, source: str) -> None:
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(array.astype(np.float32, copy=False))
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise DataError(
            f"{source} holds values that are no finite numbers in float32.",
            found=f"{int(wrong.sum())} of {wrong.size}, the first in sample {first[0]} at {first[1:]}: {array[first]}",
            expected="finite numbers",
            fix="drop those samples, or fill the gaps",
        )


def _numbered(labels: Sequence[object] | np.ndarray, count: int, source: str) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Number the labels in the order of their names: numbers by size, others by the alphabet."""
    if len(labels) not in (0, count):
        raise DataError(
            f"{source}: there is not one label for each sample.",
            found=f"{len(labels)} labels for {count} samples",
            expected="as many labels as samples, or none",
            fix="check how labels and samples were written",
        )
    if len(labels) == 0:
        return torch.empty(0, dtype=torch.long), ()
    known, numbers = np.unique(np.asarray(labels), return_inverse=True)
    return torch.from_numpy(numbers.reshape(-1)).long(), tuple(str(name) for name in known)
