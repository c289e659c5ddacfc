"""The floors of the house and its nevers, read from the source of every module.

Imports that stand under ``if TYPE_CHECKING`` and inside functions are read too: an arrow is an arrow wherever it is drawn.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "kdscale"
LONGEST = 350  # lines of a file

FLOORS = {
    "recipe": 1.0, "types": 1.0, "keys": 1.0, "errors": 1.0,
    "data": 2.0, "networks": 2.0, "losses": 2.0, "tasks": 2.5, "methods": 3.0, "engine": 4.0,
    "export": 5.0, "report": 5.0, "plan": 5.0, "benchmarks": 5.0, "cli": 6.0, "__main__": 7.0,
}  # fmt: skip
WORDS = {"types", "keys", "errors"}  # of floor 1: every room speaks them
NEVER = {("engine", "methods"), ("methods", "data"), ("export", "methods")}  # downward, and yet never

# A library -> the rooms (or folders of one) that alone may import it.
ONLY = {
    "accelerate": ("engine/parallel",),
    "deepspeed": ("engine/parallel",),
    "torch.distributed.fsdp": ("engine/parallel",),
    "torch.distributed": ("engine",),
    "huggingface_hub": ("export",),
    "timm": ("networks", "data", "engine", "export", "report"),  # models; policies; optimizers; an export, loaded again
    "typer": ("cli",),
    "pickle": (), "cPickle": (), "dill": (), "cloudpickle": (), "marshal": (), "shelve": (), "joblib": (),
}  # fmt: skip
NO_TORCH = ("recipe", "types", "errors")  # when they are imported; for annotations they may
PICKLES = {("torch", "load"), ("torch", "save")}


def modules(package: Path = PACKAGE) -> Iterator[tuple[str, ast.Module, str]]:
    """(path within the package, tree, text) of every module."""
    for path in sorted(package.rglob("*.py")):
        text = path.read_text()
        yield path.relative_to(package).as_posix(), ast.parse(text), text


def room(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def imports(module: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports; names that are taken from a module are added to it."""
    parents = ["kdscale", *module.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            stem = [*base, *(node.module or "").split(".")] if node.module else base
            yield from ((node.lineno, ".".join([*stem, alias.name])) for alias in node.names)


def wrong_arrows(package: Path) -> list[str]:
    """Imports of a room from a floor that is not below its own."""
    found = []
    for module, tree, _ in modules(package):
        here = room(module)
        for line, name in imports(module, tree):
            parts = name.split(".")
            there = parts[1] if parts[0] == "kdscale" and len(parts) > 1 else here
            if there == here or here == "__init__" or there.startswith("__"):
                continue
            known = here in FLOORS and there in FLOORS
            if not known or (here, there) in NEVER or not (FLOORS[there] < FLOORS[here] or there in WORDS):
                found.append(f"{module}:{line} imports {name}")
    return found


def wrong_libraries(package: Path) -> list[str]:
    """Imports of a library by a room that is not its only importer."""
    found = []
    for module, tree, _ in modules(package):
        for line, name in imports(module, tree):
            kept = [lib for lib in ONLY if name == lib or name.startswith(lib + ".")]
            if kept and not any(module.startswith((place + "/", place + ".py")) for place in ONLY[max(kept, key=len)]):
                found.append(f"{module}:{line} imports {name}")
    return found


def wrong_words(package: Path) -> list[str]:
    """Calls and names that a room never uses: pickled files, print, the environment, a method's name in the engine."""
    found = []
    for module, tree, _ in modules(package):
        here = room(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and here != "cli":
                found.append(f"{module}:{node.lineno} prints")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                pair = (node.value.id, node.attr)
                if pair in PICKLES:
                    found.append(f"{module}:{node.lineno} reads or writes by {'.'.join(pair)}")
                if here == "methods" and pair in {("os", "environ"), ("os", "getenv")}:
                    found.append(f"{module}:{node.lineno} reads the environment")
                if here == "engine" and node.attr == "kind" and node.value.id == "method":
                    found.append(f"{module}:{node.lineno} asks for a method's kind")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                found.append(f"{module}:{node.value.lineno} says allow_pickle")
            if isinstance(node, ast.Name) and node.id in {"__import__", "eval", "exec"}:
                found.append(f"{module}:{node.lineno} uses {node.id}")
    return found


def branches_on_kinds(package: Path, kinds: set[str]) -> list[str]:
    """Comparisons of the engine with a method's kind."""
    found = []
    for module, tree, _ in modules(package):
        if room(module) != "engine":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare | ast.MatchValue):
                words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                found += [f"{module}:{node.lineno} compares with the method {kind!r}" for kind in sorted(words & kinds)]
    return found


def too_long(package: Path) -> list[str]:
    return [f"{m} has {text.count(chr(10))} lines" for m, _, text in modules(package) if text.count("\n") > LONGEST]


def method_kinds() -> set[str]:
    import kdscale.methods
    from kdscale.recipe import Method

    assert kdscale.methods
    return set(Method.registry)


def test_every_import_goes_down() -> None:
    assert wrong_arrows(PACKAGE) == []


def test_each_library_has_its_one_door() -> None:
    assert wrong_libraries(PACKAGE) == []


def test_no_room_uses_what_it_never_uses() -> None:
    assert wrong_words(PACKAGE) == []


def test_the_engine_knows_no_method_by_name() -> None:
    assert branches_on_kinds(PACKAGE, method_kinds()) == []


def test_every_file_fits_a_reading() -> None:
    assert too_long(PACKAGE) == []


@pytest.mark.parametrize("module", ["kdscale", *(f"kdscale.{name}" for name in NO_TORCH)])
def test_a_recipe_is_read_without_torch(module: str) -> None:
    code = f"import sys, {module}; heavy = {{'torch', 'timm', 'accelerate'}} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


PLANTED = {
    "losses/planted.py": ("from ..networks import heads\n", wrong_arrows),
    "data/planted.py": ("from kdscale.methods.kd import KD\n", wrong_arrows),
    "networks/planted.py": ("def late():\n    from ..data import stream\n", wrong_arrows),
    "methods/planted.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..engine import loop\n",
        wrong_arrows,
    ),
    "engine/planted.py": ("from .. import methods\n", wrong_arrows),
    "methods/order.py": ("from ..data import order\n", wrong_arrows),
    "types.py": ("from . import recipe, tasks\n", wrong_arrows),
    "attic/planted.py": ("from ..types import Batch\n", wrong_arrows),
    "engine/loop.py": ("import accelerate\n", wrong_libraries),
    "methods/deep.py": ("from deepspeed import zero\n", wrong_libraries),
    "methods/ranks.py": ("from torch import distributed\n", wrong_libraries),
    "engine/shard.py": ("from torch.distributed.fsdp import fully_shard\n", wrong_libraries),
    "cli/publish.py": ("def publish():\n    from huggingface_hub import HfApi\n", wrong_libraries),
    "engine/save.py": ("import pickle\n", wrong_libraries),
    "engine/read.py": ("import torch\nx = torch.load('a')\n", wrong_words),
    "data/arrays.py": ("import numpy as np\nx = np.load('a', allow_pickle=True)\n", wrong_words),
    "engine/say.py": ("print('step')\n", wrong_words),
    "methods/env.py": ("import os\nx = os.environ['A']\n", wrong_words),
    "engine/branch.py": ("def f(method):\n    return method.kind\n", wrong_words),
    "engine/long.py": ("x = 1\n" * (LONGEST + 1), too_long),
}


@pytest.mark.parametrize("module", list(PLANTED))
def test_a_planted_violation_is_found(module: str, tmp_path: Path) -> None:
    text, judge = PLANTED[module]
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    found = judge(tmp_path)
    assert found
    assert found[0].startswith(module)


def test_a_planted_branch_on_a_method_is_found(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "planted.py").write_text("def f(name):\n    if name in ('shake', 'x'):\n        return 1\n")
    assert len(branches_on_kinds(tmp_path, {"shake", "kd"})) == 1


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    for module, text in {
        "methods/fine.py": "from .. import keys\nfrom ..losses.logits import kd_kl\nfrom .base import Method\n",
        "engine/parallel/fine.py": "import accelerate\nfrom torch.distributed.fsdp import fully_shard\nfrom ..loop import run\n",
        "cli/fine.py": "print('words')\nimport typer\nfrom ..export import card\n",
        "export/fine.py": "from huggingface_hub import HfApi\n",
        "types.py": "from . import errors\n",
    }.items():
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / module).write_text(text)
    assert wrong_arrows(tmp_path) + wrong_libraries(tmp_path) + wrong_words(tmp_path) == []
