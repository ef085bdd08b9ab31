"""What the counts of a finished manifest say is wrong with the data, before anything is trained on them."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.base.cores import usable_cores
from pipeline.base.errors import PipelineError, first_of
from pipeline.data import voc

if TYPE_CHECKING:
    import pandas as pd

Allowed = Literal["missing_classes", "duplicates"]


def check_counts(root: Path, manifest: "pd.DataFrame", allow: Sequence[Allowed]) -> list[str]:
    """Check that train, val and test show every class, and that no image is in two splits.

    Args:
        root: VOC-layout folder that `build_manifest` has checked.
        manifest: of `root`.
        allow: what is a warning instead of an error; a split without any object, or void as a whole, never is.

    Returns:
        The warnings, a line each.

    Raises:
        PipelineError: naming split, classes or images, and how many.
    """
    class_names = voc.read_class_names(root)
    for split in voc.REQUIRED_SPLITS:
        _check_labelled(root, manifest[manifest["split"] == split], split, class_names)
    problems: dict[Allowed, str] = {
        "missing_classes": _missing_classes(root, manifest, class_names),
        "duplicates": _duplicates(root, manifest),
    }
    for kind, problem in problems.items():
        if problem and kind not in allow:
            raise PipelineError(f"{problem}; correct the lists, or set prepare.allow: [{kind}] in params.yaml")
    return [problem for problem in problems.values() if problem]


def _check_labelled(root: Path, rows: "pd.DataFrame", split: str, class_names: Sequence[str]) -> None:
    path, images = voc.split_path(root, split), f"all {len(rows)} images"
    objects = sum(int(rows[f"pixels_{name}"].sum()) for name in class_names)
    if objects == 0 and int(rows["pixels_background"].sum()) == 0:
        raise PipelineError(
            f"{path}: every pixel of {images} is void (255): nothing can be learnt or scored; correct the masks, or "
            "download.ignore_index in params.yaml"
        )
    if objects == 0:
        raise PipelineError(
            f"{path}: {images} are without an object, only background and void; list images that show the classes "
            f"({first_of(class_names)})"
        )


def _missing_classes(root: Path, manifest: "pd.DataFrame", class_names: Sequence[str]) -> str:
    """Classes without a pixel in train, val or test, as a sentence; "" without any."""
    found = []
    for split in voc.REQUIRED_SPLITS:
        rows = manifest[manifest["split"] == split]
        missing = [name for name in class_names if not rows[f"pixels_{name}"].any()]
        if missing:
            found.append(
                f"none of the {len(rows)} images of {split} shows {first_of(missing)} ({len(missing)} of "
                f"{len(class_names)} classes)"
            )
    return f"{voc.split_path(root, 'SPLIT').parent}: {', and '.join(found)}" if found else ""


def _duplicates(root: Path, manifest: "pd.DataFrame") -> str:
    """Images of one split that are in another one under another name, as a sentence; "" without any.

    The files of the images are compared, not the manifest's digests, which the mask and the annotation are part of.
    """
    rows = list(zip(manifest["image_id"], manifest["split"], strict=True))
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        digests = list(pool.map(lambda row: _digest(voc.image_path(root, row[0])), rows))
    first: dict[bytes, tuple[str, str]] = {}
    pairs = []
    for (image_id, split), digest in zip(rows, digests, strict=True):
        before_id, before_split = first.setdefault(digest, (image_id, split))
        if before_split != split:
            pairs.append(f"{before_id} ({before_split}) is {image_id} ({split})")
    if not pairs:
        return ""
    count = f"{len(pairs)} images are" if len(pairs) > 1 else "an image is"
    return f"{root / 'JPEGImages'}: {count} in two splits under two names: {first_of(pairs)}"


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
