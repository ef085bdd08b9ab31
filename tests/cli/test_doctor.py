"""What the doctor says of servers, remotes, memory and disk; the whole report is in test_voc_dag.py."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import pipeline.cli.doctor
import pipeline.flows.services
import pipeline.tracking.server
from pipeline.base.params import load_params
from pipeline.base.remote_files import RemoteFile
from pipeline.cli.doctor import examine
from pipeline.training.devices import Device

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def diagnose(tmp_path, monkeypatch):
    """The finding on a subject, for a profile, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)

    def finding(subject: str, profile: str = "smoke"):
        found = {f.subject: f for f in examine(load_params(PARAMS, profile=profile), tmp_path)}
        assert all("\n" not in f.text for f in found.values())
        return found[subject]

    return finding


@pytest.fixture
def health() -> Iterator[str]:
    """A server that passes its health check below /good, has /file and /page, is silent below /silent, else 500."""
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/silent"):
                stopping.wait(60)
                return
            self.send_response(200 if self.path in ("/good/health", "/file", "/page") else 500)
            self.end_headers()
            self.wfile.write(b"<!doctype html>" if self.path == "/page" else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("variable", "subject"), [("MLFLOW_TRACKING_URI", "tracking"), ("PREFECT_API_URL", "Prefect")])
def test_servers_are_asked_and_do_not_decide(diagnose, health, monkeypatch, variable, subject):
    """A run goes on without them, so silence is worth a note and not a failure."""
    monkeypatch.setenv(variable, f"{health}/good")
    assert diagnose(subject) == ("ok", subject, f"{health}/good answers")
    monkeypatch.setenv(variable, f"{health}/bad")
    assert "HTTP 500" in diagnose(subject).text
    with socket.socket() as free:  # bound, and not listening
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free.getsockname()[1]}")
        found = diagnose(subject)
    assert "cannot be reached" in found.text
    assert found.verdict == "note"
    monkeypatch.setattr(pipeline.tracking.server, "ANSWER_SECONDS", 0.2)
    monkeypatch.setenv(variable, f"{health}/silent")
    assert "no answer within" in diagnose(subject).text


def test_local_tracking_and_no_prefect_are_fine(diagnose):
    assert "no server needed" in diagnose("tracking").text
    assert "PREFECT_API_URL is not set" in diagnose("Prefect").text


@pytest.mark.system
def test_remote_is_asked_by_dvc(diagnose, tmp_path):
    assert "none; results stay here" in diagnose("DVC remote").text
    (tmp_path / "store").mkdir()
    for arguments in (["init", "--no-scm"], ["remote", "add", "--default", "team", "store"]):
        subprocess.run([sys.executable, "-m", "dvc", "--quiet", *arguments], cwd=tmp_path, check=True)
    found = diagnose("DVC remote")
    assert found.verdict == "ok"
    assert found.text.startswith("team (")


def test_remote_that_never_answers_is_left(diagnose, monkeypatch):
    import dvc.repo

    monkeypatch.setattr(pipeline.flows.services, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(dvc.repo, "Repo", lambda _: time.sleep(60))
    assert "does not answer (no answer within" in diagnose("DVC remote").text


def test_memory_and_disk_that_do_not_suffice_fail(diagnose, monkeypatch):
    import psutil

    cpu = Device("cpu", "32-true", "cpu")
    monkeypatch.setattr(pipeline.cli.doctor, "choose_device", lambda *_: cpu)
    assert diagnose("memory").verdict == diagnose("disk").verdict == "ok"
    memory, usage = psutil.virtual_memory(), shutil.disk_usage("/")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=10**6))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    assert diagnose("memory").verdict == diagnose("disk").verdict == "fail"
    assert "lower batch_size or crop_size" in diagnose("memory").text


def test_memory_of_a_gpu_is_asked_of_the_gpu(diagnose, monkeypatch):
    import torch

    monkeypatch.setattr(pipeline.cli.doctor, "choose_device", lambda *_: Device("cuda", "bf16-mixed", "cuda:0"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**6, 10**10))
    found = diagnose("memory")
    assert found.verdict == "fail"
    assert "of GPU memory are free" in found.text


def test_local_and_fetched_files_are_checked(health, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    right, wrong = f"md5:{hashlib.md5(b'x').hexdigest()}", f"md5:{'0' * 32}"

    def finding(**values: object):
        file = RemoteFile(**{"mirrors": [], "checksum": None, "max_gigabytes": 0.1, **values})
        folder = tmp_path / "project"
        if file.path is None:
            return pipeline.cli.doctor._mirrored("weights", "w.pth", file)
        return pipeline.cli.doctor._named("weights", ("pretrain.weights.file.path", file.path), file, folder)

    path = str(tmp_path / "w.pth")
    assert finding(path=path).text == f"{path}, unchecked"
    assert finding(path=path, checksum=right).verdict == "ok"
    assert "or set the checksum to null" in finding(path=path, checksum=wrong).text
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.pth"
        found = finding(path=None, mirrors=[url], checksum=right)
    assert found.verdict == "fail"
    assert f"no mirror delivers it ({url}: no connection)" in found.text
    assert "download it by hand to" in found.text
    found = finding(path=None, mirrors=[f"{health}/missing", f"{health}/file"], checksum=right)
    assert found == ("ok", "weights", f"{health}/file answers; `dvc repro download` fetches it")
    found = finding(path=None, mirrors=[f"{health}/page"], checksum=right)
    assert found.verdict == "fail"
    assert f"no mirror delivers it ({health}/page: an HTML page instead of the file: it has moved" in found.text
    assert finding(path=path, checksum={"new": wrong, "old": right}).text == f"{path}, intact, the version 'old'"
    (tmp_path / "w.pth").write_bytes(b"<html>")
    assert f"{path}: an HTML page, not the file" in finding(path=path).text


def test_incomplete_data_names_the_first_file_and_how_many(diagnose, tmp_path):
    from pipeline.datasets.embedded import draw_dataset

    draw_dataset(tmp_path / "data" / "voc", load_params(PARAMS, profile="smoke").download, seed=0)
    assert diagnose("data").verdict == "ok"
    images = sorted((tmp_path / "data/voc/JPEGImages").iterdir())
    for path in images[:3]:
        path.unlink()
    found = diagnose("data")
    assert found.verdict == "fail"
    assert "and 2 more missing; run `dvc repro --force download`" in found.text


def test_other_data_set_than_the_profiles_is_not_taken_for_it(diagnose, tmp_path):
    root = tmp_path / "data" / "voc"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "classes.txt").write_text("cat\n")
    for split in ("train", "val", "test"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{split}\n")
    assert "holds another data set" in diagnose("data").text


def test_folder_that_changed_since_it_was_copied_is_reported(voc_copy):
    source, folder = voc_copy
    assert pipeline.cli.doctor._own_folder(str(source), folder).text.endswith("is there")
    os.utime(source / "JPEGImages" / "a.jpg", (time.time() + 60,) * 2)
    found = pipeline.cli.doctor._own_folder(str(source), folder)
    assert "has changed since it was copied; `dvc repro` copies it again" in found.text
    assert pipeline.cli.doctor._own_folder(str(source / "none"), folder).verdict == "fail"


@pytest.fixture
def voc_copy(tmp_path) -> tuple[Path, Path]:
    """A folder with an image, and the project whose copy of it was written later."""
    (tmp_path / "mine" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "mine" / "JPEGImages" / "a.jpg").write_bytes(b"x")
    copy = tmp_path / "project" / "data" / "voc" / "classes.txt"
    copy.parent.mkdir(parents=True)
    copy.write_text("cat\n")
    os.utime(copy, (time.time() + 5,) * 2)
    return tmp_path / "mine", tmp_path / "project"


# ---- addresses, of which test_address.py has more --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "address", "subject"),
    [
        ("MLFLOW_TRACKING_URI", "foo://user:secret@x", "tracking"),
        ("MLFLOW_TRACKING_URI", "postgresql://user:secret@host/db", "tracking"),
        ("PREFECT_API_URL", "foo://user:secret@x/api", "Prefect"),
    ],
)
def test_address_that_cannot_work_is_a_failure(diagnose, monkeypatch, variable, address, subject):
    monkeypatch.setenv(variable, address)
    found = diagnose(subject)
    assert found.verdict == "fail"
    assert "secret" not in found.text
    assert found.text.endswith(f"; correct {variable}, or unset it")


# ---- weights ---------------------------------------------------------------------------------------------------------

RESOLVED = "reports/configure/params.yaml"


def recorded(folder: Path, profile: str, **changed: object) -> None:
    """Weights of a training of one byte each, and what DVC would record of them."""
    values = load_params(PARAMS, profile=profile).model_dump(mode="json", by_alias=True)
    stages: dict[str, object] = {}
    before = None
    for name in ("pretrain", "classify", "finetune/control", "finetune/gain", "finetune/gain_ext"):
        path = folder / "models" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{profile} {name}")
        section = name.split("/")[0]
        stages[name.replace("/", "@")] = {
            "params": {RESOLVED: {"seed": values["seed"], section: values[section], **changed}},
            "deps": [{"path": before}] if before else [],
            "outs": [{"path": f"models/{name}.safetensors", "md5": hashlib.md5(path.read_bytes()).hexdigest()}],
        }
        before = f"models/{name}.safetensors" if section != "finetune" else before
    (folder / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))


def test_weights_are_those_of_the_profile_that_is_asked_for(diagnose, tmp_path):
    assert diagnose("weights").verdict == "note"
    assert diagnose("weights").text.startswith("nothing trained here yet; ")
    recorded(tmp_path, "smoke")
    names = "pretrain, classify, finetune/control, finetune/gain, finetune/gain_ext"
    assert diagnose("weights", "smoke") == ("ok", "weights", f"trained with profile smoke: {names}")
    for profile in ("embedded", "voc2012"):
        other = diagnose("weights", profile)
        assert other.verdict == "note"
        assert other.text.startswith(f"trained with other values, or not recorded in dvc.lock: {names}; ")


def test_weights_after_a_stage_with_other_values_are_none_of_the_profile(diagnose, tmp_path):
    recorded(tmp_path, "smoke")
    lock = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    lock["stages"]["classify"]["params"][RESOLVED]["classify"]["num_epochs"] = 9
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    found = diagnose("weights")
    assert found.verdict == "note"
    assert found.text.startswith("trained with profile smoke: pretrain; trained with other values, or not recorded in ")


def test_weights_that_dvc_has_not_recorded_are_not_taken_for_the_profiles(diagnose, tmp_path):
    recorded(tmp_path, "smoke")
    (tmp_path / "models" / "finetune" / "gain.safetensors").write_text("from elsewhere")
    (tmp_path / "models" / "finetune" / "gain_ext.safetensors").unlink()
    text = diagnose("weights").text
    assert "trained with profile smoke: pretrain, classify, finetune/control; " in text
    assert "trained with other values, or not recorded in dvc.lock: finetune/gain; " in text
    assert "not trained yet: finetune/gain_ext; " in text


def test_matrix_of_dvc_that_does_not_fit_is_a_failure(diagnose, tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {finetune: {matrix: {variant: [control, gain, gain_ex]}}}\n")
    found = diagnose("configuration")
    assert found.verdict == "fail"
    assert "did you mean 'gain_ext'?" in found.text
