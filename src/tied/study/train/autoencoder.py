"""Autoencoders for images and for rows of numbers, tied or not, and how they are trained.

Owns: the model and its task. Must not read files or step. Read next: `loop.py`.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from tied.binding import tie, tie_layers
from tied.nn import TiedAutoencoder
from tied.study.train.plan import AutoencoderPlan
from tied.study.train.samples import Samples

KERNEL, STRIDE, PADDING = 3, 2, 1
MOST_FEATURES_FOR_PCA = 4096


class Residual(nn.Module):
    """`x + gelu(layer(x))`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the layer makes of `x` to it; the shape stays."""
        return x + nn.functional.gelu(self.layer(x))


class ConvAutoencoder(nn.Module):
    """Convolutions of stride 2, and transposed convolutions back, with the same weights if tied.

    Law: tied, `decoder layer l .weight == encoder layer (n - 1 - l) .weight`, the adjoint operator, exact.

    Shapes:
        images: `(count, channels, height, width)`, of any height and width.
    """

    def __init__(self, shape: tuple[int, ...], channels: tuple[int, ...], *, tie_weights: bool) -> None:
        super().__init__()
        sizes = [(shape[1], shape[2])]
        for _ in channels:
            height, width = sizes[-1]
            sizes.append(((height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1))
        planes = list(pairwise((shape[0], *channels)))
        self.encoder = nn.Sequential()
        for wide, narrow in planes:
            self.encoder.extend([nn.Conv2d(wide, narrow, KERNEL, STRIDE, PADDING), nn.GELU()])
        self.decoder = nn.Sequential()
        for (wide, narrow), (height, width) in zip(reversed(planes), reversed(sizes[:-1]), strict=True):
            rest = ((height - 1) % STRIDE, (width - 1) % STRIDE)
            self.decoder.extend([nn.ConvTranspose2d(narrow, wide, KERNEL, STRIDE, PADDING, rest), nn.GELU()])
        del self.decoder[-1]  # the last layer is linear
        if tie_weights:
            for layer in range(len(channels)):
                tie(self, f"decoder.{2 * layer}.weight", f"encoder.{2 * (len(channels) - 1 - layer)}.weight")
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to codes `(count, channels[-1], ...)`."""
        return self.encoder(images)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Map codes to images."""
        return self.decoder(codes)


class Autoencoder(nn.Module):
    """What a plan describes: dense or of convolutions, with a block in between that is run several times.

    Shapes:
        samples: `(count, *shape)`; codes: `(count, code)`.
    """

    def __init__(self, plan: AutoencoderPlan, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.flat = shape, not plan.conv
        widths, code = plan.widths, plan.widths[-1]
        if plan.conv:
            self.body = ConvAutoencoder(shape, widths, tie_weights=plan.tie)
            blocks = (Residual(nn.Conv2d(code, code, KERNEL, padding=PADDING)) for _ in range(plan.loops))
        else:
            self.body = TiedAutoencoder((math.prod(shape), *widths), "gelu", tie=plan.tie)
            blocks = (Residual(nn.Linear(code, code)) for _ in range(plan.loops))
        self.loop = nn.ModuleList(blocks)
        if plan.tie and plan.loops > 1:
            tie_layers(self, "loop", pattern="all")

    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """Map samples to codes."""
        return self._code(samples).flatten(1)

    def _code(self, samples: torch.Tensor) -> torch.Tensor:
        code = self.body.encode(samples.flatten(1) if self.flat else samples)
        for block in self.loop:
            code = block(code)
        return code

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Reconstruct samples."""
        return self.body.decode(self._code(samples)).reshape(samples.shape)

    def filters(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the first layer looks for and what the last one writes, `(units, channels, height, width)`.

        Rows of numbers have no picture: their filters are `(units, columns)`.
        """
        first, last = self.body.encoder[0], self.body.decoder[-1]
        assert isinstance(first, nn.Conv2d | nn.Linear)
        assert isinstance(last, nn.ConvTranspose2d | nn.Linear)
        if isinstance(last, nn.ConvTranspose2d):
            return first.weight.detach(), last.weight.detach()
        return first.weight.detach().reshape(-1, *self.shape), last.weight.detach().T.reshape(-1, *self.shape)


class AutoencoderTask:
    """Reconstruct samples: images on a scale of 0 to 1, rows with mean 0 and variance 1 in each column."""

    figure_name = "held-out error"
    units_per_sample = 1

    def __init__(self, plan: AutoencoderPlan, samples: Samples) -> None:
        """Split the samples by the plan's seed, and put both parts on the scale of the first."""
        self.plan = plan
        training, held_out = samples.split(plan.seed)
        self.shown = held_out.scaled_by(training)
        self.training, self.held_out = training.scaled_by(training).values, self.shown.values
        self.unit, self.source = "images" if samples.are_images else "rows", samples.source
        self.baselines = _baselines(self.training.flatten(1), self.held_out.flatten(1), plan)

    def model(self) -> nn.Module:
        """Return a new autoencoder for samples of this shape."""
        return Autoencoder(self.plan, tuple(self.training.shape[1:]))

    def inputs(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Set a part of every sample's values to zero, chosen anew each time, if the plan says so."""
        if not self.plan.denoise:
            return batch
        kept = torch.rand(batch.shape, generator=generator) >= self.plan.denoise
        return batch * kept

    def losses(self, model: nn.Module, inputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return each sample's mean squared error against the clean sample."""
        return (model(inputs) - batch).square().flatten(1).mean(1)

    def figure(self, loss: float) -> float:
        """Return the error as it is."""
        return loss


def _baselines(training: torch.Tensor, held_out: torch.Tensor, plan: AutoencoderPlan) -> dict[str, float]:
    """Return the errors of the mean sample and of PCA with as many components as the code has numbers."""
    mean = training.mean(0)
    rest = held_out - mean
    found = {"the mean sample": float(rest.square().mean())}
    if not plan.conv and training.shape[1] <= MOST_FEATURES_FOR_PCA:
        centered = (training - mean).double()
        directions = torch.linalg.eigh(centered.T @ centered)[1][:, -plan.widths[-1] :]
        rest = rest.double() - rest.double() @ directions @ directions.T
        found[f"PCA with {min(plan.widths[-1], training.shape[1])} components"] = float(rest.square().mean())
    return found
