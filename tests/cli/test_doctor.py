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

import pipeline.cli.doctor
import pipeline.flows.services
import pipeline.tracking.server
from pipeline.base.params import load_params
from pipeline.base.sections import RemoteFile
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
    """A server that passes its health check below /good, has /file, says 500 elsewhere, is silent below /silent."""
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/silent"):
                stopping.wait(60)
                return
            self.send_response(200 if self.path in ("/good/health", "/file") else 500)
            self.end_headers()

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
        return pipeline.cli.doctor._source(
            "weights", "w.pth", RemoteFile(**{"mirrors": [], "checksum": None, **values})
        )

    path = str(tmp_path / "w.pth")
    assert finding(path=path).text == f"{path}, unchecked"
    assert finding(path=path, checksum=right).verdict == "ok"
    assert "or set the checksum to null" in finding(path=path, checksum=wrong).text
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.pth"
        found = finding(path=None, mirrors=[url], checksum=right)
    assert found.verdict == "fail"
    assert f"no mirror answers ({url}: " in found.text
    assert "download it by hand to" in found.text
    found = finding(path=None, mirrors=[f"{health}/missing", f"{health}/file"], checksum=right)
    assert found == ("ok", "weights", f"{health}/file answers; `dvc repro download` fetches it")


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
    source, copy = voc_copy
    assert pipeline.cli.doctor._own_folder(source, copy).text.endswith("is there")
    os.utime(source / "JPEGImages" / "a.jpg", (time.time() + 60,) * 2)
    assert (
        "has changed since it was copied; `dvc repro` copies it again"
        in pipeline.cli.doctor._own_folder(source, copy).text
    )
    assert pipeline.cli.doctor._own_folder(source / "none", copy).verdict == "fail"


@pytest.fixture
def voc_copy(tmp_path) -> tuple[Path, Path]:
    """A folder with an image, and the classes.txt of its copy, written later."""
    (tmp_path / "mine" / "JPEGImages").mkdir(parents=True)
    (tmp_path / "mine" / "JPEGImages" / "a.jpg").write_bytes(b"x")
    copy = tmp_path / "classes.txt"
    copy.write_text("cat\n")
    os.utime(copy, (time.time() + 5,) * 2)
    return tmp_path / "mine", copy
