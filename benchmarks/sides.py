"""The two sides of ``peers.py``, a process each: told a number of steps on standard input, a side answers with their seconds.

    python -m kdscale.benchmarks.sides {published|kdscale} {"data": FOLDER, "device": "cpu", "workers": 2, "set": ["path=value"]}

Its first line of output says what it does, so that both can be seen to do the same amount of work.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

RECIPE = "cifar100/wrn_40_2_wrn_16_2:kd"
TEACHER, STUDENT = "wrn_40_2", "wrn_16_2"
WARM = 3  # steps before a side says that it is ready

Step = Callable[[], None]
Side = tuple[dict[str, Any], Step]


def recipe_of(given: dict[str, Any]) -> Any:
    """The shipped recipe on the data given, with a teacher of random weights."""
    from kdscale import methods  # noqa: F401
    from kdscale.benchmarks.step import endless
    from kdscale.recipe import Model, override, resolve
    from kdscale.recipe.load import load

    recipe = override(load(RECIPE), [f"data.source={given['data']}", *given["set"]])
    networks = {**recipe.networks, "student": Model(given["student"]), "teacher": Model(given["teacher"], floor=0)}
    return endless(resolve(replace(recipe, networks=networks)))


@contextmanager
def ours(given: dict[str, Any]) -> Iterator[Side]:
    """The engine's own loop on its own stream."""
    import torch

    from kdscale.benchmarks.step import engine_step
    from kdscale.engine.parallel import connect
    from kdscale.engine.stage import build_stage

    recipe = recipe_of(given)
    session = connect(recipe.machine, recipe.precision)
    stage = build_stage(recipe, len(recipe.phases) - 1, session, None)
    stream = stage.stream()
    batches = stream.batches(0)
    with tempfile.TemporaryDirectory() as folder:
        engine, steps = engine_step(stage, Path(folder)), iter(range(10**6))
        machine = recipe.machine
        settings = f"data.read={recipe.data.read}, compile={machine.compile}, channels_last={machine.channels_last}"
        told = facts(stage.trained["student"].body, stage.frozen["teacher"].body, stage.plan.batch, session.device)
        try:
            yield (
                {**told, "settings": f"{settings}, threads {torch.get_num_threads()}"},
                lambda: engine(next(steps), next(batches)),
            )
        finally:
            stream.close()
            session.close()


@contextmanager
def published(given: dict[str, Any]) -> Iterator[Side]:
    """The loop by hand, on the same pictures and networks of the same architectures."""
    import torch

    from kdscale.benchmarks.published import Pictures, PublishedLoop
    from kdscale.data import open_split
    from kdscale.data.resident import load
    from kdscale.networks import cifar
    from kdscale.recipe.resolve import phase_data

    device = torch.device(given["device"])
    data = phase_data(recipe_of(given).phases[-1])
    split = open_split(data, "train")
    stored = load(split, data, torch.device("cpu"), 1)
    images = stored.pixels[:-1].view(len(split), stored.height, stored.width, 3).numpy()
    pictures = Pictures(images, split.records["label"], split.info.mean, split.info.std)
    student, teacher = (cifar.build(given[role], split.info.classes) for role in ("student", "teacher"))
    loop = PublishedLoop(student, teacher.requires_grad_(False), pictures, data.batch, given["workers"], device)
    settings = f"DataLoader of {given['workers']} workers, threads {torch.get_num_threads()}"
    yield {**facts(student, teacher, data.batch, device), "settings": settings}, loop.step


def facts(student: Any, teacher: Any, batch: int, device: Any) -> dict[str, Any]:
    """The work of a step, as far as numbers say it."""
    trained, frozen = (sum(p.numel() for p in network.parameters()) for network in (student, teacher))
    return {"trained": trained, "frozen": frozen, "batch": batch, "device": device.type}


def serve(side: str, given: dict[str, Any]) -> None:
    """Warms up, says what it does, then answers each number of steps with the seconds they took, until it is told 0."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries say goes to the other stream
    wait: Step = torch.cuda.synchronize if given["device"] == "cuda" else lambda: None
    with {"kdscale": ours, "published": published}[side](given) as (told, step):
        seconds(step, WARM, wait)
        answers.write(json.dumps(told) + "\n")
        answers.flush()
        for line in sys.stdin:
            if int(line) == 0:
                return
            answers.write(f"{seconds(step, int(line), wait)}\n")
            answers.flush()


def seconds(step: Step, count: int, wait: Step) -> float:
    wait()
    started = time.perf_counter()
    for _ in range(count):
        step()
    wait()
    return time.perf_counter() - started


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
