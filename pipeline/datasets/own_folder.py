"""Images and masks of the user's own in VOC layout, a folder or an archive of one: copied as its splits list them.

Every image and mask is decoded and checked on the way, so that all bad files are named at once, where the user has
them, before anything else is fetched. The copy is upright; images of other formats than JPEG and PNG become PNG in it.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.base.cores import usable_cores
from pipeline.base.errors import PipelineError, raise_together, warn
from pipeline.base.sections import FolderData
from pipeline.data import voc
from pipeline.data.images import (
    UPRIGHT,
    Mask,
    check_mask,
    colour,
    decode_image,
    image_header,
    read_mask,
    save_mask,
    save_png,
)
from pipeline.datasets.archives import unpack

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # in any case
MASK_SUFFIXES = (".png",)
COPIED = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}  # formats that are copied as they are, if upright


class _Source(NamedTuple):
    """The user's folder, and how its masks are to be read."""

    root: Path
    class_names: tuple[str, ...]
    ignore_index: int
    images: Mapping[str, list[Path]]
    masks: Mapping[str, list[Path]]


class _Placed(NamedTuple):
    """What one image shows of the whole data set."""

    mask: Path
    turned: Path | None  # the image, if it had an EXIF orientation
    colours: dict[int, tuple[int, ...]]  # value in the mask to its colour; all () in a grey one


def place_folder(root: Path, options: FolderData, *, on_image: Callable[[], None] = lambda: None) -> None:
    """Copy what the splits of `options.path` list into `root`, an empty folder, and nothing else.

    The path, or one folder in it, holds classes.txt, ImageSets/Segmentation/{train,val,test}.txt, JPEGImages and
    SegmentationClass, maybe Annotations. Its mask value `options.ignore_index` (unlabelled) is 255 in the copy.

    Args:
        on_image: called as images are copied.

    Raises:
        PipelineError: something is missing, damaged or not what it should be, naming the files as the user has them.
    """
    source, unpacked = Path(options.path).expanduser(), root / ".unpacked"
    if source.is_file():
        unpack(source, unpacked)
    elif not source.is_dir():
        raise PipelineError(f"{source}: missing; download.path in params.yaml is the folder or archive of your data")
    try:
        notes = _copy_layout(
            root, _find_layout(unpacked if source.is_file() else source), options.ignore_index, on_image
        )
    except PipelineError as error:
        raise PipelineError(_as_the_user_has_it(str(error), unpacked, source)) from error
    for note in notes:
        warn(_as_the_user_has_it(note, unpacked, source))
    shutil.rmtree(unpacked, ignore_errors=True)


def _as_the_user_has_it(message: str, unpacked: Path, archive: Path) -> str:
    if str(unpacked) not in message:
        return message
    after = " (after unpacking it)" if "gain import-masks" in message else ""
    return message.replace(str(unpacked), str(archive)) + after


def _copy_layout(root: Path, folder: Path, ignore_index: int, on_image: Callable[[], None]) -> list[str]:
    """Copy everything; what the user should know of it."""
    class_names = voc.read_class_names(folder)
    if 0 < ignore_index <= len(class_names):
        raise PipelineError(
            f"download.ignore_index: {ignore_index} is the mask value of class {class_names[ignore_index - 1]!r} in "
            f"{folder / 'classes.txt'}; give the value of unlabelled pixels, 255 in VOC"
        )
    splits = {split: voc.read_split(folder, split) for split in voc.list_splits(folder)}
    entries = [(split, image_id) for split, ids in splits.items() for image_id in ids]
    voc.check_disjoint(folder, entries)
    images, masks = (
        _by_stem(folder / "JPEGImages", IMAGE_SUFFIXES),
        _by_stem(folder / "SegmentationClass", MASK_SUFFIXES),
    )
    source = _Source(folder, class_names, ignore_index, images, masks)
    voc.make_folders(root)
    placed = _place_all(root, source, [image_id for _, image_id in entries], on_image)
    _check_palettes(source, placed)
    by_split = {
        split: [image for (name, _), image in zip(entries, placed, strict=True) if name == split] for split in splits
    }
    for split, of_split in by_split.items():
        _check_objects(source, split, of_split)
    if (folder / "contexts.csv").exists():
        shutil.copyfile(folder / "contexts.csv", root / "contexts.csv")
    voc.write_lists(root, class_names, splits)
    return _notes(placed)


def _find_layout(source: Path) -> Path:
    candidates = [source, *sorted(path for path in source.glob("*") if path.is_dir())]
    found = [path for path in candidates if (path / "classes.txt").exists()]
    if not found:
        raise PipelineError(
            f"{source}: no VOC layout; it, or a folder in it, needs classes.txt, ImageSets/Segmentation, JPEGImages "
            "and SegmentationClass"
        )
    return found[0]


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files with one of `suffixes`, in any case, by their name without it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in suffixes:
            found.setdefault(path.stem, []).append(path)
    return found


def _place_all(root: Path, source: _Source, ids: Iterable[str], on_image: Callable[[], None]) -> list[_Placed]:
    def place(image_id: str) -> _Placed | PipelineError:
        try:
            return _place(root, source, image_id)
        except PipelineError as error:
            return error

    placed, problems = [], []
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for result in pool.map(place, ids):
            problems.append(str(result)) if isinstance(result, PipelineError) else placed.append(result)
            on_image()
    raise_together(problems, f"bad files in {source.root}")
    return placed


def _place(root: Path, source: _Source, image_id: str) -> _Placed:
    """Check an image with its mask and annotation, and copy them."""
    image_path = _the_file(source.images, source.root / "JPEGImages", image_id, IMAGE_SUFFIXES)
    mask_path = _the_file(source.masks, source.root / "SegmentationClass", image_id, MASK_SUFFIXES)
    header, image, mask = image_header(image_path), decode_image(image_path), read_mask(mask_path)
    turned, (height, width) = header.orientation != UPRIGHT, image.shape[:2]
    if turned and height != width and mask.values.shape == (width, height):
        raise PipelineError(
            f"{mask_path}: mask is {height}x{width} pixels, its image {width}x{height} as viewers show it (EXIF "
            f"orientation {header.orientation}); turn the mask as the image is turned"
        )
    colours = _colours(mask)
    values = mask.values
    values[values == source.ignore_index] = voc.IGNORE_INDEX
    check_mask(mask_path, mask, (height, width), source.class_names)
    annotation = voc.annotation_path(source.root, image_id)
    if annotation.exists():
        boxes = voc.read_boxes(source.root, image_id)
        voc.check_boxes(annotation, boxes, source.class_names, height=height, width=width)
        shutil.copyfile(annotation, voc.annotation_path(root, image_id))
    target = voc.image_path(root, image_id)
    if not turned and header.format in COPIED:
        shutil.copyfile(image_path, target.with_name(image_id + COPIED[header.format]))
    else:
        save_png(image, target.with_name(f"{image_id}.png"))
    if source.ignore_index == voc.IGNORE_INDEX and image_header(mask_path) == ("PNG", UPRIGHT):
        shutil.copyfile(mask_path, voc.mask_path(root, image_id))
    else:
        save_mask(values, voc.mask_path(root, image_id))
    return _Placed(mask_path, image_path if turned else None, colours)


def _the_file(found: Mapping[str, list[Path]], folder: Path, image_id: str, suffixes: tuple[str, ...]) -> Path:
    paths = found.get(image_id, [])
    if not paths:
        others = f", and no file of that name ends in {', '.join(suffixes[1:])}" if suffixes[1:] else ""
        ending = Path(image_id).suffix
        advice = f"list it without {ending}" if ending.lower() in suffixes else "add the file or remove its id"
        raise PipelineError(f"{folder / image_id}{suffixes[0]}: missing{others}; a split lists it; {advice}")
    if len(paths) > 1:
        raise PipelineError(f"{paths[0]}: {paths[1].name} has the same name; keep the one that is meant")
    return paths[0]


def _colours(mask: Mask) -> dict[int, tuple[int, ...]]:
    values = np.flatnonzero(np.bincount(mask.values.ravel(), minlength=256)).tolist()
    return {value: () if mask.palette is None else colour(mask.palette, value) for value in values}


def _check_palettes(source: _Source, placed: Iterable[_Placed]) -> None:
    """A value of one colour here and of another there was numbered by a quantiser, for each file anew."""
    seen: dict[int, tuple[tuple[int, ...], Path]] = {}
    for image in placed:
        for value, shown in image.colours.items():
            if not shown or not 0 < value <= len(source.class_names):
                continue
            before, path = seen.setdefault(value, (shown, image.mask))
            if before != shown:
                command = voc.import_command(source.root, source.root / "classes.txt")
                raise PipelineError(
                    f"{image.mask}: value {value} has the colour {shown}, but {before} in {path}, as after a program "
                    f"has numbered the colours of each file anew; `{command} --by values` if the values are right "
                    "all the same, else a list with colours (NAME:R,G,B a line) instead of classes.txt"
                )


def _check_objects(source: _Source, split: str, placed: Iterable[_Placed]) -> None:
    """Masks of 0 and 255 are how one class is drawn elsewhere; here they would be void, and every score 1."""
    values = {value for image in placed for value in image.colours}
    if values - {0, source.ignore_index, voc.IGNORE_INDEX} or voc.IGNORE_INDEX not in values:
        return
    name = source.class_names[0] if len(source.class_names) == 1 else "NAME"
    command = voc.import_command(source.root, f"0=background,255={name}")
    raise PipelineError(
        f"{source.root / 'SegmentationClass'}: the masks of the split {split!r} hold no class, only "
        f"{' and '.join(map(str, sorted(values)))}; 255 is void here; if it is the object, `{command}` converts them"
    )


def _notes(placed: Iterable[_Placed]) -> list[str]:
    notes, images = [], list(placed)
    if turned := [image.turned for image in images if image.turned is not None]:
        notes.append(
            f"{len(turned)} images, {turned[0]} the first, were turned upright by their EXIF orientation; masks and "
            "boxes are taken to lie on the images as viewers show them"
        )
    if void := [image.mask for image in images if set(image.colours) == {0, voc.IGNORE_INDEX}]:
        notes.append(
            f"{len(void)} masks, {void[0]} the first, hold 0 and 255 alone; 255 is void: if it is the object there, "
            "they are wrong"
        )
    return notes
