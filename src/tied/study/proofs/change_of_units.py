"""Statistics shared by both ends of a forecast: change the units of a series, and the forecast changes alike.

Owns: one proof. The oracle is arithmetic: the forecast of a·x + b must be a·forecast + b.
Read next: `initial_loss.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from tied.nn import RevIN
from tied.study.proofs.operators import EXACT, drawn
from tied.study.proofs.proof import Control, Measurement, at_most

SERIES, MOMENTS, AHEAD, FEATURES = 8, 48, 12, 3
GAIN, OFFSET = 1e-3, 20.0
Forecast = Callable[[torch.Tensor], torch.Tensor]


class Forecaster(nn.Module):
    """A small network between `normalize` and `denormalize`, with gains and biases away from 1 and 0."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.there, self.other = (self._scale() for _ in range(2))
            self.hidden, self.ahead = nn.Linear(MOMENTS, 16), nn.Linear(16, AHEAD)
        self.double()

    def _scale(self) -> RevIN:
        scale = RevIN(FEATURES)
        for parameter in scale.parameters():
            nn.init.normal_(parameter, std=0.5)
        return scale

    def network(self, series: torch.Tensor) -> torch.Tensor:
        """Map `(series, moments, features)` to `(series, ahead, features)`; it knows nothing of units."""
        return self.ahead(self.hidden(series.mT).tanh()).mT

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Forecast in the units of the series."""
        normal, statistics = self.there.normalize(series)
        return self.there.denormalize(self.network(normal), statistics)


def _unit_error(forecast: Forecast) -> float:
    """Return how far the forecast of a·x + b is from a·forecast + b, relative to a·forecast."""
    series = drawn(SERIES, MOMENTS, FEATURES).cumsum(1)
    with torch.no_grad():
        plain, changed = forecast(series), forecast(GAIN * series + OFFSET)
    return float((changed - (GAIN * plain + OFFSET)).abs().max() / (GAIN * plain).abs().max())


def _return_error(there: RevIN, back: RevIN) -> float:
    """Return how far a series is from itself after there and back."""
    series = drawn(SERIES, MOMENTS, FEATURES).cumsum(1)
    with torch.no_grad():
        normal, statistics = there.normalize(series)
        return float((back.denormalize(normal, statistics) - series).abs().max() / series.abs().max())


def forecasts_change_with_their_units() -> Iterator[Measurement]:
    """Change the units of a series, with and without shared statistics; go there and back, with one gain and two."""
    model = Forecaster()
    yield Measurement(
        "forecast of a·x + b = a·forecast of x + b, with RevIN",
        _unit_error(model),
        at_most(1e-9),
        Control("the network without RevIN", _unit_error(model.network)),
        note=f"a = {GAIN:g}, b = {OFFSET:g}; adding b rounds the series itself, so the band is not 1e-12.",
    )
    yield Measurement(
        "denormalize(normalize(x)) = x",
        _return_error(model.there, model.there),
        at_most(EXACT),
        Control("gain and bias of their own on the way back", _return_error(model.there, model.other)),
    )
