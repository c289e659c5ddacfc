"""The machines of a forecast: how many, of what, and how fast what lies around the GPUs is taken to be."""

from __future__ import annotations

from dataclasses import dataclass, field

from .gpus import Gpu
from .known import Known

CORES_A_GPU = 14  # of machines with eight GPUs and 112 to 128 cores
USE = {"convolution": 0.20, "matmul": 0.30}  # share of the peak that training reaches without a measurement


@dataclass(frozen=True, slots=True)
class Machines:
    """``gpus``: of each of the ``nodes``. Units: GB = 1e9 bytes; ``decode``: images a second of one core at 224 pixels."""

    nodes: int
    gpus: int
    gpu: Gpu
    price: float | None = None  # of a GPU-hour, in whatever currency
    bandwidth: Known = field(default=Known(50.0, "assumed"))  # GB/s a GPU to other nodes: one port of 400 Gb/s
    latency: Known = field(default=Known(10e-6, "assumed"))  # s of one hop
    cores: Known | None = None  # of a node; None: CORES_A_GPU for each GPU
    decode: Known = field(default=Known(125.0, "assumed"))
    disk: Known = field(default=Known(2.0, "assumed"))  # GB/s a node, reading and writing
    bus: Known = field(default=Known(25.0, "assumed"))  # GB/s from a GPU to its host
    launch: Known = field(default=Known(5e-6, "assumed"))  # s that the host needs for one operation
    traffic: Known = field(default=Known(0.75, "assumed"))  # share of the memory's bandwidth that is reached
    overhead: Known = field(default=Known(0.8, "assumed"))  # GB a GPU for CUDA and its libraries
    scatter: Known = field(default=Known(0.10, "assumed"))  # of the activations, lost between pieces of memory
    fault_hours: Known = field(default=Known(1000.0, "assumed"))  # GPU-hours between two faults
    use: dict[str, Known] = field(default_factory=lambda: {kind: Known(share, "assumed") for kind, share in USE.items()})

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus

    @property
    def node_cores(self) -> Known:
        return self.cores or Known(CORES_A_GPU * self.gpus, "assumed")
