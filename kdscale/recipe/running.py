"""Running a file of the user's: a recipe, or a method of one's own. What it raises is told in one line, with the file's line.

The file's folder is put behind everything else that can be imported from, and stays there: a module beside a recipe is found
however kdscale was started, and hides nothing that is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import FunctionType, ModuleType

from pydantic import ValidationError

from ..errors import KdscaleError, RecipeError
from .faults import misfit_of_call
from .origin import RECIPE_MODULE


def run_file(path: Path) -> ModuleType:
    """The module that a Python file makes, run anew each time. Raises RecipeError for a file that does not run to its end."""
    whole = path.resolve()
    name = f"{RECIPE_MODULE}{path.stem}_{abs(hash(str(whole)))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"{path} is no Python file, JSON or YAML: give one of these")
    importable(whole.parent)
    before, module = sys.modules.get(name), importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for good: the annotations of its classes are looked up there
    try:
        spec.loader.exec_module(module)
        _refuse_strangers(module, whole)
    except BaseException as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        if isinstance(error, KeyboardInterrupt):
            raise
        raise RecipeError(fallen(error, path)) from None
    return module


def import_module(name: str, path: Path) -> ModuleType:
    """A module by its name; ``path``: what a message calls it. Raises RecipeError where it does not run to its end."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise RecipeError(fallen(error, path)) from None


def importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def fallen(error: BaseException, path: Path) -> str:
    """What ended the file ``path``, and at which of its lines, or at which of a file beside it."""
    folder = path.resolve().parent
    stack = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    frames = [f for f in stack if Path(f.filename).resolve().parent == folder]
    file = frames[-1].filename if frames and Path(frames[-1].filename).resolve() != path.resolve() else str(path)
    line = f", line {frames[-1].lineno}" if frames else ""
    if isinstance(error, SystemExit):
        return f"{file}{line}: sys.exit({error.code!r}) ends the program: a recipe file only makes recipes, leave it out"
    if isinstance(error, ValidationError):
        return f"{file}{line}: {misfit_of_call(error)}"
    if isinstance(error, KdscaleError):
        return f"{file}{line}: {error}"
    place = f" ({Path(file).name}{line})" if line else ""
    return f"{path} does not run: {type(error).__name__}: {' '.join(str(error).split())}{place}"


def _refuse_strangers(module: ModuleType, path: Path) -> None:
    """A module beside the file that it cannot have meant to miss: another one of that name was imported in its place."""
    things = [thing for thing in vars(module).values() if isinstance(thing, (ModuleType, type, FunctionType))]
    named = [thing.__name__ if isinstance(thing, ModuleType) else str(thing.__module__) for thing in things]
    for name in dict.fromkeys(each.partition(".")[0] for each in named):
        beside, found = path.with_name(f"{name}.py"), getattr(sys.modules.get(name), "__file__", None)
        if beside != path and beside.is_file() and found and Path(found).resolve() != beside:
            raise RecipeError(f"it imports {name} from {found}, and not {beside}: give the latter a name of its own")
