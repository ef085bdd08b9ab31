"""Images and masks of the user's own in VOC layout, a folder or an archive of one: copied as its splits list them."""

import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.sections import FolderData
from pipeline.data import voc
from pipeline.data.images import UNREADABLE, decode_mask, save_mask
from pipeline.datasets.archives import unpack

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
ORIENTATION_TAG, UPRIGHT = 0x0112, 1  # of EXIF


def place_folder(root: Path, options: FolderData, *, on_image: Callable[[], None] = lambda: None) -> None:
    """Copy what the splits of `options.path` list into `root`, an empty folder, and nothing else.

    The path, or one folder in it, holds classes.txt, ImageSets/Segmentation/{train,val,test}.txt, JPEGImages and
    SegmentationClass, maybe Annotations. Its mask value `options.ignore_index` (unlabelled) is 255 in the copy.

    Args:
        on_image: called as images are copied.

    Raises:
        PipelineError: something is missing or damaged, naming the file and how it should look.
    """
    source, unpacked = Path(options.path).expanduser(), root / ".unpacked"
    if source.is_file():
        unpack(source, unpacked)
    elif not source.is_dir():
        raise PipelineError(f"{source}: missing; download.path in params.yaml is the folder or archive of your data")
    _copy_layout(root, _find_layout(unpacked if source.is_file() else source), options.ignore_index, on_image)
    shutil.rmtree(unpacked, ignore_errors=True)


def _copy_layout(root: Path, source: Path, ignore_index: int, on_image: Callable[[], None]) -> None:
    class_names = voc.read_class_names(source)
    if 0 < ignore_index <= len(class_names):
        raise PipelineError(
            f"download.ignore_index: {ignore_index} is the mask value of class {class_names[ignore_index - 1]!r} in "
            f"{source / 'classes.txt'}; give the value of unlabelled pixels, 255 in VOC"
        )
    splits = {split: voc.read_split(source, split) for split in voc.list_splits(source)}
    voc.make_folders(root)
    for image_id in (image_id for ids in splits.values() for image_id in ids):
        _copy_image(_find_image(source, image_id), root, image_id)
        _copy_mask(voc.mask_path(source, image_id), voc.mask_path(root, image_id), ignore_index)
        if (annotation := voc.annotation_path(source, image_id)).exists():
            shutil.copyfile(annotation, voc.annotation_path(root, image_id))
        on_image()
    if (source / "contexts.csv").exists():
        shutil.copyfile(source / "contexts.csv", root / "contexts.csv")
    voc.write_lists(root, class_names, splits)


def _find_layout(source: Path) -> Path:
    candidates = [source, *sorted(path for path in source.glob("*") if path.is_dir())]
    found = [path for path in candidates if (path / "classes.txt").exists()]
    if not found:
        raise PipelineError(
            f"{source}: no VOC layout; it, or a folder in it, needs classes.txt, ImageSets/Segmentation, JPEGImages "
            "and SegmentationClass"
        )
    return found[0]


def _find_image(source: Path, image_id: str) -> Path:
    for suffix in SUFFIXES:
        if (path := source / "JPEGImages" / f"{image_id}{suffix}").exists():
            return path
    raise PipelineError(
        f"{source / 'JPEGImages' / image_id}.jpg: missing, and no .jpeg or .png of that name; a split lists it; add "
        "the file or remove its id"
    )


def _copy_image(path: Path, root: Path, image_id: str) -> None:
    """Decoders here ignore the EXIF orientation, so a rotated image would not match its mask: it is refused."""
    try:
        with Image.open(path) as image:
            orientation = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
    except UNREADABLE as error:
        raise PipelineError(f"{path}: image cannot be decoded ({error}); restore the file or remove its id") from error
    if orientation != UPRIGHT:
        raise PipelineError(
            f"{path}: has EXIF orientation {orientation}, which is not applied here; rotate the pixels, for example "
            "with `mogrify -auto-orient`, and check that the mask still fits"
        )
    target = voc.image_path(root, image_id)
    _copy(path, target.with_suffix(".png") if path.suffix.lower() == ".png" else target)


def _copy_mask(source: Path, target: Path, ignore_index: int) -> None:
    if ignore_index == voc.IGNORE_INDEX:
        _copy(source, target)
        return
    mask = decode_mask(source)
    mask[mask == ignore_index] = voc.IGNORE_INDEX
    save_mask(mask, target)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise PipelineError(f"{source}: missing; a split lists it; add the file or remove its id") from None
