"""Data sets of others, brought into the layout of data/voc.py: PASCAL VOC 2012, SBD, and folders of the user's own.

VOC12 train (1,464 images) and val (1,449) are the official ones. `trainaug` (10,582) adds every image that SBD labels
and that is not in VOC12 val. seg11valid (736) is the part of VOC11 val that SBD-train leaves out, on which the FCN
paper and the Caffe FCN8s report; it lies wholly in VOC12 val, so the rest of val can validate while seg11valid tests.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.data import voc
from pipeline.data.voc import IGNORE_INDEX
from pipeline.datasets.archives import unpack
from pipeline.datasets.parallel import parallel_map

# Names of the annotations, in the order of the mask values.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC2012_ARCHIVE, SBD_ARCHIVE = "VOCtrainval_11-May-2012.tar", "benchmark.tgz"
VOC2012_FOLDER = "VOCdevkit/VOC2012"
ORIENTATION_TAG, UPRIGHT = 0x0112, 1  # of EXIF
SBD_FOLDER = "benchmark_RELEASE/dataset"


def place_voc2012(
    root: Path,
    archive: Path,
    *,
    train_split: str,
    test_split: str,
    num_val: int,
    seed: int,
    sbd_archive: Path | None = None,
    num_workers: int = 1,
    on_image: Callable[[], None] = lambda: None,
) -> None:
    """Unpack VOC2012 into `root` in the project's layout, with disjoint train, val and test.

    Args:
        root: an empty folder.
        archive: VOCtrainval_11-May-2012.tar.
        train_split: `train`, or `trainaug`, which needs `sbd_archive`, SBD's benchmark.tgz.
        test_split: `seg11valid`, with the other images of VOC12 val as val; or `val`, with `num_val` training images,
            drawn with `seed`, as val.
        num_workers: processes that convert SBD's masks.
        on_image: called as images of the result are in place.

    Raises:
        PipelineError: an archive is damaged, dangerous, or lacks what the splits list.
    """
    raw = root / ".unpacked"
    _unpack_voc2012(archive, raw)
    source = raw / VOC2012_FOLDER
    train, val = (read_ids(source, split, archive) for split in ("train", "val"))
    added: list[str] = []
    if train_split == "trainaug":
        if sbd_archive is None:
            raise PipelineError("download.train_split: trainaug needs SBD; set download.sbd in params.yaml")
        added = _place_sbd_masks(sbd_archive, raw, source, without={*train, *val}, num_workers=num_workers)
    splits = {"train": [*train, *added], **_held_out(train, val, test_split, num_val=num_val, seed=seed)}
    splits["train"] = [image_id for image_id in splits["train"] if image_id not in set(splits["val"])]
    _make_folders(root)
    for image_id in (image_id for ids in splits.values() for image_id in ids):
        _move(voc.image_path(source, image_id), voc.image_path(root, image_id), archive)
        _move(voc.mask_path(source, image_id), voc.mask_path(root, image_id), archive)
        with suppress(FileNotFoundError):  # SBD labels images that VOC only annotates in part
            voc.annotation_path(source, image_id).replace(voc.annotation_path(root, image_id))
        on_image()
    _write_lists(root, VOC_CLASSES, splits)
    shutil.rmtree(raw)


def place_folder(
    root: Path, source: Path, *, ignore_index: int = IGNORE_INDEX, on_image: Callable[[], None] = lambda: None
) -> None:
    """Copy a VOC-layout folder of the user's own into `root`: what its splits list, and nothing else.

    Args:
        root: an empty folder.
        source: holds classes.txt, ImageSets/Segmentation/{train,val,test}.txt, JPEGImages and SegmentationClass, maybe
            Annotations; or one folder that does.
        ignore_index: mask value of pixels that nobody has labelled; 255 in the copy.

    Raises:
        PipelineError: something is missing, naming the file and how it should look.
    """
    source = _find_layout(source)
    class_names = voc.read_class_names(source)
    if 0 < ignore_index <= len(class_names):
        raise PipelineError(
            f"download.ignore_index: {ignore_index} is the mask value of class {class_names[ignore_index - 1]!r} in "
            f"{source / 'classes.txt'}; give the value of unlabelled pixels, 255 in VOC"
        )
    splits = {split: voc.read_split(source, split) for split in voc.list_splits(source)}
    _make_folders(root)
    for image_id in (image_id for ids in splits.values() for image_id in ids):
        _copy_image(_find_image(source, image_id), root, image_id)
        _copy_mask(voc.mask_path(source, image_id), voc.mask_path(root, image_id), ignore_index)
        if (annotation := voc.annotation_path(source, image_id)).exists():
            shutil.copyfile(annotation, voc.annotation_path(root, image_id))
        on_image()
    if (source / "contexts.csv").exists():
        shutil.copyfile(source / "contexts.csv", root / "contexts.csv")
    _write_lists(root, class_names, splits)


def read_ids(source: Path, split: str, archive: Path) -> tuple[str, ...]:
    """Image ids of a split of an unpacked archive, which is to blame (PipelineError) when there are none."""
    try:
        return voc.read_split(source, split)
    except PipelineError as error:
        raise PipelineError(f"{archive}: not the archive of VOC2012 ({error})") from None


def seg11valid() -> tuple[str, ...]:
    """The 736 image ids of seg11valid, from the FCN authors' list."""
    return tuple(files("pipeline.datasets").joinpath("seg11valid.txt").read_text(encoding="utf-8").split())


def _unpack_voc2012(archive: Path, folder: Path) -> None:
    parts = ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation")
    unpack(archive, folder, wanted=lambda name: name.startswith(tuple(f"{VOC2012_FOLDER}/{part}/" for part in parts)))


def _held_out(
    train: Sequence[str], val: Sequence[str], test_split: str, *, num_val: int, seed: int
) -> dict[str, list[str]]:
    """val and test, disjoint."""
    if test_split == "seg11valid":
        listed = set(seg11valid())
        test = [image_id for image_id in val if image_id in listed]
        return {"val": [image_id for image_id in val if image_id not in listed], "test": test}
    if not 0 < num_val < len(train):
        raise PipelineError(
            f"download.num_val: {num_val}; with test_split: val it is the number of training images, of "
            f"{len(train)}, that validate instead"
        )
    return {"val": np.random.default_rng(seed).permutation(train)[:num_val].tolist(), "test": list(val)}


def _place_sbd_masks(archive: Path, raw: Path, source: Path, *, without: set[str], num_workers: int) -> list[str]:
    """Write the masks that only SBD has as VOC's PNGs; their image ids, sorted."""
    unpack(archive, raw, wanted=lambda name: name.startswith(f"{SBD_FOLDER}/") and name.endswith((".mat", ".txt")))
    lists = [raw / SBD_FOLDER / f"{split}.txt" for split in ("train", "val")]
    if missing := [path.name for path in lists if not path.exists()]:
        raise PipelineError(f"{archive}: not the archive of SBD (it lacks {SBD_FOLDER}/{missing[0]}); fetch it again")
    labelled = {image_id for path in lists for image_id in path.read_text(encoding="utf-8").split()}
    added = sorted(labelled - without)
    convert = partial(_convert_sbd_mask, archive, raw / SBD_FOLDER / "cls", source)
    with parallel_map(num_workers, chunksize=64) as map_masks:
        for _ in map_masks(convert, added):
            pass
    return added


def _convert_sbd_mask(archive: Path, folder: Path, source: Path, image_id: str) -> None:
    from scipy.io import loadmat

    try:
        mask = loadmat(folder / f"{image_id}.mat")["GTcls"][0, 0]["Segmentation"]
    except Exception as error:  # scipy has one for every kind of damage
        raise PipelineError(f"{archive}: no readable mask of {image_id} ({error}); fetch the archive again") from None
    _save_mask(np.asarray(mask, dtype=np.uint8), voc.mask_path(source, image_id))


def _save_mask(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask).convert("P")
    image.putpalette(voc.voc_palette())
    image.save(path)


def _find_layout(source: Path) -> Path:
    candidates = [source, *sorted(path for path in source.glob("*") if path.is_dir())] if source.is_dir() else []
    found = [path for path in candidates if (path / "classes.txt").exists()]
    if not found:
        raise PipelineError(
            f"{source}: no VOC layout; it, or a folder in it, needs classes.txt, ImageSets/Segmentation, JPEGImages "
            "and SegmentationClass (README, Your own images)"
        )
    return found[0]


def _make_folders(root: Path) -> None:
    files = (voc.image_path(root, "ID"), voc.mask_path(root, "ID"), voc.annotation_path(root, "ID"))
    for file in (*files, voc.split_path(root, "SPLIT")):
        file.parent.mkdir(parents=True, exist_ok=True)


def _move(source: Path, target: Path, archive: Path) -> None:
    try:
        source.replace(target)
    except FileNotFoundError:
        folder = source.parent.name
        raise PipelineError(f"{archive}: lacks {folder}/{source.name}, which a split lists; fetch it again") from None


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise PipelineError(f"{source}: missing; a split lists it; add the file or remove its id") from None


def _find_image(source: Path, image_id: str) -> Path:
    """The image of that name, whatever the case and the spelling of its ending."""
    for suffix in (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG"):
        if (path := source / "JPEGImages" / f"{image_id}{suffix}").exists():
            return path
    raise PipelineError(
        f"{source / 'JPEGImages' / image_id}.jpg: missing, and no .jpeg or .png of that name; a split lists it; add "
        "the file or remove its id"
    )


def _copy_image(path: Path, root: Path, image_id: str) -> None:
    """Cameras turn a picture by a note in the file, which nobody here reads; its mask would lie across it."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION_TAG, UPRIGHT) != UPRIGHT
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PipelineError(f"{path}: image cannot be decoded ({error}); restore the file or remove its id") from error
    if turned:
        raise PipelineError(
            f"{path}: stored lying down, with a note to turn it; turn it for good, e.g. `mogrify -auto-orient`, and "
            "see that its mask still fits"
        )
    target = voc.image_path(root, image_id)
    _copy(path, target.with_suffix(".png") if path.suffix.lower() == ".png" else target)


def _copy_mask(source: Path, target: Path, ignore_index: int) -> None:
    if ignore_index == IGNORE_INDEX:
        _copy(source, target)
        return
    from pipeline.data.manifest import decode_mask

    mask = decode_mask(source)
    mask[mask == ignore_index] = IGNORE_INDEX
    _save_mask(mask, target)


def _write_lists(root: Path, class_names: Sequence[str], splits: Mapping[str, Iterable[str]]) -> None:
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    for split, ids in splits.items():
        voc.split_path(root, split).write_text("".join(f"{image_id}\n" for image_id in ids), encoding="utf-8")
