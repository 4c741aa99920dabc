"""Recurrent modules whose weights are read late.

Owns: the list in which torch caches weights, and `reset_parameters`, which loops over a module's own Parameters and so
would leave out what is tied. Must not know links. Read next: `binding/late_reading.py`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from tied.ledger import links

LOOPS = (nn.RNNBase.reset_parameters, nn.RNNCellBase.reset_parameters)


class FlatWeights:
    """An LSTM, GRU or RNN without the list of its weights, which would go stale."""

    def _gathered(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]  # type: ignore[attr-defined]

    _flat_weights = property(_gathered, lambda self, weights: None)  # which a thread may be about to set

    def _init_flat_weights(self) -> None:
        self.__dict__["_flat_weight_refs"] = [None] * len(self._flat_weights_names)  # type: ignore[attr-defined]

    def _weights_have_changed(self) -> bool:
        return False

    def flatten_parameters(self) -> None:
        """Do nothing: another module owns the memory."""


def drawing(base: type[nn.Module]) -> dict[str, Any]:
    """Return what a late class needs for `reset_parameters`: nothing, unless that loops over Parameters."""
    return {"reset_parameters": reset_parameters} if getattr(base, "reset_parameters", None) in LOOPS else {}


def reset_parameters(module: Any) -> None:
    """Draw all weights uniformly as torch does, tied ones too: what is drawn for a target is its source's.

    Raises:
        InverseError: a source cannot take what is drawn; weights before it were drawn.
    """
    bound = 1 / math.sqrt(module.hidden_size) if module.hidden_size > 0 else 0
    declared = [name for link in links(module).values() for name in link.order]
    for name in dict.fromkeys((*declared, *module._parameters)):
        if getattr(module, name) is not None:
            nn.init.uniform_(getattr(module, name), -bound, bound)
