"""The shape of the library, checked: layers, owners, sizes, names, docstrings.

A rule is a function from one parsed `File` to the lines that break it. Every rule runs over the whole of
`src/tied`, and over the `WRONG` sources, each of which it must refuse: a rule that cannot fail is no rule.
"""

import ast
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tied"

LAYERS = [
    {"errors"},
    {"algebra"},
    {"ledger"},
    {"binding", "checking"},
    {"files", "nn", "distributed"},
    {"show"},
    {"study", "testing", "callbacks"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

OWNERS = {
    "matplotlib": {"show"},
    "safetensors": {"files", "study"},  # study runs them as operations that ties must survive
    "torch.distributed": {"distributed", "study"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "accelerate": {"study"},
    "transformers": {"study", "callbacks"},
    "lightning": {"callbacks"},
    "pytest": {"testing"},
}

UNPICKLES_ITS_OWN = {"study/matrix/copies.py"}  # bytes that it wrote a moment before: a row of the matrix
UNPICKLES_RECORDS = {
    "files/chunks.py"
}  # with a reader that makes tuples, dicts and records of its own, no named object

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS, MEDIAN_LINES = 400, 60, 6, 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class File:
    """One source file: its path inside `src/tied` and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def unit(self) -> str:
        """The part of the library it belongs to: a folder, or a file directly under `src/tied`."""
        return self.path.split("/")[0].removesuffix(".py")

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @cached_property
    def only_for_types(self) -> set[ast.AST]:
        """Everything under `if TYPE_CHECKING:`, which is never executed."""
        tests = [node for node in ast.walk(self.tree) if isinstance(node, ast.If)]
        guarded = [node for node in tests if dotted(node.test).split(".")[-1] == "TYPE_CHECKING"]
        return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}

    def imports(self, *, executed: bool = False) -> Iterator[tuple[int, str]]:
        """Every imported name with its line, in full: `from ..errors import X` is `tied.errors.X`."""
        for node in ast.walk(self.tree):
            if executed and node in self.only_for_types:
                continue
            if isinstance(node, ast.Import):
                yield from ((node.lineno, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.lineno, f"{self.origin(node)}.{name.name}") for name in node.names)

    def origin(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module that `from <here> import ...` names."""
        if not node.level:
            return node.module or ""
        package = ["tied", *self.path.split("/")[:-1]]
        return ".".join([*package[: len(package) + 1 - node.level], *([node.module] if node.module else [])])


def dotted(node: ast.AST) -> str:
    """The dotted name that an expression spells: `torch.nn.Module`; "" where it is something else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


# The rules


def has_a_layer(file: File) -> Iterator[str]:
    if file.unit not in RANK:
        yield f"1: {file.unit} is in no layer: add it to LAYERS"


def imports_go_one_way(file: File) -> Iterator[str]:
    for line, name in file.imports():
        if not within(name, "tied"):
            continue
        unit = [*name.split("."), ""][1]
        unit = unit if unit in RANK else "__init__"
        if unit != file.unit and RANK[unit] >= RANK.get(file.unit, 0):
            yield f"{line}: {file.unit} imports {name}, which is not below it"


def third_party_has_one_owner(file: File) -> Iterator[str]:
    for line, name in file.imports(executed=True):
        for package, owners in OWNERS.items():
            if within(name, package) and file.unit not in owners:
                yield f"{line}: imports {name}, which belongs to {', '.join(sorted(owners))}"


def algebra_knows_no_module(file: File) -> Iterator[str]:
    if file.unit != "algebra":
        return
    attributes = [node for node in ast.walk(file.tree) if isinstance(node, ast.Attribute)]
    used = [(node.lineno, dotted(node)) for node in attributes if dotted(node).startswith("torch.nn.")]
    for line, name in [*file.imports(), *used]:
        if within(name, "torch.nn") and not within(name, "torch.nn.functional"):
            yield f"{line}: {name} in algebra, which knows tensors only"


def only_the_cli_prints(file: File) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if file.unit != "cli" and dotted(node) in {"print", "sys.stdout", "sys.stderr"}:
            yield f"{node.lineno}: {dotted(node)} outside cli"


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and dotted(node.func) in names


def name_says_what(file: File) -> Iterator[str]:
    for part in file.path.removesuffix(".py").split("/"):
        if part.strip("_") in EMPTY_NAMES:
            yield f"1: a thing without a home is a concept without a name: {part}"


def file_is_short(file: File) -> Iterator[str]:
    lines = len(file.text.splitlines())
    if lines > MOST_LINES:
        yield f"1: {lines} lines, at most {MOST_LINES}"


def functions_are_short(file: File) -> Iterator[str]:
    for function in file.functions:
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MOST_FUNCTION_LINES:
            yield f"{function.lineno}: {function.name} has {lines} lines, at most {MOST_FUNCTION_LINES}"


def functions_take_few_parameters(file: File) -> Iterator[str]:
    for function in file.functions:
        arguments = function.args
        names = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > MOST_PARAMETERS:
            yield f"{function.lineno}: {function.name} has {count} parameters, at most {MOST_PARAMETERS}"


def public_things_have_docstrings(file: File) -> Iterator[str]:
    for node in [file.tree, *public(file.tree)]:
        if not ast.get_docstring(node):
            yield f"{getattr(node, 'lineno', 1)}: {getattr(node, 'name', 'the file')} has no docstring"


def public(parent: ast.Module | ast.ClassDef) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes that a user can reach by a public name, methods of public classes included."""
    for node in parent.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_") and not says_nothing_new(node):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def says_nothing_new(node: Function | ast.ClassDef) -> bool:
    """Whether the docstring stands elsewhere: an overload, an override, a property's setter."""
    marks = {dotted(mark).split(".")[-1] for mark in node.decorator_list}
    return bool(marks & {"overload", "override", "setter", "deleter"})


def runs_no_foreign_code(file: File) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if is_call(node, "eval", "exec", "__import__"):
            yield f"{node.lineno}: {dotted(node.func)} executes text"
        if file.path in UNPICKLES_ITS_OWN:
            continue
        if is_call(node, "torch.load") and not loads_weights_only(node):
            yield f"{node.lineno}: torch.load without weights_only=True executes what the file says"
    for line, name in file.imports() if file.path not in UNPICKLES_ITS_OWN | UNPICKLES_RECORDS else ():
        if name.split(".")[0] in {"pickle", "cloudpickle", "dill", "marshal", "joblib"}:
            yield f"{line}: {name} executes what the file says"


def loads_weights_only(call: ast.Call) -> bool:
    return any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in call.keywords)


RULES = [
    has_a_layer,
    imports_go_one_way,
    third_party_has_one_owner,
    algebra_knows_no_module,
    only_the_cli_prints,
    name_says_what,
    file_is_short,
    functions_are_short,
    functions_take_few_parameters,
    public_things_have_docstrings,
    runs_no_foreign_code,
]


def median_length(files: list[File]) -> float:
    """The median number of lines of a function's body, its docstring not counted."""
    return statistics.median(body_lines(function) for file in files for function in file.functions)


def body_lines(function: Function) -> int:
    statements = function.body[1:] if ast.get_docstring(function) else function.body
    return (function.end_lineno or 0) - statements[0].lineno + 1 if statements else 0


# The library


FILES = [File(path.relative_to(SRC).as_posix(), path.read_text(encoding="utf-8")) for path in SRC.rglob("*.py")]


def name_of(rule: object) -> str:
    return getattr(rule, "__name__", str(rule))


@pytest.mark.parametrize("rule", RULES, ids=name_of)
def test_rule_holds(rule):
    broken = [f"src/tied/{file.path}:{what}" for file in FILES for what in rule(file)]
    assert not broken, "\n".join(sorted(broken))


def test_half_of_all_functions_are_short():
    assert median_length(FILES) < MEDIAN_LINES


def test_the_library_was_found():
    assert {file.unit for file in FILES} >= {"errors", "algebra", "binding"}


# Each rule can fail, and leaves the right thing alone


def lines(count: int, indent: str = "") -> str:
    return f"{indent}x = 1\n" * count


WRONG = [
    (has_a_layer, "plumbing/pipe.py", ""),
    (has_a_layer, "plumbing.py", ""),
    (imports_go_one_way, "algebra/a.py", "from tied.binding import tie"),
    (imports_go_one_way, "algebra/a.py", "from tied.binding.slots import Slot"),
    (imports_go_one_way, "algebra/a.py", "import tied.binding.slots"),
    (imports_go_one_way, "algebra/a.py", "from tied import binding"),
    (imports_go_one_way, "algebra/a.py", "from ..binding import tie"),
    (imports_go_one_way, "algebra/a.py", "from .. import binding"),
    (imports_go_one_way, "algebra/deep/a.py", "from ...cli import main"),
    (imports_go_one_way, "algebra/a.py", "def late():\n    from tied.files import save"),
    (imports_go_one_way, "algebra/a.py", "if TYPE_CHECKING:\n    from tied.binding import Tie"),
    (imports_go_one_way, "checking/a.py", "from tied.binding import tie"),
    (imports_go_one_way, "show/a.py", "from tied import tie"),
    (imports_go_one_way, "errors.py", "from .algebra import parse"),
    (third_party_has_one_owner, "cli/draw.py", "import matplotlib.pyplot as plt"),
    (third_party_has_one_owner, "cli/draw.py", "from matplotlib import pyplot"),
    (third_party_has_one_owner, "checking/a.py", "from safetensors.torch import save_file"),
    (third_party_has_one_owner, "binding/a.py", "import torch.distributed as dist"),
    (third_party_has_one_owner, "binding/a.py", "from torch import distributed"),
    (third_party_has_one_owner, "show/a.py", "def late():\n    import rich"),
    (algebra_knows_no_module, "algebra/a.py", "from torch import nn"),
    (algebra_knows_no_module, "algebra/a.py", "import torch.nn.utils.prune"),
    (algebra_knows_no_module, "algebra/a.py", "def f(m: torch.nn.Module): ..."),
    (only_the_cli_prints, "show/text.py", "print('hello')"),
    (only_the_cli_prints, "study/demo.py", "def run(tell=print): ..."),
    (only_the_cli_prints, "study/demo.py", "sys.stdout.write('hello')"),
    (name_says_what, "binding/utils.py", ""),
    (name_says_what, "binding/_helpers.py", ""),
    (name_says_what, "common/slots.py", ""),
    (file_is_short, "binding/a.py", lines(401)),
    (functions_are_short, "binding/a.py", "def f():\n" + lines(60, "    ")),
    (functions_take_few_parameters, "binding/a.py", "def f(a, b, c, /, d, e, *, f, g): ..."),
    (functions_take_few_parameters, "binding/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g): ..."),
    (public_things_have_docstrings, "binding/a.py", ""),
    (public_things_have_docstrings, "binding/a.py", "'''A file.'''\ndef f(): ..."),
    (public_things_have_docstrings, "binding/a.py", "'''A file.'''\nclass A: ..."),
    (
        public_things_have_docstrings,
        "binding/a.py",
        "'''A file.'''\nclass A:\n    '''A.'''\n    def f(self): ...",
    ),
    (runs_no_foreign_code, "algebra/a.py", "eval('1 + 1')"),
    (runs_no_foreign_code, "algebra/a.py", "exec('x = 1')"),
    (runs_no_foreign_code, "files/a.py", "import pickle"),
    (runs_no_foreign_code, "files/a.py", "from pickle import load"),
    (runs_no_foreign_code, "files/a.py", "torch.load(path)"),
    (runs_no_foreign_code, "files/a.py", "torch.load(path, weights_only=False)"),
    (runs_no_foreign_code, "study/matrix/a.py", "import pickle"),
    (runs_no_foreign_code, "study/matrix/copies.py", "exec('x = 1')"),
]

RIGHT = [
    (
        imports_go_one_way,
        "binding/a.py",
        "from tied.algebra import parse\nfrom .slots import Slot\nimport torch",
    ),
    (imports_go_one_way, "binding/deep/a.py", "from ..slots import Slot\nfrom ...errors import TieError"),
    (imports_go_one_way, "__init__.py", "from tied.binding import tie"),
    (imports_go_one_way, "binding/a.py", "import tiedown"),
    (third_party_has_one_owner, "show/plot.py", "import matplotlib"),
    (third_party_has_one_owner, "binding/a.py", "if TYPE_CHECKING:\n    import torch.distributed"),
    (third_party_has_one_owner, "binding/a.py", "import torch.distributions, richer"),
    (algebra_knows_no_module, "binding/a.py", "from torch import nn"),
    (algebra_knows_no_module, "algebra/a.py", "from torch.nn import functional\ntorch.nn.functional.relu(x)"),
    (only_the_cli_prints, "cli/a.py", "print('hello')"),
    (only_the_cli_prints, "show/a.py", "printer.print('hello')"),
    (name_says_what, "algebra/basis.py", ""),
    (file_is_short, "binding/a.py", lines(400)),
    (functions_are_short, "binding/a.py", "def f():\n" + lines(59, "    ")),
    (functions_take_few_parameters, "binding/a.py", "class A:\n    def f(self, a, b, c, d, e, f): ..."),
    (
        public_things_have_docstrings,
        "binding/a.py",
        "'''A file.'''\ndef _f(): ...\nclass _A:\n    def f(self): ...",
    ),
    (runs_no_foreign_code, "files/a.py", "model.eval()\ntorch.load(path, weights_only=True)"),
    (runs_no_foreign_code, "study/matrix/copies.py", "import pickle"),
]


@pytest.mark.parametrize(("rule", "path", "text"), WRONG, ids=name_of)
def test_rule_refuses(rule, path, text):
    assert list(rule(File(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), RIGHT, ids=name_of)
def test_rule_accepts(rule, path, text):
    assert not list(rule(File(path, text)))


def test_every_rule_was_seen_to_refuse():
    assert {rule for rule, *_ in WRONG} == set(RULES)


def test_median_length_can_be_too_long():
    short, long = (
        "def f():\n" + lines(2, "    "),
        "def g():\n    '''Doc.\n\n    More.'''\n" + lines(20, "    "),
    )
    assert median_length([File("a.py", short)]) == 2
    assert median_length([File("a.py", long)]) == 20
