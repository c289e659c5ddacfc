"""What the quickstart shows: an export at work in plain timm, a picture of it, and a table that claims no more than it measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

Images = np.ndarray[Any, np.dtype[np.uint8]]


@torch.inference_mode()
def classify(export: Path, images: Images) -> tuple[list[str], list[float]]:
    """(names, probabilities) that an exported folder gives for uint8 images [N,H,W,3], through timm alone."""
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    batch = torch.stack([transform(Image.fromarray(image)) for image in images])
    chances = model(batch).softmax(-1)
    names = model.pretrained_cfg.get("label_names") or [str(i) for i in range(chances.shape[1])]
    best = chances.max(-1)
    return [names[int(i)] for i in best.indices], [float(v) for v in best.values]


def picture(path: Path, images: Images, truths: Sequence[str], names: Sequence[str], chances: Sequence[float]) -> None:
    """A PNG of images with what the student says of each, green where it is right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * 4, 2.5 * math.ceil(len(images) / 4)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (image, truth, name, chance) in enumerate(zip(images, truths, names, chances, strict=True)):
        axes = figure.add_subplot(math.ceil(len(images) / 4), 4, place + 1)
        axes.imshow(image)
        axes.set_axis_off()
        right = name == truth
        axes.set_title(
            f"{name} {100 * chance:.0f}%" + ("" if right else f"\n(is: {truth})"),
            color="#1a7f37" if right else "#b3261e",
            fontsize=10,
        )
    figure.savefig(path, dpi=110)


def table(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line an answer: name, top-1, images it was counted on."""
    width = max(map(len, scores))
    return [f"{name:<{width}}  top1 {100 * s['top1']:6.2f}   of {int(s['count'])} test images" for name, s in scores.items()]


def verdict(distilled: Mapping[str, Any], alone: Mapping[str, Any]) -> str:
    """One sentence on a difference of two accuracies measured on the same images, from one seed each."""
    n = int(distilled["count"])
    difference = distilled["top1"] - alone["top1"]
    error = math.sqrt(sum(p * (1 - p) / n for p in (distilled["top1"], alone["top1"])))
    points = f"{100 * difference:+.2f} points, with a standard error of {100 * error:.2f} on {n} images"
    if abs(difference) < 2 * error:
        return f"Distilled against alone: {points}: within noise; one seed each cannot tell them apart."
    word = "better" if difference > 0 else "worse"
    return f"Distilled against alone: {points}: {word} by more than the test images' noise, though from one seed each."
