"""PASCAL VOC 2012 in the layout of data/voc.py, with disjoint train, val and test.

VOC12 train (1,464 images) and val (1,449) are the official ones. `trainaug` (10,582) adds every image that SBD labels
and that is not in VOC12 val. seg11valid (736) is the part of VOC11 val that SBD-train leaves out, on which the FCN
paper and the Caffe FCN8s report; it lies wholly in VOC12 val, so the rest of val can validate while seg11valid tests.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Voc2012Data
from pipeline.data import voc
from pipeline.datasets import sbd
from pipeline.datasets.archives import unpack
from pipeline.datasets.fetch import obtain

# Names of the annotations, in the order of the mask values.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC2012_ARCHIVE = "VOCtrainval_11-May-2012.tar"
VOC2012_FOLDER = "VOCdevkit/VOC2012"
PARTS = ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation")


class Archives(NamedTuple):
    """VOCtrainval_11-May-2012.tar, and SBD's benchmark.tgz, which the train split `trainaug` needs."""

    voc2012: Path
    sbd: Path | None = None


def obtain_archives(options: Voc2012Data) -> Archives:
    """The archives that `options` ask for, downloaded where the user has not named a path.

    Raises:
        PipelineError: see `obtain`.
    """
    archive = obtain(options.archive, VOC2012_ARCHIVE)
    if options.sbd is None or options.train_split != "trainaug":
        return Archives(archive)
    return Archives(archive, obtain(options.sbd, sbd.SBD_ARCHIVE))


def place_voc2012(
    root: Path,
    archives: Archives,
    options: Voc2012Data,
    *,
    seed: int,
    num_workers: int = 1,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Unpack VOC2012 into `root`, an empty folder.

    Args:
        options: test_split `seg11valid` validates on the other images of VOC12 val; `val` validates on `num_val`
            training images, drawn with `seed`.
        num_workers: processes that convert SBD's masks.
        on_image: called as images of the result are in place.

    Raises:
        PipelineError: an archive is damaged, dangerous, or lacks what the splits list.
    """
    archive, raw = archives.voc2012, root / ".unpacked"
    unpack(archive, raw, wanted=_is_wanted)
    source = raw / VOC2012_FOLDER
    train, val = (_read_ids(source, split, archive) for split in ("train", "val"))
    added: list[str] = []
    if options.train_split == "trainaug":
        if archives.sbd is None:
            raise PipelineError("download.train_split: trainaug needs SBD; set download.sbd in params.yaml")
        added = sbd.place_masks(archives.sbd, raw, source, without={*train, *val}, num_workers=num_workers)
    splits = {"train": [*train, *added], **_held_out(train, val, options, seed)}
    splits["train"] = [image_id for image_id in splits["train"] if image_id not in set(splits["val"])]
    voc.make_folders(root)
    for image_id in (image_id for ids in splits.values() for image_id in ids):
        _move(voc.image_path(source, image_id), voc.image_path(root, image_id), archive)
        _move(voc.mask_path(source, image_id), voc.mask_path(root, image_id), archive)
        with suppress(FileNotFoundError):  # SBD labels images that VOC only annotates in part
            voc.annotation_path(source, image_id).replace(voc.annotation_path(root, image_id))
        on_image()
    voc.write_lists(root, VOC_CLASSES, splits)
    shutil.rmtree(raw)


def seg11valid() -> tuple[str, ...]:
    """The 736 image ids of seg11valid, from the FCN authors' list."""
    return tuple(files("pipeline.datasets").joinpath("seg11valid.txt").read_text(encoding="utf-8").split())


def _is_wanted(name: str) -> bool:
    return name.startswith(tuple(f"{VOC2012_FOLDER}/{part}/" for part in PARTS))


def _read_ids(source: Path, split: str, archive: Path) -> tuple[str, ...]:
    try:
        return voc.read_split(source, split)
    except PipelineError as error:
        raise PipelineError(f"{archive}: not the archive of VOC2012 ({error})") from None


def _held_out(train: Sequence[str], val: Sequence[str], options: Voc2012Data, seed: int) -> dict[str, list[str]]:
    """val and test, disjoint."""
    if options.test_split == "seg11valid":
        listed = set(seg11valid())
        test = [image_id for image_id in val if image_id in listed]
        return {"val": [image_id for image_id in val if image_id not in listed], "test": test}
    if not 0 < options.num_val < len(train):
        raise PipelineError(
            f"download.num_val: {options.num_val}; with test_split: val it is the number of training images, of "
            f"{len(train)}, that validate instead"
        )
    return {"val": np.random.default_rng(seed).permutation(train)[: options.num_val].tolist(), "test": list(val)}


def _move(source: Path, target: Path, archive: Path) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        folder = source.parent.name
        raise PipelineError(f"{archive}: lacks {folder}/{source.name}, which a split lists; fetch it again") from None
