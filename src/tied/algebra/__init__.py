"""The language: addresses, transforms, expressions, their text, and projection.

Owns: what an expression is, and every form of it. Must not know any `nn.Module`.
"""

from tied.algebra.address import Address as Address, address_of as address_of, show_address as show_address
from tied.algebra.arithmetic import kron as kron
from tied.algebra.assembly import cat as cat, stack as stack
from tied.algebra.expression import Expression as Expression, Ref as Ref
from tied.algebra.parser import parse as parse, ref as ref
from tied.algebra.pointwise import Pointwise as Pointwise
from tied.algebra.projection import adjoint as adjoint, counts as counts, invert as invert, project as project
