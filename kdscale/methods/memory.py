"""What contrastive methods keep of the whole training set: a memory of embeddings, and which of its rows a sample is told from.

Nothing here depends on ranks: the first values are drawn from keys, negatives from (seed, phase, step, position), and each rank
makes the same update of its own copy. All of it runs on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import keys
from ..errors import RecipeError
from ..types import DatasetInfo

BLOCK = 1 << 20  # numbers of a memory that are drawn at a time


def drawn_memory(samples: int, width: int, key: int, device: torch.device | None = None) -> Tensor:
    """[samples, width] float32, uniform between -sqrt(3 / width) and sqrt(3 / width): rows of expected length 1."""
    memory = torch.empty(samples * width, device=device)
    bound = (3 / width) ** 0.5
    for start in range(0, len(memory), BLOCK):
        piece = memory[start : start + BLOCK]
        numbers = torch.arange(start, start + len(piece), device=device)
        words = keys.signed(key) + numbers * keys.signed(keys.GOLDEN)
        piece.copy_(keys.torch_uniform(words) * (2 * bound) - bound)
    return memory.view(samples, width)


class Negatives(nn.Module):
    """For each sample of a batch, ``count`` other samples of another class: without replacement while there are as many.

    All samples of a step read one shuffle of the set, each from a place of its own and past its own class. A stretch of a
    random shuffle is a random subset, so each sample's negatives are uniform; two samples' sets overlap as much as
    independent ones do on average. One sort of n words a step takes the place of ``count`` draws a sample.
    """

    classes: Tensor  # [n] int64
    by_class: Tensor  # [n] int64: sample numbers, sorted by class
    first: Tensor  # [C] int64: where a class begins in ``by_class``
    sizes: Tensor  # [C] int64

    def __init__(self, data: DatasetInfo, count: int, relax: bool) -> None:
        """``relax``: the positive is any sample of the class. Without labels each sample is a class of its own.

        Raises RecipeError where all samples are of one class.
        """
        super().__init__()
        self.samples, self.count, self.relax = data.samples, count, relax
        classes = torch.arange(data.samples) if data.labels is None else torch.tensor(data.labels, dtype=torch.int64)
        sizes = torch.bincount(classes)
        self.largest = max(sizes.tolist(), default=0)  # no sample at all: a recipe that is shown where its data are not
        if 0 < self.largest == self.samples:
            raise RecipeError(f"all {self.samples} samples are of one class, so none has a negative: take labelled data")
        tables = {
            "classes": classes,
            "by_class": classes.argsort(stable=True),
            "first": sizes.cumsum(0) - sizes,
            "sizes": sizes,
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, key: Tensor, index: Tensor, position: Tensor) -> Tensor:
        """[B,count+1] int64 sample numbers, the positive first. ``key`` [] of the step; ``index``, ``position`` [B]."""
        words = keys.torch_fold(key, position)
        classes = self.classes[index]
        distinct = self.count + self.largest <= self.samples
        negatives = self._shuffled(key, words, classes) if distinct else self._repeated(words, classes)
        return torch.cat([self._positives(words, index, classes)[:, None], negatives], 1)

    def _positives(self, words: Tensor, index: Tensor, classes: Tensor) -> Tensor:
        if not self.relax:
            return index
        return self.by_class[self.first[classes] + _below(keys.torch_mix(~words), self.sizes[classes])]

    def _shuffled(self, key: Tensor, words: Tensor, classes: Tensor) -> Tensor:
        shuffle = keys.torch_mix(key + torch.arange(self.samples, device=key.device)).argsort()
        ring = torch.cat([shuffle, shuffle])
        length = self.count + self.largest  # so many hold enough of other classes
        start = _below(words, self.samples)
        stretch = ring.unfold(0, length, 1)[start]
        other = self.classes[ring].unfold(0, length, 1)[start] != classes[:, None]
        place = torch.where(other, other.cumsum(1) - 1, self.count).clamp_(max=self.count)
        chosen = torch.empty(len(words), self.count + 1, dtype=torch.int64, device=key.device)
        return chosen.scatter_(1, place, stretch)[:, : self.count]  # the last column took what is not wanted

    def _repeated(self, words: Tensor, classes: Tensor) -> Tensor:
        draws = torch.arange(self.count, device=words.device) * keys.signed(keys.GOLDEN)
        sizes, first = self.sizes[classes][:, None], self.first[classes][:, None]
        other = _below(keys.torch_mix(words[:, None] + draws), self.samples - sizes)
        return self.by_class[torch.where(other >= first, other + sizes, other)]


def _below(words: Tensor, limit: Tensor | int) -> Tensor:
    """Words as whole numbers below ``limit``, uniform up to one part in 2^63 / limit."""
    return (words & ((1 << 63) - 1)) % limit
