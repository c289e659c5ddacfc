"""DropBlock: squares of a map are cleared in train mode, over all channels (Ghiasi et al. 2018, arXiv:1810.12890).

The squares' places are drawn from keys, as in ``noise.py``: a sample's own are the same on whichever rank it falls. What is
left is scaled up by one number for the whole batch *of this rank*, as published. The rate rises linearly with the share of
the phase that is done. For networks of the CIFAR families the paper has no setting; in timm's manner the last two stages
have it, on each block's branch before its shortcut is added, with squares of 5 (at a quarter of the rate) and of 3 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from ..errors import NetworkError

if TYPE_CHECKING:
    from .cifar import CifarNetwork
    from .noise import Noise

SECOND_TO_LAST, LAST = (5, 0.25), (3, 1.0)
"""(pixels of a side, scale of the rate) in these stages."""


def drop_block(x: Tensor, draws: Tensor, rate: Tensor, *, block: int, scale: float = 1.0) -> Tensor:
    """``x`` [N,D,H,W] with squares cleared; ``draws`` [N,1,H,W] in [0, 1); ``rate`` []: the share to be cleared, before ``scale``."""
    return clear(x, draws < seed_rate(rate, block, x.shape[2], x.shape[3], scale), block)


def seed_rate(rate: Tensor, block: int, height: int, width: int, scale: float = 1.0) -> Tensor:
    """How often a pixel is the seed of a square, so that a share of about ``rate`` x ``scale`` is cleared; [].

    As published, it counts the seeds whose squares lie within the map; those at the border, drawn too, clear somewhat more.
    """
    side = _clipped(block, height, width)
    return rate * (scale * height * width / side**2 / ((height - side + 1) * (width - side + 1)))


def clear(x: Tensor, seeds: Tensor, block: int) -> Tensor:
    """``x`` without the squares around ``seeds`` [N,1,H,W] (true or 1), scaled to what it would sum to with them."""
    side = _clipped(block, x.shape[2], x.shape[3])
    spread = functional.max_pool2d(seeds.to(x.dtype), side, 1, side // 2)
    if side % 2 == 0:
        spread = spread[:, :, 1:, 1:]
    kept = 1 - spread
    total = kept.float().sum() + 1e-7  # a batch may be cleared as a whole
    return x * (kept * (kept.numel() / total).to(x.dtype))


def _clipped(block: int, height: int, width: int) -> int:
    return min(block, height, width)


class DropBlock(nn.Module):
    """``rate``: to which it rises until the end of the phase."""

    def __init__(self, rate: float, block: int, scale: float, noise: Noise) -> None:
        super().__init__()
        self.rate, self.block, self.scale = rate, block, scale
        self.noise, self.layer = noise, noise.new_layer()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        rows, _, height, width = x.shape
        draws = self.noise.per_element(self.layer, rows * height * width).view(rows, 1, height, width)
        return drop_block(x, draws, self.rate * self.noise.share_done(), block=self.block, scale=self.scale)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, block={self.block}, scale={self.scale:g}"


def place_drop_blocks(body: CifarNetwork, name: str, rate: float, noise: Noise) -> None:
    """Into every block of the last two stages; no state-dict key changes. Raises NetworkError for a family without residual sums."""
    last = len(body.stages)
    for stage, _, _, block in body.steps():
        if not hasattr(block, "drop_block"):
            raise NetworkError(
                f"DropBlock has no place in {name!r}, which adds no shortcuts: take a resnet or wrn, or no drop_block"
            )
        if stage >= last - 1:
            block.drop_block = DropBlock(rate, *(LAST if stage == last else SECOND_TO_LAST), noise)


def remove_drop_blocks(body: nn.Module) -> None:
    """Out of every block: a second path through a network has none."""
    for module in body.modules():
        if isinstance(getattr(module, "drop_block", None), DropBlock):
            module.drop_block = nn.Identity()
