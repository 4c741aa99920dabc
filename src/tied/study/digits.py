"""The real handwritten digits that every study runs on.

Owns: reading the shipped file and splitting it. Must not train anything. Read next: `recipes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch

CREDIT = (
    "E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, "
    "UCI Machine Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0, via scikit-learn"
)
BRIGHTEST = 16


@dataclass(frozen=True)
class Digits:
    """Images with their labels.

    Shapes:
        images: `(count, 64)`, brightness 0..1, row by row.
        labels: `(count,)`, integers 0..9.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def take(self, indices: torch.Tensor) -> Digits:
        """Return the images at `indices`, in that order."""
        return Digits(self.images[indices], self.labels[indices])


def raw() -> tuple[np.ndarray, np.ndarray]:
    """Read the shipped file as it is.

    Returns:
        Images `(1797, 8, 8)` of integers 0..16 and labels `(1797,)` of integers 0..9, both uint8.

    Source:
        `data/LICENSE.txt` beside the file names the authors and the license.
    """
    file = resources.files("tied.study") / "data" / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def load(dtype: torch.dtype = torch.float32) -> Digits:
    """Read all 1797 digits.

    Example:
        >>> len(load())
        1797
    """
    images, labels = raw()
    pixels = torch.from_numpy(images.reshape(len(images), -1)).to(dtype) / BRIGHTEST
    return Digits(pixels, torch.from_numpy(labels).long())


def split(digits: Digits, seed: int) -> tuple[Digits, Digits]:
    """Split at random into two thirds to train on and one third held out.

    Returns:
        The training part (1198 of 1797 images) and the held-out part (599).
    """
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    boundary = len(digits) * 2 // 3
    return digits.take(order[:boundary]), digits.take(order[boundary:])
