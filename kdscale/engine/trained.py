"""What a finished (or saved) run has to give: its networks, by name, with what it recorded of them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Split, open_split
from ..errors import RecipeError, RunError
from ..networks import Network
from ..recipe import Phase, Recipe, from_json, own
from ..recipe.paths import nearest
from ..recipe.resolve import phase_data
from .checkpoint.folder import Folder
from .checkpoint.phase_file import PhaseFile
from .sources import build_source


@dataclass(frozen=True)
class Run:
    """An output folder, read. ``recipe`` is resolved."""

    path: Path
    recipe: Recipe

    @property
    def environment(self) -> dict[str, Any]:
        return _json(self.path / "environment.json")

    @property
    def identity(self) -> dict[str, Any]:
        return _json(self.path / "identity.json")

    @property
    def command(self) -> str:
        """The command of the first start."""
        path = self.path / "starts.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return str(json.loads(lines[0])["command"]) if lines else ""

    def lines(self, event: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of one kind ('train' or 'evaluation'); a last line that a kill left half-written is none."""
        path = self.path / "metrics.jsonl"
        lines = []
        for text in path.read_text().splitlines() if path.exists() else []:
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
        return [line for line in lines if line["event"] == event]


@dataclass(frozen=True)
class Trained:
    """One network of a run. ``scores``: the last evaluation line of each answer of its phase."""

    run: Run
    network: Network
    what: str
    phase: Phase
    step: int
    split: Split
    scores: dict[str, dict[str, Any]]


def open_run(path: Path) -> Run:
    """Reads a run's folder. A method of its own is run again from the file that training took it from, and from no other
    (``recipe/own.py``). Raises RunError where the folder is no run's, or a file of its methods is not what it was.
    """
    file = path / "recipe.json"
    if not path.exists():
        raise RunError(f"{path} is not there: give the --out folder of a run")
    if not file.exists():
        raise RunError(f"{path} is no run: it has no recipe.json; {_within(path)}")
    changed = own.reopen(path)
    try:
        return Run(path, from_json(file.read_text()))
    except RecipeError as error:
        raise RunError(f"{file}: {error}{changed}") from None


def _within(path: Path) -> str:
    """Which runs a folder that is none holds."""
    runs = sorted(str(found.parent) for found in path.glob("*/recipe.json"))
    if not runs:
        return "give the --out folder of `kdscale train`"
    more = f" and {len(runs) - 3} more" if len(runs) > 3 else ""
    return f"it is the folder of several runs, give them: {', '.join(runs[:3])}{more}"


def trained(run: Run, what: str = "student") -> Trained:
    """The network that ``what`` names: 'student' or 'ema' of the last phase, a role, a phase, or PHASE.ROLE.

    Raises RunError for a name that the run has not, or a phase that is not finished.
    """
    number, role = _meaning(run.recipe, what)
    phase = run.recipe.phases[number]
    path = Folder(run.path).phase_path(number, phase.name) / "end.safetensors"
    if not path.exists():
        raise RunError(f"phase {phase.name!r} of {run.path} is not finished: run its train command again until it says done")
    split = open_split(phase_data(phase), "train")
    network = _build(run, number, role, split)
    left = PhaseFile(path)
    network.body.load_state_dict(left.body(role), strict=True)
    network.eval()
    scores = {
        line["name"]: line for line in run.lines("evaluation") if line["phase"] == phase.name and line["step"] <= left.step
    }
    return Trained(run, network, role, phase, left.step, split, scores)


def _meaning(recipe: Recipe, what: str) -> tuple[int, str]:
    last = len(recipe.phases) - 1
    names = [phase.name for phase in recipe.phases]
    head, _, tail = what.partition(".")
    if head in names:
        number, role = names.index(head), tail or "student"
        known = ["student", *recipe.phases[number].method.needs().trained, *(["ema"] if recipe.ema else [])]
        if role not in known:
            raise RunError(f"phase {head!r} has trained no {role!r}; {nearest(role, list(dict.fromkeys(known)))}")
        return number, role
    trained_roles = recipe.phases[last].method.needs().trained
    if what == "student" and what not in trained_roles:
        return last, own_role(recipe.phases[last])
    if what == "ema" or what in trained_roles:
        return last, what
    raise RunError(f"the run has trained no {what!r}; {nearest(what, list(dict.fromkeys([*trained_roles, 'ema', *names])))}")


def own_role(phase: Phase) -> str:
    """The role that a phase evaluates and hands on as its own: the student, or a teacher that is trained for itself."""
    trained_roles = phase.method.needs().trained
    return "student" if "student" in trained_roles else trained_roles[0]


def _build(run: Run, number: int, role: str, split: Split) -> Network:
    phase = run.recipe.phases[number]
    source = phase.networks[own_role(phase) if role in ("ema", "student") else role]
    return build_source(run.recipe, number, role, source, split.info, None, trained=True, load=False)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
