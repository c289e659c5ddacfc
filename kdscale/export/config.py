"""``config.json``, in the one form that timm, transformers and kdscale itself all read.

``pretrained_cfg`` is the mark by which transformers knows a folder of timm's. Three things are as they are because a
loader fails or errs otherwise: ``model_args`` is a filled dict (an empty one is saved again as ``null``, which timm cannot
read), it has no ``num_classes`` (transformers passes its own), and ``label_names`` is a list (transformers renames a dict's
classes to numbers, and fills in ImageNet's names where there are a thousand classes and no names).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ..errors import ExportError

if TYPE_CHECKING:
    from ..networks import Network, NetworkArchitecture
    from .facts import Facts

FILES = ("README.md", "config.json", "model.py", "model.safetensors", "recipe.json")
"""All that an export may hold; ``model.py`` only where timm does not know the architecture."""

INHERITED = ("first_conv", "classifier", "pool_size", "fixed_input_size")
"""What timm's own entry knows of an architecture's form, and a later fine-tuning needs."""


def configuration(network: Network, facts: Facts, *, inference: str, weights_sha256: str) -> dict[str, Any]:
    """The content of ``config.json``. Raises ExportError for labels or constructor arguments that cannot be written."""
    architecture = network.architecture
    family = {"family": "cifar"} if architecture.kind == "cifar" else {}
    return {
        "architecture": architecture.name,
        **family,
        "num_classes": architecture.classes,
        "label_names": label_names(facts.label_names, architecture.classes),
        "model_args": model_args(architecture),
        "pretrained_cfg": pretrained_cfg(network, facts),
        "kdscale": {
            "version": facts.version,
            "recipe_hash": facts.recipe_hash,
            "what": facts.what,
            "method": facts.method,
            "inference": inference,
            "weights_sha256": weights_sha256,
            "dataset": facts.dataset,
            "teachers": [{"name": t.name, "accuracy": t.accuracy, "sha256": t.sha256} for t in facts.teachers],
            "seed": facts.seed,
        },
    }


def label_names(names: tuple[str, ...], classes: int) -> list[str]:
    """One name a class; the class's number where the data name none."""
    if names and len(names) != classes:
        raise ExportError(f"there are {len(names)} label names for {classes} classes: give one a class, in their order")
    return list(names) or [str(number) for number in range(classes)]


def model_args(architecture: NetworkArchitecture) -> dict[str, Any]:
    """The constructor's arguments, less what only a training run needs (rates of dropping), never empty."""
    kept: dict[str, Any] = {"in_chans": architecture.input_size[0]} if architecture.kind == "timm" else {}
    for name, given in architecture.args.items():
        if "drop" in name or name == "num_classes":
            continue
        try:
            kept[name] = json.loads(json.dumps(given))
        except TypeError:
            raise ExportError(
                f"the student's argument {name}={given!r} has no form in JSON: export needs plain numbers, words and lists"
            ) from None
    return kept


def pretrained_cfg(network: Network, facts: Facts) -> dict[str, Any]:
    """How images reach the network. Its own mean and std, for to these its inputs were brought while it was trained."""
    architecture = network.architecture
    known = getattr(network.body, "pretrained_cfg", None) or {}
    inherited = {name: known[name] for name in INHERITED if known.get(name) is not None}
    return {
        "tag": facts.tag,
        "num_classes": architecture.classes,
        "input_size": list(architecture.input_size),
        **inherited,
        "crop_pct": facts.crop_pct,
        "crop_mode": "center",
        "interpolation": facts.interpolation,
        "mean": list(architecture.mean),
        "std": list(architecture.std),
        **({"license": facts.license} if facts.license else {}),
    }
