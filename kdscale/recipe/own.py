"""Methods of one's own, which this package does not ship: named in KDSCALE_METHODS, and found again by the runs they trained.

A run's folder says in ``methods.json`` which file defined each such method, and opening the run runs that file again, as
training it did. Only this file is run, only where it lay when the run was trained, and only by the name that it had: nothing
is unpickled, and no code that the folder itself brings along.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import RecipeError, RunError
from .method import Method
from .origin import RECIPE_MODULE, digest_of
from .running import import_module, importable, run_file

FILE = "methods.json"
VARIABLE = "KDSCALE_METHODS"


def register(words: Iterable[str]) -> None:
    """Runs the modules and files that the variable names. Raises RecipeError for one that is not there or does not run."""
    for word in words:
        path = Path(word).expanduser()
        if path.suffix == ".py" or os.sep in word:
            if not path.is_file():
                raise RecipeError(f"{VARIABLE} names {word!r}, which is no file that is there: give a Python file or a module")
            run_file(path)
        else:
            importable(Path.cwd())
            import_module(word, Path(f"{VARIABLE}: {word}"))


def origins(plain: Any) -> dict[str, dict[str, str]]:
    """kind -> module, file and sha256, of each method of one's own in a plain recipe; no file where none can be run again."""
    found = {}
    for kind in sorted(set(_kinds(plain))):
        origin = Method.registry[kind].origin if kind in Method.registry else None
        if origin is not None and not origin.ours:
            digest = digest_of(origin.file) if origin.file else ""
            found[kind] = {"module": origin.module, "file": origin.file, "sha256": digest}
    return found


def reopen(folder: Path) -> str:
    """Makes the methods of a run known again. Returns what to add to an error of its recipe: files that have changed since.

    Raises RunError where a file is gone, or has the method no longer.
    """
    changed = []
    for kind, told in _read(folder).items():
        _known_again(folder, kind, told)
        if os.path.isfile(told["file"]) and digest_of(told["file"]) != told["sha256"]:
            changed.append(f"{told['file']}, which has the method {kind!r}, has changed since the run was trained")
    return "".join(f" ({text})" for text in changed)


def _known_again(folder: Path, kind: str, told: dict[str, str]) -> None:
    registered, file, head = Method.registry.get(kind), told["file"], f"{folder} was trained by a method of its own, {kind!r}"
    if registered is not None and (registered.origin.file == file or not os.path.isfile(file)):
        return
    if registered is not None:
        raise RunError(f"{head} of {file}, and {registered.origin.told} has this kind here: open one of them at a time")
    cure = f"set {VARIABLE} to the module or file that has it"
    if not file:
        raise RunError(f"{head}, that no file has: write it into one and {cure}")
    if not os.path.isfile(file):
        raise RunError(f"{head} of {file}, which is gone: put it back, or {cure} now")
    if Path(file).is_relative_to(folder.resolve()):
        raise RunError(f"{head} of {file}, which lies in the run's own folder: if you trust it, {cure}")
    _load(Path(file), told["module"])
    if kind not in Method.registry:
        raise RunError(f"{head} of {file}, which has it no longer: put it back, or {cure} now")


def _load(path: Path, module: str) -> None:
    if module.startswith(RECIPE_MODULE):
        run_file(path)
        return
    packages, name = module.split("."), path.with_suffix("")
    inner = name.parent if name.name == "__init__" else name
    if list(inner.parts[-len(packages) :]) != packages:
        raise RunError(f"{path}, which is not the module {module!r}, cannot be imported by that name: set {VARIABLE}")
    root, first = inner.parents[len(packages) - 1], packages[0]
    importable(root)
    found = importlib.util.find_spec(first)
    places = [found.origin, *(found.submodule_search_locations or ())] if found else []
    if not any(Path(place).resolve() in (root / first, root / f"{first}.py") for place in places if place):
        raise RunError(
            f"{first!r} is {places[0] if places else 'nowhere'} here, and the run's is in {root}: rename one of them"
        )
    import_module(module, path)


def _read(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / FILE
    try:
        told = json.loads(path.read_text()) if path.exists() else {}
        return {str(kind): {name: str(each[name]) for name in ("module", "file", "sha256")} for kind, each in told.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} is damaged: remove it and set {VARIABLE} to the module or file of the run's methods") from None


def _kinds(plain: Any) -> Iterator[str]:
    if isinstance(plain, dict):
        if isinstance(plain.get("kind"), str):
            yield plain["kind"]
        for each in plain.values():
            yield from _kinds(each)
    elif isinstance(plain, list):
        for each in plain:
            yield from _kinds(each)
