"""Training and evaluation see the same pixels of every form that Pillow reads: of 16 bits the high byte, of a palette its colours."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter, WebDataset

from kdscale.data import evaluation_batches, index, open_split, open_stream, pack, plan
from kdscale.data.decode import decode, pillow
from kdscale.errors import DataError
from kdscale.recipe import Augment, Data

SIDE = 12
FORMS = {"grey": (0, 1), "rgb": (2, 3), "grey and alpha": (4, 2), "rgb and alpha": (6, 4)}
"""PNG's number of the form of colour, and its channels."""


def deep(form: str, seed: int = 0) -> tuple[bytes, NDArray[np.uint8]]:
    """(a PNG of 16 bits a colour, [SIDE, SIDE, 3] its high bytes)."""
    number, channels = FORMS[form]
    values = np.random.default_rng(seed).integers(0, 1 << 16, (SIDE, SIDE, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, number, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    colours = (values[..., :3] if channels > 2 else values[..., :1].repeat(3, -1)) >> 8
    return b"\x89PNG\r\n\x1a\n" + data, colours.astype(np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_sixteen_bits_are_their_high_byte_for_training_and_evaluation(form: str) -> None:
    data, expected = deep(form)
    trained = decode(bytearray(data))
    assert trained.dtype == torch.uint8
    assert np.array_equal(trained.numpy(), expected)
    assert np.array_equal(np.asarray(pillow(data)), expected)


@pytest.mark.parametrize("form", FORMS)
def test_packing_stores_them_in_eight(tmp_path: Path, form: str) -> None:
    data, expected = deep(form)
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "x.png").write_bytes(data)
    pack(str(tmp_path / "src"), str(tmp_path / "out"), split="train")
    tar = next((tmp_path / "out").rglob("*.tar"))
    [sample] = WebDataset(str(tar), shardshuffle=False)
    assert sample["png"][24] == 8
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGB")), expected)


def test_a_batch_of_somebodys_deep_pictures(tmp_path: Path) -> None:
    """Indexed tars keep what they hold: the stream and the evaluation give the high bytes."""
    pictures = [deep(form, seed) for seed, form in enumerate(FORMS)]
    with TarWriter(str(tmp_path / "x-0.tar"), encoder=False) as tar:
        for number, (data, _) in enumerate(pictures):
            tar.write({"__key__": str(number), "png": data, "cls": b"0"})
    index(str(tmp_path), split="train")
    settings = {"rank": 0, "ranks": 1, "device": torch.device("cpu"), "workers": 0}
    augment = Augment(size=SIDE, crop="none", flip=0.0)
    data = Data(str(tmp_path), batch=4, train=augment, eval_split="train", eval_crop=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    split = open_split(data, "train")
    whole = plan(data, 4, 1.0, None)
    seen = {
        "trained": next(iter(open_stream(split, data, whole, seed=1, accumulate=1, classes=1, **settings).batches(0))),
        "evaluated": next(iter(evaluation_batches(split, data, **settings))),
    }
    for batch in seen.values():
        pixels = (batch.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for image, number in zip(pixels, batch.index.tolist(), strict=True):
            assert np.array_equal(image, pictures[number][1])


def test_palettes_with_transparency_keep_their_colours_without_a_word() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).quantize(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for transparency in (3, bytes(range(0, 160, 20))):
            file = io.BytesIO()
            picture.save(file, "PNG", transparency=transparency)
            for pixels in (np.asarray(pillow(file.getvalue())), decode(bytearray(file.getvalue())).numpy()):
                assert np.array_equal(pixels, np.asarray(picture.convert("RGB")))


def test_numbers_of_no_known_range_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.float32)).save(file, "TIFF")
    with pytest.raises(DataError, match=r"cannot decode \(its numbers are of 32 bits, mode F: store 8 or 16"):
        pillow(file.getvalue())
