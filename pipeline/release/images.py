"""Images on their way into a prediction and out of it: files and requests decoded, results encoded."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.base.errors import PipelineError
from pipeline.data.images import rgb_pixels

MAX_BYTES = 20 * 2**20  # of an encoded image
MAX_PIXELS = 8_000_000  # of an image; their activations in the first layer alone take 2 GB at full width
SERVED_FORMATS = ("PNG", "JPEG")  # fewer than in data/images.py: a server decodes what strangers send


def read_image(content: bytes, name: str = "image", *, formats: tuple[str, ...] = SERVED_FORMATS) -> NDArray[np.uint8]:
    """Decode an image file to (H, W, 3) RGB of 0 to 255 as training does; the too large is refused before.

    Args:
        name: of the image, for messages.
        formats: that are taken, by Pillow's names.

    Raises:
        PipelineError: the file is empty, too large, of another format, or damaged, or `rgb_pixels` refuses it.
    """
    readable = f"{', '.join(formats[:-1])} or {formats[-1]}"
    if len(content) > MAX_BYTES:
        raise PipelineError(f"{name}: {len(content)} bytes; at most {MAX_BYTES} are taken")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(image.width, image.height, name)
            return rgb_pixels(image, name)
    except (PipelineError, MemoryError):
        raise
    except UnidentifiedImageError:  # its text is the address of a buffer
        raise PipelineError(f"{name}: no readable {readable}") from None
    except Exception as error:  # Pillow has one for every kind of damage
        raise PipelineError(f"{name}: no readable {readable} ({' '.join(str(error).split())})") from error


def requested_image(value: Any, name: str) -> NDArray[np.uint8]:
    """Decode the image of a request: base64 of a PNG or JPEG file, or nested lists (H, W, 3) of 0 to 255, rounded.

    Pixels in [0, 1] are refused, not scaled: the same numbers are a black image in 0 to 255.

    Args:
        name: of the image, for messages.

    Raises:
        PipelineError: it is neither, or `read_image` refuses it.
    """
    if isinstance(value, str):
        if len(value) > MAX_BYTES * 4 // 3 + 4:
            raise PipelineError(f"{name}: {len(value)} characters; at most {MAX_BYTES} bytes are taken")
        try:
            return read_image(base64.b64decode(value, validate=True), name)
        except ValueError as error:  # binascii.Error is one; text beyond ASCII is another
            raise PipelineError(f"{name}: not base64 ({error})") from error
    try:
        pixels = np.asarray(value)
    except ValueError as error:
        raise PipelineError(f"{name}: rows of unequal length ({error})") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not np.issubdtype(pixels.dtype, np.number):
        raise PipelineError(
            f"{name}: neither base64 text nor numbers of shape (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    _check_size(pixels.shape[1], pixels.shape[0], name)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255):
        raise PipelineError(f"{name}: pixels must lie in 0 to 255")
    if 0 < pixels.max() <= 1:
        raise PipelineError(f"{name}: pixels lie in [0, 1], which is black in 0 to 255; multiply them by 255")
    rounded: NDArray[np.uint8] = np.rint(pixels).astype(np.uint8)
    return rounded


def palette_png(classes: NDArray[np.uint8], palette: Sequence[int]) -> bytes:
    """Class values (H, W) as the bytes of a palette PNG; `palette` is 768 values, R, G and B of each class value."""
    image = Image.fromarray(classes).convert("P")
    image.putpalette(list(palette))
    return _png(image)


def grey_png(attention: NDArray[np.floating]) -> bytes:
    """Attention (H, W) in [0, 1] as the bytes of a grey PNG of 0 to 255."""
    return _png(Image.fromarray((attention * 255).round().astype(np.uint8)))


def run_lengths(classes: NDArray[np.uint8], class_names: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """Masks of the classes that occur in a segmentation (H, W) of class values, as COCO's uncompressed run lengths.

    Returns:
        Class name to {"size": [H, W], "counts": [...]}: lengths of alternating runs outside and inside the mask,
        column by column, beginning with a run outside, which may be 0.
    """
    pixels = classes.ravel(order="F")
    ends = np.append(np.flatnonzero(np.diff(pixels)) + 1, pixels.size)
    starts, values = np.insert(ends[:-1], 0, 0), pixels[np.insert(ends[:-1], 0, 0)]
    found = {}
    for value in np.unique(values[values > 0]):
        # Where the mask begins and ends; runs of the class never touch, since equal neighbours are one run.
        bounds = np.stack([starts[values == value], ends[values == value]], axis=1).ravel()
        counts = np.diff(bounds, prepend=0, append=pixels.size)
        counts = counts[:-1] if bounds[-1] == pixels.size else counts
        found[class_names[value - 1]] = {"size": list(classes.shape), "counts": counts.tolist()}
    return found


def _check_size(width: int, height: int, name: str) -> None:
    if width * height == 0 or width * height > MAX_PIXELS:
        raise PipelineError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS} pixels are taken")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
