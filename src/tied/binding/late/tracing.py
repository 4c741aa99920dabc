"""A tied attribute under `torch.fx.symbolic_trace`: the graph computes it from its sources.

Owns: what the tracer is shown where a forward reads a tied weight itself (`F.linear(x, self.head.weight)`). Must not
change modules. Read next: `binding/late_reading.py`.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch.fx import Proxy

from tied.algebra import Address, Expression, parse, show_address
from tied.binding.link import Link
from tied.errors import KindError


def is_symbolic() -> bool:
    """Tell whether the tracer at work shows Proxies in place of tensors, as `make_fx` and `torch.export` do not."""
    by_dispatch = sys.modules.get("torch.fx.experimental.proxy_tensor")
    return by_dispatch is None or by_dispatch.get_proxy_mode() is None


def traced(link: Link) -> Any:
    """Return what the tracer knows of a tied value: a node of the graph that computes it from its sources.

    Raises:
        KindError: a source is not in the traced module.
    """
    owners: Any = {address: source.find(link.home) for address, source in link.sources.items()}
    sources: Any = {address: getattr(owner, address[-1]) for address, owner in owners.items()}
    loose = [a for a, owner in owners.items() if not isinstance(sources[a], Proxy) and a[-1] not in owner._buffers]
    if loose or not any(isinstance(tensor, Proxy) for tensor in sources.values()):
        raise _not_traced(link, loose or list(owners))
    return computed(str(link.expression), *sources.values())


def computed(text: str, *sources: Any) -> Any:
    """Return the value of an expression, as a node of a graph does; where the graph is traced again, as such a node."""
    for source in sources:
        if isinstance(source, Proxy):
            return source.tracer.create_proxy("call_function", computed, (text, *sources), {})
    expression = _parsed(text)
    return expression.value(dict(zip(expression.sources(), sources, strict=True)))


@functools.cache
def _parsed(text: str) -> Expression:
    return parse(text)


def _not_traced(link: Link, loose: list[Address]) -> KindError:
    return KindError(
        f"A symbolic trace cannot show how '{show_address(link.place)}' is computed.",
        found=f"{link.expression}, and {' and '.join(map(show_address, loose))} is no Parameter of the traced module",
        expected="sources that the traced module holds",
        fix="trace the model that holds both ends, or call tied.untie(model) first",
    )
