"""AutoAugment's CIFAR-10 policy on whole batches of bytes, where they are: on a GPU without waiting for it.

The policy is a list, so what can happen to an image is one of a few dozen moves (operation, level, sign). A move is a
number, and all that depends on it is a row of a table that was made on the host: where each pixel comes from, what each
value becomes, with which weights two images are blended. What remains is whole numbers, and float32 in steps that every
device rounds alike; no image sees another one. So the pixels are those of torchvision's ``AutoAugment(CIFAR10)`` on bytes,
bit by bit, whatever the device and however batches are cut.

Cubuk et al. 2019, arXiv:1805.09501: 25 pairs of operations, one pair an image, each operation at its probability.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdscale.keys import torch_uniform

NAME = "autoaugment-cifar10"
PAIR, CHANCE, SIGN = 25, 26, 28  # draws of the sample's key: 25, then two each

LEVELS = 10
SIGNED = ("Rotate", "TranslateX", "TranslateY", "ShearY", "Brightness", "Color", "Contrast", "Sharpness")
KINDS = {
    **dict.fromkeys(("Rotate", "TranslateX", "TranslateY", "ShearY"), "moved"),
    **dict.fromkeys(("Invert", "Posterize", "Solarize", "Brightness"), "looked_up"),
    **{name: name.lower() for name in ("Color", "Contrast", "Sharpness", "AutoContrast", "Equalize")},
}
"""Operation -> method of :class:`AutoAugment` that does it."""

POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""Pairs of (operation, probability, level)."""


class Move(NamedTuple):
    """One thing that can happen to an image. All are listed with both signs, which tell signed operations alone apart."""

    name: str
    level: int
    sign: int


MOVES = tuple(sorted({Move(name, level, sign) for pair in POLICY for name, _, level in pair for sign in (-1, 1)}))
NOTHING = len(MOVES)  # the number that changes nothing


class AutoAugment:
    """uint8 [B,3,S,S] and two moves each -> the same shape, on ``device``."""

    def __init__(self, size: int, device: torch.device) -> None:
        kinds = list(dict.fromkeys(KINDS.values()))
        self.kinds = kinds
        self.kind = torch.tensor([*(kinds.index(KINDS[move.name]) for move in MOVES), len(kinds)], device=device)
        self.sources = torch.stack([source_pixels(move, size) for move in MOVES]).to(device)
        self.values = torch.stack([new_values(move) for move in MOVES]).to(device)
        self.own, self.other = torch.tensor([shares(move) for move in MOVES], dtype=torch.float64).float().T.to(device)
        self.stretch = torch.tensor([1.0, *(255 / torch.arange(1, 256))], device=device)  # to all of 0..255, by range
        self.probability = torch.tensor([[one[1] for one in pair] for pair in POLICY], device=device, dtype=torch.float64)
        numbers = [[[MOVES.index(Move(name, level, sign)) for sign in (-1, 1)] for name, _, level in pair] for pair in POLICY]
        self.numbers = torch.tensor(numbers, device=device)

    def moves(self, keys: Tensor) -> Tensor:
        """int64 [B,2] numbers of moves, drawn from the samples' ``keys``, int64 [B] on the device."""
        pair = (torch_uniform(keys, PAIR) * len(POLICY)).long()
        drawn = []
        for place in (0, 1):
            happens = torch_uniform(keys, CHANCE + place) < self.probability[pair, place]
            positive = (torch_uniform(keys, SIGN + place) >= 0.5).long()
            drawn.append(torch.where(happens, self.numbers[pair, place, positive], NOTHING))
        return torch.stack(drawn, 1)

    def __call__(self, images: Tensor, moves: Tensor) -> Tensor:
        images = images.clone(memory_format=torch.contiguous_format)
        for place in (0, 1):
            move = moves[:, place]
            kind = self.kind[move]
            move = move.clamp(max=NOTHING - 1)
            for number, name in enumerate(self.kinds):
                images = self._where(kind == number, name, images, move)
        return images

    def _where(self, chosen: Tensor, name: str, images: Tensor, move: Tensor) -> Tensor:
        """A GPU changes all images and keeps the chosen ones: to count them would be to wait for it."""
        change = getattr(self, name)
        if images.device.type != "cpu":
            return torch.where(chosen.view(-1, 1, 1, 1), change(images, move), images)
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            images[rows] = change(images[rows], move[rows])
        return images

    def moved(self, images: Tensor, move: Tensor) -> Tensor:
        """Nearest pixel; black outside."""
        framed = F.pad(images.flatten(2), (0, 1))
        return framed.gather(2, self.sources[move][:, None].expand(-1, images.shape[1], -1)).view_as(images)

    def looked_up(self, images: Tensor, move: Tensor) -> Tensor:
        return look_up(images, self.values[move][:, None].expand(-1, images.shape[1], -1))

    def color(self, images: Tensor, move: Tensor) -> Tensor:
        return self._blended(images, grey(images), move)

    def contrast(self, images: Tensor, move: Tensor) -> Tensor:
        pixels = images.shape[2] * images.shape[3]
        mean = grey(images).flatten(1).sum(1).float() / pixels  # the sum is a whole number, exact in any order
        return self._blended(images, mean.view(-1, 1, 1, 1), move)

    def sharpness(self, images: Tensor, move: Tensor) -> Tensor:
        return self._blended(images, blurred(images), move)

    def autocontrast(self, images: Tensor, move: Tensor) -> Tensor:
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        stretch = self.stretch[(high - low).long()]
        return bytes_of((images - torch.where(high > low, low, 0)) * stretch)

    def equalize(self, images: Tensor, move: Tensor) -> Tensor:
        pixels = images.flatten(2).long()
        counts = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, torch.ones_like(pixels))
        brightest = counts.gather(2, pixels.amax(2, keepdim=True))
        step = (pixels.shape[2] - brightest) // 255
        below = F.pad(counts.cumsum(2), (1, 0))[..., :-1]
        values = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
        values[..., :1] = 0
        same = torch.arange(256, device=images.device)
        return look_up(images, torch.where(step > 0, values, same).to(torch.uint8))

    def _blended(self, images: Tensor, others: Tensor, move: Tensor) -> Tensor:
        own, other = self.own[move].view(-1, 1, 1, 1), self.other[move].view(-1, 1, 1, 1)
        return bytes_of(own * images + other * others)


def look_up(images: Tensor, values: Tensor) -> Tensor:
    """``values``: uint8 [B,3,256], what each value becomes."""
    return values.gather(2, images.flatten(2).long()).view_as(images)


def bytes_of(values: Tensor) -> Tensor:
    return values.clamp(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """uint8 [B,1,H,W], cut off, not rounded."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)[:, None]


def blurred(images: Tensor) -> Tensor:
    """Weighted mean of 3 x 3 pixels, the middle one five times, rounded; the border stays. No sum over 13 is a tie."""
    wide = images.int()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    result = images.clone()
    result[..., 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return result


def magnitude(move: Move, highest: float) -> float:
    """Levels are steps in float32, as in torchvision: where values are cut off, the last bit counts."""
    return move.sign * float(torch.linspace(0.0, highest, LEVELS)[move.level])


def source_pixels(move: Move, size: int) -> Tensor:
    """int64 [S*S]: the place that each pixel is taken from; S*S, where that is outside the image."""
    place = torch.arange(size, dtype=torch.float64)
    y, x = place[:, None].expand(size, size), place.expand(size, size)
    middle = (size - 1) / 2
    if move.name == "Rotate":
        angle = math.radians(magnitude(move, 30.0))
        dx, dy = x - middle, y - middle
        x, y = math.cos(angle) * dx - math.sin(angle) * dy + middle, math.sin(angle) * dx + math.cos(angle) * dy + middle
    elif move.name == "TranslateX":
        x = x - int(magnitude(move, 150 / 331 * size))
    elif move.name == "TranslateY":
        y = y - int(magnitude(move, 150 / 331 * size))
    elif move.name == "ShearY":
        y = y + magnitude(move, 0.3) * (x + 0.5)
    x, y = x.round().long(), y.round().long()
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    return torch.where(inside, y * size + x, size * size).flatten()


def new_values(move: Move) -> Tensor:
    """uint8 [256]: what each value becomes, in operations that look at nothing else."""
    values = torch.arange(256, dtype=torch.uint8)
    if move.name == "Invert":
        return 255 - values
    if move.name == "Posterize":
        cleared = round(move.level / ((LEVELS - 1) / 4))  # low bits
        return values.bitwise_and(256 - 2**cleared)
    if move.name == "Solarize":
        threshold = float(torch.linspace(255.0, 0.0, LEVELS)[move.level])
        return torch.where(values >= threshold, 255 - values, values)
    if move.name == "Brightness":
        return bytes_of((1 + magnitude(move, 0.9)) * values)
    return values


def shares(move: Move) -> tuple[float, float]:
    """Weights of the image and of the one that it is blended with."""
    factor = 1 + magnitude(move, 0.9) if move.name in SIGNED else 1.0
    return factor, 1 - factor
