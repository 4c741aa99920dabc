"""Buffers that follow from a constructor's arguments, an index or signs: never stored, never lost.

Owns: `ConstantBuffers`: how they come through casts, moves, `to_empty`, the meta device and loading. Must not know
what they mean. Read next: `gather.py`.

A file holds their fingerprint instead of them, so that a file made with other ones is refused: it would load without
an error, and the layer would compute something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tied.nn.structured.structured_linear import StructuredLinear

FINGERPRINT = "fingerprint"


def fingerprint(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the first 63 bits of the SHA-256 of names, shapes and integers: the same number on every platform.

    >>> fingerprint({"index": torch.tensor([[0, 1], [1, 0]])})
    tensor(7708281387245676264)
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().numpy().astype("<i8").tobytes())
    return torch.tensor(int.from_bytes(digest.digest()[:8], "big") >> 1, device="cpu")


def _signed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, FINGERPRINT: fingerprint(tensors)} if tensors else {}


class ConstantBuffers(StructuredLinear):
    """A structured layer with buffers that are computed from what it was constructed with.

    Law: whatever becomes of the layer, they have the values of `fixed()`, where its parameters are.
    """

    _fixed: tuple[str, ...] = ()

    def fixed(self) -> dict[str, Tensor]:
        """Return the fixed tensors by name: integers, on the CPU, the same on every platform."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Make the fixed tensors buffers, of which only the fingerprint is stored."""
        tensors = _signed(self.fixed())
        self._fixed = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(self.numbers.device), persistent=name == FINGERPRINT)

    def settled(self, name: str) -> Tensor:
        """Return a fixed tensor where the parameters are, also where somebody moved those without asking the layer."""
        if getattr(self, name).device != self.numbers.device:
            self._settle({name: self._buffers[name] for name in self._fixed})
        return getattr(self, name)

    def _settle(self, tensors: Mapping[str, Tensor | None]) -> None:
        """Put the fixed tensors where the parameters are; those that were lost to meta are computed anew."""
        home = self.numbers.device
        lost = any(tensor is None or tensor.is_meta for tensor in tensors.values())
        for name, tensor in (_signed(self.fixed()) if lost and home.type != "meta" else tensors).items():
            self._buffers[name] = tensor if tensor is None else tensor.to(home)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move, but keep the values: `to_empty` would lose them."""
        kept = {name: self._buffers[name] for name in self._fixed}
        super()._apply(fn, recurse)
        self._settle(kept)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Refuse a file that was made with other fixed tensors; else load, and come back from meta."""
        stored, own = state_dict.get(prefix + FINGERPRINT), self._buffers.get(FINGERPRINT)
        if isinstance(stored, Tensor) and own is not None and not stored.is_meta:
            own = _signed(self.fixed())[FINGERPRINT] if own.is_meta else own
            if not torch.equal(stored.cpu(), own.cpu()):
                rest[-1].append(self._other(prefix))
                return
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._settle({name: self._buffers[name] for name in self._fixed})

    def _other(self, prefix: str) -> str:
        name = prefix.removesuffix(".") or type(self).__name__
        return (
            f"{name}: the file was made by a layer that shares other entries (its fingerprint differs); nothing of it "
            f"was loaded here. Construct the layer with the arguments it had then; now: {self.extra_repr()}"
        )
