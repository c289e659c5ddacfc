"""One network on one data set, exactly: what ``kdscale evaluate`` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..data import open_split
from ..errors import RunError
from ..networks import Network, build_network, cifar
from ..recipe import Augment, Data, Model
from ..recipe.resolve import phase_data
from ..tasks import Classification
from .evaluation import evaluate_network
from .parallel import Session
from .trained import open_run, trained


def measure(
    model: str,
    session: Session,
    *,
    data: str | None = None,
    split: str | None = None,
    what: str = "student",
    weights: str | None = None,
    crop: float | None = None,
) -> dict[str, Any]:
    """Scores of a run's network, an exported folder or a model by name. Raises RunError where there is nothing to measure on."""
    changes: dict[str, Any] = {"eval_split": split} if split else {}
    changes |= {"eval_crop": crop} if crop else {}
    changes |= {"source": data} if data else {}
    if (Path(model) / "recipe.json").exists() and not (Path(model) / "model.safetensors").exists():
        found = trained(open_run(Path(model)), what)
        network: Network = found.network
        asked = dataclasses.replace(phase_data(found.phase), **changes)
    else:
        if data is None:
            raise RunError(f"{model} is no run, so it has no data of its own: give --data")
        network, asked = _by_name(model, weights, changes)
    network.to(session.device)
    held = open_split(asked, "eval")
    if held.info.classes != network.classes:
        raise RunError(
            f"{model} gives {network.classes} classes and {asked.source} has {held.info.classes}: they do not belong together"
        )
    scores = evaluate_network(network, held, asked, Classification(), session)
    return {"model": model, "what": what, "data": asked.source, "split": asked.eval_split, "crop": asked.eval_crop, **scores}


def _by_name(name: str, weights: str | None, changes: dict[str, Any]) -> tuple[Network, Data]:
    """A model evaluated as its own configuration says: its size, crop, interpolation and normalisation.

    A CIFAR network by name has no size of its own: it takes the images as they are.
    """
    first = Data(**changes, train=Augment(crop="none")) if cifar.known(name) else Data(**changes)
    info = open_split(first, "eval").info
    network = build_network(Model(name, weights=weights), info, trained=False, seed=0, normalisation=(info.mean, info.std))
    own = network.architecture
    size = own.input_size[-1]
    asked = dataclasses.replace(
        first,
        train=Augment.plain(size),
        eval_crop=changes.get("eval_crop") or own.crop_pct or first.eval_crop,
        eval_interpolation="bilinear" if own.interpolation == "bilinear" else "bicubic",
        mean=own.mean,
        std=own.std,
    )
    info = open_split(asked, "eval").info
    network = build_network(Model(name, weights=weights), info, trained=False, seed=0, normalisation=(info.mean, info.std))
    return network, asked
