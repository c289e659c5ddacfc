"""A run's network as an exported folder: what the run recorded becomes the facts of the card."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.manifest import read_manifest
from ..engine.stored.store import place_of, read_facts
from ..engine.trained import Run, Trained, open_run, trained
from ..errors import DataError
from ..recipe import FromPhase, Stored, to_json
from ..recipe.method import kind_of
from ..recipe.networks import Source
from ..recipe.resolve import digest, phase_data
from .facts import Evaluation, Facts, Teacher
from .folder import Report, export_network
from .heads import Fold


def export_run(path: Path, out: Path | None = None, what: str = "student", *, overwrite: bool = False) -> Report:
    """Exports the network ``what`` of the run in ``path`` to ``out`` (default: its own ``export/``).

    Raises RunError for an unfinished run or an unknown name, ExportError where the folder cannot be proved.
    """
    found = trained(open_run(path), what)
    inference = getattr(found.phase.method, "inference", "average")
    fold: Fold = "class" if inference == "class" and found.network.has_distillation_head else "average"
    return export_network(found.network, out or path / "export", facts(found), fold=fold, overwrite=overwrite)


def facts(found: Trained) -> Facts:
    run, phase = found.run, found.phase
    data = phase_data(phase)
    paper = phase.method.paper
    info = found.split.info
    return Facts(
        what=found.what,
        label_names=info.names,
        mean=info.mean,
        std=info.std,
        crop_pct=data.eval_crop,
        interpolation=data.eval_interpolation,
        size=info.size,
        recipe_json=to_json(run.recipe),
        recipe_hash=digest(run.identity),
        command=run.command,
        version=__version__,
        method=kind_of(phase.method),
        paper=paper.title,
        dataset=_dataset(found),
        split=data.eval_split,
        teachers=tuple(_teachers(found)),
        evaluations=tuple(_evaluation(line, data.eval_split) for line in found.scores.values()),
        seed=run.recipe.seed,
        hardware=str(run.environment.get("device", "")),
        date=datetime.date.today().isoformat(),
        seconds=_seconds(run),
    )


def _teachers(found: Trained) -> list[Teacher]:
    """Who taught: in the network's own phase, or in any part of the method that this phase is a part of."""
    phases = found.run.recipe.phases
    parts = [p for p in phases if p.part is not None and kind_of(p.method) == kind_of(found.phase.method)]
    own = parts if found.phase.part is not None else [found.phase]
    sources = {role: phase.networks[role] for phase in own for role in phase.method.needs().frozen}
    described = []
    for role, source in sources.items():
        described.append(Teacher(_teachers_name(found, role, source), found.scores.get(role, {}).get("top1")))
    return described


def _teachers_name(found: Trained, role: str, source: Source) -> str:
    """As it may be published: no folder of this machine."""
    if isinstance(source, FromPhase):
        return f"phase {source.phase} of the same run"
    if isinstance(source, Stored):
        number = found.run.recipe.phases.index(found.phase)
        try:
            return f"{read_facts(place_of(Path(source.name), number, role))['name']} (stored answers)"
        except DataError:  # the store may be gone when the run is exported
            return "stored answers"
    return source.name


def _evaluation(line: dict[str, Any], split: str) -> Evaluation:
    return Evaluation(
        name=line["name"], split=split, top1=line["top1"], top5=line["top5"], count=int(line["count"]), epoch=line["epoch"]
    )


def _dataset(found: Trained) -> str:
    """The data set's own name, as packing or indexing wrote it; else the last word of its place."""
    manifest = read_manifest(found.split.root)
    return manifest.name if manifest and manifest.name else found.split.root.name


def _seconds(run: Run) -> float:
    """Seconds of training, over all starts, as the last save counted them."""
    from ..engine.checkpoint import saving

    newest = saving.newest(run.path / "checkpoints", lambda said: None, remove=False)
    return float(saving.read_facts(newest)["memory"]["seconds"]) if newest else 0.0
