"""The late-reading class: what a module becomes when one of its attributes is tied.

Owns: the cached subclass that reads tied attributes at each access, and how it is copied and pickled.
Must not decide what is tied to what (`tie.py`). Read next: `state_dict_hooks.py`.

The subclass keeps the name of its base, so that class names in logs, wrap policies and messages stay.
"""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Collection
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
import torch.fx._symbolic_trace as symbolic_trace
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter
from torch.nn.utils.parametrize import is_parametrized

from tied.binding.commit.readers import let_readers_pass
from tied.binding.followers.parameter_marks import Marks
from tied.binding.late.recurrent import FlatWeights, drawing
from tied.binding.late.tracing import is_symbolic, traced
from tied.binding.link import Link
from tied.binding.live.entries import ordered, with_entry, without
from tied.binding.live.live_slots import Kind, Live, live_names, live_slots
from tied.binding.live.parted import join, part
from tied.binding.live.registration import listen
from tied.binding.live.shown import Shown
from tied.binding.refusals import cloned, not_pruned, not_set, on_meta
from tied.binding.slots import LINKS, links
from tied.binding.state_dict_hooks import attend_target, load_alone
from tied.binding.target_tensor import Derived, Target
from tied.sharding import is_managed, is_sharded


class Late:
    """The methods that a module gains when attributes of it are tied; always mixed with a module class."""

    __dict__: dict[str, Any]
    _tied_base: type[nn.Module]
    _tied_names: frozenset[str]

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to write to a tied attribute, unless what comes is its source itself."""
        if name in links(self):  # type: ignore[arg-type]
            _refuse(self, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse to delete a tied attribute."""
        if name in links(self):  # type: ignore[arg-type]
            _refuse(self, name, None)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Refuse to register over a tied attribute, unless what comes is its source itself; and to prune it."""
        if name in links(self):  # type: ignore[arg-type]
            _refuse(self, name, param)
        elif name.endswith("_orig") and name.removesuffix("_orig") in links(self):  # type: ignore[arg-type]
            raise not_pruned(cast(nn.Module, self), name.removesuffix("_orig"))
        else:
            super().register_parameter(name, param)  # type: ignore[misc]

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Refuse to register over a tied attribute."""
        if name in links(self):  # type: ignore[arg-type]
            _refuse(self, name, tensor)
        else:
            super().register_buffer(name, tensor, persistent)  # type: ignore[misc]

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Freeze or thaw the module, and the sources of its tied attributes: they are its weights too."""
        live = live_names(self)  # type: ignore[arg-type]
        for name, link in links(self).items():  # type: ignore[arg-type]
            if name not in live:
                link.require_grad(requires_grad)
        return super().requires_grad_(requires_grad)  # type: ignore[misc]

    def extra_repr(self) -> str:
        """Show what the module shows, and its ties."""
        shown = [super().extra_repr()] if super().extra_repr() else []  # type: ignore[misc]
        live = live_names(self)  # type: ignore[arg-type]
        shown += [f"{name}={link.expression}" for name, link in links(self).items() if name not in live]  # type: ignore[arg-type]
        return ", ".join(shown)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, link in links(self).items():  # type: ignore[arg-type]
            is_home = link.home is not None and link.home.module is self  # whose hook reconciles the keys
            if prefix + name in state_dict and not is_home and name not in live_names(self):  # type: ignore[arg-type]
                state_dict = {key: value for key, value in state_dict.items() if key != prefix + name} | load_alone(
                    link, state_dict[prefix + name], prefix, name
                )
        super()._load_from_state_dict(state_dict, prefix, *rest)  # type: ignore[misc]

    # -- copies -------------------------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Name the class by its base, since a class made at run time cannot be found by name."""
        make, arguments, *rest = super().__reduce_ex__(protocol)
        if "_tied_base" not in type(self).__dict__:  # a class of somebody else, on top of ours
            return make, arguments, *rest
        if make is getattr(copyreg, "__newobj__"):  # noqa: B009  (hidden from type checkers)
            arguments = (self._tied_base, *arguments[1:])
        return _remake, (make, arguments, self._tied_names), *rest

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state as the base class does, then settle what is tied to what in this copy."""
        if isinstance(self, nn.RNNBase):
            state.setdefault("_flat_weights", [])
        late = type(self)
        if "_tied_base" in late.__dict__:
            self.__class__ = self._tied_base  # type: ignore[assignment]
            self.__setstate__(state)  # type: ignore[attr-defined]
            self.__class__ = late  # type: ignore[assignment]
        else:
            super().__setstate__(state)  # type: ignore[misc]
        listen()
        for name, link in links(self).items():  # type: ignore[arg-type]
            if name not in live_names(self):  # type: ignore[arg-type]
                settle(self, name, link)  # type: ignore[arg-type]
        shed(self)  # type: ignore[arg-type]


def _remake(make: Any, arguments: tuple[Any, ...], names: frozenset[str]) -> Any:
    made = make(*arguments)
    made.__class__ = late_class(type(made), names)
    return made


def _refuse(module: Any, name: str, value: Any) -> None:
    link = links(module)[name]
    if isinstance(value, Tensor) and _is_source_itself(value, link):
        return
    raise not_set(module, name, value)


def _is_source_itself(value: Tensor, link: Link) -> bool:
    """Tell whether `value` is what the attribute reads anyway, as after `module.weight += 1`."""
    if isinstance(value, Derived):
        return value._origin is link
    present = link.read()
    foreign = isinstance(value, Parameter) and not isinstance(value, Target)
    if value is present or foreign or value.device.type == "meta":
        return value is present
    same = value.shape == present.shape and value.stride() == present.stride() and value.dtype == present.dtype
    return same and value.data_ptr() == present.data_ptr()


def _attribute(name: str) -> property:
    """Return an attribute that reads its link, or what the module holds where the tie was undone.

    A property and no class of its own: torch 2.6 traces no other when it exports.
    """

    def read(module: nn.Module) -> Tensor:
        held = module.__dict__.get(LINKS)
        link = held.get(name) if held else None
        if link is None:
            return _unlinked(module, name)
        if link.target() is not module:
            raise cloned(module, name, link)
        if symbolic_trace._is_fx_tracing_flag and is_symbolic():
            return traced(link)
        value = link.read()
        if link.waits and not is_dynamo_compiling():
            _come_forward(module, name, link)
        return value if not value.is_meta else _only_among_meta(module, name, link, value)

    read.__dict__[LINKS] = name
    return property(read)


def _only_among_meta(module: nn.Module, name: str, link: Link, value: Tensor) -> Tensor:
    """Refuse to read from the meta device beside real tensors: torch's CPU matmul would compute garbage in silence."""
    fetched = link.fetched()
    if fetched is not None:
        return fetched
    home = link.home.module if link.home is not None else None
    own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    if all(tensor.is_meta for tensor in own or (home.parameters() if home is not None else ())):
        return value
    raise on_meta(module, name, link)


def _unlinked(module: nn.Module, name: str) -> Tensor:
    for place in (module._parameters, module._buffers, module.__dict__):
        if name in place:
            return place[name]  # type: ignore[return-value]
    if name in links(module):  # tied by another thread meanwhile
        return links(module)[name].read()
    raise AttributeError(f"'{type(module).__name__}' object has no attribute '{name}'")


class LateRecurrent(FlatWeights, Late):
    """A late-reading LSTM, GRU or RNN."""


Classes = WeakValueDictionary[frozenset[str], type[nn.Module]]
_CLASSES: WeakKeyDictionary[type[nn.Module], Classes] = WeakKeyDictionary()


def late_class(base: type[nn.Module], names: frozenset[str]) -> type[nn.Module]:
    """Return the subclass of `base` that reads the attributes `names` late; the same one as long as a model has it."""
    known = _CLASSES.setdefault(base, Classes())
    return known.get(names) or known.setdefault(names, _made(base, names))


def _made(base: type[nn.Module], names: frozenset[str]) -> type[nn.Module]:
    mixin = LateRecurrent if issubclass(base, nn.RNNBase) else Late
    body: dict[str, Any] = {name: _attribute(name) for name in names}
    body |= {"_tied_base": base, "_tied_names": names, "__module__": base.__module__, "__doc__": base.__doc__}
    body |= {"__qualname__": base.__qualname__, **drawing(base)}
    return cast("type[nn.Module]", type(base.__name__, (mixin, base), body))


def install(module: nn.Module, name: str, link: Link, *, also: Collection[str] = ()) -> None:
    """Make the attribute `name` of `module` read `link` instead of what it holds; `also` names what is tied next."""
    place: Kind = "_buffers" if name in module._buffers else "_parameters"
    held = module.__dict__[place]
    before, orders = links(module).get(name), (other.order for other in links(module).values())
    if before is not None:
        link.kind, link.order, link.marks = before.kind, before.order, before.marks
    elif name in held:
        link.order = next((order for order in orders if name in order), None) or tuple(dict.keys(held))
        link.marks = Marks.of(dict.__getitem__(held, name))
    link.kind = place if name in held else link.kind
    listen()
    link.target = weakref.ref(module)
    tensor = _ordinary(module, name, link)
    link.waits = link.is_identity and tensor is None
    module.__dict__[LINKS] = {**links(module), name: link}
    if tensor is not None:
        _go_live(module, name, link, tensor)
    _wear(module, also)
    if tensor is None and name in held:
        let_readers_pass()
        module.__dict__[place] = without(held, name)
    refresh_recurrent(module)


def _ordinary(module: nn.Module, name: str, link: Link) -> Tensor | None:
    """Return the tensor that a live slot would hold; None where the attribute has to be read late."""
    owner = link.identity_owner() if link.is_identity and not is_dynamo_compiling() else None
    own = type(module).__mro__[2 if "_tied_base" in type(module).__dict__ else 0 :]
    is_computed = any(isinstance(base.__dict__.get(name), property) for base in own)
    if owner is None or is_computed or is_managed(module):
        return None
    places: tuple[Kind, ...] = ("_parameters", "_buffers")
    for place in places:
        tensor = owner.__dict__[place].get(link.identity_name)
        if tensor is not None and link.kind in ("", place) and not is_sharded(tensor) and not link.is_apart():
            return tensor if place == "_buffers" or isinstance(tensor, Parameter) else None
    return None


def _go_live(module: nn.Module, name: str, link: Link, tensor: Tensor) -> None:
    place: Kind = "_parameters" if isinstance(tensor, Parameter) else "_buffers"
    held, link.kind = module.__dict__[place], place
    slots = held if isinstance(held, Live) else Live(place, give_up, dict.items(held))
    if name not in slots:
        slots = slots.remade(ordered({**dict(dict.items(slots)), name: tensor}, link.order))
    module.__dict__.setdefault("extra_repr", Shown(module))
    attend_target(module)
    module.__dict__[place] = slots.with_tie(name, link, tensor)


def give_up(module: nn.Module, name: str, link: Link) -> None:
    """Read late what is live, since its source holds no ordinary tensor now; its entry can go afterwards."""
    link.order = tuple(dict.keys(module.__dict__[link.kind]))
    link.waits = True
    link.connect()
    _wear(module)
    let_readers_pass()


def _come_forward(module: nn.Module, name: str, link: Link) -> None:
    """Make an attribute live, if its source holds an ordinary tensor again."""
    tensor = _ordinary(module, name, link)
    if tensor is not None and is_late(module, name):
        _go_live(module, name, link, tensor)
        link.waits = False
        _wear(module)
        refresh_recurrent(module)


def uninstall(module: nn.Module, name: str, tensor: Tensor | None = None, *, also: Collection[str] = ()) -> None:
    """Make the attribute `name` an ordinary one again, holding `tensor` at its old position.

    `also` names the attributes that the class goes on reading late, where they are tied.
    """
    link = links(module)[name]
    if name in live_names(module):
        module.__dict__[link.kind] = module.__dict__[link.kind].without(name, tensor)
    elif tensor is not None:
        place = "_parameters" if isinstance(tensor, Parameter) else "_buffers"
        module.__dict__[place] = with_entry(module.__dict__[place], name, tensor, link.order)
    module.__dict__[LINKS] = without(links(module), name)
    if not live_names(module):
        module.__dict__.pop("extra_repr", None)
    _wear(module, also)
    refresh_recurrent(module)


def read(module: nn.Module, name: str, link: Link) -> Tensor:
    """Return what a tied attribute is now; its class may be reset, so that reading it late is no more what it does."""
    slots = live_slots(module, name)
    tensor = slots[name] if slots is not None else None
    return tensor if tensor is not None else link.read()


def is_late(module: nn.Module, name: str) -> bool:
    """Tell whether the module's class reads the attribute late."""
    return name not in live_names(module) and hasattr(getattr(getattr(type(module), name, None), "fget", None), LINKS)


def _wear(module: nn.Module, also: Collection[str] = ()) -> None:
    """Put on the class that fits the module's links; classes put on top by others stay."""
    live = [name for name in live_names(module) if name in links(module) and links(module)[name].is_live]
    names, kind = frozenset([*links(module), *also]).difference(live), type(module)
    if is_parametrized(module) and kind.__name__.startswith("Parametrized"):
        _slip_under(module, names)
    else:
        _put_on(module, kind.__dict__.get("_tied_base"), names)
    if not links(module):
        module.__dict__.pop(LINKS, None)
    shed(module)


def _slip_under(module: nn.Module, names: frozenset[str]) -> None:
    """Put the late class below a parametrized one, of which deep copies may have the same: this module gets its own.

    Torch restores what is below when the last parametrization goes.
    """
    kind, below = type(module), type(module).__bases__[0]
    base = below.__dict__.get("_tied_base", below)
    wanted = late_class(base, names) if names else base
    if wanted is not below:
        body = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, (wanted,), body)  # type: ignore[assignment]


def _put_on(module: nn.Module, base: type[nn.Module] | None, names: frozenset[str]) -> None:
    if base is None:
        base = type(module)
        if isinstance(module, Late):  # somebody subclassed the late class: keep that, and add what is missing
            names = frozenset(name for name in names if not is_late(module, name))
    wanted = late_class(base, names) if names else base
    if isinstance(module, LateRecurrent) and not issubclass(wanted, LateRecurrent):
        module.__dict__["_flat_weights"] = module._flat_weights  # torch reads them from here
    if type(module) is not wanted:
        module.__class__ = wanted  # type: ignore[assignment]


def shed(module: nn.Module) -> None:
    """Drop the cache of weights that a recurrent module holds, where it reads late."""
    if isinstance(module, LateRecurrent):
        module.__dict__.pop("_flat_weights", None)
        module._init_flat_weights()


def settle(module: nn.Module, name: str, link: Link) -> None:
    """Decide what a copied attribute is: still tied if its source is in the copy, else a Parameter of its own."""
    original = link.target()
    if original is not None and original is not module:  # a shallow copy has the links of its original
        link = link.again()
        module.__dict__[LINKS] = {**links(module), name: link}
    link.target = weakref.ref(module)
    if link.home is not None and link.home.module is None:
        link.home.when_filled(link.connect)
    if link.can_connect:
        return
    value = link.own_value().detach().clone(memory_format=torch.contiguous_format)
    needs = any(tensor.requires_grad for tensor in link.kept.values())
    uninstall(module, name, Parameter(value, requires_grad=needs))
    part(module, name, str(link.expression))

    def retry() -> None:
        if link.can_connect and name not in links(module):
            install(module, name, link.connect())
            join(module, name)

    link.when_found(retry)


def refresh_recurrent(module: nn.Module) -> None:
    """Have a recurrent module that torch reads gather its weights again."""
    if isinstance(module, nn.RNNBase) and not isinstance(module, Late):
        module._init_flat_weights()
