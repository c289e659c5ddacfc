"""What is wrong with a network before an hour is spent on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import NetworkError
from .network import FrozenNetwork
from .weights import bad_weights, check_classes, check_labels

if TYPE_CHECKING:
    from ..types import DatasetInfo
    from .network import Network


def default_floor(classes: int) -> float:
    """The accuracy under which a teacher is refused: a fifth of the way from chance to certainty."""
    chance = 1 / classes
    return chance + 0.2 * (1 - chance)


def preflight(network: Network, info: DatasetInfo, names: Sequence[str] = ()) -> list[str]:
    """One sentence a problem; [] where there is none. ``names``: of the data's classes, where the data say them."""
    problems: list[str] = []
    try:
        check_classes(network.name, network.classes, info.classes)
        check_labels(network.name, network.architecture.labels, names or info.names)
    except NetworkError as error:
        problems.append(str(error))
    hollow = next((name for name, p in network.named_parameters() if hasattr(p, "ds_id")), None)
    if hollow is not None:
        problems.append(
            f"{hollow!r} of {network.name!r} was cut up by ZeRO-3 when it was loaded: unset ACCELERATE_DEEPSPEED_ variables"
        )
    broken = bad_weights(network.body)
    if broken:
        problems.append(
            f"the weights of {network.name!r} hold numbers that are not finite ({broken[0]} and {len(broken) - 1} more): fetch them again"
        )
    return problems


def foreign_noise(network: Network) -> list[str]:
    """Names of torch's operations by which a trained network draws from a generator of its own, not from keys.

    Their masks depend on the rank. One forward of two images in train mode, whose statistics are not kept.
    """
    if isinstance(network, FrozenNetwork):
        return []
    device = next(network.parameters()).device
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    modes = {module: module.training for module in network.modules()}
    network.train()
    network.set_noise(torch.zeros((), dtype=torch.int64, device=device), torch.arange(2, device=device))
    network.set_clock(torch.ones((), device=device))
    try:
        with _Watching(device) as watching, torch.no_grad(), torch.random.fork_rng():
            network(torch.zeros(2, *network.architecture.input_size, device=device))
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(kept[name])
        for module, mode in modes.items():
            module.training = mode
    return sorted(watching.seen)


class _Watching(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operations that draw: of those that may, the ones that move the generator (attention without dropout does not)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        before = self._state()
        made = func(*args, **(kwargs or {}))
        if not torch.equal(before, self._state()):
            self.seen.add(str(func))
        return made

    def _state(self) -> torch.Tensor:
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
