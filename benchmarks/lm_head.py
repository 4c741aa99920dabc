"""The loss of a tied language model, without ever holding all scores.

Embedding, projection to all words with the same table, cross-entropy, and the gradient of the table: plainly, with
torch's own `F.linear_cross_entropy` in chunks of 256 tokens (where torch has it), and with `tied.nn.TiedEmbedding`. The
floor is the three matrix products alone, in the same chunks of tokens and blocks of words, by each of the two
libraries that torch brings along. Gradients are compared before anything is timed. Memory is counted by `memory.py`;
the gradient of the table does not exist before a step.

The time depends on the processor: `torch.mm` is MKL, which is slow on processors of AMD, so that `tied.nn.products`
takes oneDNN there. Elsewhere all ways multiply by `mm`: `TiedEmbedding by mm` shows what is gained then.

    python benchmarks/lm_head.py --json benchmarks/results/lm_head.json
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from memory import peak_megabytes
from ratio import Ratio, Report, compare, json_path, quiet, rotated, seconds_per_call
from torch import Tensor, nn
from torch.nn import functional

from tied.nn import TiedEmbedding, products
from tied.nn.cross_entropy import WORDS_AT_ONCE

WORDS, WIDTH, CHUNK = 50_000, 512, 256
TIMED, ROUNDS, TOKENS = 1024, 5, (1024, 4096, 8192)
Step = Callable[[], Any]
Way = Callable[[TiedEmbedding, Tensor, Tensor], None]


def naive(emb: TiedEmbedding, tokens: Tensor, targets: Tensor) -> None:
    hidden = functional.embedding(tokens, emb.weight)
    functional.cross_entropy(functional.linear(hidden, emb.weight), targets).backward()


def torchs(emb: TiedEmbedding, tokens: Tensor, targets: Tensor) -> None:
    hidden = functional.embedding(tokens, emb.weight)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    functional.linear_cross_entropy(hidden, emb.weight, targets, options=options).backward()


def ours(emb: TiedEmbedding, tokens: Tensor, targets: Tensor) -> None:
    emb.loss(emb(tokens), targets).backward()


@torch.no_grad()
def floor(emb: TiedEmbedding, tokens: Tensor, targets: Tensor) -> None:
    """The floor: scores, and their products with table and hidden states."""
    gradient = torch.zeros_like(emb.weight)
    for chunk in emb.weight[tokens].split(CHUNK):
        toward = torch.zeros_like(chunk)
        for rows, into in zip(emb.weight.split(WORDS_AT_ONCE), gradient.split(WORDS_AT_ONCE), strict=True):
            scores = products.product(chunk, rows.t())
            toward += products.product(scores, rows)
            into += products.product(scores.t(), chunk)


def by(library: str, way: Way) -> Way:
    """Force a library for all products of a way."""

    def forced(emb: TiedEmbedding, tokens: Tensor, targets: Tensor) -> None:
        before, products.LIBRARY = products.LIBRARY, library
        way(emb, tokens, targets)
        products.LIBRARY = before

    return forced


WAYS: dict[str, Way] = {
    "naive": naive,
    "torch's": torchs,
    "TiedEmbedding": ours,
    "TiedEmbedding by mm": by("mm", ours),
    "products by mm": by("mm", floor),
    "products by oneDNN": by("onednn", floor),
}
FLOORS = ("products by mm", "products by oneDNN")
if not hasattr(functional, "linear_cross_entropy"):
    del WAYS["torch's"]


def build(tokens: int) -> tuple[TiedEmbedding, dict[str, Step]]:
    """Return an embedding, and a step of it in each way."""
    torch.manual_seed(0)
    emb = TiedEmbedding(WORDS, WIDTH)
    text = torch.randint(0, WORDS, (2, tokens))

    def step(way: Way) -> None:
        emb.weight.grad = None
        way(emb, *text)

    return emb, {name: partial(step, way) for name, way in WAYS.items()}


def check(emb: TiedEmbedding, steps: dict[str, Step]) -> None:
    """Compare the gradients of all ways with the naive one."""
    found: dict[str, Tensor] = {}
    for name, step in steps.items():
        step()
        if name not in FLOORS:
            found[name] = emb.weight.grad.clone()  # type: ignore[union-attr]
    for gradient in found.values():
        torch.testing.assert_close(gradient, found["naive"], rtol=1e-4, atol=1e-6)


def measure_few(steps: dict[str, Step]) -> dict[str, Ratio]:
    """Compare steps of seconds with the naive one: as `ratio.measure` does, without calls to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with quiet():
        for number in range(ROUNDS):
            for name in rotated(list(steps), number):
                seconds[name].append(seconds_per_call(steps[name], 1))
    return {name: compare(times, seconds["naive"]) for name, times in seconds.items()}


def peak(emb: TiedEmbedding, step: Step) -> float:
    emb.weight.grad = None
    return peak_megabytes(step)


def main() -> None:
    """Measure time once, and memory for all numbers of tokens."""
    path = json_path(__doc__)
    torch.set_num_threads(1)
    report = Report(f"Loss and gradient of {WORDS} words of width {WIDTH}, divided by the naive way's time")
    emb, steps = build(TIMED)
    check(emb, steps)
    case = f"{TIMED} tokens"
    report.add(case, measure_few(steps))
    table: dict[int, dict[str, float]] = {}
    for tokens in TOKENS:
        emb, steps = build(tokens)
        kept = ["TiedEmbedding"] if tokens > 4096 else [name for name in steps if name not in FLOORS]
        table[tokens] = {name: peak(emb, steps[name]) for name in kept}
        row = ", ".join(f"{name} {size:.0f}" for name, size in table[tokens].items())
        report.note(f"peak memory in MB, {tokens} tokens (the table has 98): {row}")
    report.budget(f"time, {case}", found=report.ratio(case, "TiedEmbedding"), at_most=0.7)
    report.budget(
        f"time / floor, {case}",
        found=report.ratio(case, "TiedEmbedding") / min(report.ratio(case, name) for name in FLOORS),
        at_most=1.2,
    )
    share = table[4096]["TiedEmbedding"] / table[4096]["naive"]
    report.budget("peak memory / naive, 4096 tokens", found=share, at_most=1 / 8)
    hidden = 2 * (TOKENS[-1] - TOKENS[0]) * WIDTH * 4 / 2**20
    growth = table[TOKENS[-1]]["TiedEmbedding"] - table[TOKENS[0]]["TiedEmbedding"] - hidden
    report.budget(
        f"MB that peak memory grows by from {TOKENS[0]} to {TOKENS[-1]} tokens, "
        f"beside the {hidden:.0f} of hidden states and their gradient",
        found=growth,
        at_most=5,
    )
    report.write(path)


if __name__ == "__main__":
    main()
