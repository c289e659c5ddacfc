"""How far a student is from those that taught it: the mean of KL(teacher || student) over a data set, in nats, at temperature 1.

Whoever else answers in the student's phase is compared, whether it is frozen or was trained beside it: a teacher, a peer, a
shadow, each under its own name. Everything is computed in float32 and summed in float64.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import RunError
from ..losses.logits import kd_kl
from ..tasks import logits_of
from ..types import Batch
from .checkpoint.folder import Folder
from .checkpoint.phase_file import PhaseFile
from .checkpoint.saving import Save
from .evaluation import score, split_batches
from .keeper import put_weights
from .measure import data_of, open_held
from .parallel import Session
from .stage import Stage, build_stage
from .trained import Trained, open_run, own_role, trained


class Gaps:
    """Sums over a data set, by name of who is compared with the student; they stay on the device until the end."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # [] float64

    def update(self, said: dict[str, Tensor], batch: Batch) -> None:
        """``said``: logits [B,C] by name, the student's among them. Answers of other classes are no answers to the same."""
        student = said["student"].double()
        for name, logits in said.items():
            if name != "student" and logits.shape == student.shape:
                apart = kd_kl(student, logits.double(), 1.0).masked_fill(~batch.valid, 0.0).sum()
                self.sums[name] = apart + self.sums[name] if name in self.sums else apart

    def result(self, session: Session, count: int) -> dict[str, float]:
        return {name: float(session.total(apart)) / count for name, apart in self.sums.items()}


def measure_gaps(
    model: str,
    session: Session,
    *,
    data: str | None = None,
    split: str | None = None,
    what: str = "student",
    crop: float | None = None,
) -> dict[str, Any]:
    """What ``measure`` says of a run's student, from one reading of the images, with ``of``: its own role, and ``gaps`` by name.

    Raises RunError for what is no run, or a phase in which nobody but the student speaks of these classes.
    """
    if not (Path(model) / "recipe.json").exists() or (Path(model) / "model.safetensors").exists():
        raise RunError(f"{model} is no run, so it has no teacher to be compared with: give the --out folder of `kdscale train`")
    found = trained(open_run(Path(model)), what)
    own = own_role(found.phase)
    if found.what not in ("student", own):
        raise RunError(
            f"--gap compares what a phase trains for itself, and {found.what!r} is not that: give --what a phase's name"
        )
    asked = data_of(found, data, split, crop)
    held = open_held(asked, model, found.network.classes, found.split.info.names)
    stage, gaps = as_left(found, session), Gaps()

    def answer(batch: Batch) -> dict[str, Tensor]:
        frozen = {role: logits_of(network(batch.images)) for role, network in stage.frozen.items()}
        said = frozen | stage.distiller(batch)
        gaps.update(said, batch)
        return {"student": said["student"]}

    scores = score(answer, split_batches(held, asked, session), stage.task, held.info, session, whole=True)["student"]
    apart = gaps.result(session, int(scores["count"]))
    if not apart:
        raise RunError(f"in phase {found.phase.name!r} of {model} nobody but the {own} answers: there is no gap to measure")
    place = {"model": model, "what": what, "data": asked.source, "split": asked.eval_split, "crop": asked.eval_crop}
    return place | scores | {"of": own, "gaps": apart}


def as_left(found: Trained, session: Session) -> Stage:
    """The phase that trained a network as it stood at its end, in eval mode: all that the phase trained, and what was frozen.

    Raises RunError where the phase has no classifier yet.
    """
    recipe, folder = found.run.recipe, Folder(found.run.path)
    number = recipe.phase_number(found.phase.name)
    plain = dataclasses.replace(recipe, precision="fp32", machine=dataclasses.replace(recipe.machine, compile=False))
    stage = build_stage(plain, number, session, folder)
    if "student" not in stage.answers:
        raise RunError(
            f"phase {found.phase.name!r} of {found.run.path} ends before there is a classifier: name a later one by --what"
        )
    left = PhaseFile(folder.phase_path(number, found.phase.name) / "end.safetensors").under("")
    state = {f"param/{name}": tensor for name, tensor in left.items() if not name.startswith("ema/")}
    put_weights(stage, Save({}, state, {}, {}))
    stage.distiller.eval()
    return stage
