"""Images and class masks as files: one decoder for training, prediction and serving, and masks in the way of VOC.

Everything is decoded as a viewer shows it: upright by its EXIF orientation, 16-bit grey by its high byte, which is what
Pillow does with 16-bit colour. What has no certain 8-bit RGB is refused: floats, 32-bit integers, 12 bits in a 16-bit
file, transparency, several pictures in one file.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.base.errors import PipelineError
from pipeline.data.voc import IGNORE_INDEX, import_command, voc_palette

# Mean and standard deviation of ImageNet in RGB, of values in [0, 1]; the convention of torchvision's VGG16 weights.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")
MANY_PICTURES = ("MPO",)  # a photograph and its previews: the first is what a viewer shows
ORIENTATION_TAG, UPRIGHT, TURNED = 0x0112, 1, range(2, 9)  # of EXIF; other values mean nothing
TWELVE_BITS = 1 << 12

_PALETTE = voc_palette()


class Mask(NamedTuple):
    """A class mask as its file holds it."""

    values: NDArray[np.uint8]  # (H, W): 0 background, 1..C classes, 255 void
    palette: list[int] | None  # flat [r0, g0, b0, r1, ...], None of a grey file


class ImageHeader(NamedTuple):
    """What an image file says of itself."""

    format: str  # by its content: one of FORMATS or MANY_PICTURES
    orientation: int  # of EXIF, UPRIGHT or one of TURNED


def decode_image(path: Path) -> NDArray[np.uint8]:
    """RGB image, (H, W, 3) uint8, upright.

    Raises:
        PipelineError: the file is missing, truncated or no image, or `rgb_pixels` refuses it.
    """
    with opened(path, "image") as image:
        return rgb_pixels(image, str(path))


def decode_mask(path: Path) -> NDArray[np.uint8]:
    """Class mask, (H, W) uint8: 0 background, 1..C classes, 255 void.

    Raises:
        PipelineError: see `read_mask`.
    """
    return read_mask(path).values


def read_mask(path: Path) -> Mask:
    """Class mask, upright, with the colours of its palette.

    Raises:
        PipelineError: the file is missing, truncated, no image, neither palette nor 8-bit grey, or lossy.
    """
    with opened(path, "mask") as image:
        if image.mode not in ("P", "L") or image.format in LOSSY_FORMATS:
            raise PipelineError(_no_class_map(path, image))
        check_single(image, str(path))
        ImageOps.exif_transpose(image, in_place=True)
        return Mask(np.array(image, dtype=np.uint8), image.getpalette())


def rgb_pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Pixels of an opened image as a viewer shows them, (H, W, 3) uint8 RGB.

    Args:
        name: of the image, for messages.

    Raises:
        PipelineError: it has no certain 8-bit RGB.
    """
    check_single(image, name)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):
        return np.repeat(_high_byte(image, name)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise PipelineError(f"{name}: pixels of mode {image.mode} have no fixed range; save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise PipelineError(
                f"{name}: has transparent pixels, whose colour is not defined; flatten it, for example with "
                "`mogrify -background white -alpha remove`"
            )
    return np.array(image.convert("RGB"), dtype=np.uint8)


def check_single(image: Image.Image, name: str) -> None:
    """Check that an opened file holds one picture, or one with previews.

    Raises:
        PipelineError: it holds several, as animations and documents do.
    """
    if image.format not in MANY_PICTURES and (pictures := getattr(image, "n_frames", 1)) > 1:
        raise PipelineError(f"{name}: holds {pictures} pictures, as animations do; save the one that is meant")


def check_mask(path: Path, mask: Mask, image_size: tuple[int, ...], class_names: Sequence[str]) -> NDArray[np.int64]:
    """Check a mask against its image and the class list.

    Args:
        path: of the mask, for messages.
        image_size: (H, W).
        class_names: of the C foreground classes.

    Returns:
        Pixels by value, (256,).

    Raises:
        PipelineError: the sizes differ, a value is undeclared, or the palette shows VOC's colours in another order.
    """
    height, width = mask.values.shape
    if image_size != mask.values.shape:
        size = f"{image_size[1]}x{image_size[0]}"
        raise PipelineError(f"{path}: mask is {width}x{height} pixels, its image {size}; they must be equal")
    counts = np.bincount(mask.values.ravel(), minlength=256)
    undeclared = [int(v) for v in np.flatnonzero(counts) if v > len(class_names) and v != IGNORE_INDEX]
    if undeclared:
        names = ("background", *class_names)
        used = (f"{v}={names[v] if v < len(names) else 'NAME'}" for v in np.flatnonzero(counts) if v != IGNORE_INDEX)
        command = import_command(path.parent.parent, ",".join(used))
        raise PipelineError(
            f"{path}: class value {undeclared[0]} is undeclared; classes.txt names {len(class_names)} classes "
            f"(values 1 to {len(class_names)}; 0 is background, 255 void); if these are grey levels, `{command}` "
            "converts them"
        )
    if mask.palette is not None and (wrong := misplaced_colour(mask, len(class_names))) is not None:
        value, meant = wrong
        root = path.parent.parent
        command = import_command(root, root / "classes.txt")
        raise PipelineError(
            f"{path}: value {value} has the colour of VOC's value {meant}, {colour(mask.palette, value)}, as after a "
            f"program has reordered the palette; `{command} --by colours` if the colours are right, `--by values` if "
            "the values are"
        )
    return counts


def misplaced_colour(mask: Mask, num_classes: int) -> tuple[int, int] | None:
    """A value of a mask whose colour VOC gives to another value, and that one; None where there is none.

    A quantiser keeps the colours and renumbers them: all are VOC's, of background, one of `num_classes` classes or
    void, but not at VOC's values. Palettes with other colours tell nothing.
    """
    if mask.palette is None or mask.palette == _PALETTE[: len(mask.palette)]:
        return None
    value_of = {colour(_PALETTE, value): value for value in (*range(num_classes + 1), IGNORE_INDEX)}
    used = np.flatnonzero(np.bincount(mask.values.ravel(), minlength=256)[: num_classes + 1]).tolist()
    meant = {value: value_of[shown] for value in used if (shown := colour(mask.palette, value)) in value_of}
    if len(meant) < len(used):
        return None
    wrong = (pair for pair in meant.items() if pair[0] != pair[1])
    # Where VOC's value has the colour as well, as in a palette filled up with black, nothing has moved.
    return next((pair for pair in wrong if colour(mask.palette, pair[1]) != colour(_PALETTE, pair[1])), None)


def save_jpeg(image: Image.Image, path: Path, *, quality: int) -> None:
    """Write an RGB image as JPEG of `quality` 0..100.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    _save(image, path, "JPEG", quality=quality)


def save_png(image: NDArray[np.uint8], path: Path, *, quickly: bool = False) -> None:
    """Write an RGB image, (H, W, 3) uint8, as PNG; `decode_image` gives it back.

    Args:
        quickly: in a third of the time, a few percent larger.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    options = {"compress_level": zlib.Z_BEST_SPEED, "compress_type": zlib.Z_RLE} if quickly else {}
    _save(Image.fromarray(image), path, "PNG", **options)


def save_mask(mask: NDArray[np.uint8], path: Path) -> None:
    """Write a class mask, (H, W) uint8, as a PNG with VOC's palette; `decode_mask` gives it back.

    Raises:
        OSError: the folder is missing or the disk is full.
    """
    image = Image.fromarray(mask).convert("P")
    image.putpalette(_PALETTE)
    _save(image, path, "PNG")


def colour(palette: Sequence[int], value: int) -> tuple[int, ...]:
    """(R, G, B) of a value; () beyond the end of the palette."""
    return tuple(palette[3 * value : 3 * value + 3])


def image_header(path: Path) -> ImageHeader:
    """What an image file says of itself before it is decoded.

    Raises:
        PipelineError: the file is missing or no image.
    """
    with opened(path, "image") as image:
        found = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
        return ImageHeader(str(image.format), found if found in TURNED else UPRIGHT)


@contextmanager
def opened(path: Path, role: str) -> Iterator[Image.Image]:
    """Yields the image of a file, undecoded.

    Args:
        role: image or mask, for messages.

    Raises:
        PipelineError: the file is missing or no image, or is found damaged within the context.
    """
    try:
        # By its path, Pillow 13 maps a turned grey TIFF into memory with height and width swapped.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image
    except (PipelineError, MemoryError):
        raise
    except FileNotFoundError:
        raise PipelineError(f"{path}: {role} missing; a split lists it; restore the file or remove the id") from None
    except Exception as error:  # Pillow has one for every kind of damage
        # The text of the first is the name of a Python object.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = f"it is none of {', '.join(FORMATS)}" if unknown else " ".join(str(error).split()) or repr(error)
        raise PipelineError(
            f"{path}: {role} cannot be decoded ({reason}); restore the file or remove its id"
        ) from error


def _high_byte(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """16-bit grey in 8 bits, (H, W)."""
    values = np.asarray(image)
    if 0 < values.max() < TWELVE_BITS:
        raise PipelineError(
            f"{name}: 16-bit grey whose values end at {values.max()}, as those of 12-bit cameras do, would be black; "
            "scale it to 8 bits"
        )
    return (values >> 8).astype(np.uint8)


def _no_class_map(path: Path, image: Image.Image) -> str:
    if image.format in LOSSY_FORMATS:
        return f"{path}: mask is a {image.format} file, which changes values; export it as PNG again"
    root = path.parent.parent
    classes = "0=background,1=NAME" if image.mode == "1" else root / "classes.txt"
    return (
        f"{path}: mask has mode {image.mode}; expected a palette or 8-bit grey PNG; `{import_command(root, classes)}` "
        "converts it"
    )


def _save(image: Image.Image, path: Path, encoding: str, **options: int) -> None:
    """Encode in memory first: when Pillow writes a JPEG itself, a full disk can cut it short without an error."""
    buffer = BytesIO()
    image.save(buffer, encoding, **options)
    path.write_bytes(buffer.getvalue())
