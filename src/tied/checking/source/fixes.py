"""The lines to write instead: with `tied`, and in plain torch.

Owns: their wording. Each is Python that parses, whatever the names are. Must not decide what is wrong.
"""

from __future__ import annotations

import ast
import re

from tied.checking.source.places import PARAMETERS, Place, View, spelled
from tied.checking.source.text import Text

BY_CLASS = {"Embedding": "embedding", "EmbeddingBag": "embedding"}


def fix_of_tie(text: Text, target: Place, source: View, *, maker: str = "") -> str:
    """Write the tie that a line wants, and what plain torch does instead.

    Args:
        text: The file.
        target: The slot that is to follow.
        source: What it is to be.
        maker: How the file spells `Parameter`, where the line makes the slot; "" where it is there already.
    """
    plain = f"# or, in plain torch: {_plain(text, target, source)}"
    if PARAMETERS & {*target.path, *source.place.path}:
        return f"{_of_modules(target, source)}\n{plain}"
    tie = _tie(target, source)
    if tie and maker and len(target.path) == 1 and target.path[0][0] not in "[{*":
        tie = f"{target} = {maker}({source}.detach().clone())\n{tie}"
    if tie:
        return f"{tie}\n{plain}"
    adopted = "" if source.turns else f"\n# with tied, afterwards: tied.adopt({target.root.name})"
    return _plain(text, target, source) + adopted


def _tie(target: Place, source: View) -> str:
    """Write the assignment inside `tied.tying`; "" where the stand-in cannot say it."""
    if any("(" in part for part in (*target.path, *source.place.path)) or (target.path[-1:] or ("[",))[0][0] == "[":
        return ""
    loops = list({id(a): (a, b) for a, b in (*target.loops, *source.place.loops)}.values())
    if sum(part[0] == "*" for part in (*target.path, *source.place.path)) > 0 and not loops:
        return ""
    root, left, right, head = target.root.name, "m", "m", ""
    if target.root[:2] != source.place.root[:2]:
        left_key, right_key = _key(target), _key(source.place)
        items = f'"{right_key}": {source.place.root.name}, "{left_key}": {target.root.name}'
        head, root, left, right = (
            f"pair = torch.nn.ModuleDict({{{items}}})\n",
            "pair",
            f"m.{left_key}",
            f"m.{right_key}",
        )
        if loops:
            return ""
    line = _assign(target.path, left, spelled(source.place.path, right) + "".join(source.turns))
    if not loops:
        return f"{head}with tied.tying({root}) as m: {line}"
    lines = [f"with tied.tying({root}) as m:"]
    for depth, (names, iterated) in enumerate(loops, 1):
        over = re.sub(rf"\b{re.escape(target.root.name)}\b", "m", ast.unparse(iterated))
        bare = ", ".join(map(ast.unparse, names.elts)) if isinstance(names, ast.Tuple) else ast.unparse(names)
        lines.append(f"{'    ' * depth}for {bare} in {over}:")
    return "\n".join([*lines, "    " * (len(loops) + 1) + line])


def _key(place: Place) -> str:
    return "target" if place.root.kind == "self" else place.root.name


def _assign(path: tuple[str, ...], start: str, value: str) -> str:
    if path[-1][0] == "{":
        return f"setattr({spelled(path[:-1], start)}, {path[-1][1:-1]}, {value})"
    return f"{spelled(path, start)} = {value}"


def _of_modules(target: Place, source: View) -> str:
    """Write the tie of whole modules, whose parameters a loop walks through."""
    left, right = _module(target), _module(source.place)
    if left.root[:2] == right.root[:2] and left.path and right.path and not left.loops and not right.loops:
        return f'tied.tie({left.root.name}, "{_address(left)}", "{_address(right)}")'
    pair = f'torch.nn.ModuleDict({{"source": {right}, "target": {left}}})'
    return f'tied.tie({pair}, "target", "source")  # if they are to be one, and stay so'


def _module(place: Place) -> Place:
    end = next((n for n, part in enumerate(place.path) if part in PARAMETERS), len(place.path))
    return Place(place.root, place.path[:end], ())


def _address(place: Place) -> str:
    return spelled(place.path, "").lstrip(".").replace('"', "'")


def _plain(text: Text, target: Place, source: View) -> str:
    if PARAMETERS & {*target.path, *source.place.path}:
        return f"with torch.no_grad(): {target}.copy_({source})  # the values, once"
    if not source.turns:
        return _assign(target.path, target.root.name, str(source.place))
    if target.path[-1] == "weight":
        kind = text.follower.made_by(target.owner)[0].rpartition(".")[2]
        function = BY_CLASS.get(kind) or ("linear" if "Conv" not in kind else _of_convolution(kind))
        bias = "" if function == "embedding" else f", {target.owner}.bias"
        return f"torch.nn.functional.{function}(z, {source}{bias})  # in forward"
    name = re.sub(r"\W", "", target.path[-1]) or "weight"
    return f"{name if name.isidentifier() else 'weight'} = {source}  # in forward"


def _of_convolution(kind: str) -> str:
    return f"conv_transpose{kind[-2]}d" if "Transpose" in kind else f"conv{kind[-2]}d"
