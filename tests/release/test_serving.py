"""The registered model behind `mlflow models serve`, asked as a client asks; `gain predict` and `gain export`."""

import base64
import io
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import torch
from checkouts import PATIENCE, checkout, environment, gain, one_line, python, tracking_database
from PIL import Image
from sections import architecture_section
from servers import answers, free_port, running

from pipeline.base.files import digest_file
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import save_weights

pytestmark = pytest.mark.system

NAMES = ("cat", "dog", "cow")

REGISTER = """
from pathlib import Path
from pipeline.release.facts import VersionFacts
from pipeline.release.registry import register_model
tags = {{"weights_sha256": "{digest}", "variant": "gain"}}
facts = VersionFacts("tiny", tags, {{"mean_iou": 0.5}}, "# Card")
print(register_model(Path("w.safetensors"), "fcn8s-gain-smoke", facts))
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory) -> Path:
    """A folder with params.yaml and a registry in which a tiny network is the challenger."""
    folder = checkout(tmp_path_factory.mktemp("serving") / "repo")
    tracking_database(folder / "mlflow.db")
    torch.manual_seed(0)
    model = FCN8s(3, architecture_section())
    model.classifier.score.bias.data = torch.tensor([20.0, -20.0, 20.0])
    save_weights(folder / "w.safetensors", model, NAMES)
    result = python(folder, "-c", REGISTER.format(digest=digest_file(folder / "w.safetensors")))
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    return folder


@pytest.fixture(scope="module")
def server(registry, tmp_path_factory) -> Iterator[str]:
    """`mlflow models serve` where all packages are installed but the project is not, and no checkout is at hand."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(elsewhere / "venv")], check=True)
    (packages,) = (elsewhere / "venv/lib").glob("*/site-packages")
    # A folder named in a .pth file is searched, but the .pth files in it, such as the project's, are not read.
    (packages / "packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    python_here = elsewhere / "venv/bin/python"
    uvicorn = elsewhere / "venv/bin/uvicorn"
    uvicorn.write_text(f"#!{python_here}\nimport uvicorn\n\nuvicorn.main()\n")
    uvicorn.chmod(0o755)
    env = environment(elsewhere) | {"MLFLOW_TRACKING_URI": f"sqlite:///{registry}/mlflow.db"}
    env["PATH"] = f"{uvicorn.parent}:{env['PATH']}"
    del env["PYTHONPATH"]
    installed = subprocess.run([python_here, "-c", "import pipeline"], cwd=elsewhere, env=env, capture_output=True)
    assert b"No module named 'pipeline'" in installed.stderr
    port = free_port()
    command = [python_here, "-m", "mlflow", "models", "serve", "--model-uri", "models:/fcn8s-gain-smoke@challenger"]
    command += ["--env-manager", "local", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/ping", elsewhere / "log", cwd=elsewhere, env=env) as process:
        assert {connection.laddr.ip for connection in listening(process.pid)} == {"127.0.0.1"}
        yield url


def listening(pid: int) -> list[Any]:
    """Sockets on which a process and its children wait for connections."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [found for member in family for found in member.net_connections("inet") if found.status == "LISTEN"]


def ask(url: str, images: list[object], **params: object) -> requests.Response:
    body = {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}, "params": params}
    return requests.post(f"{url}/invocations", json=body, timeout=PATIENCE)


def file_of(pixels: np.ndarray, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_images_of_any_kind_and_size_get_their_three_answers(server):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    response = ask(server, [file_of(pixels), pixels.tolist(), file_of(np.zeros((200, 10, 3), np.uint8), "JPEG")])
    assert response.status_code == 200, response.text
    first, same, other = response.json()["predictions"]
    assert first == same
    assert set(first["class_probs"]) == set(NAMES)
    assert set(first["attention"]) == {"cat", "cow"}
    segmentation = picture(first["segmentation"])
    assert (segmentation.mode, segmentation.size) == ("P", (53, 37))
    assert {picture(attention).size for attention in first["attention"].values()} == {(53, 37)}
    assert picture(other["segmentation"]).size == (10, 200)


def test_segmentation_as_run_lengths_is_the_one_of_the_png(server):
    image = file_of(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    expected = np.asarray(picture(ask(server, [image]).json()["predictions"][0]["segmentation"]))
    response = ask(server, [image], segmentation="run_length")
    assert response.status_code == 200, response.text
    found = response.json()["predictions"][0]["segmentation"]
    assert {name: sum(mask["counts"][1::2]) for name, mask in found.items()} == {
        name: int((expected == value).sum()) for value, name in enumerate(NAMES, start=1) if (expected == value).any()
    }
    refused = ask(server, [image], segmentation="polygons")
    assert refused.status_code == 400
    assert "'polygons'; choose one of png, run_length" in refused.json()["message"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (["no image"], "image 0: not base64"),
        (["\u00e9" * 8], "image 0: not base64"),
        ([base64.b64encode(b"text").decode()], "image 0: no readable PNG or JPEG"),
        ([[[1, 2]]], "image 0: neither base64 text nor numbers"),
        ([file_of(np.zeros((2, 2, 3), np.uint8)), 7], "image 1: neither base64 text"),
        ([[[[0, 0, 0]]]] * 17, "1 to 16 images"),
    ],
)
def test_malformed_requests_get_400_with_a_reason_and_the_server_lives_on(server, images, message):
    response = ask(server, images)
    assert response.status_code == 400
    assert message in response.json()["message"]
    assert ask(server, [[[[0, 0, 0]]]]).status_code == 200


@pytest.fixture(scope="module")
def own_server(registry, tmp_path_factory) -> Iterator[str]:
    """`gain serve` with one worker, beside whose request two may wait."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "pipeline.cli.main", "serve", "--alias", "challenger", "--port", str(port)]
    env = environment(registry) | {"MLFLOW_TRACKING_URI": f"sqlite:///{registry}/mlflow.db"}
    url = f"http://127.0.0.1:{port}"
    with running([*command, "--waiting", "2"], f"{url}/ping", log, cwd=registry, env=env) as process:
        assert {connection.laddr.ip for connection in listening(process.pid)} == {"127.0.0.1"}
        yield url
        process.terminate()  # this process alone, as a service manager does
        process.wait(PATIENCE)
        assert not answers(f"{url}/ping")
    assert "answers requests of up to" in log.read_text()


def test_own_server_answers_as_mlflows(server, own_server):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 37, 53, 3), dtype=np.uint8)
    images = [file_of(pixels[0]), file_of(np.zeros((20, 30, 3), np.uint8)), file_of(pixels[1])]
    assert ask(own_server, images).json() == ask(server, images).json()
    assert ask(own_server, ["no image"]).status_code == 400


def test_own_server_refuses_what_is_too_deep_and_what_is_too_much(own_server):
    headers = {"Content-Type": "application/json"}
    for body in ("[" * 100_000, '{"dataframe_split": ' * 100_000):
        response = requests.post(f"{own_server}/invocations", data=body, headers=headers, timeout=PATIENCE)
        assert response.status_code == 400, response.text
    large = [file_of(np.zeros((1000, 1000, 3), np.uint8))]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: ask(own_server, large), range(12)))
    assert {answer.status_code for answer in found} == {200, 503}
    assert {answer.headers["Retry-After"] for answer in found if answer.status_code == 503} == {"5"}
    assert ask(own_server, [[[[0, 0, 0]]]]).status_code == 200


def test_request_with_more_pixels_than_the_budget_is_refused(own_server):
    refused = ask(own_server, [file_of(np.zeros((2000, 2100, 3), np.uint8))] * 8)  # 33.6 million
    assert refused.status_code == 400
    assert "the request has 33600000 pixels; this server answers" in refused.json()["message"]


@pytest.mark.parametrize("body", ["", "{", "[]", '{"dataframe_split": {}}', '{"inputs": {"picture": ["a"]}}'])
def test_bodies_that_are_no_request_get_400(server, body):
    response = requests.post(
        f"{server}/invocations", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert response.status_code == 400
    assert answers(f"{server}/ping")


def test_version_carries_what_a_user_asks_of_it(registry):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{registry}/mlflow.db")
    version = client.get_model_version_by_alias("fcn8s-gain-smoke", "challenger")
    assert version.description == "# Card"
    model = client.get_logged_model(version.source.removeprefix("models:/"))
    assert {metric.key: metric.value for metric in model.metrics} == {"test/mean_iou": 0.5}
    place = Path(model.artifact_location.removeprefix("file://"))
    assert (place / "input_example.json").exists()
    description = (place / "MLmodel").read_text()
    assert "class_probs" in description
    assert not [path for path in place.rglob("*") if path.suffix in (".pkl", ".pickle", ".cloudpickle")]


def test_predict_writes_overlays_and_numbers(registry, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = gain(registry, "predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--alias", "challenger")
    assert result.returncode == 0, result.stderr
    assert "a.png: cow 1.00, cat 1.00" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a_attention_cat.png",
        "a_attention_cow.png",
        "a_mask.png",
        "a_segmentation.png",
        "predictions.json",
    ]
    with Image.open(tmp_path / "out" / "a_attention_cat.png") as overlay:
        assert overlay.size == (53, 37)
    numbers = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert numbers[str(tmp_path / "a.png")]["dog"] < 0.5


def test_predict_takes_folders_and_goes_on_after_bad_images(registry, tmp_path):
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/a.png", "c.jpg"):
        Image.new("RGB", (40, 30)).save(photos / name)
    (photos / "b.jpg").write_bytes(b"no image")
    (photos / "b.png").write_bytes(b"")
    (photos / "notes.txt").write_text("none either")
    out = tmp_path / "out"
    result = gain(registry, "predict", str(photos), "--out", str(out), "--weights", "w.safetensors")
    assert result.returncode == 1
    first, *rest = result.stderr.strip().splitlines()
    assert first == "predict: error: 2 of 5 images have no prediction:"
    assert ["b.jpg: no readable JPEG" in rest[0], "b.png: no readable JPEG" in rest[1]] == [True, True]
    assert set(json.loads((out / "predictions.json").read_text())) == {
        str(photos / name) for name in ("a.png", "sub/a.png", "c.jpg")
    }
    assert (out / "sub/a_mask.png").exists()
    assert (out / "c_mask.png").exists()


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif"])
def test_predict_answers_in_the_orientation_of_a_viewer(registry, tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif)
    arguments = [str(tmp_path / f"a.{suffix}"), "--out", str(tmp_path / "out"), "--weights", "w.safetensors"]
    result = gain(registry, "predict", *arguments)
    assert result.returncode == 0, result.stderr
    for name in ("a_mask.png", "a_segmentation.png", "a_attention_cat.png"):
        with Image.open(tmp_path / "out" / name) as answer:
            assert answer.size == (37, 53)


def test_predict_and_export_say_what_is_missing(registry, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    out = ["--out", str(tmp_path / "out")]
    one_line(
        gain(registry, "predict", str(tmp_path / "b.png"), *out, "--weights", "w.safetensors"),
        "b.png",
        "No such file or folder",
    )
    one_line(gain(registry, "predict", str(tmp_path / "a.png"), *out, "--weights", "w.safetensors"), "no readable JPEG")
    missing = "fcn8s-gain-smoke has no champion; run `gain promote`, or --alias challenger"
    one_line(gain(registry, "predict", str(tmp_path / "a.png"), *out), missing)
    one_line(gain(registry, "export", "--out", str(tmp_path / "net.onnx")), missing)
    asked = gain(registry, "predict", str(tmp_path / "a.png"), *out, "--alias", "best")
    one_line(asked, "fcn8s-gain-smoke has no version with the alias best; say --alias challenger")
    asked = gain(registry, "predict", str(tmp_path / "a.png"), *out, "--profile", "embedded")
    one_line(asked, "the model registry has no fcn8s-gain; `gain register` registers the last one")
    one_line(gain(registry, "export", "--out", str(tmp_path / "net.onnx"), "--weights", "none"), "weights missing")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("tv/monitor", "tv%2Fmonitor"), ("../../escaped", "..%2F..%2Fescaped"), ("/etc/x", "%2Fetc%2Fx"),
        ("100%", "100%25"), ("a:b\\c", "a%3Ab%5Cc"), ("stra\u00dfe", "stra\u00dfe"),
    ],
)  # fmt: skip
def test_classes_of_any_name_are_predicted_into_the_folder(registry, tmp_path, name, file):
    """An untrusted weights file can name its classes in any way."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    model = FCN8s(1, architecture_section())
    model.classifier.score.bias.data.fill_(20.0)
    save_weights(tmp_path / "w.safetensors", model, (name,))
    out = tmp_path / "deep" / "out"
    result = gain(
        registry, "predict", str(tmp_path / "a.png"), "--out", str(out), "--weights", f"{tmp_path}/w.safetensors"
    )
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["a_mask.png", "a_segmentation.png", f"a_attention_{file}.png", "predictions.json"]
    )
    assert json.loads((out / "predictions.json").read_text()) == {str(tmp_path / "a.png"): {name: pytest.approx(1.0)}}
    assert not list(tmp_path.rglob("escaped*"))


def test_export_takes_the_weights_of_the_version(registry, tmp_path, monkeypatch):
    """What is written, tests/release/test_prediction.py says: an export takes half a minute."""
    given = {}

    def write(weights: Path, target: Path) -> None:
        given[target] = digest_file(weights)
        target.write_bytes(b"graph")

    monkeypatch.setattr("pipeline.release.onnx.export_onnx", write)
    target = tmp_path / "net.onnx"
    result = gain(registry, "export", "--out", str(target), "--alias", "challenger")
    assert result.returncode == 0, result.stderr
    assert given == {target: digest_file(registry / "w.safetensors")}
    assert f"export: {target}, 0.0 MiB" in result.stdout
