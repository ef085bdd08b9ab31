"""The masks of SBD, the Semantic Boundaries Dataset, for images that VOC2012 itself leaves unlabelled."""

from functools import partial
from pathlib import Path

import numpy as np

from pipeline.base.errors import PipelineError
from pipeline.data import voc
from pipeline.data.images import save_mask
from pipeline.datasets.archives import unpack
from pipeline.datasets.parallel import parallel_map

SBD_ARCHIVE = "benchmark.tgz"
SBD_FOLDER = "benchmark_RELEASE/dataset"


def place_masks(archive: Path, raw: Path, target: Path, *, without: set[str], num_workers: int) -> list[str]:
    """Write the masks of all images of SBD but `without` as palette PNGs.

    Args:
        archive: SBD's benchmark.tgz.
        raw: folder to unpack it into.
        target: folder in VOC layout that gets the masks.
        num_workers: processes that convert.

    Returns:
        Ids of the images with a new mask, sorted.

    Raises:
        PipelineError: the archive is damaged, dangerous, or lacks a list or a mask.
    """
    unpack(archive, raw, wanted=lambda name: name.startswith(f"{SBD_FOLDER}/") and name.endswith((".mat", ".txt")))
    lists = [raw / SBD_FOLDER / f"{split}.txt" for split in ("train", "val")]
    if missing := [path.name for path in lists if not path.exists()]:
        raise PipelineError(f"{archive}: not the archive of SBD (it lacks {SBD_FOLDER}/{missing[0]}); fetch it again")
    labelled = {image_id for path in lists for image_id in path.read_text(encoding="utf-8").split()}
    added = sorted(labelled - without)
    with parallel_map(num_workers, chunksize=64) as map_masks:
        for _ in map_masks(partial(_convert, archive, raw / SBD_FOLDER / "cls", target), added):
            pass
    return added


def _convert(archive: Path, folder: Path, target: Path, image_id: str) -> None:
    from scipy.io import loadmat

    try:
        mask = loadmat(folder / f"{image_id}.mat")["GTcls"][0, 0]["Segmentation"]
    except Exception as error:  # scipy has one for every kind of damage
        raise PipelineError(f"{archive}: no readable mask of {image_id} ({error}); fetch the archive again") from None
    save_mask(np.asarray(mask, dtype=np.uint8), voc.mask_path(target, image_id))
