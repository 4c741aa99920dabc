"""What a text must hold for a rule to find anything in it: the reason why most files need not be parsed.

Owns: these signs, by rule. Each lets through more than its rule finds. Plain searches come first, for most files hold
none of the words, and every pattern begins with a letter that is written, which makes it quick.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

OF_TORCH = (
    r"(?:torch|th)\.(?:zeros|ones|empty|randn?|randint|randperm|full|tensor|eye|arange|linspace|\w+_like|\w*Tensor)\("
)
WEIGHT = r"(?:weight|bias|kernel)s?(?:_\w+|\d\w*)?|W(?:_\w+|\d*)"
TURNED = (
    r"\.(?:t\(|[TH]\b|m[TH]\b|transpose|permute|view|reshape|swap|squeeze|unsqueeze|flatten|narrow|\w+\((?:0|1|-1),)"
)
VIEWED = rf"{TURNED}|\.data\b|\.detach\(|\[(?=[^\]\n]*[:,]|-?\d|None|\.\.\.)"
OTHER = frozenset(("None", "True", "False", "int", "float", "str", "bool", "init", "self", "torch", "_"))
AT_EVERY_STEP = ("forward", "hook", "on_", "_step", "__call__")

PARAMETER = re.compile(rf"Parameter(?:\(\s*(?:data\s*=\s*)?(?!{OF_TORCH})[^\s)]|\s+as\s|\s*(?:#|$))", re.M)
DATA = re.compile(r"\.data\s*(?:,[^\n]*)?=(?!=)")
SLOT = re.compile(
    rf"(?:weight|bias|kernel|W)\w*\s*(?:,[^\n=]*)?=(?!=)(?![^\n]*Parameter\()(?:[^\n]*(?:{VIEWED})|\s*(\w+)\s*(?:#|$)|\s*[(\\]\s*$)",
    re.M,
)
OF_SOMETHING = re.compile(r"\.\w*\Z")
SET = re.compile(rf"setattr\([^\n]*(?:{VIEWED})")
COPY = re.compile(r"\.copy_\(")
OWN = re.compile(r"weight|bias|kernel|\bW|\.data|parameters\(")
NEAR = re.compile(r"weight|bias|kernel|\bW")
CALLED_ON = re.compile(r"\b(\w+)\Z")
LOADED = re.compile(r"\.load_state_dict\(\s*[^\n]*state_dict\(")
INDEXED = re.compile(r"\.data\[[^\n]*\]\s*=(?!=)")
GOES_ON = r"(?!\s*(?:=[^=]|\.\w*_\(|\.(?:clone|cpu|to|data|dtype|device|shape|numpy|size|dim)\b|\[[\"']))"
CUTS = re.compile(rf"\.data\b{GOES_ON}"), re.compile(rf"\.detach\(\){GOES_ON}")
TIMES = re.compile(r"\](?<=[\w),\s]\])\s*\*(?!\*)\s*[\w(]")
FACTOR = re.compile(r"\*\s*\[(?=\s*[A-Za-z_])")
FILLED, FILLING = re.compile(r" for \w+ in range\("), re.compile(r"[\[(]\s*([A-Za-z_]\w*)\s*\Z")
ELEMENT = re.compile(r"\A\s*(?:[\w.]*\b([A-Z]\w*|deepcopy)\(|([A-Za-z_]\w*)\s*,?\s*\Z)|,\s*[\w.]*\b([A-Z]\w*)\(")
MOST_LETTERS = 2000  # of a list that is multiplied


def _parameters(text: str) -> bool:
    return ("Parameter" in text and bool(PARAMETER.search(text))) or "Embedding.from_pretrained(" in text


def _pointers(text: str) -> bool:
    return (".data" in text and bool(DATA.search(text))) or any(s in text for s in ("'data',", '"data",', ".set_("))


def _raw(text: str) -> bool:
    if "setattr(" in text and SET.search(text):
        return True
    slots = (f for f in SLOT.finditer(text) if OF_SOMETHING.search(text, max(0, f.start() - 40), f.start()))
    return any(not found[1] or _is_given(text, found[1], VIEWED) for found in slots)


def _copies(text: str) -> bool:
    if not any(word in text for word in AT_EVERY_STEP):
        return False
    if ".copy_(" in text and any(_is_of_weight(text, found.start()) for found in COPY.finditer(text)):
        return True
    loaded = ".load_state_dict(" in text and LOADED.search(text)
    return bool(loaded or (".data[" in text and INDEXED.search(text)))


def _cuts(text: str) -> bool:
    if not any(word in text for word in AT_EVERY_STEP) or not (".data" in text or ".detach()" in text):
        return False
    return any(_is_of_weight(text, found.start()) for cut in CUTS for found in cut.finditer(text))


def _is_of_weight(text: str, end: int) -> bool:
    """Whether what ends there speaks of a weight, or is a name that was given one."""
    before = text[max(0, end - 60) : end].rpartition("\n")[2]
    named = CALLED_ON.search(before)
    if not named or OWN.search(before):
        return bool(OWN.search(before))
    if named[1] in OTHER:
        return False
    return bool(NEAR.search(_given(text, named[1]))) or ("parameters(" in text and named[1] in _walked(text))


def _repeats(text: str) -> bool:
    if "nn" not in text:
        return False
    for found in FILLED.finditer(text):
        filling = FILLING.search(text, max(0, found.start() - 100), found.start())
        if filling and _is_made(text, filling[1]):
            return True
    return any(_holds_modules(text, one) for one in _multiplied(text))


def _multiplied(text: str) -> Iterator[str]:
    """Yield what stands in the lists that are multiplied."""
    for found in TIMES.finditer(text):
        first = max(0, found.start() - MOST_LETTERS)
        start, depth = found.start(), 0
        while start > first:
            depth += {"]": 1, "[": -1}.get(text[start], 0)
            if not depth:
                break
            start -= 1
        if not depth and not text[:start][-1:].isalnum() and text[:start][-1:] not in (")", "]", "_"):
            yield text[start + 1 : found.start()]
    for found in FACTOR.finditer(text) if "* [" in text or "*[" in text else ():
        before = text[max(0, found.start() - 40) : found.start()].rstrip()[-1:]
        if before.isalnum() or before in (")", "_"):
            yield text[found.end() : text.find("]", found.end(), found.end() + MOST_LETTERS)]


def _holds_modules(text: str, inner: str) -> bool:
    for found in ELEMENT.finditer(inner):
        name = found[1] or found[3]
        if (name and not name.endswith("Error")) or (found[2] and _is_made(text, found[2])):
            return True
    return False


def _is_made(text: str, name: str) -> bool:
    """Whether a name is given what a class, or a copy, makes."""
    return name not in OTHER and not name.isdigit() and _is_given(text, name, r"[\w.]*\b[A-Z]\w*\(|[\w.]*deepcopy\(")


def _is_given(text: str, name: str, what: str) -> bool:
    return bool(re.search(what, _given(text, name)))


@lru_cache(maxsize=64)
def _given(text: str, name: str) -> str:
    """Return what stands on the right of the name's assignments, line by line."""
    found = re.finditer(rf"{re.escape(name)}[ \t]*(?::[^=\n]*)?=(?!=)([^\n]*)", text)
    return "\n".join(one[1] for one in found if not re.match(r"[\w.]", text[one.start() - 1 : one.start()]))


@lru_cache(maxsize=2)
def _walked(text: str) -> frozenset[str]:
    """Return the names that loops bind."""
    return frozenset(re.findall(r"\w+", " ".join(re.findall(r"\bfor ([^\n]+?) in ", text))))


SIGNS: dict[str, Callable[[str], bool]] = {
    "TIE601": _parameters,
    "TIE602": _pointers,
    "TIE603": _raw,
    "TIE604": _copies,
    "TIE605": _cuts,
    "TIE606": _repeats,
}


def signs_in(text: str) -> list[str]:
    r"""Return the codes of the rules that could find anything in a text.

    Example:
        >>> signs_in("import torch.nn as nn\nlayers = [nn.Linear(8, 8)] * 6\n")
        ['TIE606']
        >>> signs_in("import torch\nprint('Hello')\n")
        []
    """
    return [code for code, is_there in SIGNS.items() if is_there(text)] if "torch" in text else []
