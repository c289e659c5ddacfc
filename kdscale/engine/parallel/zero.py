"""ZeRO-1, 2 and 3: DeepSpeed's engine through Accelerate, with a configuration that says everything and nothing 'auto'.

Weights stay float32 and autocast is the distiller's own, so the curve is DDP's. The engine clips, skips a gradient that is not
finite and forgets gradients by itself; it is asked to do so when the loop asks, never inside a backward.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import RunError
from .flat import Flat, partitions_of_parameters, partitions_of_weights
from .session import Session
from .wrapped import Build, Groups, Wrapped

BUCKET = 50_000_000  # elements; DeepSpeed's own ten times as many would outweigh a small network


class Zero(Wrapped):
    """``clip``: the norm that every update of this phase clips to."""

    def __init__(
        self, session: Session, module: nn.Module, groups: Groups, build: Build, *, stage: int, clip: float | None, batch: int
    ) -> None:
        super().__init__(session, module, groups)
        self.stage = stage
        size = sum(p.numel() for p in module.parameters())
        self._configuration = configuration(stage, clip, batch, session.size, size, session.device.type == "cuda")
        held = session.accelerator.state.deepspeed_plugin.deepspeed_config
        held.clear()
        held.update(self._configuration)
        quiet()
        self.model, _ = session.accelerator.prepare(module, build(groups))
        self.engine = self.model
        self.optimizer = self.engine.optimizer.optimizer
        self._check(clip)
        self._flats: list[Flat] = (
            partitions_of_parameters(self.engine.optimizer) if stage == 3 else partitions_of_weights(self.engine.optimizer)
        )
        self._names = {id(p): name for name, p in module.named_parameters()}
        self._resident = self._keep_resident() if stage == 3 else []

    def _keep_resident(self) -> list[Any]:
        """Stage 3 gathers a module's weights when the module is called. A network's own tokens and position embeddings are
        read without such a call, so they stay gathered."""
        loose = [p for m in self.module.modules() if any(m.children()) for p in m.parameters(recurse=False)]
        found: list[Any] = list({id(p): p for p in loose}.values())
        for parameter in found:
            parameter.ds_persist = True
        self.engine.optimizer.persistent_parameters.extend(found)
        _gather(found)
        return found

    def _check(self, clip: float | None) -> None:
        """The engine is what was asked for: several settings are filled in or passed over without a word."""
        found = (self.engine.zero_optimization_stage(), float(self.engine.gradient_clipping()))
        if found != (self.stage, clip or 0.0):
            raise RunError(
                f"DeepSpeed runs stage {found[0]} with clipping {found[1]}, asked were stage {self.stage} and {clip or 0.0}:"
                " this version of DeepSpeed or Accelerate does not take its configuration"
            )

    def alone(self, last: bool) -> Any:
        self.engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def update(self, limit: float | None, careful: bool = False) -> Tensor | None:
        """As :meth:`Wrapped.update`; ``limit`` is the phase's, of which the engine knows since it was made."""
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        if not self.engine.was_step_applied():
            norm = float("inf")  # skipped for a gradient that is not finite
            self.written()  # stage 3 let go of what is resident, and gathers it again only after a step
        return torch.as_tensor(0.0 if norm is None else norm, device=self.session.device).detach()

    def idle(self) -> list[str]:
        return []  # the engine has taken every gradient

    def zero_grad(self) -> None:
        self.engine.optimizer.zero_grad(set_to_none=True)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return list(self.engine.optimizer.param_groups)

    def part(self, parameter: nn.Parameter) -> Tensor:
        if self.stage < 3:
            return parameter.detach()
        shard: Tensor = parameter.ds_tensor.detach()  # type: ignore[attr-defined]
        return shard

    def written(self) -> None:
        if self.stage == 3:
            self.engine.optimizer.parameter_offload.partition_all_parameters()
            _gather(self._resident)

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor:
        if self.stage < 3:
            return super().whole(parameter, part)
        shards = self.session.rows(part)
        full: Tensor = shards.flatten()[: parameter.ds_numel].view(parameter.ds_shape)  # type: ignore[attr-defined]
        return self.out(full)

    def cut(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        if self.stage < 3:
            return full
        length = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = full.new_zeros(length * self.session.size)
        padded[: full.numel()] = full.flatten()
        return padded[length * self.session.rank :][:length]

    def replicated(self) -> list[nn.Parameter]:
        return super().replicated() if self.stage < 3 else []

    def configuration(self) -> dict[str, Any]:
        return self._configuration

    def _entries(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the optimizer keeps of flat buffers, as if it were kept of parameters."""
        kept: dict[str, dict[str, Any]] = {}
        for flat in self._flats:
            state = self.optimizer.state.get(flat.buffer, {})
            for entry, value in state.items():
                if isinstance(value, Tensor) and value.shape == flat.buffer.shape:
                    for parameter, full in flat.whole(self.session.rows(value)):
                        kept.setdefault(self._names[id(parameter)], {})[entry] = self.out(full)
                else:
                    for parameter, _, _ in flat.places:
                        kept.setdefault(self._names[id(parameter)], {})[entry] = value
        for group in self.groups:
            for name in group["names"]:
                yield name, kept.get(name, {})

    def release(self) -> None:
        """DeepSpeed's hooks keep an engine of stage 3 for as long as the process lives: what it holds of the phase is let go."""
        self.optimizer.state.clear()
        if self.stage == 3:
            self.engine.destroy()
            inner = self.engine.optimizer
            held: list[Any] = [flat.buffer for flat in self._flats] + [p.ds_tensor for p in self.module.parameters()]  # type: ignore[attr-defined]
            for name in ("fp16_partitioned_groups_flat", "lp_param_buffer", "grad_partitions_flat_buffer"):
                found = getattr(inner, name, None)
                held += found if isinstance(found, list) else [found]
            for tensor in (t for t in held if isinstance(t, Tensor)):
                tensor.untyped_storage().resize_(0)
        super().release()

    def put_state(self, by_name: dict[str, dict[str, Any]], clocks: list[dict[str, Any]]) -> None:
        """As :meth:`Wrapped.put_state`. What SGD and AdamW keep of a group are the recipe's own settings: no clock to set.

        A buffer has one step count: that of its members, and where some have no state yet, that of those which have.
        """
        for flat in self._flats:
            members = [by_name.get(self._names[id(p)], {}) for p, _, _ in flat.places]
            state: dict[str, Any] = {}
            for entry, value in {entry: value for kept in members for entry, value in kept.items()}.items():
                if isinstance(value, Tensor) and value.ndim:
                    fulls = [kept.get(entry) for kept in members]
                    state[entry] = flat.mine(fulls, self.session.rank, self.session.size)
                else:
                    state[entry] = value.to(flat.buffer.device) if isinstance(value, Tensor) else value
            if state:
                self.optimizer.state[flat.buffer] = state


def _gather(parameters: list[Any]) -> None:
    if parameters:
        parameters[0].all_gather(parameters)


def plugin(stage: int, cuda: bool) -> Any:
    """Accelerate's word for DeepSpeed; the configuration of each phase replaces the one in it."""
    if not cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it looks for one, and warns that there is none
    try:
        import deepspeed  # noqa: F401
    except ImportError as error:
        raise RunError(f"machine.parallel=zero{stage} needs DeepSpeed ({error}): pip install deepspeed, or take ddp") from None
    from accelerate import DeepSpeedPlugin

    from . import operation

    quiet()
    if not cuda:
        operation.build()
    return DeepSpeedPlugin(hf_ds_config=configuration(stage, None, 1, 1, BUCKET, cuda), zero3_init_flag=False)


def configuration(stage: int, clip: float | None, batch: int, ranks: int, size: int, cuda: bool) -> dict[str, Any]:
    """All that DeepSpeed is told. ``batch``: of a rank and a micro-batch; ``size``: parameters."""
    bucket = max(1, min(BUCKET, size))
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "overlap_comm": cuda and stage < 3,  # stage 3 would gather on a stream of its own what ours may not have written yet
        "contiguous_gradients": True,
        "round_robin_gradients": False,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_max_live_parameters": bucket,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,  # what is kept gathered would not follow an average that is swapped in
            "memory_efficient_linear": False,  # its own autograd function changes what autocast does
        }
    return {
        "train_batch_size": batch * ranks,
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": 1,  # micro-batches are the loop's own affair
        "gradient_clipping": clip or 0.0,  # without the key Accelerate puts in 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
        "zero_optimization": zero,
    }


def quiet() -> None:
    """DeepSpeed's banner and its notes on every engine would drown the run's own lines."""
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        handler.setLevel(logging.ERROR)
