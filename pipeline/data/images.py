"""Images and class masks as files: decoded for the network, encoded in the way of PASCAL VOC."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.data.voc import voc_palette

# What Pillow raises on damaged files, by format.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_PALETTE = voc_palette()


def decode_image(path: Path) -> NDArray[np.uint8]:
    """RGB image, (H, W, 3) uint8.

    Raises:
        PipelineError: the file is missing, truncated or no image.
    """
    return _decode(path, "RGB", "image")


def decode_mask(path: Path) -> NDArray[np.uint8]:
    """Class mask, (H, W) uint8: 0 background, 1..C classes, 255 void.

    Raises:
        PipelineError: the file is missing, truncated, no image, or neither palette nor 8-bit grey.
    """
    return _decode(path, None, "mask")


def save_jpeg(image: Image.Image, path: Path, *, quality: int) -> None:
    """Write an RGB image as JPEG of `quality` 0..100.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    _save(image, path, "JPEG", quality=quality)


def save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    """Write a class mask, (H, W) uint8, as a PNG with VOC's palette; `decode_mask` gives it back.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    image = Image.fromarray(mask).convert("P")
    image.putpalette(_PALETTE)
    _save(image, path, "PNG")


def _decode(path: Path, mode: str | None, role: str) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as file:
            if mode is None and file.mode not in ("P", "L"):
                raise PipelineError(f"{path}: mask has mode {file.mode}; expected a palette or 8-bit grey PNG")
            return np.array(file if mode is None else file.convert(mode), dtype=np.uint8)
    except FileNotFoundError:
        raise PipelineError(f"{path}: {role} missing; a split lists it; restore the file or remove the id") from None
    except UNREADABLE as error:
        raise PipelineError(f"{path}: {role} cannot be decoded ({error}); restore the file or remove its id") from error


def _save(image: Image.Image, path: Path, encoding: str, **options: int) -> None:
    """Encode in memory first: when Pillow writes a JPEG itself, a full disk can cut it short without an error."""
    buffer = BytesIO()
    image.save(buffer, encoding, **options)
    path.write_bytes(buffer.getvalue())
