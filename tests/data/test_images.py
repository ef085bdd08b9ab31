"""Images and masks as files: decoded, encoded, and damaged."""

import io

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
