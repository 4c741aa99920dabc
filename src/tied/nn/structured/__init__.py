"""Linear layers whose matrix is built of fewer numbers than it has entries, each with its fast algorithm."""

from tied.nn.structured.broadcast import BroadcastLinear as BroadcastLinear, SymmetryWarning as SymmetryWarning
from tied.nn.structured.circulant import (
    BlockCirculantLinear as BlockCirculantLinear,
    CirculantLinear as CirculantLinear,
)
from tied.nn.structured.codebook import CodebookLinear as CodebookLinear
from tied.nn.structured.gather import gather as gather
from tied.nn.structured.hashed import HashedLinear as HashedLinear
from tied.nn.structured.kronecker import KroneckerLinear as KroneckerLinear
from tied.nn.structured.orbit import OrbitLinear as OrbitLinear
from tied.nn.structured.set import SetLinear as SetLinear
from tied.nn.structured.structured_linear import StructuredLinear as StructuredLinear
from tied.nn.structured.symmetric import SymmetricLinear as SymmetricLinear
from tied.nn.structured.toeplitz import ToeplitzLinear as ToeplitzLinear
