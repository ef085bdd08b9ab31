"""From an archive in VOC2012's layout and a checkpoint with pytorch-fcn's keys, both served on loopback, to a model."""

import csv
import hashlib
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkouts import checkout, dvc, dvc_checkout, gain, one_line, set_params, stage, tracking_database
from PIL import Image
from small_archives import pytorch_fcn_state, slim_vgg16, voc2012_ids, write_sbd, write_voc2012

import pipeline.base.sections
from pipeline.data import voc
from pipeline.data.manifest import read_manifest
from pipeline.datasets.archives import unpack
from pipeline.datasets.voc2012 import VOC2012_FOLDER, VOC_CLASSES
from pipeline.model.weights import load_weights

pytestmark = pytest.mark.system

SMALL = {
    ".runtime.precision": "32-true",
    ".resources.num_workers": 0,
    ".prepare.allow": ["missing_classes"],  # twelve images to validate and test cannot show twenty classes
    ".model.width": 0.0625,
    ".model.fc_channels": 12,
    ".model.head_channels": 8,
    ".classify.num_epochs": 1,
    ".classify.batch_size": 8,
    ".classify.crop_size": 48,
    ".classify.num_panel_images": 2,
    ".finetune.num_epochs": 1,
    ".finetune.crop_size": 48,
    ".finetune.num_panel_images": 2,
    ".attention.pixel_labels": {"count": 8},
    ".evaluate.num_replicates": 100,
    ".evaluate.num_panels": 2,
    ".evaluate.num_page_images": 4,
    ".evaluate.num_deletion_images": 2,
    ".evaluate.deletion_steps": 2,
}
FROM_IMAGENET = {".pretrain.num_epochs": 1, ".pretrain.batch_size": 4, ".pretrain.crop_size": 48}
SBD_ONLY = [f"2008_{900000 + i}" for i in range(4)]
STAGES = (
    ["configure"], ["download"], ["prepare"], ["counterfactual"], ["pretrain"], ["classify"],
    ["finetune", "control"], ["finetune", "gain"], ["finetune", "gain_ext"], ["evaluate"], ["register"],
)  # fmt: skip


def masks_of_sbd(archive: Path) -> dict[str, np.ndarray]:
    """A mask for each image that VOC2012 does not segment."""
    masks = {}
    with tarfile.open(archive) as tar:
        for number, image_id in enumerate(SBD_ONLY, start=1):
            with Image.open(tar.extractfile(f"{VOC2012_FOLDER}/JPEGImages/{image_id}.jpg")) as image:
                masks[image_id] = np.full((image.height, image.width), number, np.uint8)
    return masks


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A server with the two files, what params.yaml must say of them, and the paths asked of it."""
    folder = tmp_path_factory.mktemp("served")
    archive = write_voc2012(folder / "voc.tar", *voc2012_ids(24, 12), others=SBD_ONLY)
    write_sbd(folder / "benchmark.tgz", masks_of_sbd(archive), SBD_ONLY, [])
    torch.save(pytorch_fcn_state(), folder / "fcn8s_from_caffe.pth")
    torch.save(slim_vgg16().state_dict(), folder / "vgg16.pth")
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    server.handle_error = lambda *_: None  # the doctor hangs up as soon as it has seen an answer
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"

    def remote(path: Path) -> dict[str, object]:
        checksum = f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"
        mirrors = [f"{url}/gone/{path.name}", f"{url}/{path.name}"]
        return {"path": None, "mirrors": mirrors, "checksum": checksum, "max_gigabytes": 0.1}

    weights = remote(folder / "fcn8s_from_caffe.pth")
    weights["checksum"] = {"today's": f"sha256:{'0' * 64}", "of 2018": weights["checksum"]}
    sbd = {".download.sbd": remote(folder / "benchmark.tgz")}
    yield SimpleNamespace(
        requests=requests,
        archive=archive,
        vgg16=remote(folder / "vgg16.pth"),
        changes={**SMALL, ".download.archive": remote(archive), ".pretrain.weights.file": weights},
        from_imagenet={**SMALL, **FROM_IMAGENET, ".download.archive": remote(archive), **sbd},
    )
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def repro(served, tmp_path_factory) -> Path:
    """A checkout in which the stages have run on the profile voc2012, its networks slim, and DVC has their results."""
    folder = dvc_checkout(tmp_path_factory.mktemp("voc") / "repo", "voc2012", **served.changes)
    tracking_database(folder / "mlflow.db")
    for name, *arguments in STAGES:
        result = stage(folder, name, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    assert dvc(folder, "commit", "--force").returncode == 0
    return folder


def test_published_weights_are_what_pretraining_hands_on(repro):
    model, names = load_weights(repro / "models/pretrain.safetensors")
    assert names == VOC_CLASSES
    assert model.architecture["input_space"] == "caffe_bgr"
    state = pytorch_fcn_state()
    assert torch.equal(model.trunk.conv3_1.weight, state["conv3_1.weight"])
    assert torch.equal(model.decoder.score_pool4.weight, state["score_pool4.weight"])
    summary = json.loads((repro / "reports/pretrain/summary.json").read_text())
    assert 0 <= summary["val/mean_iou"] <= 1
    # The trunk that classify froze is the imported one; finetune has moved it.
    assert torch.equal(
        load_weights(repro / "models/classify.safetensors")[0].trunk.conv3_1.weight, model.trunk.conv3_1.weight
    )
    tuned, _ = load_weights(repro / "models/finetune/gain_ext.safetensors")
    assert tuned.architecture["input_space"] == "caffe_bgr"
    assert not torch.equal(tuned.trunk.conv3_1.weight, model.trunk.conv3_1.weight)


def test_every_model_is_scored_on_every_pixel_at_native_resolution(repro):
    metrics = json.loads((repro / "reports/evaluate/metrics.json").read_text())
    rows = [row for row in read_manifest(repro / "data/manifest.csv") if row.split == "test"]
    pixels = sum(row.height * row.width for row in rows)
    correct = metrics["pretrained"]["segmentation"]["pixel_accuracy"]
    with (repro / "data/manifest.csv").open() as file:
        void = sum(int(row["pixels_void"]) for row in csv.DictReader(file) if row["split"] == "test")
    # A share of exactly the pixels that are not void; another number of pixels would leave a fraction.
    assert correct * (pixels - void) == pytest.approx(round(correct * (pixels - void)), abs=1e-6)
    assert list(metrics) == ["pretrained", "control", "gain", "gain_ext"]
    # VOC has no drawn counterfactual sets. Each class is in one test image alone: nothing can be put on its ground.
    assert set(metrics["gain_ext"]) == {"segmentation", "classification", "attention", "counterfactual"}
    assert set(metrics["gain_ext"]["counterfactual"]) == {"only_object", "no_object_filled", "no_object_mean"}
    assert len({(row.height, row.width) for row in read_manifest(repro / "data/manifest.csv")}) > 10
    report = (repro / "reports/evaluate/report.md").read_text()
    assert "mean IoU" in report
    assert "worst group" not in report
    assert (repro / "reports/evaluate/pictures/gain_ext/attention_evolution.png").exists()


def test_model_is_registered(repro):
    challenger = json.loads((repro / "reports/register/challenger.json").read_text())
    assert challenger["registered_model_name"] == "fcn8s-gain-voc2012"


def test_second_repro_asks_no_server(repro, served):
    asked = len(served.requests)
    result = dvc(repro, "repro")
    assert result.returncode == 0
    assert "Running stage" not in result.stdout + result.stderr
    again = stage(repro, "download")
    assert again.returncode == 0
    assert "pytorch_fcn8s.pth: the version 'of 2018', by its checksum" in again.stdout
    assert len(served.requests) == asked
    assert (repro / "data/weights/pytorch_fcn8s.pth").exists()


def test_from_imagenet_to_scores_without_a_file_by_hand(served, tmp_path, monkeypatch):
    """Profile voc2012-imagenet, its weights `file: null`, torchvision's address on loopback; then without a network."""
    monkeypatch.setattr(pipeline.base.sections, "PUBLISHED_VGG16", served.vgg16)
    folder = checkout(tmp_path / "repo", "voc2012-imagenet", **served.from_imagenet)
    tracking_database(folder / "mlflow.db")
    online = gain(folder, "doctor")
    assert failures(online.stdout) == []
    for name in ("voc.tar", "benchmark.tgz", "vgg16.pth"):
        assert f"{name} answers; `dvc repro download` fetches it" in online.stdout
    for name, *arguments in STAGES[:-1]:
        result = stage(folder, name, *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
    metrics = json.loads((folder / "reports/evaluate/metrics.json").read_text())
    assert list(metrics) == ["pretrained", "control", "gain", "gain_ext"]
    assert set(SBD_ONLY) < set(voc.read_split(folder / "data/voc", "train"))
    model, _ = load_weights(folder / "models/pretrain.safetensors")
    assert (model.architecture["input_space"], model.architecture["padding"]) == ("imagenet_rgb", 1)
    start = torch.load(served.archive.with_name("vgg16.pth"))["features.10.weight"]
    assert 0 < (model.trunk.conv3_1.weight.detach() - start).abs().max() < 0.01  # an epoch at a small rate from there

    offline = checkout(tmp_path / "offline", "voc2012-imagenet", **served.from_imagenet)
    silent = {"mirrors": ["http://127.0.0.1:9/file"]}
    monkeypatch.setattr(pipeline.base.sections, "PUBLISHED_VGG16", {**served.vgg16, **silent})
    for changed in (folder, offline):
        files = {key: {**served.from_imagenet[key], **silent} for key in (".download.archive", ".download.sbd")}
        set_params(changed, files)
    assert failures(gain(folder, "doctor").stdout) == []  # all is here
    missing = gain(offline, "doctor")
    assert failures(missing.stdout) == ["archive of VOC2012", "archive of SBD", "initial weights"]
    assert "no mirror delivers it (http://127.0.0.1:9/file: no connection); download it by hand to" in missing.stdout
    one_line_at_the_end = stage(offline, "download").stderr.splitlines()[-1]
    assert one_line_at_the_end.startswith("download: error: VOCtrainval_11-May-2012.tar: no mirror delivered it")


def test_archive_that_the_user_has_is_taken_from_there(served, tmp_path):
    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    set_params(folder, {".download.archive.path": str(served.archive), ".download.archive.mirrors": []})
    asked = len(served.requests)
    result = stage(folder, "download")
    assert result.returncode == 0, result.stderr
    assert not any("voc.tar" in path for path in served.requests[asked:])
    assert len(voc.read_split(folder / "data/voc", "train")) == 24


def test_failed_download_is_one_line_and_leaves_nothing_half_written(served, tmp_path):
    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    set_params(folder, {".download.archive.checksum": f"md5:{'0' * 32}"})
    result = stage(folder, "download")
    assert result.returncode == 1
    assert "no mirror delivered it" in result.stderr.splitlines()[-1]
    assert "HTTP 404" in result.stderr
    assert "wrong checksum" in result.stderr
    assert not (folder / "data").exists()
    assert not [path for path in (folder / ".downloads").rglob("*") if path.is_file()]


def hostile(path: Path, kind: str) -> Path:
    """An archive with the right checksum that means harm."""
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo({"parent": "../../evil", "absolute": f"{path.parent}/evil"}.get(kind, "VOCdevkit/evil"))
        if kind == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        info.size = 10**15 if kind == "bomb" else 0  # a header alone: a petabyte is promised, never skipped over
        tar.addfile(info) if kind != "bomb" else tar.fileobj.write(info.tobuf())
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("parent", "would land outside the folder"),
        ("absolute", "would land outside the folder"),
        ("link", "is a link or a device"),
        ("bomb", "unpacks to more than"),
    ],
)
def test_hostile_archive_that_is_served_is_refused_in_one_line(served, tmp_path, kind, said):
    name = f"hostile-{kind}.tgz"
    path = hostile(served.archive.parent / name, kind)
    remote = served.changes[".download.archive"]
    changes = {
        ".download.archive.mirrors": [remote["mirrors"][1].replace("voc.tar", name)],
        ".download.archive.checksum": f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}",
    }
    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    set_params(folder, changes)
    one_line(stage(folder, "download"), said, "nothing of it is used")
    assert not (folder / "data/voc").exists()
    assert not list(tmp_path.rglob("evil"))
    assert not list(served.archive.parent.glob("evil"))


def test_zip_that_lies_about_its_size_is_refused_in_one_line(tmp_path):
    """Its header promises a megabyte for four bytes; test_archives.py has those that promise too much, or less."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("classes.txt", "cat\n")
    content = bytearray(path.read_bytes())
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = (10**6).to_bytes(4, "little")
    path.write_bytes(content)
    folder = checkout(tmp_path / "repo", "smoke")
    source = {"source": "folder", "path": str(path), "ignore_index": 255}
    set_params(folder, {".download": source, ".promote.better": ["attention_iou"]})
    one_line(stage(folder, "download"), "liar.zip", "bytes early")
    assert not (folder / "data/voc").exists()


@pytest.mark.parametrize("packed", [True, False])
def test_images_of_ones_own_are_trained_on_from_vgg16(served, tmp_path, packed):
    """As README has it: images, masks and lists, zipped or not, and torchvision's VGG16 to start from."""
    mine = tmp_path / "mine"
    unpack(served.archive, mine, wanted=lambda name: name.split("/")[2] in ("JPEGImages", "SegmentationClass"))
    source = mine / "VOCdevkit" / "VOC2012"
    lists = source / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (source / "classes.txt").write_text("\n".join(VOC_CLASSES))
    ids = sorted(path.stem for path in (source / "SegmentationClass").iterdir())
    for split, part in {"train": ids[:20], "val": ids[20:28], "test": ids[28:]}.items():
        (lists / f"{split}.txt").write_text("\n".join(part))
    path = shutil.make_archive(str(tmp_path / "mine"), "zip", mine / "VOCdevkit") if packed else str(source)
    vgg16 = slim_vgg16().state_dict()
    torch.save(vgg16, tmp_path / "vgg16.pth")
    weights = {"path": str(tmp_path / "vgg16.pth"), "mirrors": [], "checksum": None}
    changes = {
        **SMALL,
        ".download": {"source": "folder", "path": path, "ignore_index": 255},
        ".pretrain.num_epochs": 1,
        ".pretrain.batch_size": 4,  # scores start at 0: the trunk learns from the second step on
        ".pretrain.crop_size": 48,
        ".pretrain.weights": {"source": "imagenet", "file": weights},
    }
    folder = checkout(tmp_path / "repo", "voc2012", **changes)
    for name in ("download", "prepare", "pretrain"):
        result = stage(folder, name)
        assert result.returncode == 0, result.stderr
    assert (folder / "data/weights/vgg16.pth").exists()
    assert len(read_manifest(folder / "data/manifest.csv")) == 36
    trained, _ = load_weights(folder / "models/pretrain.safetensors")
    distance = (trained.trunk.conv3_1.weight.detach() - vgg16["features.10.weight"]).abs().max()
    assert 0 < distance < 0.01  # one epoch at a small rate from there


def test_weights_that_are_gone_are_named(repro, served, tmp_path):
    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    shutil.copytree(repro / "data", folder / "data")
    shutil.rmtree(folder / "data/weights")
    (folder / "data/weights").mkdir()
    one_line(stage(folder, "pretrain"), "holds no weights; run `dvc repro download`")


def test_images_of_many_sizes_need_a_crop(repro, tmp_path, served):
    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    (folder / "data").symlink_to(repro / "data")
    (folder / "models").symlink_to(repro / "models")
    set_params(folder, {".classify.crop_size": None, ".classify.scale": [1.0, 1.0]})
    one_line(stage(folder, "prepare"), "params.yaml: classify.crop_size: the training images have", "set a size")
    one_line(stage(folder, "classify"), "training images have", "set crop_size")


def failures(report: str) -> list[str]:
    """What the doctor finds wrong, except that the machine that tests is small."""
    subjects = [line[6:].split(":")[0] for line in report.splitlines() if line.startswith("fail")]
    return [subject for subject in subjects if subject not in ("memory", "disk")]


def test_doctor_names_what_is_missing_and_then_nothing(repro, served, tmp_path):
    healthy = gain(repro, "doctor")
    assert failures(healthy.stdout) == []
    assert "ok    data: 36 images of 20 classes" in healthy.stdout
    assert "ok    weights: trained with profile voc2012: pretrain, classify, finetune/control" in healthy.stdout

    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    fetchable = gain(folder, "doctor")
    assert failures(fetchable.stdout) == []
    assert "voc.tar answers; `dvc repro download` fetches it" in fetchable.stdout

    set_params(folder, {".download.archive.path": "/nowhere/voc.tar", ".runtime.device": "mps"})
    sick = gain(folder, "doctor")
    assert sick.returncode == 1
    assert (
        "fail  archive of VOC2012: params.yaml: download.archive.path: /nowhere/voc.tar does not exist" in sick.stdout
    )
    assert "fail  device: params.yaml: runtime.device: mps is not available" in sick.stdout
    assert failures(sick.stdout) == ["device", "archive of VOC2012"]
    assert sick.stderr.startswith("doctor: this profile cannot run here: device, archive of VOC2012")
    assert "Traceback" not in sick.stdout + sick.stderr


def test_doctor_warns_of_weights_that_have_seen_the_test_images(served, tmp_path):
    folder = checkout(tmp_path / "repo", "voc2012", **served.changes)
    set_params(folder, {".download.test_split": "val", ".download.num_val": 4})
    assert "note  configuration: the published FCN8s weights saw SBD-train" in gain(folder, "doctor").stdout
