"""What happens to one training image before it leaves its worker: crop, resize, flip, then a policy or colour jitter.

Every parameter is a draw of the sample's own key, so pixels do not depend on ranks, workers or batches. Draw numbers are
fixed: 0-19 the ten tries of a crop, 20-21 its place, 22 the flip, 23 the interpolation, 24 whether to erase; what happens
on the device takes 25-29 (``autoaugment.py``) and 30-31 (cutout).

Laws: random resized crop as timm's and torchvision's (Szegedy et al. 2015, arXiv:1409.4842); RandAugment (Cubuk et al.
2020, arXiv:1909.13719) is timm's own object on PIL images; random erasing (Zhong et al. 2020, arXiv:1708.04896).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdscale.errors import DataError
from kdscale.keys import fold, uniform
from kdscale.recipe.data import Augment
from kdscale.types import DatasetInfo

from .autoaugment import NAME as AUTOAUGMENT

TRIES = 10
TOP, LEFT, FLIP, INTERPOLATION, ERASE = 20, 21, 22, 23, 24
DRAWS = 25
ERASED_AREA = (0.02, 1 / 3)  # of the image, as in timm
ERASED_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))

Pictures = Callable[[Image.Image], Image.Image]


class Transform:
    """uint8 [H, W, 3] of any size -> uint8 [S, S, 3], S = ``info.size``."""

    def __init__(self, augment: Augment, info: DatasetInfo) -> None:
        self.augment, self.size = augment, info.size
        self.policy = _policy(augment, info)

    def draws(self, keys: NDArray[np.uint64]) -> NDArray[np.float64]:
        """[n, DRAWS] numbers in [0, 1) of n samples' keys."""
        return np.stack([uniform(keys, number) for number in range(DRAWS)], axis=1)

    def __call__(self, image: Tensor, draws: NDArray[np.float64], key: int) -> Tensor:
        """``draws``: [DRAWS], the sample's row. DataError: an image that the crop cannot be taken from."""
        pixels = self._cropped(image, draws)
        if draws[FLIP] < self.augment.flip:
            pixels = pixels.flip(1)
        if self.policy is None:
            return pixels
        seed_generators(key)
        changed = self.policy(Image.fromarray(pixels.numpy()))
        return torch.from_numpy(np.array(changed))

    def _cropped(self, image: Tensor, draws: NDArray[np.float64]) -> Tensor:
        crop, size = self.augment.crop, self.size
        if crop == "pad":
            return padded_crop(image, size, self.augment.pad, draws)
        if crop == "none":
            if image.shape[:2] != (size, size):
                raise DataError(f"the image is {image.shape[0]} x {image.shape[1]}, and crop none needs {size} x {size}")
            return image
        if crop == "centre":
            top, left, height, width = centred_square(image.shape[0], image.shape[1])
        else:
            top, left, height, width = crop_box(image.shape[0], image.shape[1], self.augment, draws)
        mode = self.augment.interpolation
        if mode == "random":
            mode = "bilinear" if draws[INTERPOLATION] < 0.5 else "bicubic"
        return resized(image[top : top + height, left : left + width], size, mode)


def crop_box(height: int, width: int, augment: Augment, draws: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """(top, left, height, width): ten tries of an area and a ratio, then the largest centred crop of an allowed ratio."""
    low, high = augment.ratio
    for number in range(TRIES):
        area = height * width * between(augment.scale, draws[2 * number])
        ratio = math.exp(between((math.log(low), math.log(high)), draws[2 * number + 1]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[TOP] * (height - h + 1)), int(draws[LEFT] * (width - w + 1)), h, w
    w, h = min(width, round(height * high)), min(height, round(width / low))
    return (height - h) // 2, (width - w) // 2, h, w


def between(limits: tuple[float, float], draw: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(draw)


def centred_square(height: int, width: int) -> tuple[int, int, int, int]:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def resized(image: Tensor, size: int, mode: str) -> Tensor:
    """uint8 [h, w, 3] -> uint8 [size, size, 3]. Within 2/255 of Pillow's, and 2.8 times as fast on bytes in this layout."""
    if image.shape[0] == size and image.shape[1] == size:
        return image
    batch = image.permute(2, 0, 1)[None]
    return F.interpolate(batch, (size, size), mode=mode, antialias=True, align_corners=False)[0].permute(1, 2, 0)


def padded_crop(image: Tensor, size: int, pad: int, draws: NDArray[np.float64]) -> Tensor:
    """A random ``size`` x ``size`` window of the image inside a frame of ``pad`` zeros, without making the frame."""
    height, width = image.shape[:2]
    if min(height, width) + 2 * pad < size:
        raise DataError(f"the image is {height} x {width}, too small for a crop of {size} with {pad} pixels of padding")
    top = int(draws[TOP] * (height + 2 * pad - size + 1)) - pad
    left = int(draws[LEFT] * (width + 2 * pad - size + 1)) - pad
    out = torch.zeros(size, size, 3, dtype=torch.uint8)
    inside = image[max(top, 0) : top + size, max(left, 0) : left + size]
    out[max(-top, 0) : max(-top, 0) + inside.shape[0], max(-left, 0) : max(-left, 0) + inside.shape[1]] = inside
    return out


def erasing_boxes(augment: Augment, size: int, keys: NDArray[np.uint64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n, 4 * count]: (top, left, height, width) of each rectangle, all 0 where nothing is erased."""
    boxes = np.zeros((len(keys), augment.erase_count, 4), np.int64)
    for row in np.flatnonzero(draws[:, ERASE] < augment.erase):
        for number in range(augment.erase_count):
            boxes[row, number] = _rectangle(fold(int(keys[row]), ERASE + 1 + number), size, augment.erase_count)
    return boxes.reshape(len(keys), -1)


def _rectangle(key: int, size: int, count: int) -> tuple[int, int, int, int]:
    for number in range(TRIES):
        area = between(ERASED_AREA, uniform(key, 2 * number)) * size * size / count
        ratio = math.exp(between(ERASED_LOG_RATIO, uniform(key, 2 * number + 1)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if h < size and w < size:
            return int(uniform(key, TOP) * (size - h + 1)), int(uniform(key, LEFT) * (size - w + 1)), h, w
    return 0, 0, 0, 0


def _policy(augment: Augment, info: DatasetInfo) -> Pictures | None:
    """timm's policy object, set up as timm's own training transform does; colour jitter only where no policy is on.

    None also for the policy that ``device.py`` applies.
    """
    if augment.policy is None:
        return _jitter(augment.jitter) if augment.jitter else None
    if augment.policy == AUTOAUGMENT:
        return None
    from timm.data import auto_augment

    settings: dict[str, Any] = {
        "translate_const": int(info.size * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in info.mean),
    }
    if augment.interpolation != "random":
        settings["interpolation"] = getattr(Image.Resampling, augment.interpolation.upper())
    kind = augment.policy.split("-", 1)[0]
    if kind == "augmix":
        settings["translate_pct"] = 0.3
    makers = {"rand": auto_augment.rand_augment_transform, "augmix": auto_augment.augment_and_mix_transform}
    try:
        policy: Pictures = makers.get(kind, auto_augment.auto_augment_transform)(augment.policy, settings)
    except (AssertionError, KeyError, ValueError) as error:
        raise DataError(
            f"augmentation policy {augment.policy} is none of timm's ({error!r}): try rand-m9-mstd0.5-inc1 or {AUTOAUGMENT}"
        ) from None
    if kind == "3a" and augment.jitter:
        jitter = _jitter(augment.jitter)
        return lambda image: jitter(policy(image))
    return policy


def _jitter(strength: float) -> Pictures:
    from torchvision.transforms import ColorJitter

    jitter: Pictures = ColorJitter(strength, strength, strength)
    return jitter


def seed_generators(key: int) -> None:
    """Seeds the three global generators that foreign transforms draw from. ``torch.manual_seed`` would take 120 us more."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key >> 1)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global generators back as they were: a stream that reads in the trainer's own process leaves no trace."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])
