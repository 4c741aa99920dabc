"""Reading a tied weight costs no more than writing the tie by hand.

A decoder whose weight is its encoder's, transposed, is called on 16 rows: once made by `tied.tie`, once
written by hand, once with `torch.nn.utils.parametrize`, and once not tied at all, as what any tie is up
against. All four compute the same values, which is checked before anything is timed.

    python benchmarks/read.py --json benchmarks/results/read.json
"""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from ratio import Ratio, Report, json_path, measure
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import tied

ROWS = 16
WIDTHS = (8, 256, 1024)


class AutoEncoder(nn.Module):
    """Two layers of inverse shapes; `d` is the width of the code."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(2 * d, d)
        self.decoder: nn.Module = nn.Linear(d, 2 * d)

    def forward(self, code: Tensor) -> Tensor:
        return self.decoder(code)


class HandWritten(nn.Module):
    """The decoder that people write themselves."""

    def __init__(self, encoder: nn.Linear, bias: nn.Parameter) -> None:
        super().__init__()
        self.encoder, self.bias = encoder, bias

    def forward(self, code: Tensor) -> Tensor:
        return functional.linear(code, self.encoder.weight.t(), self.bias)


class EncoderTransposed(nn.Module):
    """A parametrization that ignores the weight it is given."""

    def __init__(self, encoder: nn.Linear) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, weight: Tensor) -> Tensor:
        return self.encoder.weight.t()


def with_tied(model: AutoEncoder) -> None:
    tied.tie(model, "decoder.weight", "encoder.weight.T")


def by_hand(model: AutoEncoder) -> None:
    model.decoder = HandWritten(model.encoder, model.decoder.bias)


def with_parametrize(model: AutoEncoder) -> None:
    parametrize.register_parametrization(model.decoder, "weight", EncoderTransposed(model.encoder))


def untied(model: AutoEncoder) -> None:
    with torch.no_grad():
        model.decoder.weight.copy_(model.encoder.weight.T)


WAYS = {"tied": with_tied, "by hand": by_hand, "parametrize": with_parametrize, "untied": untied}


def build(way: Callable[[AutoEncoder], None], d: int) -> AutoEncoder:
    torch.manual_seed(0)
    model = AutoEncoder(d)
    way(model)
    return model


def forward(call: Callable[[], Tensor], model: AutoEncoder) -> Callable[[], object]:
    return call


def forward_and_backward(call: Callable[[], Tensor], model: AutoEncoder) -> Callable[[], object]:
    """All gradients of the model start empty, those of a source outside the decoder included."""
    parameters = list(model.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        call().sum().backward()

    return step


def eager(module: nn.Module) -> nn.Module:
    return module


def compiled(module: nn.Module) -> nn.Module:
    """Compile in one graph: `fullgraph` raises at a graph break."""
    return torch.compile(module, fullgraph=True, dynamic=False)


def compiler_is_missing() -> str:
    """Return why nothing compiles here (no C++ compiler, a path with spaces), or "" where it does."""
    try:
        compiled(nn.Linear(2, 2))(torch.rand(1, 2)).sum().backward()
    except torch._dynamo.exc.TorchDynamoException as error:
        return str(error).splitlines()[0]
    return ""


MODES = {"eager": eager, "compiled": compiled}
STEPS = {"forward": forward, "forward + backward": forward_and_backward}


def measure_width(d: int, mode: str) -> Iterator[tuple[str, dict[str, Ratio]]]:
    """Yield each case of one width with its ratios."""
    torch._dynamo.reset()
    models = {name: build(way, d) for name, way in WAYS.items()}
    x = torch.rand(ROWS, d)
    calls = {name: partial(MODES[mode](model.decoder), x) for name, model in models.items()}
    for call in calls.values():
        torch.testing.assert_close(call(), calls["by hand"]())
    for name, step in STEPS.items():
        steps = {way: step(call, models[way]) for way, call in calls.items()}
        yield f"d={d}, {mode}, {name}", measure(steps, base="by hand")


def graph_breaks() -> int:
    torch._dynamo.reset()
    model = build(with_tied, 8)
    return torch._dynamo.explain(model.decoder)(torch.rand(ROWS, 8)).graph_break_count


def main() -> None:
    """Measure all widths, eager and compiled, forward alone and with backward."""
    path = json_path(__doc__)
    report = Report(f"Time of decoder(x), {ROWS} rows, divided by the hand-written decoder's")
    if missing := compiler_is_missing():
        report.note(f"compiled: not measured, torch cannot compile here: {missing}")
    for d, mode in itertools.product(WIDTHS, ["eager"] if missing else MODES):
        for case, ratios in measure_width(d, mode):
            report.add(case, ratios)
    smallest = report.ratio("d=8, eager, forward", "tied")
    report.budget("tied / by hand, d=8, eager, forward", found=smallest, at_most=1.0)
    report.budget("graph breaks of the tied decoder", found=graph_breaks(), at_most=0)
    report.write(path)


if __name__ == "__main__":
    main()
