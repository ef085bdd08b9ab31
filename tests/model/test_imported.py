"""Foreign weights in this network: same answers as in their own, and what is not in the file is said to be random."""

import pytest
import torch
import torch.nn.functional as F
from sections import architecture_section
from small_archives import CONVS, pytorch_fcn_state, slim_vgg16
from torch import Tensor

from pipeline.data.samples import normalise
from pipeline.datasets.voc2012 import VOC_CLASSES
from pipeline.model.imported import initial_model
from pipeline.model.weights import save_weights

SLIM = architecture_section(fc_channels=12, head_bias=False, batch_norm=False, padding=100, dropout=0.5)
ATONCE = SLIM.model_copy(update={"skip_scales": (0.01, 0.0001)})


def original(state: dict[str, Tensor], image: Tensor, *, at_once: bool, padding: int = 100) -> Tensor:
    """The Caffe network, written down from its prototxt: padding 100, ceil-mode pools, crops 5, 9 and 31."""

    def conv(x: Tensor, name: str, padding: int = 0) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def up(x: Tensor, name: str, stride: int) -> Tensor:
        return F.conv_transpose2d(x, state[f"{name}.weight"], stride=stride)

    x, pools = image, {}
    for block, number in CONVS.items():
        for index in range(1, number + 1):
            x = F.relu(conv(x, f"{block}_{index}", padding if (block, index) == ("conv1", 1) else 1))
        x = pools[block] = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
    x = F.relu(conv(F.relu(conv(x, "fc6")), "fc7"))
    x = up(conv(x, "score_fr"), "upscore2", 2)
    pool4 = conv(pools["conv4"] * (0.01 if at_once else 1.0), "score_pool4")
    x = up(x + pool4[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]], "upscore_pool4", 2)
    pool3 = conv(pools["conv3"] * (0.0001 if at_once else 1.0), "score_pool3")
    x = up(x + pool3[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]], "upscore8", 8)
    return x[:, :, 31 : 31 + image.shape[2], 31 : 31 + image.shape[3]]


@pytest.mark.parametrize(
    ("source", "architecture"), [("pytorch_fcn8s", SLIM), ("pytorch_fcn8s_atonce", ATONCE)], ids=["fcn8s", "atonce"]
)
@pytest.mark.parametrize("size", [(32, 32), (37, 61), (64, 50), (1, 5), (97, 128)])
def test_published_weights_give_the_original_networks_logits(checkpoint, source, architecture, size):
    """From the file's pixels on: RGB 0 to 255 for us, BGR minus Caffe's mean for the original."""
    state = pytorch_fcn_state()
    model = initial_model(source, checkpoint(state), architecture, VOC_CLASSES, seed=0).eval()
    rgb = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    mean = torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
    expected = original(state, rgb.flip(1).float() - mean, at_once=source.endswith("atonce"))
    with torch.no_grad():
        logits, _ = model(normalise(rgb))
    assert logits.shape == (2, 21, *size)
    assert expected.std() > 0.1
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-5


def test_padding_or_colours_of_another_convention_would_not_agree(checkpoint):
    """The comparison above can fail."""
    state = pytorch_fcn_state()
    rgb = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8)
    model = initial_model("pytorch_fcn8s", checkpoint(state), SLIM, VOC_CLASSES, seed=0).eval()
    mean = torch.tensor([104.00699, 116.66877, 122.67892]).view(3, 1, 1)
    colours = original(state, normalise(rgb), at_once=False)
    border = original(state, rgb.flip(1).float() - mean, at_once=False, padding=101)
    with torch.no_grad():
        logits, _ = model(normalise(rgb))
    for wrong in (colours, border):
        assert float((logits - wrong).abs().max() / wrong.abs().max()) > 0.01


def test_imported_description_travels_with_the_weights(checkpoint, tmp_path):
    model = initial_model("pytorch_fcn8s", checkpoint(pytorch_fcn_state()), SLIM, VOC_CLASSES, seed=0).eval()
    save_weights(tmp_path / "ours.safetensors", model, VOC_CLASSES)
    again = initial_model("safetensors", tmp_path / "ours.safetensors", SLIM, VOC_CLASSES, seed=1).eval()
    assert again.trunk.input_space == "caffe_bgr"
    image = torch.randn(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(again(image)[0], model(image)[0])


@pytest.mark.parametrize("layer", ["upscore2", "upscore_pool4", "upscore8"])
@pytest.mark.parametrize("change", [lambda w: w * 1.001, lambda w: w.flip(0)])
def test_upsampling_that_was_trained_is_refused(checkpoint, refused, layer, change):
    """It has no weights here, so the network would answer otherwise than its own."""
    state = pytorch_fcn_state()
    state[f"{layer}.weight"] = change(state[f"{layer}.weight"])
    message = refused(initial_model, "pytorch_fcn8s", checkpoint(state), SLIM, VOC_CLASSES, seed=0)
    assert f"{layer} does not upsample bilinearly" in message


def test_upsampling_may_be_missing(checkpoint):
    state = {name: tensor for name, tensor in pytorch_fcn_state().items() if not name.startswith("upscore")}
    model = initial_model("pytorch_fcn8s", checkpoint(state), SLIM, VOC_CLASSES, seed=0)
    assert torch.equal(model.decoder.score_pool4.weight, state["score_pool4.weight"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop("conv3_2.weight"), "trunk.conv3_2.weight is missing"),
        (lambda s: s.pop("score_pool4.bias"), "decoder.score_pool4.bias is missing"),
        (lambda s: s.update(fc8=torch.zeros(1)), "decoder.fc8 is unknown"),
        (lambda s: s.update({"fc6.weight": torch.zeros(12, 32, 3, 3)}), "fc6.weight has shape (12, 32, 3, 3)"),
    ],
)
def test_wrong_tensors_are_named(checkpoint, refused, change, problem):
    state = pytorch_fcn_state()
    change(state)
    assert problem in refused(initial_model, "pytorch_fcn8s", checkpoint(state), SLIM, VOC_CLASSES, seed=0)


def test_other_classes_than_the_weights_are_refused(checkpoint, refused):
    path = checkpoint(pytorch_fcn_state())
    message = refused(initial_model, "pytorch_fcn8s", path, SLIM, ("cat", "dog"), seed=0)
    assert "decoder.upscore2.weight has shape (21, 21, 4, 4), expected (3, 3, 4, 4)" in message


@pytest.mark.parametrize(
    ("source", "changes", "problem"),
    [
        ("pytorch_fcn8s", {"padding": 1}, "model.padding is 1, but weights of source pytorch_fcn8s"),
        ("pytorch_fcn8s", {"batch_norm": True}, "model.batch_norm is True"),
        ("pytorch_fcn8s_atonce", {}, "trained with [0.01, 0.0001]"),
        ("imagenet", {"batch_norm": True}, "model.batch_norm is True"),
    ],
)
def test_network_other_than_the_weights_own_is_refused(checkpoint, refused, source, changes, problem):
    path = checkpoint(pytorch_fcn_state())
    assert problem in refused(initial_model, source, path, SLIM.model_copy(update=changes), VOC_CLASSES, seed=0)


def trunk_alone(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith("conv")}


@pytest.mark.parametrize(
    ("kept", "changes", "said"),
    [
        (trunk_alone, {}, "the trunk alone is taken (the file has no fc6); random at first: the whole decoder"),
        (
            dict,
            {"fc_channels": 24},
            "(fc6 has 12 channels, and model.fc_channels of params.yaml is 24); random at first",
        ),
    ],
)
@pytest.mark.parametrize("padding", [1, 100])
def test_trunk_from_caffe_is_enough(checkpoint, capsys, kept, changes, said, padding):
    """With any padding, any number of classes and skip scales of another kind: the decoder is trained anew."""
    state = pytorch_fcn_state()
    architecture = ATONCE.model_copy(update={"padding": padding, **changes})
    model = initial_model("pytorch_fcn8s", checkpoint(kept(state)), architecture, ("cat", "dog"), seed=3)
    assert torch.equal(model.trunk.conv5_3.weight, state["conv5_3.weight"])
    assert model.trunk.input_space == "caffe_bgr"
    untouched = initial_model("random", None, architecture, ("cat", "dog"), seed=3)
    for name, tensor in untouched.decoder.state_dict().items():
        assert torch.equal(model.decoder.state_dict()[name], tensor), name
    output = capsys.readouterr()
    assert said in output.out
    assert output.out.count("\n") == 1
    assert output.err == ""


def test_decoder_at_random_on_activations_of_caffe_is_warned_of(checkpoint, capsys):
    path = checkpoint(trunk_alone(pytorch_fcn_state()))
    initial_model("pytorch_fcn8s", path, SLIM, VOC_CLASSES, seed=0)
    assert "model.skip_scales is [1.0, 1.0], but activations of weights from Caffe" in capsys.readouterr().err


def test_trunk_alone_cannot_segment_as_it_is(checkpoint, refused):
    path = checkpoint(trunk_alone(pytorch_fcn_state()))
    message = refused(initial_model, "pytorch_fcn8s", path, SLIM, VOC_CLASSES, seed=0, segments=True)
    assert message.startswith(f"{path}: the file has no fc6, so the trunk alone")
    assert "set pretrain.num_epochs of params.yaml to at least 1" in message


def test_trunk_that_lacks_a_layer_is_refused(checkpoint, refused):
    state = trunk_alone(pytorch_fcn_state())
    del state["conv4_2.bias"]
    message = refused(initial_model, "pytorch_fcn8s", checkpoint(state), ATONCE, VOC_CLASSES, seed=0)
    assert "trunk.conv4_2.bias is missing" in message


def test_values_that_are_not_finite_are_refused(checkpoint, refused):
    """As torchvision's IMAGENET1K_FEATURES has them, in the layers that it does not have."""
    state = slim_vgg16().state_dict()
    state["classifier.0.weight"].fill_(float("nan"))
    message = refused(initial_model, "imagenet", checkpoint(state), SLIM, ("cat",), seed=0)
    assert "decoder.fc6.weight holds values that are not finite" in message


# ---- torchvision's VGG16 ---------------------------------------------------------------------------------------------


def test_vgg16_becomes_trunk_fc6_and_fc7(checkpoint):
    """On 224 pixels, fc6 sees VGG16's 7 x 7 cells once, and gives what its first two linear layers give."""
    vgg = slim_vgg16()
    architecture = SLIM.model_copy(update={"padding": 1})
    model = initial_model("imagenet", checkpoint(vgg.state_dict()), architecture, ("cat", "dog"), seed=0).eval()
    assert model.trunk.input_space == "imagenet_rgb"
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pool5 = vgg.features(image)
        features = model.features(image)
        assert torch.allclose(F.max_pool2d(features.conv5_3, 2), pool5, atol=1e-5)
        expected = F.relu(vgg.classifier[3](F.relu(vgg.classifier[0](pool5.flatten(1)))))
        fc6 = F.relu(F.conv2d(pool5, model.decoder.fc6.weight, model.decoder.fc6.bias))
        assert torch.allclose(F.relu(model.decoder.fc7(fc6)).flatten(1), expected, atol=1e-5)


def test_what_vgg16_does_not_have_depends_on_the_seed(checkpoint):
    path = checkpoint(slim_vgg16().state_dict())
    a, b = (initial_model("imagenet", path, SLIM, ("cat",), seed=seed) for seed in (0, 1))
    assert torch.equal(a.trunk.conv4_2.weight, b.trunk.conv4_2.weight)
    assert not torch.equal(a.classifier.fc1.weight, b.classifier.fc1.weight)
    assert not a.decoder.score_fr.weight.any()


def test_vgg16_of_another_width_is_refused(checkpoint, refused):
    path = checkpoint(slim_vgg16().state_dict())
    message = refused(initial_model, "imagenet", path, SLIM.model_copy(update={"width": 0.125}), ("cat",), seed=0)
    assert "trunk.conv1_1.weight has shape (4, 3, 3, 3), expected (8, 3, 3, 3)" in message


@pytest.mark.parametrize("alone", ["features.", ""])
def test_convolutions_of_vgg16_are_enough(checkpoint, capsys, alone):
    """Saved with their module's name, or from that module."""
    vgg = slim_vgg16()
    state = {f"{alone}{name}": tensor for name, tensor in vgg.features.state_dict().items()}
    model = initial_model("imagenet", checkpoint(state), SLIM, ("cat",), seed=0)
    assert torch.equal(model.trunk.conv5_3.weight, vgg.features[28].weight)
    assert "(the file has no fc6); random at first: fc6, fc7 and all scores" in capsys.readouterr().out


def test_fc6_of_another_width_is_left_at_random(checkpoint, capsys):
    vgg, architecture = slim_vgg16(), SLIM.model_copy(update={"fc_channels": 20})
    model = initial_model("imagenet", checkpoint(vgg.state_dict()), architecture, ("cat",), seed=0)
    assert torch.equal(model.trunk.conv1_1.weight, vgg.features[0].weight)
    untouched = initial_model("random", None, architecture, ("cat",), seed=0)
    assert torch.equal(model.decoder.fc6.weight, untouched.decoder.fc6.weight)
    assert "fc6 has 12 channels, and model.fc_channels of params.yaml is 20" in capsys.readouterr().out


# ---- our own ---------------------------------------------------------------------------------------------------------


def test_own_weights_of_another_network_or_other_classes_are_refused(tmp_path, refused):
    path = tmp_path / "own.safetensors"
    save_weights(path, initial_model("random", None, SLIM, ("cat", "dog"), seed=0), ("cat", "dog"))
    message = refused(
        initial_model, "safetensors", path, SLIM.model_copy(update={"padding": 1}), ("cat", "dog"), seed=0
    )
    assert "model.padding is 1" in message
    assert "a network with 100" in message
    assert "its classes are cat, dog" in refused(initial_model, "safetensors", path, SLIM, ("cat", "fox"), seed=0)
