"""The language: addresses, transforms, expressions, their text, and projection. Knows no `nn.Module`."""

from tied.algebra.address import Address as Address, show_address as show_address
from tied.algebra.arithmetic import kron as kron
from tied.algebra.assembly import cat as cat, stack as stack
from tied.algebra.expression import Expression as Expression, Ref as Ref, ref as ref
from tied.algebra.parser import parse as parse
from tied.algebra.projection import adjoint as adjoint, counts as counts, invert as invert, project as project
