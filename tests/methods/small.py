"""Real networks of each kind, small enough for a test: a CNN of the CIFAR families and a DeiT with a distillation token."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdscale.errors import NetworkError
from kdscale.methods import Distiller, Method
from kdscale.networks import Network, build_network, read_upto
from kdscale.recipe import Model, Phase
from kdscale.tasks import Classification
from kdscale.types import Batch, Context, DatasetInfo, Outputs, Progress, World

CLASSES, SIZE, BATCH = 10, 32, 6
NORMALISATION = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LABELS = np.random.default_rng(0).permutation(60).astype(np.int32) % CLASSES
INFO = DatasetInfo("drawn", 60, CLASSES, LABELS, *NORMALISATION, SIZE)
CLOCK = Progress(phase=0, step=3, position=18, epoch=0.3, epochs=2.0)
ALONE = World(rank=0, size=1, gather=lambda t: t, total=lambda t: t)
MODELS = {
    "cnn": Model("wrn_16_1"),
    "token": Model(
        "deit_tiny_distilled_patch16_224",
        weights="random",
        size=SIZE,
        drop_path=0.1,
        args={"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8},
    ),
}
TEACHER = Model("wrn_16_2")


@functools.cache
def _made(model: Model, trained: bool, seed: int, precision: str) -> Network:
    return build_network(model, INFO, trained=trained, seed=seed, normalisation=NORMALISATION, precision=precision)


def network(model: Model, trained: bool, seed: int = 0, precision: str = "fp32") -> Network:
    """Made once and copied: making it takes longer than most tests."""
    return copy.deepcopy(_made(model, trained, seed, precision))


def supported(phase: Phase) -> list[str]:
    """The kinds of student that a phase's method takes; it says of the others in one line that it does not."""
    return [kind for kind in MODELS if takes(phase, kind)]


def takes(phase: Phase, kind: str) -> bool:
    try:
        built(phase, kind)
    except NetworkError:
        return False
    return True


def context_of(method: Method | Phase, kind: str, seed: int = 0, precision: str = "fp32") -> Context:
    phase = method if isinstance(method, Phase) else Phase(method, steps=6)
    needs = phase.method.needs()
    networks: dict[str, Any] = {role: network(MODELS[kind], True, seed + i) for i, role in enumerate(needs.trained)}
    networks |= {role: network(TEACHER, False, 90 + i) for i, role in enumerate(needs.frozen)}

    def fresh(role: str, copy: int) -> Network:
        return network(TEACHER if role in needs.frozen else MODELS[kind], True, 1000 * (seed + 1) + copy)

    return Context(networks, fresh, INFO, ALONE, Classification(), phase, 7, precision, torch.device("cpu"))


def built(method: Method | Phase, kind: str, seed: int = 0, precision: str = "fp32") -> tuple[Distiller, Context]:
    """A distiller in train mode, the same for the same ``seed``, and what it was built from."""
    context = context_of(method, kind, seed, precision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return context.phase.method.build(context).train(), context


def drawn_batch(seed: int = 0, soft: bool = False, rows: int = BATCH) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(rows, CLASSES, generator=generator).softmax(-1) if soft else None
    numbers = (torch.arange(rows) + seed * rows) % len(LABELS)
    labels = torch.from_numpy(LABELS)[numbers].long()
    images = torch.randn(rows, 3, SIZE, SIZE, generator=generator)
    return Batch(images, NORMALISATION, labels, targets, numbers, numbers + seed * rows, numbers * 0, labels >= 0)


def taught(method: Method, context: Context, batch: Batch, progress: Progress = CLOCK) -> dict[str, Outputs]:
    """What the frozen networks say, as the engine asks them."""
    taps, places = method.needs().taps, method.reads(context.networks)

    def said(role: str) -> Outputs:
        network = context.networks[role]
        if role in places:
            return read_upto(network, batch.images, places[role])
        outputs: Outputs = network(batch.images, network.expanded(taps.get(role, ())))
        return outputs

    with torch.no_grad():
        return {role: said(role) for role in method.asks(progress)}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()
