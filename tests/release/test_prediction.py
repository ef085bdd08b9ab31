"""What is predicted of an image, what is refused, and the same network as an ONNX graph."""

import base64
import io
import struct
import zlib

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.model.weights import save_weights
from pipeline.release.onnx import OUTPUT_NAMES, export_onnx
from pipeline.release.prediction import (
    MAX_PIXELS,
    Outputs,
    grey_png,
    palette_png,
    predict,
    read_image,
    run_lengths,
    served_image,
)

NAMES = ("cat", "dog", "cow")
CPU = torch.device("cpu")


def encoded(size: tuple[int, int] = (40, 30), kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is huge."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0" * 100)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("padding", [1, 100])
def test_outputs_are_those_of_the_parts_at_any_size(tiny_model, padding):
    model = tiny_model(padding=padding)
    for size in ((48, 40), (33, 97), (1, 1), (7, 300)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            class_probs, seg_logits, attention = Outputs(model)(image)
            features = model.features(image)
            assert torch.equal(class_probs, model.classify(features.conv5_3).sigmoid())
            assert torch.equal(seg_logits, model.segment(features, size))
            maps, _ = normalise_attention(class_attention(model, features.conv5_3))
            one = attention_to_image(maps[1], size, model.attention_grid)
        assert attention.shape == (2, 3, *size)
        assert torch.equal(attention[1], one)


def test_prediction_has_attention_for_predicted_classes_only(tiny_model):
    model = tiny_model()
    model.classifier.score.bias.data = torch.tensor([20.0, -20.0, 20.0])
    found = predict(Outputs(model), NAMES, np.zeros((31, 45, 3), np.uint8), CPU)
    assert list(found.class_probs) == list(NAMES)
    assert list(found.attention) == ["cat", "cow"]
    assert found.segmentation.shape == found.attention["cat"].shape == (31, 45)
    decoded = Image.open(io.BytesIO(palette_png(found.segmentation, [0] * 768)))
    assert (decoded.mode, decoded.size) == ("P", (45, 31))
    assert np.array_equal(np.asarray(decoded), found.segmentation)
    assert Image.open(io.BytesIO(grey_png(np.full((2, 3), 0.5)))).getpixel((0, 0)) == 128


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "RGB")]
)
def test_images_of_every_kind_become_rgb(kind, mode):
    assert read_image(encoded(kind=kind, mode=mode)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "no readable PNG or JPEG"),
        ("%%%", "not base64"),
        (base64.b64encode(b"hello").decode(), "no readable PNG or JPEG"),
        (base64.b64encode(encoded(kind="GIF")).decode(), "no readable PNG or JPEG"),
        (base64.b64encode(encoded()[:40]).decode(), "no readable PNG or JPEG"),
        (base64.b64encode(bomb(50_000, 50_000)).decode(), ""),
        (base64.b64encode(bomb(4000, 4000)).decode(), f"at most {MAX_PIXELS} pixels"),
        ("A" * 40_000_000, "at most"),
        ([[1, 2], [3]], "rows of unequal length"),
        ([[1, 2], [3, 4]], "neither base64 text nor numbers of shape (H, W, 3)"),
        ([[["a", "b", "c"]]], "neither base64 text nor numbers"),
        ([[[0, 0, 256]]], "0 to 255"),
        ([[[0, 0, float("nan")]]], "0 to 255"),
        (None, "neither base64 text nor numbers"),
        ({"a": 1}, "neither base64 text nor numbers"),
        ([], "neither base64 text nor numbers"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(refused, value, message):
    assert message in refused(served_image, value, "image 0")


def test_nested_lists_are_an_image():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(served_image(pixels.tolist(), "image 0"), pixels)
    assert np.array_equal(served_image(base64.b64encode(encoded()).decode(), "image 0"), np.zeros((30, 40, 3)))


@pytest.mark.system  # the export takes many seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"padding": 100, "batch_norm": False}, {"attention_layer": "pool5"}]
)
def test_onnx_graph_agrees_at_any_batch_and_size(tiny_model, tmp_path, options):
    model = tiny_model(**options)
    save_weights(tmp_path / "w.safetensors", model, NAMES)
    export_onnx(tmp_path / "w.safetensors", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [output.name for output in session.get_outputs()] == OUTPUT_NAMES
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["class_names"] == "cat,dog,cow"
    assert metadata["mean"] == "0.485,0.456,0.406"
    for shape in ((1, 48, 40), (3, 75, 101), (2, 32, 200)):
        image = torch.randn(shape[0], 3, *shape[1:])
        with torch.no_grad():
            expected = Outputs(model)(image)
        for name, ours, theirs in zip(OUTPUT_NAMES, expected, session.run(None, {"image": image.numpy()}), strict=True):
            assert torch.allclose(ours, torch.from_numpy(theirs), atol=1e-4), name


def test_export_that_cannot_be_written_leaves_nothing(tiny_model, tmp_path, refused):
    assert "weights missing" in refused(export_onnx, tmp_path / "none.safetensors", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)))
def test_run_lengths_give_the_masks_back(classes):
    found = run_lengths(classes, ("cat", "dog", "cow"))
    assert set(found) == {("cat", "dog", "cow")[value - 1] for value in np.unique(classes) if value}
    for name, mask in found.items():
        runs, outside_first = mask["counts"], np.arange(len(mask["counts"])) % 2
        pixels = np.repeat(outside_first, runs).reshape(mask["size"], order="F")
        assert (pixels == (classes == ("cat", "dog", "cow").index(name) + 1)).all()
        assert min(runs[1:]) > 0
