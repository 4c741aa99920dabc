"""Whether hashing is worth it: handwritten digits, hashed networks beside small dense ones with as many weights.

64-300-10 networks whose weights are hashed to a part of their number, against dense networks with fewer hidden
units. Half of the digits train, half judge; 40 epochs of Adam; of the learning rates 0.001 and 0.01 the better one
on the judging half counts, for both. Biases are not counted. Three seeds.

    python benchmarks/hashed.py --json benchmarks/results/hashed.json
"""

import json
import statistics
from collections.abc import Callable

import torch
from ratio import json_path
from torch import nn

from tied.nn import HashedLinear
from tied.study.digits import Digits, load

HIDDEN, EPOCHS, SEEDS, RATES = 300, 40, 3, (0.001, 0.01)
WEIGHTS = HIDDEN * (64 + 10)


def hashed(part: int) -> nn.Module:
    there = HashedLinear(64, HIDDEN, max(1, HIDDEN * 64 // part), seed=1)
    back = HashedLinear(HIDDEN, 10, max(1, HIDDEN * 10 // part), seed=2)
    return nn.Sequential(there, nn.ReLU(), back)


def dense(part: int) -> nn.Module:
    hidden = max(1, round(WEIGHTS / part / (64 + 10)))
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def error(model: nn.Module, train: Digits, test: Digits, rate: float) -> float:
    """Train, and return how many of a hundred held-out digits are misread."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(train.images[batch]), train.labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        wrong = model(test.images).argmax(1) != test.labels
    return 100 * wrong.double().mean().item()


def errors(make: Callable[[int], nn.Module], part: int) -> list[float]:
    """Return the errors of all seeds at the better learning rate."""
    digits, found = load(), {}
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    halves = [digits.take(half) for half in order.chunk(2)]
    for rate in RATES:
        found[rate] = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            found[rate].append(error(make(part), *halves, rate))
    return min(found.values(), key=statistics.mean)


def main() -> None:
    """Print the table."""
    path, rows = json_path(__doc__), []
    torch.set_num_threads(1)
    print(f"{'weights':>10}{'hashed':>16}{'dense':>16}   misread of 100")
    for part in (1, 8, 32, 64, 128):
        found = {make.__name__: errors(make, part) for make in (hashed, dense)}
        shown = "".join(f"{statistics.mean(e):9.1f} ±{statistics.stdev(e):4.1f} " for e in found.values())
        print(f"{f'1 / {part}':>10}{shown}", flush=True)
        rows.append({"part": part, **found})
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": rows, "torch": torch.__version__}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
