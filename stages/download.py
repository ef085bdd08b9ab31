"""Put the data set and the initial weights into place: drawn, fetched, or taken from where you have them."""

import os
import shutil
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.base.files import atomic_folder
from pipeline.base.profile import Params
from pipeline.base.sections import EmbeddedData, FolderData, RemoteFile, Voc2012Data
from pipeline.base.workspace import Workspace
from pipeline.datasets.archives import unpack
from pipeline.datasets.embedded import draw_dataset
from pipeline.datasets.fetch import CACHE, cached_path, check_file, check_free_space, fetch
from pipeline.datasets.sources import SBD_ARCHIVE, VOC2012_ARCHIVE, place_folder, place_voc2012
from pipeline.tracking.progress import progress_bar
from stages.run import run_stage

NUM_WORKERS = min(os.cpu_count() or 1, 16)  # a container may own less of its machine than it sees
VOC2012_BYTES, SBD_BYTES = 2_000_000_000, 1_420_000_000  # of the archives


def download(params: Params, space: Workspace) -> None:
    """params.yaml to data/voc, and to data/weights, which is empty where nothing is imported."""
    options = params.download
    if isinstance(options, EmbeddedData):
        _draw(options, params.seed, space.data)
    elif isinstance(options, Voc2012Data):
        _place_voc2012(options, params.seed, space.data)
    else:
        _place_folder(options, space.data)
    weights = params.pretrain.weights.file
    with atomic_folder(space.initial_weights) as folder:
        if weights is not None:
            source = obtain(weights, params.pretrain.weights.file_name)
            check_free_space(folder, source.stat().st_size, f"copying {source.name}")
            shutil.copyfile(source, folder / source.name)


def obtain(file: RemoteFile, name: str, size: int | None = None) -> Path:
    """A file that params.yaml names: where it says that you have it, else from a mirror and kept in CACHE as `name`.

    Raises:
        PipelineError: it is not there, not what its checksum says, or no mirror delivers it.
    """
    if file.path is not None:
        path = Path(file.path).expanduser()
        if not path.is_file():
            raise PipelineError(
                f"{path}: missing; correct the path in params.yaml, or set it to null to fetch the file"
            )
        if file.checksum is not None:
            check_file(
                path, file.checksum, "correct the path in params.yaml, or set the checksum to null to take it as it is"
            )
        return path
    assert file.checksum is not None  # the configuration sees to it
    path = cached_path(CACHE, name, file.checksum)
    return fetch(file.mirrors, path, checksum=file.checksum, size=size)


def _draw(options: EmbeddedData, seed: int, root: Path) -> None:
    drawing = options.model_dump(exclude={"source"})
    total = sum(drawing[name] for name in ("num_train", "num_val", "num_test")) + 2 * options.num_counterfactual
    with atomic_folder(root) as folder, progress_bar("download: images drawn", total) as advance:
        draw_dataset(folder, seed=seed, num_workers=NUM_WORKERS, on_image=advance, **drawing)


def _place_voc2012(options: Voc2012Data, seed: int, root: Path) -> None:
    archive = obtain(options.archive, VOC2012_ARCHIVE, VOC2012_BYTES)
    sbd = obtain(options.sbd, SBD_ARCHIVE, SBD_BYTES) if options.sbd and options.train_split == "trainaug" else None
    with atomic_folder(root) as folder, progress_bar("download: images in place", None) as advance:
        place_voc2012(
            folder,
            archive,
            train_split=options.train_split,
            test_split=options.test_split,
            num_val=options.num_val,
            seed=seed,
            sbd_archive=sbd,
            num_workers=NUM_WORKERS,
            on_image=advance,
        )


def _place_folder(options: FolderData, root: Path) -> None:
    source = Path(options.path).expanduser()
    with atomic_folder(root) as folder, progress_bar("download: images in place", None) as advance:
        unpacked = folder / ".unpacked"
        if source.is_file():
            unpack(source, unpacked)
        elif not source.is_dir():
            raise PipelineError(
                f"{source}: missing; download.path in params.yaml is the folder or archive of your data"
            )
        place_folder(
            folder, unpacked if source.is_file() else source, ignore_index=options.ignore_index, on_image=advance
        )
        shutil.rmtree(unpacked, ignore_errors=True)


if __name__ == "__main__":
    run_stage("download", download)
