"""From a recipe's ``Model`` to a network.

Fresh weights are a function of the seed alone, and no generator but a fork is touched. A network with weights of its own
keeps their normalisation, size and classes; a fresh one takes the data's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import NetworkError
from . import cifar
from .architecture import NetworkArchitecture
from .dropblock import place_drop_blocks
from .network import FrozenNetwork, Network
from .noise import Noise, draw_from_keys
from .reading import CifarReader, LogitsReader, Reader
from .sources import Source, find_source
from .timm_bodies import build_timm, timm_architecture
from .timm_reading import reader
from .weights import check_classes, check_labels, load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..recipe import Model
    from ..types import DatasetInfo, Normalisation


def build_network(
    model: Model,
    info: DatasetInfo,
    *,
    trained: bool,
    seed: int,
    normalisation: Normalisation,
    precision: str = "fp32",
    load: bool = True,
) -> Network:
    """The network that ``model`` names, on the CPU; a :class:`FrozenNetwork` unless ``trained``.

    ``normalisation``: (mean, std) of the images that it will be handed. ``precision``: 'fp32' or 'bf16', of a frozen network's weights.
    ``load=False``: the same network, without reading weights that will be replaced at once. Raises NetworkError.
    """
    source = find_source(model, load=load)
    if source.kind == "transformers" and trained:
        raise NetworkError(
            f"{model.name!r} is a network of transformers, which can teach but not be trained: take a timm or CIFAR network"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        body, architecture = _build(source, model, info, normalisation, trained)
    if source.load != "nothing":
        check_classes(model.name, architecture.classes, info.classes)
        check_labels(model.name, architecture.labels, info.names)
    noise = Noise()
    if trained:
        draw_from_keys(body, noise)
        if isinstance(body, cifar.CifarNetwork) and model.args.get("drop_block"):
            place_drop_blocks(body, model.name, model.args["drop_block"], noise)
    parts: dict[str, Any] = {
        "noise": noise,
        "normalisation": normalisation,
        "size": _fixed_size(source, model, architecture),
    }
    read = _reader(source, body, noise)
    if trained:
        return Network(model.name, body, read, architecture, **parts)
    return FrozenNetwork(model.name, body, read, architecture, precision=precision, **parts)


def _build(
    source: Source, model: Model, info: DatasetInfo, given: Normalisation, trained: bool
) -> tuple[nn.Module, NetworkArchitecture]:
    size = model.size or info.size
    if source.kind == "transformers":
        from .huggingface import build_transformers

        return build_transformers(source, given, size)
    if source.kind == "cifar":
        return _build_cifar(source, model, info, given)
    drops = {"drop_path_rate": model.drop_path, "drop_rate": model.drop} if trained else {}
    body, args = build_timm(source, model, info, {name: rate for name, rate in drops.items() if rate})
    return body, timm_architecture(source, body, args, given, size)


def _build_cifar(
    source: Source, model: Model, info: DatasetInfo, given: Normalisation
) -> tuple[nn.Module, NetworkArchitecture]:
    _check_cifar_options(source.name, model)
    config: Mapping[str, Any] = source.config.get("pretrained_cfg", {})
    classes = int(source.config.get("num_classes", info.classes)) if source.load == "folder" else info.classes
    side = model.size or (config.get("input_size") or (3, info.size))[1]
    body = cifar.build(source.name, classes)
    if source.load == "folder" and source.folder:
        load_weights(body, source.folder / "model.safetensors")
    elif source.load == "file" and source.file:
        load_weights(body, source.file)
    mean, std = tuple(config.get("mean", given[0])), tuple(config.get("std", given[1]))
    return body, NetworkArchitecture(
        kind="cifar",
        name=source.name,
        tag=source.tag,
        classes=classes,
        input_size=(3, side, side),
        mean=mean,
        std=std,
        interpolation=config.get("interpolation", "bilinear"),
        crop_pct=config.get("crop_pct", 1.0),
        labels=source.labels,
    )


def _check_cifar_options(name: str, model: Model) -> None:
    others = [word for word in model.args if word != "drop_block"]
    others += [word for word in ("drop", "drop_path") if getattr(model, word)]
    if others:
        raise NetworkError(
            f"the CIFAR network {name!r} takes no args, drop or drop_path beside args={{'drop_block': rate}}: leave {', '.join(others)} out"
        )
    rate = model.args.get("drop_block", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise NetworkError(f"drop_block={rate!r} is no rate: give a number from 0 to less than 1")


def _reader(source: Source, body: nn.Module, noise: Noise) -> Reader:
    if isinstance(body, cifar.CifarNetwork):
        return CifarReader(body.taps)
    return LogitsReader() if source.kind == "transformers" else reader(body, noise)


def _fixed_size(source: Source, model: Model, architecture: NetworkArchitecture) -> int | None:
    """A fresh network without position embeddings takes images of any size."""
    fixed = source.pinned or model.size is not None or "img_size" in architecture.args
    return architecture.input_size[1] if fixed else None
