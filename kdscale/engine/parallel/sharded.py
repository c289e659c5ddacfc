"""FSDP2: torch's ``fully_shard``, called here, because Accelerate's plugin silently gives DDP on a machine without a GPU.

A block of a trained network is gathered when it is called and let go after; what is left (heads, adapters, a network without
blocks) is gathered once a forward. Parts that a phase does not train stay whole on every rank. The optimizer is given the
shards as plain tensors: not every fused one knows distributed tensors, and what it does to each element is the same.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ...errors import RunError
from ...networks import Network
from .session import Session
from .wrapped import Build, Groups, Wrapped


class Sharded(Wrapped):
    def __init__(self, session: Session, module: nn.Module, groups: Groups, build: Build) -> None:
        mesh = init_device_mesh(session.device.type, (session.size,))
        frozen = {p for p in module.parameters() if not p.requires_grad}
        for block in trained_blocks(module):
            fully_shard(block, mesh=mesh, ignored_params=frozen)
        fully_shard(module, mesh=mesh, ignored_params=frozen)
        named = dict(module.named_parameters())  # others than before: each is a shard now
        groups = [{**group, "params": [named[name] for name in group["names"]]} for group in groups]
        super().__init__(session, module, groups)
        if not all(isinstance(p, DTensor) for group in groups for p in group["params"]):
            raise RunError("machine.parallel=fsdp2: the weights were not sharded by this torch: update torch, or take ddp")
        self._local = {p: nn.Parameter(p.to_local().detach()) for group in groups for p in group["params"]}  # of one storage
        self.model = module
        self.optimizer = build([{**group, "params": [self._local[p] for p in group["params"]]} for group in groups])

    def alone(self, last: bool) -> Any:
        self.model.set_requires_gradient_sync(last)
        return nullcontext()

    def clip(self, limit: float | None) -> Tensor:
        norm = super().clip(limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self) -> None:
        for parameter, local in self._local.items():
            local.grad = None if parameter.grad is None else parameter.grad.to_local()  # type: ignore[attr-defined]
        super().step()

    def zero_grad(self) -> None:
        super().zero_grad()
        for parameter in self._local:
            parameter.grad = None

    def part(self, parameter: nn.Parameter) -> Tensor:
        local: Tensor = parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.detach()
        return local

    def written(self) -> None:
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return super().whole(parameter, part)
        laid = DTensor.from_local(
            part.detach(),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return self.out(laid.full_tensor())

    def cut(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return full
        there = full.to(self.session.device, parameter.dtype)
        return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()

    def state_of(self, parameter: nn.Parameter) -> dict[str, Any]:
        local = self._local[parameter]
        kept = self.optimizer.state.get(local, {})
        return {
            entry: self.whole(parameter, v) if isinstance(v, Tensor) and v.shape == local.shape else v
            for entry, v in kept.items()
        }

    def placed(self, parameter: nn.Parameter, kept: Any) -> Any:
        return self.cut(parameter, kept) if isinstance(kept, Tensor) and kept.shape == parameter.shape else kept

    def replicated(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if not isinstance(p, DTensor)]

    def release(self) -> None:
        self.optimizer.state.clear()
        super().release()


def trained_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of the trained networks, each of which is only ever called as a whole."""
    networks = [m for m in module.modules() if isinstance(m, Network)]
    blocks: dict[int, nn.Module] = {}
    for network in networks:
        children = dict(network.body.named_modules())
        for name in (name for stage in network.cuts for name in stage):
            block = children.get(name)
            if block is not None and any(p.requires_grad for p in block.parameters()):
                blocks[id(block)] = block
    return list(blocks.values())
