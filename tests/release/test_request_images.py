"""Images of files and requests: what is decoded, what is refused, and results encoded and decoded again."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.release.images import MAX_PIXELS, grey_png, palette_png, read_image, requested_image, run_lengths


def encoded(size: tuple[int, int] = (40, 30), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB")]
)
def test_images_of_every_kind_become_rgb(kind, mode):
    assert read_image(encoded(kind=kind, mode=mode)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "no readable PNG or JPEG"),
        ("%%%", "not base64"),
        (base64.b64encode(b"hello").decode(), "no readable PNG or JPEG"),
        (base64.b64encode(encoded(kind="GIF")).decode(), "no readable PNG or JPEG"),
        (base64.b64encode(encoded()[:40]).decode(), "no readable PNG or JPEG"),
        (base64.b64encode(bomb(50_000, 50_000)).decode(), ""),
        (base64.b64encode(bomb(4000, 4000)).decode(), f"at most {MAX_PIXELS} pixels"),
        ("A" * 40_000_000, "at most"),
        ([[1, 2], [3]], "rows of unequal length"),
        ([[1, 2], [3, 4]], "neither base64 text nor numbers of shape (H, W, 3)"),
        ([[["a", "b", "c"]]], "neither base64 text nor numbers"),
        ([[[0, 0, 256]]], "0 to 255"),
        ([[[0, 0, float("nan")]]], "0 to 255"),
        (None, "neither base64 text nor numbers"),
        ({"a": 1}, "neither base64 text nor numbers"),
        ([], "neither base64 text nor numbers"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(refused, value, message):
    assert message in refused(requested_image, value, "image 0")


def test_nested_lists_are_an_image():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(requested_image(pixels.tolist(), "image 0"), pixels)
    assert np.array_equal(requested_image(base64.b64encode(encoded()).decode(), "image 0"), np.zeros((30, 40, 3)))


def test_class_values_and_attention_survive_their_png():
    classes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    decoded = Image.open(io.BytesIO(palette_png(classes, [0] * 768)))
    assert (decoded.mode, decoded.size) == ("P", (3, 2))
    assert np.array_equal(np.asarray(decoded), classes)
    assert Image.open(io.BytesIO(grey_png(np.full((2, 3), 0.5)))).getpixel((0, 0)) == 128


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_run_lengths_give_the_masks_back(classes):
    found = run_lengths(classes, ("cat", "dog", "cow"))
    assert set(found) == {("cat", "dog", "cow")[value - 1] for value in np.unique(classes) if value}
    for name, mask in found.items():
        runs, outside_first = mask["counts"], np.arange(len(mask["counts"])) % 2
        pixels = np.repeat(outside_first, runs).reshape(mask["size"], order="F")
        assert (pixels == (classes == ("cat", "dog", "cow").index(name) + 1)).all()
        assert min(runs[1:]) > 0
