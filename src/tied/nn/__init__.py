"""Layers with the tie built in, each a few lines over `tied.tie`."""

from tied.nn.autoencoder import TiedAutoencoder as TiedAutoencoder
from tied.nn.linear import TiedLinear as TiedLinear
