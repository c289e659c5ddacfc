"""An image classifier of transformers, from a local folder: a teacher that gives logits alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import NetworkError
from .architecture import NetworkArchitecture, Triple
from .sources import Source


def build_transformers(source: Source, given: tuple[Triple, Triple], size: int) -> tuple[nn.Module, NetworkArchitecture]:
    """The network in eval mode. ``given``, ``size``: normalisation and size of the data, where the folder names none.

    Raises NetworkError where the folder is no whole image classifier.
    """
    if source.folder is None or source.load != "folder":
        raise NetworkError(
            f"a network of transformers ({source.name!r}) is read with the weights of its own folder: leave weights= out"
        )
    body = _load(source.folder)
    config = body.config
    processor = _processor(source.folder)
    mean, std = _triple(processor.get("image_mean")), _triple(processor.get("image_std"))
    side = _side(config, processor) or size
    labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return body, NetworkArchitecture(
        kind="transformers",
        name=source.name,
        classes=config.num_labels,
        input_size=(3, side, side),
        mean=mean or given[0],
        std=std or given[1],
        labels=labels,
    )


def _load(folder: Path) -> Any:
    from transformers import AutoModelForImageClassification

    try:
        body, report = AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise NetworkError(f"{folder} is no image classifier that transformers can read ({_line(error)})") from None
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise NetworkError(f"{folder} misses weights of an image classifier ({missing}): a teacher needs its classifier's too")
    return body


def _processor(folder: Path) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _triple(numbers: Any) -> Triple | None:
    return (float(numbers[0]), float(numbers[1]), float(numbers[2])) if numbers and len(numbers) == 3 else None


def _side(config: Any, processor: dict[str, Any]) -> int | None:
    """Pixels of a side: of the crop, else of the resize, else of the network's own position embedding."""
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = crop or processor.get("size") or getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return int(size) if isinstance(size, int) else None


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
