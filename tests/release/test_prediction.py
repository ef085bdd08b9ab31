"""What is predicted of an image, and the same network as an ONNX graph."""

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.data.samples import normalise
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.gain.view import View
from pipeline.model.weights import load_weights, save_weights
from pipeline.release.onnx import OUTPUT_NAMES, export_onnx
from pipeline.release.prediction import Outputs, batches, predict, predict_batch, probability_table

NAMES = ("cat", "dog", "cow")
CPU = torch.device("cpu")


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


@torch.no_grad()
def test_prediction_at_a_scale_is_that_of_evaluation(tiny_model, tmp_path):
    """From a file of weights alone, as served."""
    model = tiny_model()
    model.scale = 0.5
    model.classifier.score.bias.data = torch.tensor([20.0, -20.0, 20.0])
    save_weights(tmp_path / "w.safetensors", model, NAMES)
    served = load_weights(tmp_path / "w.safetensors")[0].eval()
    image = np.random.default_rng(0).integers(0, 256, (62, 90, 3), dtype=np.uint8)
    found = predict(Outputs(served), NAMES, image, CPU)
    view = View.of(model, normalise(torch.from_numpy(image).permute(2, 0, 1))[None])
    assert view.seen == (31, 45)
    assert list(found.class_probs.values()) == pytest.approx(view.class_logits().sigmoid()[0].tolist())
    assert np.array_equal(found.segmentation, view.seg_logits()[0].argmax(dim=0).numpy())
    maps = normalise_attention(class_attention(model, view.features.conv5_3))[0][0]
    assert np.allclose(found.attention["cow"], view.attention(maps)[2].numpy(), atol=1e-6)


def test_images_of_one_size_are_predicted_together_as_alone(tiny_model):
    outputs = Outputs(tiny_model(padding=1))
    images = list(np.random.default_rng(0).integers(0, 256, (3, 31, 45, 3), dtype=np.uint8))
    for image, found in zip(images, predict_batch(outputs, NAMES, images, CPU), strict=True):
        alone = predict(outputs, NAMES, image, CPU)
        assert list(found.class_probs.values()) == pytest.approx(list(alone.class_probs.values()), abs=1e-5)
        assert np.array_equal(found.segmentation, alone.segmentation)
        assert found.attention.keys() == alone.attention.keys()


def test_batches_hold_images_of_one_size_up_to_so_many_pixels():
    images = [np.zeros((*size, 3), np.uint8) for size in ((4, 5), (5, 4), (4, 5), (4, 5), (50, 50), (4, 5))]
    assert batches(images, 60) == [[0, 2, 3], [5], [1], [4]]
    assert batches([], 60) == []


def test_predicted_classes_are_listed_by_probability():
    assert probability_table({"cat": 0.5, "dog": 0.49, "cow": 0.9}) == "cow 0.90, cat 0.50"
    assert probability_table({"cat": 0.4}) == "no class"


@pytest.mark.system  # the export takes many seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 100, "batch_norm": False, "attention_layer": "pool5"}])
def test_onnx_graph_agrees_at_any_batch_and_size(tiny_model, tmp_path, options):
    model = tiny_model(**options)
    model.scale = 0.5
    save_weights(tmp_path / "w.safetensors", model, NAMES)
    export_onnx(tmp_path / "w.safetensors", tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [output.name for output in session.get_outputs()] == OUTPUT_NAMES
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["class_names"] == "cat,dog,cow"
    assert metadata["mean"] == "0.485,0.456,0.406"
    assert metadata["scale"] == "0.5"  # which the graph leaves to who runs it
    for shape in ((1, 48, 40), (3, 75, 101), (2, 32, 200)):
        image = torch.randn(shape[0], 3, *shape[1:])
        with torch.no_grad():
            expected = Outputs(model)(image)
        for name, ours, theirs in zip(OUTPUT_NAMES, expected, session.run(None, {"image": image.numpy()}), strict=True):
            assert torch.allclose(ours, torch.from_numpy(theirs), atol=1e-4), name


def test_export_that_cannot_be_written_leaves_nothing(tiny_model, tmp_path, refused):
    assert "weights missing" in refused(export_onnx, tmp_path / "none.safetensors", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()
