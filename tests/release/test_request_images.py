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

from pipeline.data.images import FORMATS, decode_image
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
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK")],
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
        (base64.b64encode(encoded(mode="RGBA")).decode(), "has transparent pixels"),
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


def test_sixteen_bit_grey_is_served_as_it_is_trained_on(tmp_path):
    """0x8000 is middle grey; it was white."""
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    image.save(tmp_path / "a.png")
    served = read_image((tmp_path / "a.png").read_bytes())
    assert served.tolist() == [[[0, 0, 0], [128, 128, 128], [255, 255, 255]]]
    assert np.array_equal(served, decode_image(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_served_image_is_turned_as_a_viewer_shows_it(kind):
    """EXIF orientation 6: the first row as stored is the last column as shown."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    shown = read_image(buffer.getvalue())
    assert shown.shape == (32, 16, 3)
    assert shown[:, 12:].min() > 200
    assert shown[:, :4].max() < 50


@pytest.mark.parametrize("pixels", [[[[0.0, 0.5, 1.0]]], [[[0.0, 1.0, 0.0]]], [[[0, 1, 1]]], [[[0.001, 0.0, 0.0]]]])
def test_pixels_from_0_to_1_are_refused_not_served_black(refused, pixels):
    assert refused(requested_image, pixels, "image 0") == (
        "image 0: pixels lie in [0, 1], which is black in 0 to 255; multiply them by 255"
    )


def test_fractions_of_a_pixel_value_are_rounded():
    assert requested_image([[[127.6, 0.4, 254.5]]], "image 0").tolist() == [[[128, 0, 254]]]
    assert requested_image([[[0.0, 0.0, 0.0]]], "image 0").tolist() == [[[0, 0, 0]]]


def test_other_formats_are_taken_where_they_are_asked_for(refused):
    content = encoded(kind="WEBP")
    assert refused(read_image, content) == "image: no readable PNG or JPEG"
    assert read_image(content, formats=FORMATS).shape == (30, 40, 3)


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
