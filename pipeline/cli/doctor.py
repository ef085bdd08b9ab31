"""`gain doctor`: whether the chosen profile can run here, what is missing, and the command that gets it."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.base.dvc_files import check_matrix, dvc_project
from pipeline.base.errors import PipelineError
from pipeline.base.outside import located, outside_files
from pipeline.base.profile import Params
from pipeline.base.remote_files import RemoteFile
from pipeline.base.secrets import without_secrets
from pipeline.base.sections import FolderData, Voc2012Data
from pipeline.base.workspace import Workspace
from pipeline.cli.estimates import disk_bytes, evaluation_bytes, largest_image, training_bytes
from pipeline.cli.trained import trained, trainings
from pipeline.data import voc
from pipeline.datasets.embedded import CLASS_NAMES
from pipeline.datasets.fetch import CACHE, cached_path, check_file
from pipeline.datasets.mirrors import GIGABYTE, problem_at_mirror
from pipeline.datasets.sbd import SBD_ARCHIVE
from pipeline.datasets.voc2012 import VOC2012_ARCHIVE, VOC_CLASSES
from pipeline.flows.services import default_remote
from pipeline.tracking.address import unusable_server, unusable_tracking
from pipeline.tracking.server import problem_with, tracking_uri
from pipeline.training.devices import Device, choose_device


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
    yield from _configuration(params, folder)
    data = _data(params, folder)
    yield data
    yield from _sources(params, folder, data_is_there=data.verdict == "ok")
    yield _weights(params, folder)
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


def _configuration(params: Params, folder: Path) -> Iterator[Finding]:
    """What the stage configure refuses or warns of, save the files, which `_sources` looks at."""
    try:
        check_matrix(params, dvc_project(folder) / "dvc.yaml")
    except PipelineError as error:
        yield Finding("fail", "configuration", str(error))
    yield from (Finding("note", "configuration", doubt) for doubt in params.doubts)


def _data(params: Params, folder: Path) -> Finding:
    root = folder / "data" / "voc"
    source = params.download.source
    if not root.exists():
        return Finding("note", "data", f"{root} is not there yet; `dvc repro download` puts it there ({source})")
    try:
        ids = [image_id for split in voc.list_splits(root) for image_id in voc.read_split(root, split)]
        names = voc.read_class_names(root)
        asked = _class_names(params, names)
    except PipelineError as error:
        return Finding("fail", "data", str(error))
    if names != asked:
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
        source = Path(os.path.expanduser(options.path))  # noqa: PTH111 - Path.expanduser fails without such a user
        return voc.read_class_names(source) if (source / "classes.txt").is_file() else otherwise
    return VOC_CLASSES if isinstance(options, Voc2012Data) else CLASS_NAMES


def _sources(params: Params, folder: Path, *, data_is_there: bool) -> Iterator[Finding]:
    """The files that download reads; those from mirrors only if what they hold is not in place."""
    options, weights, asked = params.download, params.pretrain.weights, outside_files(params)
    files: list[
        tuple[str, str, str, RemoteFile, bool]
    ] = []  # link, subject, name, file, whether its content is in place
    if isinstance(options, FolderData):
        yield _own_folder(options.path, folder)
    if isinstance(options, Voc2012Data):
        files.append(("data", "archive of VOC2012", VOC2012_ARCHIVE, options.archive, data_is_there))
        if options.sbd is not None and options.train_split == "trainaug":
            files.append(("sbd", "archive of SBD", SBD_ARCHIVE, options.sbd, data_is_there))
    if weights.file is not None:
        copy = folder / "data" / "weights" / weights.file_name
        files.append(("weights", "initial weights", weights.file_name, weights.file, copy.exists()))
    for link, subject, name, file, in_place in files:
        if (entry := asked[link]) is not None:
            yield _named(subject, entry, file, folder)
        elif not in_place:
            yield _mirrored(subject, name, file)


def _own_folder(text: str, folder: Path) -> Finding:
    try:
        path = located("download.path", text, Workspace(folder))
    except PipelineError as error:
        return Finding("fail", "your data", str(error))
    newest = max((p.stat().st_mtime for p in (path, *path.rglob("*"))), default=0.0)
    copy = folder / "data" / "voc" / "classes.txt"
    if copy.exists() and newest > copy.stat().st_mtime:
        return Finding("note", "your data", f"{text} has changed since it was copied; `dvc repro` copies it again")
    return Finding("ok", "your data", f"{text} is there")


def _named(subject: str, entry: tuple[str, str], file: RemoteFile, folder: Path) -> Finding:
    try:
        path = located(*entry, Workspace(folder))
    except PipelineError as error:
        return Finding("fail", subject, str(error))
    return _checked(subject, path, file.checksums, "correct the path in params.yaml, or set the checksum to null")


def _mirrored(subject: str, name: str, file: RemoteFile) -> Finding:
    assert file.max_gigabytes is not None  # `RemoteFile` demands it of what is fetched
    places = {checksum: cached_path(CACHE, name, checksum) for checksum in file.checksums}
    for checksum, path in places.items():
        if path.exists():
            accepted = {checksum: file.checksums[checksum]}
            return _checked(subject, path, accepted, "delete it, and `dvc repro download` fetches it again")
    reasons = []
    for url in file.mirrors:
        if (problem := problem_at_mirror(url, int(file.max_gigabytes * GIGABYTE))) is None:
            return Finding("ok", subject, f"{without_secrets(url)} answers; `dvc repro download` fetches it")
        reasons.append(f"{without_secrets(url)}: {problem}")
    by_hand = next(iter(places.values()))
    return Finding("fail", subject, f"no mirror delivers it ({'; '.join(reasons)}); download it by hand to {by_hand}")


def _checked(subject: str, path: Path, checksums: dict[str, str], remedy: str) -> Finding:
    try:
        found = check_file(path, checksums, remedy)
    except PipelineError as error:
        return Finding("fail", subject, str(error))
    if not checksums:
        return Finding("ok", subject, f"{path}, unchecked")
    version = f", the version {checksums[found]!r}" if checksums[found] else ""
    return Finding("ok", subject, f"{path}, intact{version}")


def _weights(params: Params, folder: Path) -> Finding:
    """Whether the weights of this profile are here; those of another profile have the same names."""
    names, own = trainings(params), trained(params, Workspace(folder))
    others = [name for name in names if (folder / "models" / f"{name}.safetensors").exists() and name not in own]
    parts = [f"trained with profile {params.profile}: {', '.join(own)}"] if own else []
    if others:
        parts.append(f"trained with other values, or not recorded in dvc.lock: {', '.join(others)}")
    if own == names:
        return Finding("ok", "weights", parts[0])
    missing = [name for name in names if name not in (*own, *others)]
    if missing == names:
        parts = ["nothing trained here yet"]
    elif missing:
        parts.append(f"not trained yet: {', '.join(missing)}")
    return Finding("note", "weights", f"{'; '.join(parts)}; `dvc repro` trains, `dvc pull` fetches from a remote")


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
    shown = without_secrets(uri)
    if (problem := unusable_tracking(uri)) is not None:
        return Finding("fail", "tracking", f"{shown} {problem}; correct MLFLOW_TRACKING_URI, or unset it")
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
    if (problem := unusable_server(url)) is not None:
        return Finding("fail", "Prefect", f"{without_secrets(url)} {problem}; correct PREFECT_API_URL, or unset it")
    if (problem := problem_with(url)) is None:
        return Finding("ok", "Prefect", f"{without_secrets(url)} answers")
    return Finding("note", "Prefect", f"{without_secrets(url)}: {problem}; start it, or unset PREFECT_API_URL")
