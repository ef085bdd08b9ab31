"""`gain doctor`: whether the chosen profile can run here, what is missing, and the command that gets it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.base.errors import PipelineError, without_credentials
from pipeline.base.profile import Params
from pipeline.base.sections import FolderData, RemoteFile, Voc2012Data
from pipeline.cli.estimates import disk_bytes, evaluation_bytes, largest_image, training_bytes
from pipeline.data import voc
from pipeline.datasets.embedded import CLASS_NAMES
from pipeline.datasets.fetch import CACHE, cached_path, check_file
from pipeline.datasets.sbd import SBD_ARCHIVE
from pipeline.datasets.voc2012 import VOC2012_ARCHIVE, VOC_CLASSES
from pipeline.flows.services import default_remote
from pipeline.tracking.server import problem_at, problem_with, tracking_uri
from pipeline.training.devices import Device, choose_device

GIGABYTE = 1e9


class Finding(NamedTuple):
    """One line of the report."""

    verdict: Literal["ok", "note", "fail"]  # fail: the profile cannot run
    subject: str
    text: str


def examine(params: Params, folder: Path) -> Iterator[Finding]:
    """Check what the chosen profile needs, in the order in which the stages need it.

    Args:
        folder: where data/ and models/ lie.
    """
    finding, device = _device(params)
    yield finding
    yield from (Finding("note", "configuration", doubt) for doubt in params.doubts)
    data = _data(params, folder)
    yield data
    yield from _sources(params, folder, data_is_there=data.verdict == "ok")
    yield _weights(folder)
    yield _memory(params, folder, device)
    yield _disk(params, folder, data_is_there=data.verdict == "ok")
    yield _tracking()
    yield _remote()
    yield _prefect()


def _device(params: Params) -> tuple[Finding, Device | None]:
    try:
        device = choose_device(params.runtime.device, params.runtime.precision, params.runtime.devices)
    except PipelineError as error:
        return Finding("fail", "device", str(error)), None
    return Finding("ok", "device", device.reason), device


def _data(params: Params, folder: Path) -> Finding:
    root = folder / "data" / "voc"
    source = params.download.source
    if not root.exists():
        return Finding("note", "data", f"{root} is not there yet; `dvc repro download` puts it there ({source})")
    try:
        ids = [image_id for split in voc.list_splits(root) for image_id in voc.read_split(root, split)]
        names = voc.read_class_names(root)
    except PipelineError as error:
        return Finding("fail", "data", str(error))
    if names != _class_names(params, names):
        return Finding("note", "data", f"{root} holds another data set; `dvc repro download` replaces it ({source})")
    files = [path for i in ids for path in (voc.image_path(root, i), voc.mask_path(root, i))]
    missing = [path for path in files if not path.exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Finding(
            "fail", "data", f"{missing[0]}{more} missing; run `dvc repro --force download`, or `dvc checkout`"
        )
    return Finding("ok", "data", f"{len(ids)} images of {len(names)} classes in {root}")


def _class_names(params: Params, otherwise: tuple[str, ...]) -> tuple[str, ...]:
    """Classes of the data set that the profile asks for; `otherwise` if only an archive could say."""
    options = params.download
    if isinstance(options, FolderData):
        source = Path(options.path).expanduser()
        return voc.read_class_names(source) if (source / "classes.txt").exists() else otherwise
    return VOC_CLASSES if isinstance(options, Voc2012Data) else CLASS_NAMES


def _sources(params: Params, folder: Path, *, data_is_there: bool) -> Iterator[Finding]:
    """The files that download reads, unless the profile's data set is there."""
    options = params.download
    files: dict[str, tuple[str, RemoteFile]] = {}
    if isinstance(options, Voc2012Data) and not data_is_there:
        files["archive of VOC2012"] = VOC2012_ARCHIVE, options.archive
        if options.train_split == "trainaug" and options.sbd is not None:
            files["archive of SBD"] = SBD_ARCHIVE, options.sbd
    if isinstance(options, FolderData):
        yield _own_folder(Path(options.path).expanduser(), folder / "data" / "voc" / "classes.txt")
    weights, name = params.pretrain.weights.file, params.pretrain.weights.file_name
    if weights is not None and not (folder / "data" / "weights" / Path(weights.path or name).name).exists():
        files["initial weights"] = name, weights
    for subject, (name, file) in files.items():
        yield _source(subject, name, file)


def _own_folder(path: Path, copy: Path) -> Finding:
    if not path.exists():
        return Finding("fail", "your data", f"{path} is missing; correct download.path in params.yaml")
    newest = max((p.stat().st_mtime for p in (path, *path.rglob("*"))), default=0.0)
    if copy.exists() and newest > copy.stat().st_mtime:
        text = f"{path} has changed since it was copied; `dvc repro` copies it again"
        return Finding("note", "your data", text)
    return Finding("ok", "your data", f"{path} is there")


def _source(subject: str, name: str, file: RemoteFile) -> Finding:
    if file.path is not None:
        path = Path(file.path).expanduser()
        if not path.is_file():
            return Finding("fail", subject, f"{path}: missing; correct the path in params.yaml, or null to fetch it")
        if file.checksum is None:
            return Finding("ok", subject, f"{path}, unchecked")
        return _checked(subject, path, file.checksum, "correct the path in params.yaml, or set the checksum to null")
    assert file.checksum is not None  # `RemoteFile` demands one of what is fetched
    path = cached_path(CACHE, name, file.checksum)
    if path.exists():
        return _checked(subject, path, file.checksum, "delete it, and `dvc repro download` fetches it again")
    reasons = []
    for url in file.mirrors:
        if (problem := problem_at(url)) is None:
            return Finding("ok", subject, f"{url} answers; `dvc repro download` fetches it")
        reasons.append(f"{url}: {problem}")
    return Finding("fail", subject, f"no mirror answers ({'; '.join(reasons)}); download it by hand to {path}")


def _checked(subject: str, path: Path, checksum: str, remedy: str) -> Finding:
    try:
        check_file(path, checksum, remedy)
    except PipelineError as error:
        return Finding("fail", subject, str(error))
    return Finding("ok", subject, f"{path}, intact")


def _weights(folder: Path) -> Finding:
    models = folder / "models"
    found = sorted(str(path.relative_to(models).with_suffix("")) for path in models.rglob("*.safetensors"))
    if not found:
        return Finding(
            "note", "weights", "nothing trained here yet; `dvc repro` trains, `dvc pull` fetches from a remote"
        )
    return Finding("ok", "weights", f"trained: {', '.join(found)}")


def _memory(params: Params, folder: Path, device: Device | None) -> Finding:
    needed = max(training_bytes(params), evaluation_bytes(params, largest_image(params, folder)))
    if device is not None and device.accelerator == "cuda":
        import torch

        available, where = torch.cuda.mem_get_info()[0], "of GPU memory"
    else:
        import psutil

        available, where = psutil.virtual_memory().available, "of memory"
    need, free = f"{needed / GIGABYTE:.1f} GB", f"{available / GIGABYTE:.1f} GB {where}"
    text = f"a step of finetune or evaluate needs up to about {need}, {free} are free"
    if needed > available:
        return Finding(
            "fail",
            "memory",
            f"{text}; lower batch_size or crop_size of finetune, or evaluate.batch_size, or raise "
            "accumulate_grad_batches",
        )
    return Finding("ok", "memory", text)


def _disk(params: Params, folder: Path, *, data_is_there: bool) -> Finding:
    needed = disk_bytes(params, data_is_there=data_is_there)
    free = shutil.disk_usage(folder.absolute()).free
    text = f"a run needs about {needed / GIGABYTE:.1f} GB, {free / GIGABYTE:.1f} GB are free"
    if needed > free:
        return Finding("fail", "disk", f"{text}; free some space, or `dvc gc --workspace` clears old results")
    return Finding("ok", "disk", text)


def _tracking() -> Finding:
    uri = tracking_uri()
    shown = without_credentials(uri)
    if not uri.startswith("http"):
        return Finding("ok", "tracking", f"{shown}, no server needed; `gain ui` shows it")
    if (problem := problem_with(uri)) is None:
        return Finding("ok", "tracking", f"{shown} answers")
    return Finding("note", "tracking", f"{shown}: {problem}; runs would wait in .tracking until it does")


def _remote() -> Finding:
    try:
        found = default_remote(Path())
    except PipelineError as error:
        return Finding("note", "DVC remote", str(error))
    if found is None:
        return Finding("note", "DVC remote", "none; results stay here until `dvc remote add --default NAME URL`")
    return Finding("ok", "DVC remote", f"{found} answers")


def _prefect() -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("note", "Prefect", "PREFECT_API_URL is not set; `dvc repro` needs no server")
    if (problem := problem_with(url)) is None:
        return Finding("ok", "Prefect", f"{without_credentials(url)} answers")
    return Finding("note", "Prefect", f"{without_credentials(url)}: {problem}; start it, or unset PREFECT_API_URL")
