"""The shape of the library, checked: layers, owners, sizes, names, docstrings.

A rule is a function from one parsed `File` to the lines that break it. Every rule runs over the whole of
`src/tied`, and over the `WRONG` sources, each of which it must refuse: a rule that cannot fail is no rule.
"""

import ast
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "tied"

LAYERS = [
    {"errors", "lazy"},
    {"algebra", "memory", "sharding", "show"},
    {"ledger", "reporting"},
    {"binding"},
    {"nn", "distributed", "files/reading"},
    {"files/auditing"},
    {"files/rewriting"},
    {"files/models"},
    {"files"},  # its face
    {"checking"},
    {"proving"},
    {"study", "testing", "callbacks"},
    {"study/demo", "study/matrix", "study/proofs", "study/train"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

EYES = ("memory", "reporting", "checking", "proving")  # must work on models that never met `tied`

OWNERS = {
    "matplotlib": {"show"},
    "safetensors": {"files/models", "study/matrix"},  # the matrix runs it as an operation that ties must survive
    "torch.distributed": {"distributed", "sharding", "study/matrix"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli"},
    "accelerate": {"study/train", "study/matrix"},
    "transformers": {"callbacks", "study/matrix"},
    "lightning": {"callbacks"},
    "pytorch_lightning": {"callbacks"},
    "pytest": {"testing"},
}

IMPORTS_BY_NAME = {
    "lazy.py": "the names of lazy packages, which stand there as strings and count as imports",
    "cli/subject.py": "the user's own code, which `tied check` is told to look at",
    "callbacks.py": "optional packages, of which one may be there under two names",
    "study/matrix/run.py": "a registry of rows that a caller brings along",
    "study/matrix/cell_server.py": "the same, in the process that runs a cell",
}
"""The only files that import what a variable names, and why."""

UNPICKLES_ITS_OWN = {"study/matrix/rows/copies.py"}  # bytes that it wrote a moment before: a row of the matrix
UNPICKLES_RECORDS = {
    "files/reading/distributed_folder.py"
}  # with a reader that makes tuples, dicts and records of its own, no named object

EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS, MEDIAN_LINES, MOST_FILES = 400, 60, 6, 10, 20

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
        """The part of the library it belongs to: the innermost that is in a layer, or the outermost folder."""
        return unit_of(self.path.removesuffix(".py").split("/"))

    @property
    def module(self) -> str:
        """Its dotted name."""
        return ".".join(["tied", *self.path.removesuffix(".py").split("/")]).removesuffix(".__init__")

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
        """Every imported name with its line, in full: `from ..errors import X` is `tied.errors.X`.

        A string that is handed to `import_module` or `__import__` is one, and so is every string that is, whole, a
        name of ours: there is no other use for such strings, but for saying where a class is public.
        """
        for node in ast.walk(self.tree):
            if executed and node in self.only_for_types:
                continue
            if isinstance(node, ast.Import):
                yield from ((node.lineno, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((node.lineno, f"{self.origin(node)}.{name.name}") for name in node.names)
            elif isinstance(node, ast.Constant) and is_name(node.value) and self.imports_string(node):
                yield node.lineno, node.value

    def imports_string(self, node: ast.Constant) -> bool:
        return node in self.handed_over or (node.value.startswith("tied.") and node not in self.places)

    @cached_property
    def places(self) -> set[ast.AST]:
        """Strings that name a package without importing it, as in `__module__ = "tied.nn"`."""
        assigned = [node for node in ast.walk(self.tree) if isinstance(node, ast.Assign)]
        said = {node.value for node in assigned if dotted(node.targets[0]).split(".")[-1] == "__module__"}
        return said | {arg for call in calls(self.tree, "resources.files") for arg in call.args}

    @cached_property
    def handed_over(self) -> set[ast.AST]:
        """The first arguments of calls that import."""
        return {arg for call in calls(self.tree, *IMPORTERS) for arg in call.args[:1]}

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


IMPORTERS = ("importlib.import_module", "import_module", "__import__", "importlib.__import__")


def calls(tree: ast.AST, *names: str) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) in names]


def is_name(value: object) -> bool:
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


def unit_of(parts: list[str]) -> str:
    return next((u for n in range(len(parts), 0, -1) if (u := "/".join(parts[:n])) in RANK), parts[0])


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
        unit = unit_of([*name.split(".")[1:], "__init__"])
        unit = unit if unit in RANK else "__init__"
        if unit != file.unit and RANK[unit] >= RANK.get(file.unit, 0):
            yield f"{line}: {file.unit} imports {name}, which is not below it"


def third_party_has_one_owner(file: File) -> Iterator[str]:
    for line, name in file.imports(executed=True):
        for package, owners in OWNERS.items():
            if within(name, package) and file.unit not in owners:
                yield f"{line}: imports {name}, which belongs to {', '.join(sorted(owners))}"


def imports_what_it_says(file: File) -> Iterator[str]:
    for call in calls(file.tree, *IMPORTERS):
        if file.path not in IMPORTS_BY_NAME and not isinstance(call.args[0], ast.Constant):
            yield f"{call.lineno}: imports what a variable names; only {', '.join(IMPORTS_BY_NAME)} may"


def package_says_what_it_owns(file: File) -> Iterator[str]:
    said = ast.get_docstring(file.tree) or ""
    if file.path.endswith("/__init__.py") and not ("Owns: " in said and "Must not " in said):
        yield "1: a folder's docstring says what it owns (`Owns: ...`) and what it must not do (`Must not ...`)"


def signposts_lead_somewhere(file: File) -> Iterator[str]:
    here = (SRC / file.path).parent
    for line, text in enumerate(file.text.splitlines(), 1):
        for path in re.findall(r"`([\w/]+\.py)`", text):
            if not any((place / path).exists() for place in (here, SRC, SRC.parents[1])):
                yield f"{line}: there is no {path}"


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
    imports_what_it_says,
    package_says_what_it_owns,
    signposts_lead_somewhere,
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


# The whole


def arrows(files: list[File]) -> dict[str, set[str]]:
    """Return, for each module, the modules that it names: the innermost that exist."""
    known = {file.module for file in files}
    named = {file.module: {name for _, name in file.imports() if within(name, "tied")} for file in files}
    return {module: {innermost(name, known) for name in names} - {module} for module, names in named.items()}


def innermost(name: str, known: set[str]) -> str:
    while name not in known and name:
        name = name.rpartition(".")[0]
    return name


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that reach one another."""
    ways = {module: reached(graph, module) for module in graph}
    knots = {frozenset(other for other in ways[m] if m in ways.get(other, ())) for m in graph if m in ways[m]}
    return sorted(sorted(knot) for knot in knots)


def too_many(paths: Iterable[str]) -> dict[str, int]:
    """Return the folders with more files than one idea has, their faces not counted."""
    count = Counter(path.rpartition("/")[0] for path in paths if not path.endswith("__init__.py"))
    return {folder: files for folder, files in count.items() if files > MOST_FILES}


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


def test_there_is_no_import_circle():
    found = circles(arrows(FILES))
    assert not found, "\n".join(" <-> ".join(circle) for circle in found)


def test_the_eyes_do_not_reach_the_hands():
    graph = arrows(FILES)
    eyes = [file.module for file in FILES if file.unit in EYES]
    hands = {file.module for file in FILES if file.unit == "binding"}
    assert hands
    assert not {eye: sorted(found) for eye in eyes if (found := reached(graph, eye) & hands)}


def test_folders_hold_one_idea():
    assert not too_many(file.path for file in FILES)


@pytest.mark.parametrize("path", IMPORTS_BY_NAME)
def test_exceptions_are_needed(path: str):
    (file,) = [file for file in FILES if file.path == path]
    assert any(not isinstance(call.args[0], ast.Constant) for call in calls(file.tree, *IMPORTERS))


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
    (imports_go_one_way, "checking/a.py", "from tied.proving.verify import verify"),
    (imports_go_one_way, "show/a.py", "from tied import tie"),
    (imports_go_one_way, "errors.py", "from .algebra import parse"),
    (imports_go_one_way, "files/reading/a.py", "from tied.files.auditing.audit import audit"),
    (imports_go_one_way, "files/auditing/a.py", "from tied.files import load_file"),
    (imports_go_one_way, "files/models/a.py", "from tied.checking.check import check"),
    (imports_go_one_way, "study/train/a.py", "from tied.study.demo.record import Record"),
    # the seven places that walked around the rule in 0.1.0, and what lazy packages name
    (imports_go_one_way, "binding/link.py", 'gather = importlib.import_module("tied.distributed").whole'),
    (imports_go_one_way, "reporting/report.py", 'return importlib.import_module("tied.checking.check")'),
    (imports_go_one_way, "reporting/tension.py", 'return importlib.import_module("tied.proving.tension")'),
    (imports_go_one_way, "files/auditing/a.py", 'import_module("tied.checking.check").check(subject)'),
    (imports_go_one_way, "files/models/model_names.py", 'importlib.import_module("tied.study").gathered(tensor)'),
    (imports_go_one_way, "files/models/payload.py", 'distributed = __import__("tied.checking")'),
    (imports_go_one_way, "files/models/assign_values.py", "spread = importlib.import_module('tied.files').spread"),
    (imports_go_one_way, "algebra/__init__.py", '_HOMES = {"tied.binding": "tie"}'),
    (imports_go_one_way, "algebra/__init__.py", '_HOMES = {"tie": "tied.binding.tie"}'),
    (imports_what_it_says, "binding/a.py", "importlib.import_module(name)"),
    (imports_what_it_says, "binding/a.py", 'importlib.import_module(f"tied.{name}")'),
    (imports_what_it_says, "binding/a.py", "__import__(name)"),
    (package_says_what_it_owns, "binding/__init__.py", ""),
    (package_says_what_it_owns, "files/reading/__init__.py", "'Files.'"),
    (package_says_what_it_owns, "files/reading/__init__.py", "'Files. Owns: all.'"),
    (signposts_lead_somewhere, "binding/a.py", "'Read next: `undo.py`.'"),
    (signposts_lead_somewhere, "binding/a.py", "'Read next: `files/undo.py`.'"),
    (third_party_has_one_owner, "binding/a.py", 'importlib.import_module("transformers")'),
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
    (runs_no_foreign_code, "study/matrix/rows/copies.py", "exec('x = 1')"),
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
    (imports_go_one_way, "binding/a.py", "'See tied.files.'\nclass A:\n    __module__ = 'tied.files'"),
    (imports_go_one_way, "__init__.py", '_HOMES = {"tied.binding": "tie"}'),
    (imports_go_one_way, "files/auditing/a.py", "from tied.files.reading.stored import Stored"),
    (imports_go_one_way, "checking/a.py", "from tied.files.auditing.audit import audit"),
    (imports_what_it_says, "binding/a.py", 'importlib.import_module("pydoc_data.topics")'),
    (imports_what_it_says, "cli/subject.py", "importlib.import_module(name)"),
    (signposts_lead_somewhere, "binding/a.py", "'See `untie.py`, `files/models/save.py`, `benchmarks/read.py`.'"),
    (package_says_what_it_owns, "binding/a.py", "'A file.'"),
    (package_says_what_it_owns, "binding/__init__.py", "'Ties. Owns: hands. Must not look.'"),
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
    (runs_no_foreign_code, "study/matrix/rows/copies.py", "import pickle"),
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


def test_a_circle_is_found():
    texts = {
        "files/a.py": "from tied.files.b import x",
        "files/b.py": "if TYPE_CHECKING:\n    from tied.files import c",
        "files/c.py": "def late():\n    importlib.import_module('tied.files.a')",
        "files/d.py": "from tied.files.a import x",
    }
    files = [File(path, text) for path, text in texts.items()]
    assert circles(arrows(files)) == [["tied.files.a", "tied.files.b", "tied.files.c"]]
    assert circles(arrows(files[1:])) == []
    assert reached(arrows(files), "tied.files.d") == {f"tied.files.{name}" for name in "abc"}


def test_a_folder_can_hold_too_much():
    paths = [f"files/{number}.py" for number in range(20)]
    assert not too_many([*paths, "files/__init__.py", "files/reading/a.py"])
    assert too_many([*paths, "files/a.py"]) == {"files": 21}
