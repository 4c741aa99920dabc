"""Exceptions at every line: a tracer that raises where it is told, and what a model is, so that nothing escapes.

count, changing = lines_of(act, model)     # the lines of tied, and of torch below it, that `act` runs
came_out = interrupted(act, at=17)         # the same, with KeyboardInterrupt in place of the 18th of them
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

import tied
from tied.ledger import LINKS, PLANT

FOLDERS = (str(Path(tied.__file__).parent), str(Path(torch.__file__).parent / "nn"), contextlib.__file__)

# What only finds things is left out: it takes most lines, and raises in the same place as whoever calls it.
LOOKING = {"named_modules", "modules", "entries", "slots", "slot", "_children", "_kind", "_holds", "links", "module_at"}


@dataclass
class Lines:
    """Counts the lines that run, and calls `at_line` with the number and the code before each."""

    at_line: Callable[[int, CodeType], None]
    count: int = field(default=0, init=False)

    def run(self, act: Callable[[], object]) -> None:
        """Run `act`, line by line."""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            act()
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        code = frame.f_code
        return self._line if code.co_filename.startswith(FOLDERS) and code.co_name not in LOOKING else None

    def _line(self, frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "line":
            self.count += 1
            self.at_line(self.count - 1, frame.f_code)
        return self._line


def interrupted(act: Callable[[], object], *, at: int) -> bool:
    """Run `act` with Ctrl-C at one of its lines, and return whether it came out."""

    def raise_there(number: int, _: CodeType) -> None:
        if number == at:
            raise KeyboardInterrupt

    try:
        Lines(raise_there).run(act)
    except KeyboardInterrupt:
        return True
    return False


def lines_of(
    act: Callable[[], object], model: nn.Module, look: Callable[[], object] = lambda: None
) -> tuple[int, list[int]]:
    """Return how many lines `act` runs, and those at which the model is another than before; looks at it there."""
    last, found = mark(model), list[int]()

    def compare(number: int, code: CodeType) -> None:
        nonlocal last
        if "algebra" not in code.co_filename and last != (now := mark(model)):
            last = now
            found.append(number)
            look()

    lines = Lines(compare)
    lines.run(act)
    return lines.count, found


def mark(model: nn.Module) -> tuple[object, ...]:
    """Return something that differs whenever a model was changed."""
    rows: list[object] = [torch.is_grad_enabled()]
    for module in model.modules():
        held = vars(module)
        rows += [type(module), *map(id, held.values()), *held["_load_state_dict_pre_hooks"]]
        for place in (held["_parameters"], held["_buffers"]):
            rows += [(name, id(t), None if t is None else t._version) for name, t in dict.items(place)]
        rows += [id(value) for link in held.get(LINKS, {}).values() for value in vars(link).values()]
        rows += [*getattr(held.get(PLANT), "declared", {}).items()]
    return tuple(rows)


# -- what a model is ------------------------------------------------------------------------------------


def identities(model: nn.Module) -> list[tuple[object, ...]]:
    """Return every object that a model consists of, so that "as before" means the same ones."""
    rows: list[tuple[object, ...]] = []
    for path, module in model.named_modules():
        rows += [(path, name, id(value)) for name, value in sorted(vars(module).items())]
        for place in (vars(module)["_parameters"], vars(module)["_buffers"]):
            rows += [(path, name, id(tensor)) for name, tensor in dict.items(place)]
        rows += [(path, *(sorted(map(id, vars(link).values())))) for link in vars(module).get(LINKS, {}).values()]
        rows.append((path, type(module), *vars(module)["_load_state_dict_pre_hooks"]))
    return rows


def stepped(model: nn.Module) -> object:
    """Return what an optimizer that stands in the model's attribute `optimizer` steps, and what it knows of it."""
    optimizer = vars(model).get("optimizer")
    if optimizer is None:
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [[names.get(id(p), "gone") for p in group["params"]] for group in optimizer.param_groups]
    state = {
        names.get(id(p), "gone"): (known["step"].item(), known["exp_avg"].tolist())
        for p, known in optimizer.state.items()
    }
    return held, state


def description(model: nn.Module, *inputs: Tensor) -> dict[str, object]:
    """Return what a model is, equal for two models that were built and changed alike."""
    found: dict[str, object] = {"ties": tied.ties(model), "gradients": torch.is_grad_enabled()}
    seen: dict[int, int] = {}
    for path, module in model.named_modules():
        hooks = [getattr(getattr(hook, "hook", hook), "__qualname__", "") for hook in _hooks(module)]
        kinds = [(kind.__qualname__, getattr(kind, "_tied_names", None)) for kind in type(module).__mro__]
        found[f"{path} is"] = (kinds, sorted(vars(module)), hooks)
        found[f"{path} says"] = [vars(module).get(key) for key in ("_tied_weights_keys", "all_tied_weights_keys")]
        found[f"{path} is configured"] = getattr(getattr(module, "config", None), "tie_word_embeddings", None)
        plant = vars(module).get(PLANT)
        found[f"{path} declares"] = dict(getattr(plant, "declared", {}))
        found[f"{path} knows"] = [name for name, one in model.named_modules() if one in getattr(plant, "known", ())]
        for name, link in vars(module).get(LINKS, {}).items():
            found[f"{path} reads {name}"] = (str(link.expression), link.kind, link.waits, link.order, link.place)
    for kind, named in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        found[f"{kind}s"] = [
            (name, seen.setdefault(id(t), len(seen)), type(t), t.requires_grad, t.tolist())
            for name, t in named(remove_duplicate=False)
        ]
    found["state"] = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    found["stepped"] = stepped(model)
    try:
        found["output"] = model(*inputs).tolist()
    except AttributeError as error:  # a class was reset, and reads nothing
        found["output"] = str(error)
    return found


def _hooks(module: nn.Module) -> Iterator[Any]:
    return iter(module._load_state_dict_pre_hooks.values())


def trained(model: nn.Module, *inputs: Tensor) -> list[object]:
    """Return the parameters after a step of training."""
    torch.optim.SGD(model.parameters(), lr=0.1).zero_grad()
    model(*inputs).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return [(name, parameter.tolist()) for name, parameter in model.named_parameters()]
