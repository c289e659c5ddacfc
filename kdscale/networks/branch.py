"""The rest of a network after one of its blocks, as a module of its own: ONE's and OKDDip's branches, SFTN's student branches.

It is a whole network of which everything that comes before has been let go, so it runs, compiles, draws its noise and takes
synchronised norms as any network does. What the rest needs is not written down for each family: the blocks are run once
on tensors without numbers, and whatever holds parameters or buffers and was not called goes. Its place stays, for blocks
are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError

if TYPE_CHECKING:
    from ..types import Outputs
    from .network import Network
    from .reading import Taps


class Branch(nn.Module):
    """The blocks of ``network`` that follow ``after``, its pooling and its classifier. ``network`` is used up by this.

    ``network``: newly drawn, as of ``Context.fresh``. ``input_shape``: of what enters, without the batch, at the network's
    own image size; a map [D,H,W], of a ViT the tokens [P+N,D]. ``network.shape`` still tells every tap. Raises NetworkError
    for a block that is not there and for a family that cannot be run in spans.
    """

    def __init__(self, network: Network, after: str) -> None:
        super().__init__()
        network.shape("logits")  # found while the network is whole, and kept
        self.network, self.after = network, after
        called, self.input_shape = _rehearsed(network, after)
        _let_go(network.body, called)

    def forward(self, x: Tensor, taps: Taps = ()) -> Outputs:
        """``x`` [B, *input_shape]; logits [B,C] and those taps that lie behind ``after``."""
        return self.network.run(x, self.after, taps=taps)

    def extra_repr(self) -> str:
        return f"after={self.after}"


class Gate(nn.Module):
    """How much each of ``count`` branches counts, read from the map or tokens that they share: linear, batch norm, ReLU.

    Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, section 3.1. ``entering``: shape
    without the batch, a branch's ``input_shape``.
    """

    def __init__(self, entering: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.linear = nn.Linear(entering[0] if len(entering) == 3 else entering[-1], count)
        self.norm = nn.BatchNorm1d(count)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B,D,H,W] or [B,N,D]; scores [B,count], of which a softmax makes shares."""
        pooled = x.mean((2, 3)) if x.ndim == 4 else x.mean(1)
        return functional.relu(self.norm(self.linear(pooled)))


def before_last_stage(network: Network) -> str:
    """Name of the block before the last stage (of a ViT: the last quarter). Raises NetworkError where there is none."""
    if len(network.cuts) < 2:
        raise NetworkError(
            f"network {network.name!r} has no last stage to branch off: take a CIFAR network, a timm ResNet or a timm ViT"
            " of two or more stages"
        )
    return network.cuts[-2][-1]


def _rehearsed(network: Network, after: str) -> tuple[set[nn.Module], tuple[int, ...]]:
    """(modules of the body that a run behind ``after`` calls, shape of what enters there), without computing anything."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    called: set[nn.Module] = set()
    some = next(network.body.parameters())
    network.eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        images = torch.empty(1, *network.architecture.input_size, device=some.device, dtype=some.dtype)
        x = network.run(images, upto=after)
        hooks = [module.register_forward_pre_hook(lambda m, _: called.add(m)) for module in network.body.modules()]
        network.run(x, after)
    for hook in hooks:
        hook.remove()
    network.train()
    return called, tuple(x.shape[1:])


def _let_go(module: nn.Module, called: set[nn.Module]) -> None:
    """Takes out of ``module``, which was not ``called``, all that nobody calls."""
    for name in (*module._parameters, *module._buffers):
        setattr(module, name, None)
    for name, child in list(module.named_children()):
        if child in called:
            continue
        if [*child.parameters(recurse=False), *child.buffers(recurse=False)]:
            setattr(module, name, nn.Identity())  # an emptied batch norm would still ask a save for its counter
        else:
            _let_go(child, called)
