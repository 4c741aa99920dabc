"""The rules: every code that a finding may carry, with its title, severity and sentence.

Owns: the registry, making findings, and choosing codes by prefix. Must not look at anything. A room that finds
something new adds its line here, so that no code means two things. Read next: the file that looks, `checking/check.py`.

    1xx  sharing is not what it seems      3xx  files
    2xx  meaning                           4xx  optimizers and adapters      5xx  several devices
                                                                             6xx  source code
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tied.errors import KindError
from tied.reporting.facts import SEVERITIES, Finding, Severity

PAGE = "docs/rules.md"  # has a section for each rule


@dataclass(frozen=True)
class Rule:
    """One rule: a stable code, a title, a severity, and one sentence that says what it means."""

    code: str
    title: str
    severity: Severity
    sentence: str

    @property
    def section(self) -> str:
        """The section of docs/rules.md about it."""
        return f"{self.code}-{self.title.replace(',', '').replace(' ', '-')}".lower()


_RULES = [
    # 1xx: sharing is not what it seems
    Rule("TIE101", "half-tied", "error", "Two Parameters lie over one memory, so an optimizer steps it twice."),
    Rule("TIE102", "drifted", "error", "Two tensors are declared equal, and have different values."),
    Rule("TIE103", "equal copy of a declared tie", "error", "A declared tie is not there: equal values, two memories."),
    Rule("TIE104", "declared, not there", "warning", "A declared tie is not there, and its values cannot be compared."),
    Rule("TIE105", "equal copies", "note", "Two tensors hold equal values in separate memory."),
    Rule("TIE106", "shared, not declared", "warning", "Shared here, unknown to the library that saves and loads it."),
    Rule("TIE107", "overwritten rule", "note", "A rule of `_tied_weights_keys` matches, and a later one undoes it."),
    Rule("TIE108", "dead rule", "note", "A rule of `_tied_weights_keys` matches nothing."),
    Rule("TIE109", "cut tie", "error", "A tie declared with `tied` was cut from outside."),
    Rule("TIE110", "buffers over one memory", "note", "Two buffers lie over one memory, until a cast or a move."),
    Rule("TIE111", "use without a gradient", "warning", "A Parameter is shared in a forward, and one use is detached."),
    Rule("TIE112", "followed by copying", "error", "A forward or a hook copies one Parameter into another."),
    # 2xx: meaning
    Rule("TIE201", "padding index on one end", "note", "The padding row gets a gradient from the other end."),
    Rule("TIE202", "max_norm on one end", "warning", "A look-up rescales rows in place, at the other end too."),
    Rule("TIE203", "sparse gradient on one end", "warning", "One end gives a sparse gradient, the other a dense one."),
    Rule("TIE204", "wide embedding as a head", "warning", "The embedding is drawn too wide to be a head."),
    Rule("TIE205", "shared batch statistics", "note", "Two places update the running statistics of one batch norm."),
    Rule("TIE206", "requires_grad differs", "warning", "One end of a tie is trained and the other is frozen."),
    Rule("TIE207", "rows stay equal", "warning", "Every row of a weight is the same, and nothing tells them apart."),
    # 3xx: files
    Rule("TIE301", "stored twice", "warning", "A file holds one tensor under two names."),
    Rule(
        "TIE302",
        "stored transposed too",
        "warning",
        "A file holds a tensor and its transpose, or another order of axes.",
    ),
    Rule("TIE303", "rows stored twice", "warning", "A file holds a tensor and, apart from it, rows of it."),
    Rule("TIE304", "small copies", "note", "A file holds small tensors twice."),
    Rule("TIE305", "promised, not stored", "error", "A header, an index or a config.json names what the file lacks."),
    Rule("TIE306", "stored with another value", "error", "A file declares two tensors equal, and they differ."),
    Rule("TIE307", "broken ledger", "error", "What a file says of its ties cannot be so."),
    Rule("TIE308", "not in the index", "warning", "Shards hold tensors to which their index does not lead."),
    Rule("TIE309", "configured tied, stored untied", "error", "config.json ties head and embedding, and they differ."),
    Rule(
        "TIE310", "configured untied, stored equal", "warning", "config.json unties head and embedding; they are equal."
    ),
    Rule("TIE311", "storage too large", "warning", "A .pt holds a storage of which its tensors show a part."),
    Rule("TIE312", "shared storage", "note", "A .pt holds tensors that lie in the storage of another one."),
    # 4xx: optimizers and adapters
    Rule("TIE401", "twice in the optimizer", "error", "The optimizer steps one Parameter twice."),
    Rule("TIE402", "one memory, two entries", "error", "The optimizer holds two Parameters over one memory."),
    Rule("TIE403", "two settings for one memory", "error", "One memory is stepped with two learning rates or decays."),
    Rule("TIE404", "missing in the optimizer", "warning", "A shared Parameter is trainable, and no optimizer has it."),
    Rule("TIE405", "stale in the optimizer", "warning", "The optimizer steps a Parameter that the model lost."),
    Rule("TIE406", "stepped by two optimizers", "warning", "Two optimizers step one Parameter."),
    Rule("TIE411", "adapter on one end", "warning", "Merging the adapter would change the other end, or cut the tie."),
    Rule("TIE412", "trained copy of one end", "warning", "An adapter trains a copy of one end; the other stays."),
    # 5xx: several devices
    Rule("TIE501", "ends on two devices", "error", "A declared tie has its ends on two devices, as copies."),
    # 6xx: source code
    Rule("TIE600", "not looked at", "error", "What lies there could not be read, so nothing is known of it."),
    Rule("TIE601", "Parameter over another", "error", "A line makes a second Parameter over another's memory."),
    Rule("TIE602", "data pointed at another", "error", "A line points `.data` at another Parameter's memory."),
    Rule("TIE603", "view in place of a Parameter", "error", "A line assigns a tensor where torch takes a Parameter."),
    Rule("TIE604", "copied at every step", "error", "A forward or a hook copies one weight into another."),
    Rule("TIE605", "used without its gradient", "warning", "A forward uses a layer's weight cut from its gradient."),
    Rule("TIE606", "one repeated", "warning", "A list holds one module or Parameter several times."),
]

NOT_LOOKED_AT = "TIE600"

RULES: dict[str, Rule] = {rule.code: rule for rule in _RULES}


def finding(
    code: str, names: Iterable[str], message: str, fix: str = "", *, severity: Severity | None = None
) -> Finding:
    """Make a finding of a rule, with the rule's severity unless another is given."""
    return Finding(code, severity or RULES[code].severity, tuple(names), message, fix)


def chosen(
    findings: Iterable[Finding], *, select: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Keep the findings whose code begins with one of `select` (None: any) and with none of `ignore`.

    The worst come first; within one severity the order of codes, then that in which they were found.

    Raises:
        KindError: a prefix is that of no rule, so that a misspelled one cannot silence anything.
    """
    known_prefixes([*(select or ()), *ignore])
    kept = [f for f in findings if _begins(f.code, select or ("TIE",)) and not _begins(f.code, ignore)]
    return tuple(sorted(kept, key=lambda f: (SEVERITIES.index(f.severity), f.code)))


def known_prefixes(prefixes: Iterable[str]) -> None:
    """Refuse a prefix of no rule."""
    for prefix in prefixes:
        if not any(_begins(code, (prefix,)) for code in RULES):
            error = KindError(
                f"No rule begins with '{prefix}'.",
                found=repr(prefix),
                expected="a code such as 'TIE101', or the beginning of one, such as 'TIE1'",
                fix="list them with `tied rules`",
            )
            error.changed = "Nothing was looked at."  # which may have been a file
            raise error


def _begins(code: str, prefixes: Sequence[str]) -> bool:
    return any(prefix and code.startswith(prefix.upper()) for prefix in prefixes)
