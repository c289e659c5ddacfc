"""One rule of colour for packing, training and evaluation: of 16 bits the high byte counts, of a palette its colours.

Pillow alone would clip 16-bit grey at 255, and warn of palettes with transparency. Needs no torch, so that packing starts
without it.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdscale.errors import DataError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
KEPT_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for bytes that are no picture."""
_PNG_DEPTH = 24  # place of the byte that says the bits of a sample


class Picture(NamedTuple):
    key: str
    extension: str
    data: bytes
    pixels: NDArray[np.uint8]  # [H, W, 3]
    label: int


def in_rgb(image: Image.Image) -> Image.Image:
    """8 bits a colour, transparency left out. ValueError for numbers of 32 bits, which do not say what is white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its numbers are of 32 bits, mode {image.mode}: store 8 or 16")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def verified(data: bytes, name: str) -> tuple[str, bytes, NDArray[np.uint8]]:
    """(extension, bytes, pixels) of a file, decoded in full; what training does not read, and 16 bits, become a PNG."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
        if image.format in EXTENSIONS and image.mode in KEPT_MODES and not _is_deep(image, data):
            return EXTENSIONS[image.format], data, np.asarray(in_rgb(image))
        return "png", *png(in_rgb(image))
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be decoded ({reason(error)}): mend it, or pack with --skip-bad") from None


def reason(error: BaseException) -> str:
    """Pillow's own words without the address of its buffer."""
    return str(error).split(" <", 1)[0]


def png(image: Image.Image) -> tuple[bytes, NDArray[np.uint8]]:
    """(bytes, RGB pixels)."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), np.asarray(image.convert("RGB"))


def _is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether a PNG has 16 bits a colour, which Pillow reads as RGB without a word."""
    return image.format == "PNG" and data[_PNG_DEPTH] == 16
