"""A launcher's configuration that says something else than the recipe: one error that names both.

`accelerate launch` hands its flags, and a configuration file in the user's home, to the ranks as variables. The recipe alone
says how a run is computed, so a launcher is asked for processes and for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import RunError
from ...recipe import Machine

CURE = "let the launcher start processes only (accelerate launch --num_processes N), or change the recipe"
OFF = ("", "0", "no", "none", "false")


def refuse(variables: Mapping[str, str], machine: Machine, precision: str) -> None:
    """Raises RunError for the first variable that contradicts ``machine`` or ``precision``."""
    for name, (ours, allowed) in _known(machine, precision).items():
        given = variables.get(name, "").lower()
        if given not in OFF and given not in allowed:
            raise RunError(f"the launcher says {name}={variables[name]} and the recipe {ours}: {CURE}")


def _known(machine: Machine, precision: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """variable -> what the recipe says of the same thing, and the values that agree with it; switched off always does."""
    ours = f"machine.parallel={machine.parallel}"
    zero = machine.parallel.startswith("zero")
    sharded = machine.parallel == "fsdp2"
    return {
        "ACCELERATE_USE_DEEPSPEED": (ours, ("true", "1", "yes") if zero else ()),
        "ACCELERATE_USE_CPU": (f"{ours}, which Accelerate passes over then", () if zero else ("true", "1", "yes")),
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": (ours, (machine.parallel[-1],) if zero else ()),
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": (f"{ours} builds DeepSpeed's configuration itself", ()),
        "ACCELERATE_USE_FSDP": (ours, ("true", "1", "yes") if sharded else ()),
        "FSDP_VERSION": (ours, ("2",) if sharded else ()),
        "ACCELERATE_USE_MEGATRON_LM": (ours, ()),
        "ACCELERATE_USE_PARALLELISM_CONFIG": (ours, ()),
        "ACCELERATE_MIXED_PRECISION": (f"precision={precision}", (precision,)),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (
            f"machine.accumulate={machine.accumulate}",
            ("1", str(machine.accumulate)),
        ),
        "ACCELERATE_GRADIENT_CLIPPING": ("optimizer.clip", ()),
        "ACCELERATE_DYNAMO_BACKEND": (
            f"machine.compile={str(machine.compile).lower()}",
            ("inductor",) if machine.compile else (),
        ),
        "ACCELERATE_TORCH_DEVICE": ("a device for each rank", ()),
        "ACCELERATE_SPLIT_BATCHES": ("its own stream of samples", ()),
        "ACCELERATE_DISPATCH_BATCHES": ("its own stream of samples", ()),
    }
