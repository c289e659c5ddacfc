"""A frozen network's weights in a network that is trained: its architecture, normalisation and image size, in float32."""

from __future__ import annotations

import copy

from ..errors import NetworkError
from .network import Network
from .noise import draw_from_keys


def trainable_copy(network: Network) -> Network:
    """A trained network that begins as ``network``, which stays as it is; where that was cast to bf16, from the rounded weights.

    Drop-path and dropout are as the frozen one was built: without. Raises NetworkError for a network of transformers.
    """
    if network.architecture.kind == "transformers":
        raise NetworkError(
            f"{network.name!r} is a network of transformers, which can teach but not be trained: take a timm or CIFAR network"
        )
    body, reader, noise = copy.deepcopy((network.body, network._reader, network._noise))
    body = body.float().requires_grad_(True).train()
    draw_from_keys(body, noise)
    own = (network.architecture.mean, network.architecture.std)
    made = Network(network.name, body, reader, network.architecture, noise=noise, normalisation=own, size=network.size)
    for name in ("scale", "shift"):
        buffer = getattr(network, name)
        made.register_buffer(name, None if buffer is None else buffer.detach().clone(), persistent=False)
    return made
