"""Sources: where a link finds what it reads, whatever becomes of the model around it.

Owns: the owner rule. Must not read tensors, nor change modules. Read next: `link.py`.

The owner of a source is known as a module, and by its address from the home of the tie. While it is in the home it is
followed, wherever it stands: inserted before, wrapped, moved. A stranger in its place, which was not in the home when
the tie was declared, has replaced it, and is followed; except a copy of the owner whose tensor was then replaced, which
is for the one use of that copy (a fused batch norm). When it left, and what is at its address was always there, the
source is gone: a tie never reads an unrelated layer. It is held weakly, so that nobody trains what no model holds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from torch import Tensor, nn

from tied.algebra import Address, address_of, show_address
from tied.binding.module_reference import Anchor, anchor, is_remade, plant
from tied.errors import KindError, SourceGoneError
from tied.ledger import links, module_at


class Source:
    """Where one source of a link is found: an owner module, and an attribute of it.

    Attributes:
        path: Where the owner was last found, from the home.
        name: The attribute.
        mark: The anchor of the owner, which finds its way into copies.
        has_left: Whether the owner was seen to have left, and the weight lives on elsewhere: no stranger replaces it.
        reference: Returns the module last seen to own the source; None where it is not known, or is no more.
    """

    def __init__(self, address: Address, owner: nn.Module | None, mark: Anchor, *, keeps: bool = True) -> None:
        """Remember the owner; one that it `keeps` lives on here after its model dropped it."""
        self.path, self.name, self.mark, self._keeps = address[:-1], address[-1], mark, keeps
        self.has_left = False
        self.owner = owner

    @property
    def address(self) -> Address:
        """Where the source was last found, from the home."""
        return (*self.path, self.name)

    @property
    def owner(self) -> nn.Module | None:
        """What `reference` returns."""
        return self.reference()

    @owner.setter
    def owner(self, module: nn.Module | None) -> None:
        self.reference: Callable[[], nn.Module | None]
        self.reference = (lambda: module) if self._keeps or module is None else weakref.ref(module)
        self._is_known = module is not None

    def leave(self) -> None:
        """Take it as known that the owner left."""
        self.owner, self._is_known, self.has_left = None, True, True

    def find(self, home: Anchor | None) -> nn.Module | None:
        """Return the module that owns the source now; None in a copy that does not hold it.

        Raises:
            SourceGoneError: it left its model.
        """
        top = home.module if home is not None else None
        if top is None or "_modules" not in top.__dict__:  # the home is no more, or is being unpickled
            return self.owner
        module = module_at(top, self.path)
        return module if module is not None and module is self.owner else self.follow(top, module)

    def look(self, home: Anchor | None) -> nn.Module | None:
        """Return what `find` does, and None where the source left its model."""
        try:
            return self.find(home)
        except SourceGoneError:
            return None

    def living(self) -> nn.Module | None:
        """Return the owner without its home.

        Raises:
            SourceGoneError: it is gone with it.
        """
        if self._is_known and self.owner is None:
            raise gone(self.address, "the module that held both ends is no more, and neither is it")
        return self.owner

    def follow(self, home: nn.Module, found: nn.Module | None) -> nn.Module:
        """Return the owner where it does not stand at its address, at which `found` stands.

        Raises:
            SourceGoneError: it left `home`, and what is in its place was there before, or is nothing.
        """
        if not self._is_known:  # a copy that has not read yet
            self.owner = self.mark.module if self.mark.is_filled else found
        owner = self.owner
        if owner is not None and owner is found:
            return owner
        place = path_to(home, owner) if owner is not None else None
        if owner is not None and place is not None:
            _refuse_pieces(home, place, self.address)
            self.path, self.has_left = place, False
            return owner
        if (
            found is not None
            and not self.has_left
            and is_held(found, self.name)
            and not is_remade(found, self.mark, self.name)
            and plant(home).is_new(found, self.path)
        ):
            self.owner, self.mark = found, anchor(found)
            return found
        raise gone(self.address, _why(home, owner, self.address, found))


def path_to(home: nn.Module, wanted: nn.Module) -> Address | None:
    """Return where a module stands in its home, the first of its places; None where it does not."""
    return next((address_of(path) for path, module in home.named_modules() if module is wanted), None)


def is_held(module: nn.Module, name: str) -> bool:
    """Tell whether a module has a tensor of this name, held, read or computed."""
    places = (links(module), module._parameters, module._buffers)
    if any(dict.get(place, name) is not None for place in places):
        return True
    try:
        return isinstance(getattr(module, name, None), Tensor)
    except Exception:
        return False


def _why(home: nn.Module, owner: nn.Module | None, address: Address, found: nn.Module | None) -> str:
    what = f"the {type(owner).__name__} that owned it" if owner is not None else "the module that owned it"
    if found is None:
        return f"{what} left {type(home).__name__}, and nothing stands at '{show_address(address[:-1])}'"
    return f"{what} left {type(home).__name__}; at '{show_address(address[:-1])}' is another {type(found).__name__}"


def gone(address: Address, found: str) -> SourceGoneError:
    """Word that a source is gone; `found` says why."""
    return SourceGoneError(
        f"The source '{show_address(address)}' of a tied attribute is gone.",
        found=found,
        expected="the tensor that the tie reads",
        fix="put the source back, or call tied.untie(model, target) before you take it away",
    )


def not_frozen(address: Address, requires_grad: bool) -> KindError:
    """Word that a computed source can be neither frozen nor thawed."""
    what, place = "thawed" if requires_grad else "frozen", show_address(address[:-1])
    return KindError(
        f"The source '{show_address(address)}' is computed, so that it cannot be {what}.",
        found="a value that its module makes of other Parameters (a norm, pruning, a parametrization)",
        expected="a Parameter",
        fix=f"call requires_grad_({requires_grad}) on the module that holds them: '{place}'",
    )


def _refuse_pieces(home: nn.Module, place: Address, address: Address) -> None:
    """Refuse to read what FSDP1 has flattened and sharded apart from the target."""
    module: nn.Module | None = home
    for segment in place:
        module = module._modules.get(segment) if module is not None else None
        if type(module).__name__ == "FullyShardedDataParallel":
            raise _sharded(address)


def _sharded(address: Address) -> SourceGoneError:
    return SourceGoneError(
        f"The source '{show_address(address)}' is sharded by FSDP1 apart from its target, which would read a piece.",
        found="a FullyShardedDataParallel around the source, and not around the target",
        expected="one around both",
        fix="wrap the model as a whole, or use torch.distributed.fsdp.fully_shard (FSDP2), which has no such limit",
    )
