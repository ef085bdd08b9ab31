"""What `gain demo` answers: the page, the examples, images good and bad, and who may ask."""

import asyncio
import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sections import architecture_section

from pipeline.base.errors import PipelineError
from pipeline.cli.demo import named
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import load_weights, save_weights
from pipeline.release.demo.application import ANSWERS, CONTENT, MOST_CLASSES, SHOWN_SIDE, create
from pipeline.release.prediction import Outputs, predict

NAMES = ("cat", "<b>dog</b>", "fox")
CPU = torch.device("cpu")


def saved(path: Path, names=NAMES, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = FCN8s(len(names), architecture_section())
    for layer in (model.decoder.score_fr, model.decoder.score_pool3, model.decoder.score_pool4):
        torch.nn.init.normal_(layer.weight, std=0.1)
    save_weights(path, model, names)
    return path


def png(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def demo(tmp_path):
    """Two models, and an image of a test set."""
    (tmp_path / "x0.png").write_bytes(png())
    models = {"control": saved(tmp_path / "a.safetensors"), "gain": saved(tmp_path / "b.safetensors", seed=1)}
    return create(models, [tmp_path / "x0.png", tmp_path / "gone.png"])


def ask(application: Any, path: str = "/", body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    """Status, headers and body of an answer; POST where there is a body."""
    given = {"host": "127.0.0.1:5002", "content_type": CONTENT, **headers}
    scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in given.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 5002),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    sent: list[Any] = []

    async def receive():
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    found = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def answer(application: Any, body: bytes) -> dict[str, Any]:
    status, _, content = ask(application, ANSWERS, body)
    assert status == 200, content
    return json.loads(content)


def picture(base64_text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(base64_text))))


def test_page_offers_the_examples_and_every_model(demo):
    status, headers, body = ask(demo)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = body.decode()
    assert [f'data-model="{name}"' in page for name in ("control", "gain")] == [True, True]
    assert ">x0</option>" in page
    assert "script-src 'sha256-" in page
    assert "connect-src 'self'" in page


def test_answers_are_those_of_predict(demo, tmp_path):
    found = answer(demo, png())
    assert (found["width"], found["height"]) == (64, 48)
    pixels = np.asarray(Image.open(io.BytesIO(png())))
    for name, file in (("control", "a.safetensors"), ("gain", "b.safetensors")):
        outputs = Outputs(load_weights(tmp_path / file)[0].eval())
        expected = predict(outputs, NAMES, pixels, CPU, num_attended=3)
        of_model = found["models"][name]
        assert of_model["class_probs"] == pytest.approx(expected.class_probs, abs=1e-5)
        assert np.array_equal(picture(of_model["segmentation"]), expected.segmentation)
        assert set(of_model["attention"]) == set(NAMES)
        for label, base64_text in of_model["attention"].items():
            assert np.abs(picture(base64_text) / 255 - expected.attention[label]).max() < 0.01
        marked = {NAMES[value - 1] for value in np.unique(expected.segmentation) if value}
        assert set(of_model["classes"]) == marked
    assert found["models"]["control"]["class_probs"] != found["models"]["gain"]["class_probs"]


def test_large_pictures_are_sent_back_small_and_many_classes_as_the_most_probable(tmp_path):
    names = tuple(f"class{i}" for i in range(254))
    demo = create({"only": saved(tmp_path / "a.safetensors", names)}, [])
    found = answer(demo, png(40, 1500))
    only = found["models"]["only"]
    assert len(only["class_probs"]) == 254
    assert list(only["attention"]) == sorted(names, key=lambda name: -only["class_probs"][name])[:MOST_CLASSES]
    for text in (found["image"], only["segmentation"], *only["attention"].values()):
        assert picture(text).shape[1] == SHOWN_SIDE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no readable PNG or JPEG"),
        (b"<html>", "no readable PNG or JPEG"),
        (png()[:200], "no readable PNG or JPEG"),
        (b"GIF89a" + bytes(100), "no readable PNG or JPEG"),
    ],
)
def test_bad_image_is_one_sentence(demo, body, message):
    status, _, content = ask(demo, ANSWERS, body)
    assert status == 400
    assert message in json.loads(content)["message"]


def test_image_with_too_many_pixels_is_refused_before_it_is_decoded(demo):
    buffer = io.BytesIO()
    Image.new("1", (4000, 4000)).save(buffer, "PNG")
    status, _, content = ask(demo, ANSWERS, buffer.getvalue())
    assert status == 400
    assert "at most 8000000 pixels" in json.loads(content)["message"]


def test_pages_elsewhere_get_no_answer(demo):
    """Neither under a name of their own that points here, nor with the content types that a form may send."""
    assert ask(demo, "/", None, host="evil.example")[0] == 400
    assert ask(demo, ANSWERS, png(), host="evil.example:5002")[0] == 400
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert ask(demo, ANSWERS, png(), content_type=kind)[0] == 415


def test_examples_are_those_of_the_test_set_and_no_other_file(demo):
    status, _, body = ask(demo, "/examples/0")
    assert (status, body) == (200, png())
    assert ask(demo, "/examples/1")[0] == 404  # was deleted since
    assert ask(demo, "/examples/2")[0] == 404
    assert ask(demo, "/examples/../a.safetensors")[0] == 404


def test_class_names_are_text(tmp_path):
    demo = create({"<script>alert(1)</script>": saved(tmp_path / "a.safetensors")}, [tmp_path / "<i>.png"])
    page = ask(demo)[2].decode()
    assert "<script>alert" not in page
    assert "<i>" not in page


def test_damaged_weights_are_one_line(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(PipelineError, match=r"a\.safetensors"):
        create({"a": tmp_path / "a.safetensors"}, [])


def test_files_are_called_by_their_stems_unless_two_have_one():
    a, b, c = Path("one/gain.safetensors"), Path("two/gain.safetensors"), Path("control.safetensors")
    assert named([a, c]) == {"gain": a, "control": c}
    assert named([a, b]) == {"one/gain.safetensors": a, "two/gain.safetensors": b}
