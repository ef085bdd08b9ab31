"""The manifest: one row per image, every image and mask decoded and checked before anything is trained on it.

Columns: image_id, split, height, width (pixels), classes (space-separated names present), contexts (also
space-separated, where known), pixel_label_rank (the k training images that may guide attention are those of rank 0 to
k - 1; -1 never may), digest (SHA-256 of the bytes of image, mask and, where there is one, annotation) and one
`pixels_NAME` per class with background and void.
"""

import csv
import hashlib
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base.cores import usable_cores
from pipeline.base.errors import PipelineError, raise_together
from pipeline.data import voc
from pipeline.data.images import check_mask, decode_image, read_mask

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("image_id", "split", "height", "width", "classes", "contexts", "pixel_label_rank", "digest")


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """What training and evaluation need to know of one image."""

    image_id: str
    split: str
    height: int
    width: int
    classes: tuple[str, ...]
    contexts: tuple[str, ...]
    pixel_label_rank: int
    digest: str


def build_manifest(
    root: Path,
    *,
    splits: Iterable[str],
    seed: int,
    on_image: Callable[[], None] = lambda: None,
) -> "pd.DataFrame":
    """Decode and check every image of `splits` under the VOC-layout folder `root`.

    Args:
        splits: names of lists in ImageSets/Segmentation.
        seed: of the ranking of the training images, see `pixel_label_ranking`.
        on_image: called in this thread after each image, for progress.

    Raises:
        PipelineError: a split, image or mask is missing or damaged, the sizes differ, a mask or an annotation holds an
            undeclared class, a box leaves its image by more than a pixel, or an image is in two splits; the message
            names the file, and of several bad ones the first ten.
    """
    import pandas as pd

    class_names = voc.read_class_names(root)
    contexts = voc.read_contexts(root)
    entries = [(split, image_id) for split in splits for image_id in voc.read_split(root, split)]
    voc.check_disjoint(root, entries)
    records: list[dict[str, object]] = []
    problems: list[str] = []
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        for (split, image_id), record in zip(
            entries, pool.map(lambda entry: _inspected(root, entry[1], class_names), entries), strict=True
        ):
            if isinstance(record, PipelineError):
                problems.append(str(record))
            else:
                records.append({"image_id": image_id, "split": split, "contexts": contexts.get(image_id, ""), **record})
            on_image()
    raise_together(problems, "bad files")
    _rank(records, class_names, seed)
    frame = pd.DataFrame.from_records(records)
    return frame[[*COLUMNS, *(name for name in frame if name not in COLUMNS)]]


def class_counts(manifest: "pd.DataFrame") -> list[dict[str, object]]:
    """Images per split and class of a manifest from `build_manifest`; images without a class count as `none`."""
    counted = manifest.assign(classes=manifest["classes"].str.split()).explode("classes").fillna({"classes": "none"})
    table = counted.groupby(["split", "classes"], sort=True).size().reset_index(name="images")
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def pixel_label_ranking(image_classes: list[list[str]], class_names: tuple[str, ...], *, seed: int) -> list[int]:
    """Seeded, class-stratified order in which images get their pixel labels.

    Each step takes, for the class with the fewest labelled images so far, the next image of a seeded shuffle. The first
    k images therefore hold the classes as evenly as they can, and are among the first k + 1.

    Args:
        image_classes: classes present in each image; images with none are left out.

    Returns:
        Positions in `image_classes`.
    """
    shuffled = np.random.default_rng(seed).permutation(len(image_classes)).tolist()
    waiting = {name: [i for i in reversed(shuffled) if name in image_classes[i]] for name in class_names}
    counts = dict.fromkeys(class_names, 0)
    ranking: dict[int, None] = {}
    while waiting := {name: positions for name, positions in waiting.items() if positions}:
        position = waiting[min(waiting, key=counts.__getitem__)].pop()
        if position not in ranking:
            ranking[position] = None
            for name in image_classes[position]:
                counts[name] += 1
    return list(ranking)


def read_manifest(path: Path) -> list[ManifestRow]:
    """Rows of a manifest written by `build_manifest`, in order. Read without pandas, which takes seconds to import.

    Raises:
        PipelineError: the file is missing, empty, lacks a column, or holds a row that is cut short.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [ManifestRow(**columns_of(row)) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise PipelineError(f"{path}: missing; it lists the images; run `dvc repro prepare`") from None
    except (KeyError, ValueError, AttributeError) as error:
        raise PipelineError(f"{path}: not a manifest ({error!r}); run `dvc repro --force prepare`") from error
    if not rows:
        raise PipelineError(f"{path}: not a manifest (it lists no image); run `dvc repro --force prepare`")
    return rows


def data_digest(rows: Iterable[ManifestRow]) -> str:
    """SHA-256 over the images, masks and annotations of `rows`: two runs with equal digests saw the same data."""
    return hashlib.sha256("\n".join(f"{row.image_id} {row.digest}" for row in rows).encode()).hexdigest()


def columns_of(cells: dict[str, str]) -> dict[str, Any]:
    """The fields of a `ManifestRow` by name, from the cells of a row by column.

    Raises:
        KeyError: a column is missing.
        ValueError: the row is cut short, or a number is none.
    """
    if None in cells.values():
        raise ValueError(f"a row is cut short: {cells['image_id']}")
    return {
        "image_id": cells["image_id"],
        "split": sys.intern(cells["split"]),
        "height": int(cells["height"]),
        "width": int(cells["width"]),
        "classes": _names(cells["classes"]),
        "contexts": _names(cells["contexts"]),
        "pixel_label_rank": int(cells["pixel_label_rank"]),
        "digest": cells["digest"],
    }


@cache  # a million rows share a few combinations
def _names(cell: str) -> tuple[str, ...]:
    return tuple(cell.split())


def _rank(records: list[dict[str, object]], class_names: tuple[str, ...], seed: int) -> None:
    training = [record for record in records if record["split"] == "train"]
    ranking = pixel_label_ranking([str(record["classes"]).split() for record in training], class_names, seed=seed)
    for record in records:
        record["pixel_label_rank"] = -1
    for rank, position in enumerate(ranking):
        training[position]["pixel_label_rank"] = rank


def _inspected(root: Path, image_id: str, class_names: tuple[str, ...]) -> dict[str, object] | PipelineError:
    """`_inspect`, with its refusal as a value, so that all images are looked at."""
    try:
        return _inspect(root, image_id, class_names)
    except PipelineError as error:
        return error


def _inspect(root: Path, image_id: str, class_names: tuple[str, ...]) -> dict[str, object]:
    image_path, mask_path = voc.image_path(root, image_id), voc.mask_path(root, image_id)
    image, mask = decode_image(image_path), read_mask(mask_path)
    height, width = mask.values.shape
    counts = check_mask(mask_path, mask, image.shape[:2], class_names)
    content = image_path.read_bytes() + mask_path.read_bytes()
    annotation_path = voc.annotation_path(root, image_id)
    if annotation_path.exists():
        boxes = voc.read_boxes(root, image_id)
        voc.check_boxes(annotation_path, boxes, class_names, height=height, width=width)
        content += annotation_path.read_bytes()
    pixels = {f"pixels_{name}": int(counts[i]) for i, name in enumerate(("background", *class_names))}
    return {
        "height": height,
        "width": width,
        "classes": " ".join(name for i, name in enumerate(class_names, start=1) if counts[i]),
        "digest": hashlib.sha256(content).hexdigest(),
        **pixels,
        "pixels_void": int(counts[voc.IGNORE_INDEX]),
    }
