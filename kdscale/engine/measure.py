"""One network on one data set, exactly: what ``kdscale evaluate`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import Split, open_split
from ..errors import RunError
from ..networks import Network, build_network, check_labels, cifar, find_source
from ..recipe import Augment, Data, Model
from ..recipe.resolve import phase_data
from ..tasks import Classification
from .evaluation import evaluate_network
from .parallel import Session
from .trained import Trained, open_run, trained


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
    if (Path(model) / "recipe.json").exists() and not (Path(model) / "model.safetensors").exists():
        found = trained(open_run(Path(model)), what)
        network: Network = found.network
        names, asked = found.split.info.names, data_of(found, data, split, crop)
    else:
        if data is None and Path(model).is_dir() and not (Path(model) / "config.json").exists():
            open_run(Path(model))  # which says what the folder is
        if data is None:
            raise RunError(f"{model} is no run, so it has no data of its own: give --data")
        if weights is None and find_source(Model(model)).load == "nothing":
            raise RunError(
                f"{model!r} names an architecture without weights: give --weights pretrained, random or a safetensors file"
            )
        changes = {"source": data} | ({"eval_split": split} if split else {}) | ({"eval_crop": crop} if crop else {})
        network, asked = _by_name(model, weights, changes)
        names = network.architecture.labels
    network.to(session.device)
    held = open_held(asked, model, network.classes, names)
    scores = evaluate_network(network, held, asked, Classification(), session)
    return {"model": model, "what": what, "data": asked.source, "split": asked.eval_split, "crop": asked.eval_crop, **scores}


def data_of(found: Trained, data: str | None, split: str | None, crop: float | None) -> Data:
    """The data that a run's network is measured on: those of its phase, but for what is given."""
    changes: dict[str, Any] = {"eval_split": split, "eval_crop": crop, "source": data}
    return dataclasses.replace(phase_data(found.phase), **{name: change for name, change in changes.items() if change})


def open_held(asked: Data, model: str, classes: int, names: Sequence[str]) -> Split:
    """The split to measure on. Raises RunError where its classes are not those of ``model``, by number or by name."""
    held = open_split(asked, "eval")
    if held.info.classes != classes:
        raise RunError(
            f"{model} gives {classes} classes and {asked.source} has {held.info.classes}: they do not belong together"
        )
    check_labels(model, names, held.info.names)
    return held


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
