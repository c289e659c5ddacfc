"""Bytes of an image -> pixels. Colour is RGB whatever the file holds; EXIF orientation is not applied, as in timm."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from kdscale.errors import DataError


def decode(data: bytearray) -> Tensor:
    """uint8 [H, W, 3]. DataError with the decoder's reason.

    torchvision decodes JPEG 1.4 times as fast as Pillow, to the same pixels; what it cannot read (CMYK, 16 bits) is left
    to Pillow.
    """
    try:
        pixels: Tensor = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
        return pixels.permute(1, 2, 0)
    except (RuntimeError, ValueError):
        return torch.from_numpy(np.array(pillow(data)))


def pillow(data: bytes | bytearray) -> Image.Image:
    """The image as Pillow decodes it, in RGB. DataError with the decoder's reason."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split(" <", 1)[0]  # Pillow names the address of its buffer
        raise DataError(f"cannot decode ({reason})") from None
