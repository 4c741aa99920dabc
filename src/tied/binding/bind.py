"""Binding a layer to sources that are handed to it as modules, before any model holds both.

Owns: `bind`, for layers that tie themselves. Must not know addresses in a model. Read next: `late_reading.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tied.algebra import Expression, parse
from tied.binding.commit.transaction import Transaction
from tied.binding.late_reading import install
from tied.binding.link import Link
from tied.binding.slots import ModuleTree
from tied.binding.tie import check_fit, meta
from tied.ledger import Tie


def bind(module: nn.Module, attribute: str, expression: str | Expression, owners: Mapping[str, nn.Module]) -> None:
    """Define an attribute of one module by tensors of others that are given as objects.

    For layers that are handed their source: no model that holds both is known yet. The modules in `owners`
    are the first segments of the expression's addresses.

    Args:
        module: Changed: its attribute reads the expression from now on; a parameter of that name is dropped.
        attribute: Such as `"weight"`.
        expression: Such as `"encoder.weight.T"`.
        owners: Such as `{"encoder": encoder}`.

    Raises:
        AddressError: an address names nothing in its owner.
        ShapeError, DtypeError, DeviceError: the attribute is a parameter that does not fit.
    """
    frame = nn.Module()
    for name, owner in owners.items():
        frame._modules[name] = owner
    tree = ModuleTree(frame)
    parsed = parse(expression, tree) if isinstance(expression, str) else expression
    sources = {address: tree.tensor_slot(address).owner for address in parsed.sources()}
    parsed.infer({address: meta(tree.slot(address).tensor) for address in sources})
    if module._parameters.get(attribute) is not None:
        frame._modules["this module"] = module
        check_fit(tree, Tie(("this module", attribute), parsed))
    with Transaction([module, *sources.values()]):
        install(module, attribute, Link.to(parsed, sources))
