"""What people say around a line: names, comments and docstrings that tell what is meant.

Owns: comments, the words that tell sharing, conversion and averaging, and `# tied: ignore`. Must not follow values.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping

from tied.checking.source.scopes import At, FunctionNode, Scope
from tied.checking.source.vocabulary import SHARING

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
IGNORED = re.compile(r"#\s*tied:\s*ignore(?!\w)(?:\s*\[([^\]]*)\])?")


def words(text: str) -> set[str]:
    """Return the words of a name or a sentence, in small letters.

    Example:
        >>> sorted(words("def tie_weights: TiedDecoder"))
        ['decoder', 'def', 'tie', 'tied', 'weights']
    """
    return {word.lower() for word in WORD.findall(text)}


def comments_of(text: str) -> dict[int, str]:
    """Return the comments of a file by line; what only looks like one, in a string, is none."""
    found: dict[int, str] = {}
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                found[token.start[0]] = token.string
    except (tokenize.TokenError, SyntaxError):  # what the parser takes and the tokenizer does not
        return found
    return found


def comments_at(comments: Mapping[int, str], first: int, last: int) -> str:
    """Return the comments on some lines, and those right above them; what silences a rule says nothing else."""
    said = [comments[line] for line in range(first, last + 1) if line in comments]
    line = first - 1
    while line in comments:
        said.append(comments[line])
        line -= 1
    return IGNORED.sub("", " ".join(said))


def is_ignored(comments: Mapping[int, str], lines: range, code: str) -> bool:
    """Whether a comment on one of the lines says `# tied: ignore`, or `# tied: ignore[CODE]`."""
    for line in lines:
        for said in IGNORED.finditer(comments.get(line, "")):
            if said[1] is None or any(_begins(code, one) for one in said[1].split(",")):
                return True
    return False


def _begins(code: str, prefix: str) -> bool:
    return bool(prefix.strip()) and code.startswith(prefix.strip().upper())


def names_around(at: At) -> str:
    """Return the names of the functions and classes around a place, `__init__` and its like left out."""
    names = [getattr(scope.node, "name", "") for scope in _around(at.scope)]
    return " ".join(name for name in names if not name.startswith("__"))


def docstrings_around(at: At) -> str:
    """Return the docstrings of the functions and classes around a place."""
    nodes = [scope.node for scope in _around(at.scope)]
    return " ".join(ast.get_docstring(n) or "" for n in nodes if isinstance(n, FunctionNode | ast.ClassDef))


def conditions_around(at: At) -> list[ast.expr]:
    """Return what holds where a statement stands, by the `if`s and `while`s around it, the innermost first."""
    blocks = [block for block in at.blocks() if isinstance(block.node, ast.If | ast.While)]
    return [
        holding(block.node.test, block.part == "body") for block in blocks if isinstance(block.node, ast.If | ast.While)
    ]


def holding(test: ast.expr, is_true: bool) -> ast.expr:
    """Return a test as it holds: `not share` where `share` is false, and `share` where `not share` is."""
    if is_true:
        return test
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def asks_for_sharing(test: ast.expr) -> bool:
    """Whether a condition that holds speaks of sharing, and does not deny it.

    Example:
        >>> [asks_for_sharing(ast.parse(text).body[0].value) for text in ("self.share_layers", "not share", "n > 2")]
        [True, False, False]
    """
    denied = [node for node in ast.walk(test) if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)]
    inner = {id(one) for node in denied for one in ast.walk(node.operand)}
    named = [node for node in ast.walk(test) if isinstance(node, ast.Name | ast.Attribute | ast.Constant)]
    said = " ".join(ast.unparse(node) for node in named if id(node) not in inner)
    return bool(SHARING & words(said))


def _around(scope: Scope | None) -> Iterator[Scope]:
    while scope:
        yield scope
        scope = scope.outer
