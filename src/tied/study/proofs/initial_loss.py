"""One matrix for embedding and head must start small, or the first loss is many times ln V.

Owns: one proof. The oracle is ln V, the loss of a model that knows nothing. Read next: `proof.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from tied.nn import TiedEmbedding
from tied.study.proofs.operators import drawn, seeded
from tied.study.proofs.proof import Band, Control, Measurement

WORDS, WIDTH, TOKENS = 5000, 128, 512


def _first_loss(weight: torch.Tensor) -> float:
    """Return the cross-entropy of random tokens, for hidden states of unit variance and this head."""
    hidden = drawn(TOKENS, WIDTH, seed=1)
    targets = torch.randint(WORDS, (TOKENS,), generator=seeded(2))
    return float(F.cross_entropy(hidden @ weight.detach().double().T, targets))


def first_loss_is_that_of_a_guess() -> Iterator[Measurement]:
    """Compare the first loss with ln V, for our start and for the one that `nn.Embedding` has."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, torchs = TiedEmbedding(WORDS, WIDTH), nn.Embedding(WORDS, WIDTH)
    ours, theirs = _first_loss(ours.weight), _first_loss(torchs.weight)
    yield Measurement(
        "first loss of a tied head, less ln V",
        ours - math.log(WORDS),
        Band(0, 1),
        Control("the start of nn.Embedding, N(0, 1)", theirs - math.log(WORDS)),
        note=f"V = {WORDS}, ln V = {math.log(WORDS):.2f}: {ours:.2f} instead of {theirs:.1f}.",
    )
