"""Layers with the tie built in, each a few lines over `tied.tie`.

Owns: the layers, and products and losses that are fast where a weight has many uses. Must not implement tying: that
is `tied.binding`.
"""

from tied.nn.accumulate import many_uses as many_uses, shared_linear as shared_linear
from tied.nn.attention import (
    GroupedAttention as GroupedAttention,
    GroupedLinear as GroupedLinear,
    KeyValue as KeyValue,
)
from tied.nn.autoencoder import TiedAutoencoder as TiedAutoencoder
from tied.nn.conv import (
    TiedConvTranspose1d as TiedConvTranspose1d,
    TiedConvTranspose2d as TiedConvTranspose2d,
    TiedConvTranspose3d as TiedConvTranspose3d,
)
from tied.nn.ema import EMA as EMA
from tied.nn.embedding import TiedEmbedding as TiedEmbedding
from tied.nn.linear import TiedLinear as TiedLinear
from tied.nn.looped import Looped as Looped
from tied.nn.mirror import mirror as mirror
from tied.nn.revin import RevIN as RevIN, Statistics as Statistics
from tied.nn.siamese import Siamese as Siamese
from tied.nn.structured import (
    BlockCirculantLinear as BlockCirculantLinear,
    BroadcastLinear as BroadcastLinear,
    CirculantLinear as CirculantLinear,
    CodebookLinear as CodebookLinear,
    HashedLinear as HashedLinear,
    KroneckerLinear as KroneckerLinear,
    OrbitLinear as OrbitLinear,
    SetLinear as SetLinear,
    SymmetricLinear as SymmetricLinear,
    SymmetryWarning as SymmetryWarning,
    ToeplitzLinear as ToeplitzLinear,
)
from tied.nn.tie_vocabulary import tie_vocabulary as tie_vocabulary
from tied.nn.unrolled import Unrolled as Unrolled
