"""What makers state of their devices: dense peaks, memory, and the speed of the links between devices of one machine.

Numbers are those of the data sheets, without sparsity; no run reaches them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..errors import RunError
from .known import Mark


@dataclass(frozen=True, slots=True)
class Gpu:
    """Units: TFLOP/s of multiply and add together, GB (1e9 bytes), GB/s; ``link``: to the others of its machine, one way."""

    name: str
    bf16: float
    tf32: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    mark: Mark = "vendor"

    def peak(self, kind: str, precision: str) -> float:
        """FLOP/s of one kind of work. In float32 torch lets convolutions use TF32, and matrix products not."""
        if precision == "bf16":
            return 1e12 * self.bf16
        return 1e12 * (self.tf32 if kind == "convolution" else self.fp32)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 989, 495, 67, 141, 4800, 450),
        Gpu("h100", 989, 495, 67, 80, 3350, 450),
        Gpu("a100", 312, 156, 19.5, 80, 2039, 300),
        Gpu("a100-40gb", 312, 156, 19.5, 40, 1555, 300),
        Gpu("l40s", 362, 183, 91.6, 48, 864, 32),
        Gpu("l4", 121, 60, 30.3, 24, 300, 32),
        Gpu("rtx4090", 165, 82.6, 82.6, 24, 1008, 32),
    )
}
CPU = "cpu"  # this machine's processor, which is measured


def gpu_named(name: str) -> Gpu:
    """Raises RunError with the nearest names."""
    if name in GPUS:
        return GPUS[name]
    known = [*GPUS, CPU]
    near = difflib.get_close_matches(name.lower(), known, 2, 0.5) or known
    raise RunError(f"there is no GPU {name!r} among those that are known: take {', '.join(near)}")
