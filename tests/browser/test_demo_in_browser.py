"""`gain demo` as a person uses it: an image dropped, chosen, or taken of the test set; wrong files; a narrow screen."""

import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from checkouts import checkout, environment, one_line, python
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from sections import architecture_section
from servers import free_port, running

from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import save_weights

pytestmark = pytest.mark.system

NAMES = ("cat", "<img src=x onerror=document.title='evil'>", "fox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkout with two networks, of which the second finds a class in everything, and a test set of one image."""
    folder = checkout(tmp_path_factory.mktemp("demo") / "repo")
    for seed, name in enumerate(("control", "gain")):
        torch.manual_seed(seed)
        model = FCN8s(3, architecture_section())
        for layer in (model.decoder.score_fr, model.decoder.score_pool3, model.decoder.score_pool4):
            torch.nn.init.normal_(layer.weight, std=0.1)
        model.classifier.score.bias.data = torch.tensor([20.0 if seed else -20.0, -20.0, 0.0])
        save_weights(folder / f"{name}.safetensors", model, NAMES)
    voc = folder / "data" / "voc"
    for path in (voc / "JPEGImages", voc / "ImageSets" / "Segmentation"):
        path.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(voc / "JPEGImages" / "x0.png")
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("x0\n")
    (folder / "broken.png").write_bytes(b"not an image")
    return folder


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "pipeline.cli.main", "demo", "--port", str(port)]
    command += ["--weights", "control.safetensors", "--weights", "gain.safetensors"]
    url = f"http://127.0.0.1:{port}/"
    with running(command, url, folder / "demo.log", cwd=folder, env=environment(folder)):
        yield url


@pytest.fixture
def page(browser: Browser, address) -> Iterator[Page]:
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "request", lambda request: None if request.url.startswith((address, "data:")) else wrong.append(request.url)
    )
    page.goto(address)
    yield page
    assert "evil" not in page.title()
    page.close()
    assert wrong == []


def canvases(page: Page) -> list[str]:
    return page.locator("canvas").evaluate_all("found => found.map(canvas => canvas.toDataURL())")


def test_chosen_file_is_answered_by_both_networks(page, folder):
    page.locator("#file").set_input_files(folder / "data/voc/JPEGImages/x0.png")
    expect(page.locator("#controls")).to_be_visible()
    for name, probability in (("control", "0.00"), ("gain", "1.00")):
        cat = page.locator(f".answer[data-model={name}] li", has_text="cat")
        expect(cat).to_contain_text(probability)
    expect(page.locator("#class")).to_have_value("cat")  # the most probable
    expect(page.locator(".answer[data-model=gain] canvas")).to_have_attribute(
        "aria-label", "Attention of gain at conv5_3 for cat"
    )


def test_class_strength_and_view_change_the_picture(page):
    page.locator("#example").select_option(label="x0")
    expect(page.locator("#controls")).to_be_visible()
    attention = canvases(page)
    page.locator("#class").select_option("fox")
    other = canvases(page)
    assert all(a != b for a, b in zip(attention, other, strict=True))
    page.locator("#strength").fill("0")
    bare = canvases(page)
    assert bare[0] == bare[1]
    page.locator("#view").select_option("image")
    assert canvases(page) == bare
    page.locator("#view").select_option("segmentation")
    page.locator("#strength").fill("90")
    masks = canvases(page)
    assert masks[0] != bare[0]
    expect(page.locator(".answer[data-model=gain] .legend")).not_to_be_empty()


def test_dropped_file_is_answered_and_dropped_text_is_not(page):
    drop = """async (bytes) => {
        const transfer = new DataTransfer();
        if (bytes) transfer.items.add(new File([new Uint8Array(bytes)], "x.png"));
        document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
    }"""
    page.evaluate(drop, None)
    expect(page.locator("#message")).to_contain_text("that was no file")
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    page.evaluate(drop, list(buffer.getvalue()))
    expect(page.locator("#controls")).to_be_visible()
    expect(page.locator("#message")).to_be_empty()


def test_wrong_file_is_one_sentence_and_the_answer_before_stays(page, folder):
    page.locator("#example").select_option(label="x0")
    expect(page.locator("#controls")).to_be_visible()
    before = canvases(page)
    page.locator("#file").set_input_files(folder / "broken.png")
    expect(page.locator("#message")).to_contain_text("no readable PNG or JPEG")
    assert canvases(page) == before


@pytest.mark.parametrize("width", [320, 900])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.locator("#example").select_option(label="x0")
    expect(page.locator("#controls")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_port_that_is_taken_and_missing_weights_are_one_line(folder, address):
    port = address.rstrip("/").rpartition(":")[2]
    command = ["-m", "pipeline.cli.main", "demo", "--port"]
    taken = python(folder, *command, port, "--weights", "gain.safetensors")
    one_line(taken, f"port {port} of 127.0.0.1", "--port")
    missing = python(folder, *command, str(free_port()), "--weights", "gone.safetensors")
    one_line(missing, "gone.safetensors")
