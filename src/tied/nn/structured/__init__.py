"""Linear layers whose matrix is built of fewer numbers than it has entries, each with its fast algorithm.

Owns: the schemes, and what all of them are, `StructuredLinear`. Must not know the layers of `tied.nn` around it.
"""

from tied.nn.structured.broadcast import BroadcastLinear as BroadcastLinear, SymmetryWarning as SymmetryWarning
from tied.nn.structured.circulant import (
    BlockCirculantLinear as BlockCirculantLinear,
    CirculantLinear as CirculantLinear,
)
from tied.nn.structured.codebook import CodebookLinear as CodebookLinear
from tied.nn.structured.gather import gather as gather
from tied.nn.structured.hashed import HashedLinear as HashedLinear
from tied.nn.structured.kronecker import KroneckerLinear as KroneckerLinear
from tied.nn.structured.permutation_equivariant import OrbitLinear as OrbitLinear, SetLinear as SetLinear
from tied.nn.structured.structured_linear import StructuredLinear as StructuredLinear
from tied.nn.structured.symmetric import SymmetricLinear as SymmetricLinear
from tied.nn.structured.toeplitz import ToeplitzLinear as ToeplitzLinear
