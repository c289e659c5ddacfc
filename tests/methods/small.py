"""Real networks of each kind, small enough for a test: a CNN of the CIFAR families and a DeiT with a distillation token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdscale.methods import Distiller, Method
from kdscale.networks import FrozenNetwork, Network, build_network
from kdscale.recipe import Model
from kdscale.tasks import Classification
from kdscale.types import Batch, Context, DatasetInfo, Outputs, World

CLASSES, SIZE, BATCH = 10, 32, 6
NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
INFO = DatasetInfo("drawn", 60, CLASSES, None, *NORMALISATION, SIZE)
ALONE = World(rank=0, size=1, gather=lambda t: t, total=lambda t: t)
MODELS = {
    "cnn": Model("wrn_10_1"),
    "token": Model(
        "deit_tiny_distilled_patch16_224",
        weights="random",
        size=SIZE,
        drop_path=0.1,
        args={"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8},
    ),
}
TEACHER = Model("wrn_16_1")


def network(model: Model, trained: bool, seed: int = 0, precision: str = "fp32") -> Network:
    return build_network(model, INFO, trained=trained, seed=seed, normalisation=NORMALISATION, precision=precision)


def kinds_for(method: Method) -> list[str]:
    return ["token"] if method.needs().distillation_head else list(MODELS)


def context_of(method: Method, kind: str, seed: int = 0, precision: str = "fp32") -> Context:
    needs = method.needs()
    networks: dict[str, Any] = {role: network(MODELS[kind], True, seed + i) for i, role in enumerate(needs.trained)}
    networks |= {role: network(TEACHER, False, 90 + i) for i, role in enumerate(needs.frozen)}
    return Context(networks, INFO, ALONE, Classification(), None, 7, precision, torch.device("cpu"))


def built(method: Method, kind: str, seed: int = 0, precision: str = "fp32") -> tuple[Distiller, Context]:
    """A distiller in train mode, the same for the same ``seed``, and what it was built from."""
    context = context_of(method, kind, seed, precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return method.build(context).train(), context


def drawn_batch(seed: int = 0, soft: bool = False, rows: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    targets = torch.rand(rows, CLASSES, generator=generator).softmax(-1) if soft else None
    numbers = torch.arange(rows)
    images = torch.randn(rows, 3, SIZE, SIZE, generator=generator)
    return Batch(images, NORMALISATION, labels, targets, numbers, numbers + seed * rows, numbers * 0, labels >= 0)


def taught(method: Method, context: Context, batch: Batch) -> dict[str, Outputs]:
    """What the frozen networks say, as the engine asks them."""
    taps = method.needs().taps
    frozen = {role: n for role, n in context.networks.items() if isinstance(n, FrozenNetwork)}
    with torch.no_grad():
        return {role: n(batch.images, tuple(taps.get(role, ()))) for role, n in frozen.items()}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
