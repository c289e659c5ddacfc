"""Reading a network at places between its blocks, and no further than the last of them.

A place is the name of a block (what comes out of it) or of a tap that lies in the network's spans ('stem', 'stage2',
'stage2.pre'). Taps alone would not do: a cut within a stage has none, and asking for one runs the whole network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import NetworkError
from ..types import Outputs
from .network import Network


def read_upto(network: Network, images: Tensor, places: Sequence[str], logits: bool = False) -> Outputs:
    """``images`` [B,3,H,W] through the blocks up to the last of ``places``; ``taps`` holds what is at each, by its name.

    ``logits``: then on to the end, whose logits and heads come with them. A map at a block of a vision transformer is the
    whole token matrix [B,P+N,D]. Raises NetworkError for a place that is not on the way.
    """
    x, after = images, None
    outputs = Outputs(None)
    blocks = {place: block_at(network, place) for place in places}
    order = [name for group in network.cuts for name in group]
    for block in sorted(set(blocks.values()), key=order.index):
        wanted = tuple(place for place in places if blocks[place] == block and place != block)
        said = network(x, wanted, span=(after, block))
        x, after = said.taps.pop("cut"), block
        outputs.taps |= {**said.taps, **({block: x} if block in places else {})}
    missing = [place for place in places if place not in outputs.taps]
    if missing:
        raise NetworkError(f"network {network.name!r} knows its {missing[0]!r} only when it runs on: take the map of a block")
    if logits:
        last = network(x, (), span=(after, None))
        outputs.logits, outputs.heads = last.logits, last.heads
    return outputs


def block_at(network: Network, place: str) -> str:
    """The block with which a span must end that has ``place`` in it. Raises NetworkError for a place that is none."""
    groups = network.cuts
    names = [name for group in groups for name in group]
    if place in names:
        return place
    number = place.partition(".")[0].removeprefix("stage")
    if place == "stem" and names:
        return names[0]
    if not number.isdigit() or not 0 < int(number) <= len(groups):
        raise NetworkError(
            f"network {network.name!r} has no place {place!r} between its blocks: take one of {', '.join(names)}"
        )
    return groups[int(number) - 1][-1]


def shapes_at(network: Network, places: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shape of what is at each place, without the batch, at the network's own image size. Nothing is computed."""
    outputs = _imagined(network, places)
    return {place: tuple(outputs.taps[place].shape[1:]) for place in places}


def parameters_upto(network: Network, place: str) -> set[str]:
    """Names (within the network) of the trained parameters on which what is at ``place`` depends. Nothing is computed."""
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found, seen = set(), {id(p): name for name, p in named.items()}
    nodes, visited = [_imagined(network, [place]).taps[place].grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) in seen:
            found.add(seen[id(leaf)])
        nodes += [following for following, _ in node.next_functions]
    return found


def _imagined(network: Network, places: Sequence[str]) -> Outputs:
    """One image that is never computed, in eval mode, so that no statistic moves."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    some = next(network.body.parameters())
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
            images = torch.empty(1, *network.architecture.input_size, device=some.device)
            return read_upto(network, images, places)
    finally:
        for module, mode in modes.items():
            module.training = mode
