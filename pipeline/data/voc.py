"""The PASCAL VOC layout on disk: class names, split lists, paths and the colour palette.

root/JPEGImages/ID.jpg                      or ID.png
root/SegmentationClass/ID.png               palette PNG: 0 background, 1..C classes, 255 void
root/Annotations/ID.xml                     optional: a box per object, corners 1-based and inclusive
root/ImageSets/Segmentation/SPLIT.txt       one ID a line
root/classes.txt                            one foreground class a line, in the order of the mask values
root/contexts.csv                           optional: the contexts seen in an image (embedded data set only)
"""

import csv
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

from pipeline.base.errors import PipelineError

IGNORE_INDEX = 255
MOST_CLASSES = IGNORE_INDEX - 1  # of a mask, without the background
# What other class lists call value 0 and value 255, in small letters and without what is no letter.
BACKGROUND_NAMES = ("background", "bg", "backgroundclass")
VOID_NAMES = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unlabel", "undefined")
# What lines of other class lists look like; a line alone names a class when it looks like none of them.
OTHER_LINES = {
    r"#": "the head of a label map",
    r".*[:,\s]\s*\d+\s*[,\s]\s*\d+\s*[,\s]\s*\d+\b": "a label map with colours",
    r"\d+(\s*[:=,;)]\s*|\.?\s+)\S|.*\S\s*[:=]\s*\d+$": "a class with its value",
    r'.*[,;:"\[\]{}]': "several names, or one in quotes",
}
COUNTERFACTUAL_SPLITS = ("object_without_context", "context_without_object")
TRAINING_SPLITS = ("train", "val")  # all others are test data
REQUIRED_SPLITS = (*TRAINING_SPLITS, "test")
SPLITS = (*REQUIRED_SPLITS, *COUNTERFACTUAL_SPLITS)


class Box(NamedTuple):
    """The rectangle around one object, in pixels from 0; `right` and `bottom` are the first ones outside."""

    class_name: str
    left: int
    top: int
    right: int
    bottom: int


def voc_palette() -> list[int]:
    """VOC's colours, flat [r0, g0, b0, r1, ...] for 256 values: the bits of the index dealt to R, G and B in turn."""
    return [
        sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))
        for index in range(256)
        for channel in range(3)
    ]


def image_path(root: Path, image_id: str) -> Path:
    """Path of the image of `image_id`: the JPEG, unless there is only a PNG."""
    path = root / "JPEGImages" / f"{image_id}.jpg"
    lossless = path.with_suffix(".png")
    return lossless if not path.exists() and lossless.exists() else path


def mask_path(root: Path, image_id: str) -> Path:
    """Path of the class mask of `image_id`."""
    return root / "SegmentationClass" / f"{image_id}.png"


def annotation_path(root: Path, image_id: str) -> Path:
    """Path of the boxes of `image_id`."""
    return root / "Annotations" / f"{image_id}.xml"


def split_path(root: Path, split: str) -> Path:
    """Path of the list of image ids of `split`."""
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def make_folders(root: Path) -> None:
    """Create the folders of the layout in `root` that are not there yet."""
    files = (image_path(root, "ID"), mask_path(root, "ID"), annotation_path(root, "ID"), split_path(root, "SPLIT"))
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)


def write_lists(root: Path, class_names: Iterable[str], splits: Mapping[str, Iterable[str]]) -> None:
    """Write classes.txt and the list of image ids of each split; `read_class_names` and `read_split` read them."""
    lists = {root / "classes.txt": class_names} | {split_path(root, split): ids for split, ids in splits.items()}
    for path, lines in lists.items():
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def reserved_meaning(name: str) -> Literal["background", "void"] | None:
    """Which of the two values without a class a line of a class list names, in any spelling: `_background_`, `BG`."""
    letters = re.sub(r"[\W_]", "", name.casefold())
    if letters in BACKGROUND_NAMES:
        return "background"
    return "void" if letters in VOID_NAMES else None


def other_kind(name: str) -> str | None:
    """What a line of classes.txt looks like that is no name; None of a name."""
    if (meaning := reserved_meaning(name)) is not None:
        return f"an entry for {meaning}"
    return next((kind for pattern, kind in OTHER_LINES.items() if re.match(pattern, name)), None)


def import_command(root: Path, classes: Path | str) -> str:
    """The command that rewrites the masks under `root` in place, by what the list `classes` says of them."""
    arguments = [str(mask_path(root, "ID").parent), "--classes", str(classes), "--out", str(root)]
    return f"gain import-masks {shlex.join(arguments)} --overwrite"


def read_class_names(root: Path) -> tuple[str, ...]:
    """Foreground class names; mask value = position + 1.

    Raises:
        PipelineError: classes.txt is missing, empty, names a class twice or with white space, or looks like a list of
            another kind: with background or void, with values or colours.
    """
    path = root / "classes.txt"
    names = _lines(path, "the class names, one a line in the order of the mask values")
    for name in names:
        if (kind := other_kind(name)) is not None:
            raise PipelineError(
                f"{path}: {name!r} looks like {kind}; classes.txt holds names alone, value 1 first (0 is background, "
                f"255 void, without a line); `{import_command(root, path)}` converts list and masks"
            )
    if len(set(names)) != len(names):
        raise PipelineError(f"{path}: a class is named twice: {', '.join(names)}; every class needs its own name")
    bad = next((name for name in names if len(name.split()) > 1), None)
    if bad is not None:
        raise PipelineError(f"{path}: {bad!r} cannot name a class; use one word")
    if len(names) > MOST_CLASSES:
        raise PipelineError(f"{path}: {len(names)} classes; a mask holds at most {MOST_CLASSES} (255 is void)")
    return names


def read_split(root: Path, split: str) -> tuple[str, ...]:
    """Image ids of `split`.

    Raises:
        PipelineError: the list is missing, empty, or holds an id twice or one that is a path.
    """
    path = split_path(root, split)
    ids = _lines(path, f"the image ids of the split {split!r}, one a line")
    # An id becomes part of file names: one with a separator would name files outside the data set.
    bad = next((image_id for image_id in ids if re.search(r"[/\\\0]", image_id) or image_id in (".", "..")), None)
    if bad is not None:
        raise PipelineError(f"{path}: {bad!r} is no image id; an id is a file name without its folder and its ending")
    if len(set(ids)) != len(ids):
        duplicate = next(image_id for image_id in ids if ids.count(image_id) > 1)
        raise PipelineError(f"{path}: {duplicate} is listed twice; remove one")
    return ids


def check_disjoint(root: Path, entries: Iterable[tuple[str, str]]) -> None:
    """Check that no image is in two splits.

    Args:
        entries: split and image id of all images.

    Raises:
        PipelineError: an id comes twice.
    """
    seen: dict[str, str] = {}
    for split, image_id in entries:
        if image_id in seen:
            path = split_path(root, split)
            raise PipelineError(f"{path}: {image_id} is in the split {seen[image_id]!r} too; splits must be disjoint")
        seen[image_id] = split


def list_splits(root: Path) -> tuple[str, ...]:
    """Names of the splits: train, val and test, and the counterfactual two where the data set has them."""
    counterfactual = all(split_path(root, split).exists() for split in COUNTERFACTUAL_SPLITS)
    return (*REQUIRED_SPLITS, *(COUNTERFACTUAL_SPLITS if counterfactual else ()))


def read_contexts(root: Path) -> dict[str, str]:
    """Image id to the space-separated classes whose habitual context the image shows; {} without contexts.csv."""
    path = root / "contexts.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["image"]: row["contexts"] for row in csv.DictReader(file)}


def read_boxes(root: Path, image_id: str) -> tuple[Box, ...]:
    """Boxes of the objects in an image, in the order of its annotation; fractions of a pixel are rounded.

    Raises:
        PipelineError: the annotation is missing, no XML, lacks an element, or holds a corner that is no number or a box
            without pixels.
    """
    path = annotation_path(root, image_id)
    try:
        annotation = ElementTree.parse(path).getroot()
        if annotation.tag != "annotation":
            raise ValueError(f"its root is <{annotation.tag}>")
        return tuple(_parse_box(element) for element in annotation.findall("object"))
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: missing; external supervision by boxes needs it; restore the file or supervise by masks"
        ) from None
    except (OSError, ElementTree.ParseError, ValueError, OverflowError, LookupError) as error:
        raise PipelineError(f"{path}: no readable VOC annotation ({error}); correct or restore the file") from error


def check_boxes(path: Path, boxes: Iterable[Box], class_names: Sequence[str], *, height: int, width: int) -> None:
    """Check the boxes of an image of `height` x `width` pixels.

    Args:
        path: of the annotation, for messages.

    Raises:
        PipelineError: a class is undeclared, or a box leaves the image by more than a pixel.
    """
    for box in boxes:
        if box.class_name not in class_names:
            names = ", ".join(class_names)
            raise PipelineError(f"{path}: class {box.class_name!r} is undeclared; classes.txt names {names}")
        # A pixel beyond is how annotators round, or count from 0.
        if box.left < -1 or box.top < -1 or box.right > width + 1 or box.bottom > height + 1:
            corners = f"({box.left + 1}, {box.top + 1}) to ({box.right}, {box.bottom})"
            raise PipelineError(
                f"{path}: the box of {box.class_name!r}, {corners}, leaves the image of {width}x{height} pixels; "
                "correct it (corners count from 1)"
            )


def write_boxes(root: Path, image_id: str, boxes: Iterable[Box], *, height: int, width: int) -> None:
    """Write the annotation of an image of `height` x `width` pixels; `read_boxes` gives the same boxes back.

    Raises:
        OSError: the folder is missing or full.
    """
    annotation = ElementTree.Element("annotation")
    ElementTree.SubElement(annotation, "filename").text = image_path(root, image_id).name
    _add_numbers(annotation, "size", width=width, height=height, depth=3)
    for box in boxes:
        element = ElementTree.SubElement(annotation, "object")
        ElementTree.SubElement(element, "name").text = box.class_name
        _add_numbers(element, "bndbox", xmin=box.left + 1, ymin=box.top + 1, xmax=box.right, ymax=box.bottom)
    ElementTree.indent(annotation)
    annotation_path(root, image_id).write_bytes(ElementTree.tostring(annotation, encoding="utf-8") + b"\n")


def _parse_box(element: ElementTree.Element) -> Box:
    name = _text(element, "name")
    left, top, right, bottom = (
        round(float(_text(element, f"bndbox/{key}"))) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    if left > right or top > bottom:
        raise ValueError(f"the box of {name!r} is inverted: ({left}, {top}) to ({right}, {bottom})")
    return Box(name, left - 1, top - 1, right, bottom)


def _text(element: ElementTree.Element, path: str) -> str:
    text = (element.findtext(path) or "").strip()
    if not text:
        raise ValueError(f"an object lacks {path}")
    return text


def _add_numbers(parent: ElementTree.Element, tag: str, **numbers: int) -> None:
    element = ElementTree.SubElement(parent, tag)
    for name, number in numbers.items():
        ElementTree.SubElement(element, name).text = str(number)


def _lines(path: Path, content: str) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: missing; it holds {content}; add it, or run `dvc repro --force download`"
        ) from None
    except UnicodeDecodeError as error:
        raise PipelineError(f"{path}: not UTF-8 text ({error.reason}); it holds {content}; save it as UTF-8") from None
    if not lines:
        raise PipelineError(f"{path}: empty; it holds {content}")
    return lines
