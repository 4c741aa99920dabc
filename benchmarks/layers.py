"""What a layer that shares costs beside the same computation written by hand.

Forward and backward, after a check that both give the same values. A loop of `tied.nn.Looped` is compared with
one block called again and again; grouped projections with the full matrix that they stand for; a transposed
convolution with torch's own function; RevIN with the authors' formula, written out; an unrolled cell with torch's
fused network, which it cannot reach; an update of `EMA` with torch's `AveragedModel`.

    python benchmarks/layers.py --json benchmarks/results/layers.json
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from ratio import Report, json_path, measure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tied import nn as tnn

Ways = dict[str, Callable[[], object]]


def steps(calls: dict[str, Callable[[], Tensor]], modules: list[nn.Module]) -> Ways:
    """Check that all calls agree, then make each a forward and a backward on empty gradients."""
    values = [call().detach() for call in calls.values()]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-4, atol=1e-4)
    parameters = [parameter for module in modules for parameter in module.parameters()]

    def step(call: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> None:
            for parameter in parameters:
                parameter.grad = None
            call().sum().backward()

        return run

    return {name: step(call) for name, call in calls.items()}


def again(block: nn.Module, x: Tensor) -> Tensor:
    for _ in range(12):
        x = block(x)
    return x


def loops() -> Iterator[tuple[str, Ways]]:
    for width in (32, 256):
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        x = torch.randn(4, 32, width)
        for rank in (0, 4):
            looped = tnn.Looped(block, 12, rank=rank)
            calls = {"tied": partial(looped, x), "by hand": partial(again, block, x)}
            yield f"Looped 12 times, rank {rank}, d={width}", steps(calls, [looped])


def grouped() -> Iterator[tuple[str, Ways]]:
    for rows in (16, 1024):
        layer = tnn.GroupedLinear(512, (8, 64), groups=2)
        full, x = nn.Linear(512, 512), torch.randn(rows, 512)
        full.load_state_dict({"weight": layer.weight.detach().clone(), "bias": layer.bias.detach().clone()})
        calls = {"tied": partial(layer, x), "by hand": partial(full, x)}
        yield f"GroupedLinear 8 / 2, {rows} rows", steps(calls, [layer, full])


def transposed(conv: nn.Conv2d, bias: Tensor, y: Tensor) -> Tensor:
    if conv.padding_mode == "zeros":
        return F.conv_transpose2d(y, conv.weight, bias, padding=1)
    return F.conv_transpose2d(F.pad(y, (1, 1, 1, 1), mode="circular"), conv.weight, bias, padding=2)


def convolutions() -> Iterator[tuple[str, Ways]]:
    for mode in ("zeros", "circular"):
        conv = nn.Conv2d(16, 32, 3, padding=1, padding_mode=mode)
        layer, y = tnn.TiedConvTranspose2d(conv), torch.randn(8, 32, 32, 32)
        assert layer.bias is not None
        calls = {"tied": partial(layer, y), "by hand": partial(transposed, conv, layer.bias, y)}
        yield f"TiedConvTranspose2d {mode}", steps(calls, [conv, layer])


def there_and_back(revin: tnn.RevIN, x: Tensor) -> Tensor:
    return revin.denormalize(*revin.normalize(x))


def as_published(revin: tnn.RevIN, x: Tensor) -> Tensor:
    """The authors' formula, with the gain of `revin` and without a guard."""
    mean = x.mean(1, keepdim=True).detach()
    deviation = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-12).detach()
    gain = revin.get_parameter("log_weight").exp()
    normal = (x - mean) / deviation * gain + revin.bias
    return (normal - revin.bias) / gain * deviation + mean


def statistics() -> Iterator[tuple[str, Ways]]:
    for batch in (1, 128):
        revin, x = tnn.RevIN(7), torch.randn(batch, 336, 7)
        calls = {"tied": partial(there_and_back, revin, x), "by hand": partial(as_published, revin, x)}
        yield f"RevIN, {batch} × 336 × 7", steps(calls, [revin])


def unrolled() -> Iterator[tuple[str, Ways]]:
    plain, x = nn.GRU(64, 64), torch.randn(50, 16, 64)
    layer = tnn.Unrolled(nn.GRUCell(64, 64))
    layer.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in plain.state_dict().items()})
    calls = {"tied": lambda: layer(x)[0], "by hand": lambda: plain(x)[0]}
    yield "Unrolled GRUCell, 50 moments", steps(calls, [layer, plain])


def averages() -> Iterator[tuple[str, Ways]]:
    for width in (16, 256):
        model = nn.Sequential(*[nn.TransformerEncoderLayer(width, 4, 4 * width) for _ in range(6)])
        teacher = tnn.EMA(model, 0.999, debias=False)
        peer = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        ways = {
            "tied": partial(teacher.update, model),
            "by hand": partial(peer.update_parameters, model),
        }
        yield f"EMA.update, 72 tensors, d={width}", ways


def main() -> None:
    """Measure all layers."""
    path = json_path(__doc__)
    torch.manual_seed(0)
    report = Report("Time of forward and backward, divided by that of the same by hand")
    for source in (loops, grouped, convolutions, statistics, unrolled, averages):
        for case, ways in source():
            report.add(case, measure(ways, base="by hand"))
    report.write(path)


if __name__ == "__main__":
    main()
