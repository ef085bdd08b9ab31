"""Images and masks as files: decoded, encoded, and damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.data import voc
from pipeline.data.images import decode_image, decode_mask, save_jpeg, save_mask


def test_image_decodes_to_rgb(voc_root, tmp_path):
    image = decode_image(voc.image_path(voc_root, "t0"))
    assert (image.shape, image.dtype) == ((6, 8, 3), np.uint8)
    Image.new("RGB", (8, 6), (250, 10, 20)).save(tmp_path / "red.png")
    assert decode_image(tmp_path / "red.png")[5, 7].tolist() == [250, 10, 20]
    Image.new("L", (8, 6), 77).save(tmp_path / "grey.png")
    assert np.array_equal(decode_image(tmp_path / "grey.png"), np.full((6, 8, 3), 77))


# Where a viewer shows the first stored pixel, by the table of the EXIF standard; 9 means nothing.
FIRST_PIXEL = {
    1: (0, 0),
    2: (0, -1),
    3: (-1, -1),
    4: (-1, 0),
    5: (0, 0),
    6: (0, -1),
    7: (-1, -1),
    8: (-1, 0),
    9: (0, 0),
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", FIRST_PIXEL)
def test_images_and_masks_are_decoded_upright(tmp_path, suffix, orientation):
    pixels = np.zeros((6, 8), np.uint8)
    pixels[0, 0] = 9
    size = (8, 6) if 5 <= orientation <= 8 else (6, 8)
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.convert("RGB").save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    decoded = decode_image(path)
    assert decoded.shape == (*size, 3)
    assert decoded[FIRST_PIXEL[orientation]].tolist() == [9, 9, 9]
    if suffix != "webp":
        image.save(path, exif=exif)
        mask = decode_mask(path)
        assert (mask.shape, mask[FIRST_PIXEL[orientation]]) == (size, 9)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_high_byte(tmp_path, suffix, dtype):
    """It was white from 255 on."""
    values = np.array([[0, 255, 256, 0x1234, 0x8000, 0xFFFF]], dtype)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    assert decode_image(path)[0, :, 0].tolist() == [0, 0, 1, 0x12, 0x80, 0xFF]
    assert decode_image(path).shape == (1, 6, 3)


def test_sixteen_bit_colour_and_grey_agree(tmp_path):
    raw = b"".join(b"\0" + np.array(3 * [0x80FF], ">u2").tobytes() for _ in range(1))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    (tmp_path / "colour.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    Image.fromarray(np.array([[0x80FF]], np.uint16)).save(tmp_path / "grey.png")
    assert np.array_equal(decode_image(tmp_path / "colour.png"), decode_image(tmp_path / "grey.png"))


@pytest.mark.parametrize(
    ("image", "suffix", "problem"),
    [
        (Image.fromarray(np.full((4, 4), 4095, np.uint16)), "png", "16-bit grey whose values end at 4095"),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "tif", "pixels of mode F have no fixed range"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "tif", "pixels of mode I have no fixed range"),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 254)), "png", "has transparent pixels"),
        (Image.new("LA", (4, 4), (255, 0)), "png", "has transparent pixels"),
    ],
)
def test_images_without_a_certain_rgb_are_refused(tmp_path, refused, image, suffix, problem):
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    assert refused(decode_image, path).startswith(f"{path}: {problem}")


def test_alpha_that_hides_nothing_does_not_count(tmp_path):
    Image.new("RGBA", (4, 4), (250, 10, 20, 255)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png")[0, 0].tolist() == [250, 10, 20]
    Image.new("P", (4, 4)).save(tmp_path / "b.png", transparency=b"\xff")
    assert decode_image(tmp_path / "b.png").shape == (4, 4, 3)


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_animations_are_refused_and_photographs_with_a_preview_are_not(tmp_path, refused, suffix):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 20)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert refused(decode_image, path).startswith(f"{path}: holds 2 pictures")
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert abs(int(decode_image(tmp_path / "a.jpg")[0, 0, 0]) - 200) < 5


def test_lossy_mask_is_refused(tmp_path, refused):
    Image.new("L", (8, 8), 1).save(tmp_path / "a.png", "JPEG")
    assert "mask is a JPEG file, which changes values" in refused(decode_mask, tmp_path / "a.png")


def test_palette_and_grey_masks_decode_alike(voc_root, tmp_path):
    mask = decode_mask(voc.mask_path(voc_root, "t0"))
    assert (mask.shape, mask.dtype) == ((6, 8), np.uint8)
    assert mask.tolist() == 2 * [[1, 1, 1, 0, 0, 0, 0, 0]] + 3 * [8 * [0]] + [8 * [255]]
    Image.fromarray(mask).save(tmp_path / "grey.png")
    assert np.array_equal(decode_mask(tmp_path / "grey.png"), mask)


def test_saved_mask_is_a_palette_png_that_decodes_to_itself(tmp_path):
    mask = np.array([[0, 1, 20], [254, 255, 7]], np.uint8)
    save_mask(mask, tmp_path / "a.png")
    assert np.array_equal(decode_mask(tmp_path / "a.png"), mask)
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.mode, image.getpalette()) == ("PNG", "P", voc.voc_palette())


def test_saved_image_is_what_pillow_writes(tmp_path):
    image = Image.fromarray(np.arange(48 * 3, dtype=np.uint8).reshape(6, 8, 3))
    save_jpeg(image, tmp_path / "a.jpg", quality=95)
    expected = io.BytesIO()
    image.save(expected, "JPEG", quality=95)
    assert (tmp_path / "a.jpg").read_bytes() == expected.getvalue()


@given(data=st.data())
def test_damaged_file_is_either_decoded_or_refused_by_name(tmp_path_factory, data):
    """No flipped byte makes a traceback."""
    folder = tmp_path_factory.mktemp("damaged")
    path, decode = data.draw(st.sampled_from([(folder / "a.jpg", decode_image), (folder / "a.png", decode_mask)]))
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        assert decode(path).dtype == np.uint8
    except PipelineError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)


@pytest.mark.parametrize(("position", "bits"), [(11, 1), (36, 16)])  # ValueError and SyntaxError in Pillow
def test_png_with_a_wrong_chunk_length_is_named(tmp_path, refused, position, bits):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[position] ^= bits
    path.write_bytes(content)
    assert refused(decode_mask, path).startswith(f"{path}: mask cannot be decoded (")
