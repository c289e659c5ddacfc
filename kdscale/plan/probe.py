"""Steps measured on the machine at hand: the networks of a phase, with random weights, on images of noise. No data is read.

A forecast that has it needs no peak and no share of one; data, network and saves are computed as before.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from ..engine.allocator import keep_freed_memory
from ..errors import RunError
from ..recipe import Recipe
from .building import Built, build
from .facts import Facts
from .gpus import CPU, Gpu

WARM, MOST, LONGEST = 2, 20, 20.0  # steps that do not count, steps that do, seconds after which no further one is begun
SIDE, ROUNDS = 1024, 5  # of a matrix product that measures a processor


def seconds_of(kind: str, recipe: Recipe, number: int, facts: Facts, epochs: float, images: int) -> float:
    """Median seconds of a micro-batch of ``images`` on ``kind`` ('cpu' or 'cuda'), forward and backward, teachers with it.
    Raises RunError for one that is larger than this machine's memory."""
    device = torch.device(kind)
    built = build(recipe, number, facts.info, epochs, 1, lambda t: t, device)
    layout = torch.channels_last if recipe.machine.channels_last else torch.preserve_format
    modules: list[nn.Module] = [built.distiller, *built.frozen.values()]
    for module in modules:
        module.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    if recipe.machine.compile:
        for network in {id(m): m for module in modules for m in module.modules() if hasattr(m, "set_noise")}.values():
            network.compile()
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(recipe.machine.threads or torch.get_num_threads())
    try:
        return statistics.median(_timed(_step(built, images, device), device))
    except torch.OutOfMemoryError:
        raise RunError(
            f"phase {recipe.phases[number].name!r} at {images} images a micro-batch does not fit into this GPU's memory:"
            f" set machine.accumulate={2 * recipe.machine.accumulate}"
        ) from None


def _step(built: Built, images: int, device: torch.device) -> Callable[[], None]:
    batch, distiller = built.batch(images, device), built.distiller

    def step() -> None:
        distiller.before_step(built.progress)  # type: ignore[operator]
        with torch.no_grad():
            taught = {role: built.say(role, batch.images) for role in built.speakers}
        sum(distiller(batch, taught).values()).backward()
        for parameter in distiller.parameters():
            parameter.grad = None

    return step


def _timed(step: Callable[[], None], device: torch.device) -> list[float]:
    seconds: list[float] = []
    for number in range(WARM + MOST):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if number >= WARM and sum(seconds) > LONGEST:
            break
    return seconds[WARM:]


def this_processor() -> Gpu:
    """The processor of this machine in the place of a GPU: what it reaches in a product of matrices, and in a copy."""
    peaks = {dtype: _product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    single = peaks[torch.float32]
    copied = _copied()
    return Gpu(CPU, peaks[torch.bfloat16], single, single, memory, copied, copied, "measured")


def _product(dtype: torch.dtype) -> float:
    """TFLOP/s."""
    a = torch.randn(SIDE, SIDE).to(dtype)
    return 2 * SIDE**3 / _best(lambda: a @ a) / 1e12


def _copied() -> float:
    """GB/s, read and written."""
    a = torch.zeros(1 << 25)
    return 2 * 4 * a.numel() / _best(a.clone) / 1e9


def _best(work: Callable[[], object]) -> float:
    def once() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return min(once() for _ in range(ROUNDS))
