"""Masks of other programs as class masks in VOC layout: by colour, by value, or drawn from labelme's polygons.

Nothing is written before every mask is converted, and nothing that exists is overwritten unless that is asked for.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.base.cores import usable_cores
from pipeline.base.errors import PipelineError, raise_together
from pipeline.data import voc
from pipeline.data.images import LOSSY_FORMATS, Mask, check_single, misplaced_colour, opened, save_mask
from pipeline.datasets.archives import unpack
from pipeline.datasets.class_list import ClassList, class_list_of_labels, read_class_list
from pipeline.datasets.labelme import draw_labelme, read_labels

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")  # the lossy ones are refused by name
LABEL_MAP = "labelmap.txt"  # beside SegmentationClass in CVAT's export
MOST_UNKNOWN = 3  # unknown colours or values that a message tells

By = Literal["colours", "values"]


class Imported(NamedTuple):
    """What has been written."""

    names: tuple[str, ...]
    num_masks: int
    pixels: dict[int, int]  # by value

    def shares(self) -> str:
        """Background, every class and void with their share of all pixels."""
        total = sum(self.pixels.values())
        values = {"background": 0, **{name: i for i, name in enumerate(self.names, start=1)}, "void": voc.IGNORE_INDEX}
        return ", ".join(f"{name} {self.pixels.get(value, 0) / total:.1%}" for name, value in values.items())


class _Source(NamedTuple):
    files: list[Path]  # of one kind, one a mask
    classes: ClassList
    labelme: bool


def import_masks(source: Path, classes: str | None, out: Path, *, by: By | None, overwrite: bool) -> Imported:
    """Write OUT/SegmentationClass/ID.png for every mask in `source`, and OUT/classes.txt.

    Args:
        source: a folder of masks or of labelme's JSON files, or a folder or archive in VOC layout, as CVAT exports it.
        classes: a file or a list, see `read_class_list`; None takes labelmap.txt of the source, or labelme's labels.
        by: what tells the class of a pixel; None takes what the list names: colours, else values, but VOC's colours
            where a list of names meets masks in colours.
        overwrite: whether files that exist may be replaced.

    Raises:
        PipelineError: a mask or the list cannot be read, a colour, value or label is in no entry, or a file exists.
    """
    try:
        with _unpacked(source) as folder:
            found = _find(folder, classes)
            return _import(found, out, by=by, overwrite=overwrite)
    except OSError as error:
        raise PipelineError(f"{error.filename or out}: {error.strerror or error}") from error


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise PipelineError(f"{source}: missing; give the folder or archive of the masks")
    with tempfile.TemporaryDirectory() as folder:
        unpack(source, Path(folder) / "unpacked")
        try:
            yield Path(folder) / "unpacked"
        except PipelineError as error:
            raise PipelineError(str(error).replace(f"{folder}/unpacked", str(source))) from error


def _find(folder: Path, classes: str | None) -> _Source:
    # VOC's own archive has it two folders deeper.
    depths = ("SegmentationClass", "*/SegmentationClass", "*/*/SegmentationClass")
    layouts = [path for depth in depths for path in sorted(folder.glob(depth)) if path.is_dir()]
    masks = layouts[0] if layouts else folder
    files = sorted(path for path in masks.glob("*") if path.is_file() and not path.name.startswith("."))
    documents = [path for path in files if path.suffix.lower() == ".json"]
    if documents:
        chosen = (
            class_list_of_labels(read_labels(documents), str(masks)) if classes is None else read_class_list(classes)
        )
        return _Source(_of_one_name(documents), chosen, labelme=True)
    images = [path for path in files if path.suffix.lower() in MASK_SUFFIXES]
    if not images:
        advice = ", or labelme's JSON files; from CVAT, export `Segmentation mask`"
        raise PipelineError(f"{masks}: no masks in it; it needs PNG, BMP or TIFF files{advice}")
    label_map = next((path for path in (masks / LABEL_MAP, masks.parent / LABEL_MAP) if path.is_file()), None)
    if classes is None and label_map is None:
        raise PipelineError(f"{masks}: nothing says what its values or colours mean; add --classes")
    return _Source(_of_one_name(images), read_class_list(classes or str(label_map)), labelme=False)


def _of_one_name(files: list[Path]) -> list[Path]:
    stems: dict[str, Path] = {}
    for path in files:
        if stems.setdefault(path.stem, path) != path:
            raise PipelineError(f"{path}: {stems[path.stem].name} has the same name; keep the one that is meant")
    return files


def _import(source: _Source, out: Path, *, by: By | None, overwrite: bool) -> Imported:
    convert: Callable[[Path], NDArray[np.uint8]]
    convert = (
        partial(draw_labelme, value_of=source.classes.value_of)
        if source.labelme
        else partial(convert_mask, classes=source.classes, by=by)
    )
    targets = [out / "SegmentationClass" / _name(path) for path in source.files]
    text = "".join(f"{name}\n" for name in source.classes.names)
    if not overwrite:
        _check_absent(targets, out / "classes.txt", text)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out if out.is_dir() else out.parent  # on the same disk, so that a file is moved whole
    with tempfile.TemporaryDirectory(prefix=".import-masks.", dir=beside) as folder:
        counts = _convert_all(source.files, convert, Path(folder))
        if not counts[1 : voc.IGNORE_INDEX].any():
            raise PipelineError(
                f"{source.files[0].parent}: no mask shows a class, only background and void; name the value of the "
                "object, as in --classes 0=background,255=NAME"
            )
        (Path(folder) / "classes.txt").write_text(text, encoding="utf-8")
        (out / "SegmentationClass").mkdir(parents=True, exist_ok=True)
        for target in targets:
            (Path(folder) / target.name).replace(target)
        (Path(folder) / "classes.txt").replace(out / "classes.txt")
    pixels = {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return Imported(source.classes.names, len(targets), pixels)


def _name(path: Path) -> str:
    """Of the mask to be; the name of a PNG stays, so that a conversion in place leaves no second one."""
    return path.name if path.suffix.lower() == ".png" else f"{path.stem}.png"


def _check_absent(targets: Sequence[Path], class_list: Path, text: str) -> None:
    there = [path for path in targets if path.exists()]
    if class_list.exists() and class_list.read_bytes() != text.encode():
        there.append(class_list)
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise PipelineError(f"{there[0]}{more}: there already; choose another --out, or add --overwrite to replace")


def _convert_all(
    files: Sequence[Path], convert: Callable[[Path], NDArray[np.uint8]], folder: Path
) -> NDArray[np.int64]:
    """Write all masks into `folder`; their pixels by value, (256,)."""

    def one(path: Path) -> NDArray[np.int64] | PipelineError:
        try:
            mask = convert(path)
        except PipelineError as error:
            return error
        save_mask(mask, folder / _name(path))
        return np.bincount(mask.ravel(), minlength=256)

    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        results = list(pool.map(one, files))
    problems = [str(result) for result in results if isinstance(result, PipelineError)]
    raise_together(problems, "masks that cannot be converted")
    counted: NDArray[np.int64] = sum(
        (result for result in results if not isinstance(result, PipelineError)), np.zeros(256, np.int64)
    )
    return counted


def convert_mask(path: Path, classes: ClassList, by: By | None) -> NDArray[np.uint8]:
    """A mask (H, W) uint8 of 0 background, 1..C, 255 void from one of another program, upright.

    Raises:
        PipelineError: the file is damaged or lossy, or a colour or value is in no entry of the list.
    """
    with opened(path, "mask") as image:
        if image.format in LOSSY_FORMATS:
            raise PipelineError(f"{path}: mask is a {image.format} file, which changes values; export it as PNG again")
        check_single(image, str(path))
        ImageOps.exif_transpose(image, in_place=True)
        in_colours = image.mode in ("RGB", "RGBA", "RGBX")
        if by == "colours" or (by is None and classes.kind == "colours"):
            return _by_colour(path, image, classes)
        if by is None and classes.kind == "names" and in_colours:
            return _by_colour(path, image, classes)
        values = _grey(path, image)
        if by is None and classes.kind == "names" and image.mode == "P":
            _check_palette(path, Mask(values.astype(np.uint8), image.getpalette()), len(classes.names))
        if not classes.values:
            raise PipelineError(f"{path}: the class list has colours, no values; write VALUE=NAME for --by values")
        return _looked_up(path, values, classes.values, str)


def _by_colour(path: Path, image: Image.Image, classes: ClassList) -> NDArray[np.uint8]:
    rgb = _rgb(path, image)
    packed = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    table = {red << 16 | green << 8 | blue: value for (red, green, blue), value in classes.colours.items()}
    return _looked_up(path, packed, table, lambda key: f"({key >> 16}, {key >> 8 & 255}, {key & 255})")


def _rgb(path: Path, image: Image.Image) -> NDArray[np.int64]:
    if image.mode.startswith(("I", "F")):
        raise PipelineError(f"{path}: mask of mode {image.mode} has values, no colours; write VALUE=NAME in the list")
    if image.mode != "P" and image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise PipelineError(f"{path}: mask has transparent pixels, whose class is not defined; flatten it")
    return np.asarray(image.convert("RGB"), dtype=np.int64)


def _grey(path: Path, image: Image.Image) -> NDArray[np.int64]:
    """One number a pixel: palette index, grey level, or the channel of grey in colours."""
    if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.int64)
    rgb = _rgb(path, image)
    if (rgb != rgb[..., :1]).any():
        raise PipelineError(f"{path}: mask has colours, the class list values; write NAME:R,G,B a line")
    return rgb[..., 0]


def _check_palette(path: Path, mask: Mask, num_classes: int) -> None:
    if (wrong := misplaced_colour(mask, num_classes)) is not None:
        raise PipelineError(
            f"{path}: value {wrong[0]} has the colour of VOC's value {wrong[1]}, as after a program has reordered the "
            "palette; add --by colours if the colours are right, --by values if the values are"
        )


def _looked_up(
    path: Path, keys: NDArray[np.int64], table: Mapping[int, int], shown: Callable[[int], str]
) -> NDArray[np.uint8]:
    found, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    unknown = [(int(key), int(count)) for key, count in zip(found, counts, strict=True) if int(key) not in table]
    if unknown:
        unknown.sort(key=lambda pair: -pair[1])
        told = ", ".join(f"{shown(key)} on {count} pixels" for key, count in unknown[:MOST_UNKNOWN])
        more = f" and {len(unknown) - MOST_UNKNOWN} more" if len(unknown) > MOST_UNKNOWN else ""
        raise PipelineError(
            f"{path}: {told}{more} in no entry of the class list; add what is meant, or export the masks again without "
            "smoothed edges"
        )
    values = np.array([table[int(key)] for key in found], np.uint8)
    return values[inverse].reshape(keys.shape)
