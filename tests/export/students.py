"""Small students of each kind and the facts of an imagined run, for the tests of the export."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from kdscale.export import Evaluation, Facts, Teacher
from kdscale.networks import Network, build_network
from kdscale.recipe import Model
from kdscale.types import DatasetInfo

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
NAMES = ("ankle boot", "bag", "coat", "dress", "sandal")
INFO = DatasetInfo("imagined", 2000, len(NAMES), None, MEAN, STD, 32, NAMES)


def facts(**changes: Any) -> Facts:
    base = Facts(
        what="student", label_names=NAMES, mean=MEAN, std=STD, crop_pct=0.875, interpolation="bicubic", size=32,
        recipe_json='{"name": "imagined"}', recipe_hash="0123abcd", command="kdscale train recipes/imagined.py --out RUN",
        version="0.1.0", method="shake", paper="Shadow Knowledge Distillation", dataset="Five Clothes", split="val",
        teachers=(Teacher("timm/regnety_160.deit_in1k", 0.8269, "feed" * 16), Teacher("RUN/teacher")),
        evaluations=(
            Evaluation(name="student", split="val", top1=0.8125, top5=0.99, count=2000, epoch=20.0),
            Evaluation(name="shadow", split="val", top1=0.8, top5=0.98, count=2000, epoch=20.0),
        ),
        seed=7, hardware="1 imagined GPU", date="2026-01-02", seconds=4210.0,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def student(model: Model) -> Network:
    """A network with fresh weights, none of which is left where its start put it."""
    network = build_network(model, INFO, trained=True, seed=0, normalisation=(MEAN, STD))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.body.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


def deit() -> Network:
    return student(Model("deit_tiny_distilled_patch16_224", size=32, drop_path=0.1, args={"patch_size": 8, "depth": 2}))


def resnet() -> Network:
    return student(Model("resnet18"))


def wrn() -> Network:
    return student(Model("wrn_16_1"))
