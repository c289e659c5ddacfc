"""Which images, in which order, changed how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .frozen import value

Fraction = Annotated[float, Field(ge=0, le=1)]
Triple = tuple[float, float, float]


@value
class Augment:
    """What happens to a training image. The draws come from keys of (seed, epoch, sample, repeat): design of the stream."""

    size: Annotated[int, Field(gt=0)] = 224
    crop: Literal["resized", "pad", "centre", "none"] = "resized"
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)  # area of a random resized crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: Annotated[int, Field(ge=0)] = 4  # pixels of zeros on each side before a 'pad' crop
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    flip: Fraction = 0.5
    policy: str | None = None  # a timm policy, 'rand-m9-mstd0.5-inc1', or 'autoaugment-cifar10'
    jitter: Annotated[float, Field(ge=0)] = 0.0  # colour jitter; inactive where a policy is on, as in timm
    erase: Fraction = 0.0  # probability of random erasing
    erase_mode: Literal["const", "mean", "pixel"] = "pixel"
    erase_count: Annotated[int, Field(gt=0)] = 1
    cutout: Annotated[int, Field(ge=0)] = 0  # pixels of the side of one square set to the mean colour; 0: off
    mixup: Annotated[float, Field(ge=0)] = 0.0  # Beta(a, a); 0: off
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    mix_prob: Fraction = 1.0
    cutmix_side: Literal["whole", "even"] = "whole"  # 'even': an odd box loses a pixel, as in the published CIFAR code
    mix_switch: Fraction = 0.5  # probability of cutmix where both are on
    mix_groups: Annotated[int, Field(gt=0)] = 8  # draws of lambda a global batch
    mix_off_epoch: Annotated[int, Field(ge=0)] | None = None
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of labels

    @classmethod
    def deit(cls, size: int = 224) -> Augment:
        """DeiT's ImageNet augmentation (facebookresearch/deit, main.py defaults); repeats are ``Data.repeats``."""
        return cls(size=size, policy="rand-m9-mstd0.5-inc1", jitter=0.3, erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1)

    @classmethod
    def cifar(cls, size: int = 32, pad: int = 4, **changes: Any) -> Augment:
        """Pad with zeros, random crop, flip: the CIFAR protocol of the CRD benchmark; ``changes``: fields beside these.

        ``mixup=1.0, mix_groups=1`` is facebookresearch/mixup-cifar10, ``cutmix=1.0, mix_prob=0.5, mix_groups=1`` is
        clovaai/CutMix-PyTorch: one share a batch.
        """
        settings: dict[str, Any] = {"size": size, "crop": "pad", "pad": pad, "cutmix_side": "even"}
        return cls(**settings | changes)

    @classmethod
    def plain(cls, size: int = 224) -> Augment:
        """No chance at all: resize and centre crop."""
        return cls(size=size, crop="centre", flip=0.0)


@value
class Order:
    """Locality of the shuffle (not its seed). ``block=1`` is a full permutation, for shards on fast local disks."""

    lanes: Annotated[int, Field(gt=0)] = 256
    block: Annotated[int, Field(gt=0)] = 32
    window: Annotated[int, Field(gt=0)] = 8


@value
class Data:
    """A packed data set: a folder with ``manifest.json``, a folder or brace list of webdataset tars, or a name of such a
    folder under one of the roots in ``KDSCALE_DATA``."""

    source: str
    batch: Annotated[int, Field(gt=0)] = 256  # global: ranks and accumulation divide it
    train: Augment = Augment()
    repeats: Annotated[int, Field(gt=0)] = 1  # repeated augmentation: each image this many times
    repeat_group: Annotated[int, Field(gt=0)] | None = None
    repeat_epoch: Literal["whole", "fresh"] = "whole"  # 'fresh': DeiT's law, each epoch the first third of a new shuffle
    train_split: str = "train"
    eval_split: str = "val"
    eval_batch: Annotated[int, Field(gt=0)] = 256  # a rank
    eval_crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    eval_interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: Triple | None = None  # of pixels in [0, 1]; None: what the manifest says, else ImageNet's
    std: Triple | None = None
    order: Order = Order()
    epoch_tail: Literal["carry", "partial", "drop"] = "carry"
    label: str = "auto"
    verify: Literal["always", "never"] = "always"  # checks each sample's bytes against the index
    on_bad: Literal["raise", "mask"] = "raise"
    max_bad: Fraction = 1e-4
    held_out: Annotated[int, Field(ge=0)] = 1024  # images on which the preflight measures teachers
    read: Literal["auto", "stream", "resident"] = "auto"  # resident: decoded once and kept on the device; same pixels
    resident_mb: Annotated[int, Field(gt=0)] = 4096  # that a resident set may take
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    prefetch: Annotated[int, Field(gt=0)] = 4  # sub-batches a worker
