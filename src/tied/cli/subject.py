"""What `tied check` is asked to look at: a file or folder, or a model that the user's own code makes.

Owns: telling them apart, importing the user's code and calling it, and what is said where that fails. Must not judge.
Read next: `near_names.py`, `offers.py`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tied.cli.near_names import exists, no_such_file, nowhere
from tied.cli.offers import lines_to_type, source_of
from tied.cli.terminal import say
from tied.errors import nearest

SUFFIXES = (".safetensors", ".json", ".pt", ".pth", ".bin", ".ckpt", ".py")


class SubjectError(Exception):
    """There is nothing to look at; the message is for a person who typed the subject."""


class Factory(NamedTuple):
    """What makes a model: a module by its name, or by the path of its file, and a dotted name in it."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"{self.module}:{self.name}"


def subject_of(text: str) -> Path | Factory:
    """Tell what a subject is; files that are not there are left to the one who opens them.

    Raises:
        SubjectError: It is neither a path nor a factory; the message says what was near.
    """
    if "://" in text:
        raise SubjectError(nowhere(text))
    if exists(text) or text.endswith(SUFFIXES):
        return Path(text)
    module, colon, name = text.rpartition(":")
    if colon and module.endswith(".py"):
        if not exists(module):
            raise SubjectError(no_such_file(Path(module)))
        source = Path(module)
    else:
        module, name = (module, name) if colon else (text, "")
        if not all(part.isidentifier() for part in module.split(".")):
            raise SubjectError(_no_module(text, module, name) if colon else nowhere(text))
        source = source_of(module)
    if name:
        return Factory(module, name)
    if source is None:
        raise SubjectError(_unknown(module) if colon else nowhere(text))
    raise SubjectError(lines_to_type(module, source))


def _no_module(text: str, module: str, name: str) -> str:
    """Say what is wrong with what stands before the colon."""
    if exists(f"{module}.py"):
        return f"{module!r} is no module; did you mean '{module}.py:{name}'?"
    return f"{text!r} is no file, and not of the form package.module:factory or file.py:factory"


def _unknown(module: str) -> str:
    known = {path.stem for path in Path.cwd().glob("*.py")} | {path.parent.name for path in Path.cwd().glob("*/*.py")}
    near = nearest(module, known)
    return f"there is no module {module!r}, neither in this folder nor installed" + (
        f"; did you mean {near}?" if near else ""
    )


# -- the user's own code --------------------------------------------------------------------------------


def made(factory: Factory, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Import the user's code, and make the model, with inputs where it gives them.

    Raises:
        SubjectError: That fails, or gives something else.
    """
    from torch import nn

    say(f"Importing {factory.module}, which runs its code ...")
    with _importing(factory):
        found = _named(_imported(factory), factory)
        if isinstance(found, nn.Module):
            if arguments:
                raise SubjectError(f"--arg is for a factory, and {factory} is a model")
            return found, None
        if not callable(found):
            raise SubjectError(_no_model(factory, found))
        _refuse_misfits(factory, found, arguments)
        given = found(**arguments)
    model, inputs = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(model, nn.Module):
        raise SubjectError(_no_model(factory, model))
    return model, inputs


def _no_model(factory: Factory, found: object) -> str:
    return f"{factory} gave {type(found).__name__}, where a model, or a model and inputs, is needed"


@contextmanager
def _importing(factory: Factory) -> Generator[None]:
    """Find modules as Python does that runs in this folder; word what the user's code raises, leaving included."""
    homes = [str(Path.cwd())]
    if factory.module.endswith(".py"):
        homes.insert(0, str(_package_root(Path(factory.module))[0]))
    sys.path[:0] = homes
    try:
        yield
    except SubjectError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        gone = isinstance(error, ModuleNotFoundError) and f"{factory.module}.".startswith(f"{error.name}.")
        said = _unknown(factory.module) if gone else f"{factory} raised {type(error).__name__}: {error}"
        raise SubjectError(said) from None
    finally:
        for home in homes:
            if home in sys.path:
                sys.path.remove(home)


def _imported(factory: Factory) -> ModuleType:
    if not factory.module.endswith(".py"):
        return importlib.import_module(factory.module)
    path = Path(factory.module).absolute()
    name = _package_root(path)[1]
    if "." in name or path.stem == "__init__":  # it may import its package's other modules
        module = importlib.import_module(name)
        if not module.__file__ or not path.samefile(module.__file__):
            raise SubjectError(f"Python imports {module.__file__} under the name of {factory.module}")
        return module
    name = name if name not in sys.modules else f"{name} of {path.parent}"  # a file may have the name of a library
    spec = spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package_root(path: Path) -> tuple[Path, str]:
    """Return the folder from which a file is imported, and the dotted name that it has there."""
    path = path.absolute()
    parts = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def _named(module: ModuleType, factory: Factory) -> Any:
    found: Any = module
    for done, name in enumerate(parts := factory.name.split(".")):
        if not hasattr(found, name):
            where = f"{factory.module}:{'.'.join(parts[:done])}".removesuffix(":")
            near = nearest(name, (each for each in dir(found) if not each.startswith("_")))
            raise SubjectError(f"{where} has no {name!r}" + (f"; did you mean {near}?" if near else ""))
        found = getattr(found, name)
    return found


def _refuse_misfits(factory: Factory, found: Any, arguments: dict[str, Any]) -> None:
    """Speak of what a factory takes as of options."""
    try:
        takes = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # something that tells nothing of itself
        return
    named = {each.name for each in takes if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    if not any(each.kind is each.VAR_KEYWORD for each in takes):
        for name in sorted(arguments.keys() - named):
            near = nearest(name, named)
            raise SubjectError(f"{factory} takes no --arg {name}=..." + (f"; did you mean {near}?" if near else ""))
    wanted = [each.name for each in takes if each.name in named - arguments.keys() and each.default is each.empty]
    if wanted:
        raise SubjectError(f"{factory} needs {' '.join(f'--arg {name}=VALUE' for name in wanted)}")
