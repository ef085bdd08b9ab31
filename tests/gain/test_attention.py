import captum.attr
import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from sections import attention_section, training_section
from torch import nn

from pipeline.gain.attention import (
    DEAD_MAP_MAXIMUM,
    attention_map,
    attention_to_image,
    class_attention,
    importance_weights,
    masked_image,
    normalise_attention,
    soft_mask,
)
from pipeline.gain.losses import attention_mining_loss
from pipeline.gain.network import GuidedNetwork, class_keys, class_pairs
from pipeline.model.fcn8s import AttentionGrid
from pipeline.model.trunk import pool
from pipeline.training.loop import training_mode

SIZES = [(1, 32, 32), (3, 47, 61), (2, 33, 80), (2, 17, 16)]
ALL_LOSSES = frozenset({"segmentation", "classification", "attention_mining", "external_supervision"})


class ClassLogits(nn.Module):
    """What pytorch-grad-cam and captum want of a network: a tensor of logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image, segmentation=False)[1]


def hooked(model):
    """The layer to name to pytorch-grad-cam and captum."""
    return model.trunk.relu5_3 if model.attention_layer == "conv5_3" else model.pool5


def autograd_weights(model, image, layer="conv5_3"):
    """Eq. 1 as written: one backward pass per class. The weights and the activations of `layer`."""
    features = model.features(image).conv5_3
    features = (pool(features) if layer == "pool5" else features).detach().requires_grad_()
    pooled = (pool(features) if layer == "conv5_3" else features).mean(dim=(2, 3))
    logits = model.classifier(pooled)
    gradients = [
        torch.autograd.grad(logits[:, c].sum(), features, retain_graph=True)[0] for c in range(logits.shape[1])
    ]
    return torch.stack([gradient.mean(dim=(2, 3)) for gradient in gradients], dim=1), features


def relative_difference(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_closed_form_equals_autograd(tiny_model, layer, size, dtype, tolerance):
    model = tiny_model().to(dtype)
    image = torch.randn(size[0], 3, *size[1:], dtype=dtype)
    expected, features = autograd_weights(model, image, layer)
    pooled = pool(model.features(image).conv5_3).mean(dim=(2, 3))
    weights = importance_weights(model.classifier, pooled, tuple(features.shape[2:]))
    assert weights.shape == expected.shape
    assert relative_difference(weights, expected) < tolerance


@pytest.mark.parametrize("padding", [1, 100])
@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
@pytest.mark.parametrize("size", SIZES)
def test_maps_are_those_of_the_attention_layer(tiny_model, padding, layer, size):
    model = tiny_model(attention_layer=layer, padding=padding)
    image = torch.randn(size[0], 3, *size[1:])
    weights, features = autograd_weights(model, image, layer)
    maps = class_attention(model, model.features(image).conv5_3)
    assert maps.shape[2:] == model.attention_grid.shape(size[1:])
    assert relative_difference(maps, attention_map(weights, features)) < 1e-5


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_pytorch_grad_cam(tiny_model, layer, batch_norm, size):
    """Hooked on the network's own layer, as its manual says."""
    model = ClassLogits(tiny_model(batch_norm=batch_norm, attention_layer=layer)).eval()
    image = torch.randn(size[0], 3, *size[1:])
    ours = class_attention(model.model, model.model.features(image).conv5_3).detach()
    theirs = []
    with GradCAM(model=model, target_layers=[hooked(model.model)]) as cam:
        for c in range(ours.shape[1]):
            cam(image, [ClassifierOutputTarget(c)] * size[0])
            activations, gradients = (
                values[0] for values in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
            )
            theirs.append((gradients.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1).relu().detach())
    assert relative_difference(ours, torch.stack(theirs, dim=1)) < 1e-5


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
@pytest.mark.parametrize("size", SIZES)
def test_maps_equal_captum(tiny_model, layer, batch_norm, size):
    """Hooked on the network's own layer, as its manual says."""
    model = ClassLogits(tiny_model(batch_norm=batch_norm, attention_layer=layer)).eval()
    image = torch.randn(size[0], 3, *size[1:])
    ours = class_attention(model.model, model.model.features(image).conv5_3).detach()
    cam = captum.attr.LayerGradCam(model, hooked(model.model))
    theirs = [cam.attribute(image, target=c, relu_attributions=True)[:, 0].detach() for c in range(ours.shape[1])]
    assert relative_difference(ours, torch.stack(theirs, dim=1)) < 1e-5


def test_hooks_on_the_last_convolution_see_it_before_its_relu(tiny_model):
    """Nothing writes over what a hook has kept, and a full backward hook may stand on both."""
    model, kept = tiny_model(batch_norm=False), {}
    for layer in (model.trunk.conv5_3, model.trunk.relu5_3):
        layer.register_forward_hook(
            lambda module, _, output: kept.__setitem__(module, (output, output.detach().clone()))
        )
        layer.register_full_backward_hook(lambda *_: None)
    ClassLogits(model)(torch.randn(2, 3, 48, 64)).sum().backward()
    for output, as_it_was in kept.values():
        assert torch.equal(output, as_it_was)
    assert kept[model.trunk.conv5_3][0].min() < 0 == kept[model.trunk.relu5_3][0].min()


@pytest.mark.parametrize("head_bias", [True, False])
def test_without_hidden_biases_the_map_accounts_for_the_whole_logit(tiny_model, head_bias):
    """At pool5, before its ReLU, the map adds up to the logit less the bias of the score."""
    model = tiny_model(attention_layer="pool5", head_channels=32, head_bias=head_bias).double()
    for layer in (model.classifier.fc1, model.classifier.fc2):
        if layer.bias is not None:
            torch.nn.init.normal_(layer.bias)
    conv5_3 = torch.rand(2, model.trunk.out_channels, 4, 6, dtype=torch.float64)
    pooled = pool(conv5_3)
    g = pooled.mean(dim=(2, 3))
    weights = importance_weights(model.classifier, g, (2, 3))
    evidence = torch.einsum("bck,bkhw->bc", weights, pooled)
    missing = (model.classifier(g) - model.classifier.score.bias - evidence).abs().max()
    assert (missing.item() < 1e-12) != head_bias


def test_attention_map_of_hand_computed_convolution():
    features = F.conv2d(torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 3, 3))
    assert attention_map(torch.ones(1, 1, 1), features).tolist() == [[[[45, 54], [81, 90]]]]
    assert attention_map(-torch.ones(1, 1, 1), features).tolist() == [[[[0, 0], [0, 0]]]]


def test_map_of_a_confident_class_does_not_vanish(tiny_model):
    """Behind a sigmoid, the map of a logit of 17 would be exactly 0 in float32."""
    model = tiny_model()
    conv5_3 = model.features(torch.randn(1, 3, 32, 32)).conv5_3.detach()
    nn.init.constant_(model.classifier.score.bias, 50.0)
    assert model.classify(conv5_3).sigmoid().min() == 1.0
    maps = class_attention(model, conv5_3)
    nn.init.zeros_(model.classifier.score.bias)
    assert torch.equal(maps, class_attention(model, conv5_3))
    assert maps.max() > 0


def test_attention_is_float32_under_autocast(tiny_model):
    model = tiny_model(batch_norm=False)
    conv5_3 = model.features(torch.randn(1, 3, 32, 32)).conv5_3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, logits = class_attention(model, conv5_3.bfloat16()), model.classify(conv5_3.bfloat16())
    assert maps.dtype == logits.dtype == torch.float32
    assert relative_difference(maps, class_attention(model, conv5_3.bfloat16().float())) < 1e-6


def test_second_order_changes_the_classifiers_gradient_alone(tiny_model):
    model = tiny_model()
    image = torch.randn(2, 3, 48, 48)
    gradients = {}
    for second_order in (False, True):
        model.zero_grad()
        class_attention(model, model.features(image).conv5_3, second_order=second_order).square().sum().backward()
        gradients[second_order] = (model.trunk.conv5_3.weight.grad.clone(), model.classifier.fc1.weight.grad)
    assert torch.allclose(gradients[False][0], gradients[True][0], rtol=1e-5)
    assert gradients[False][1] is None
    assert gradients[True][1].abs().max() > 0


def test_normalisation_is_per_map_and_rewards_no_inflation():
    attention = torch.rand(3, 4, 4) * torch.tensor([0.01, 1.0, 100.0]).view(3, 1, 1)
    attention.requires_grad_()
    normalised, alive = normalise_attention(attention)
    assert alive.all()
    assert normalised.amax(dim=(1, 2)).tolist() == [1.0, 1.0, 1.0]
    normalised.square().sum().backward()
    # Euler: the gradient along A itself is that of a common factor, which the maximum divides away.
    assert (attention * attention.grad).sum(dim=(1, 2)).abs().max() < 1e-4


def test_dead_map_is_masked_out_without_nan():
    attention = torch.zeros(2, 4, 4)
    attention[1, 0, 0] = 2 * DEAD_MAP_MAXIMUM
    attention.requires_grad_()
    normalised, alive = normalise_attention(attention)
    assert alive.tolist() == [False, True]
    assert normalised[0].abs().max() == 0
    normalised.sum().backward()
    assert torch.isfinite(attention.grad).all()


def test_soft_mask_by_hand():
    values = soft_mask(torch.tensor([0.0, 0.5, 1.0]), threshold=0.5, slope=10.0)
    assert values.tolist() == pytest.approx([0.0066929, 0.5, 0.9933071], abs=1e-6)


def test_masked_image_erases_to_the_data_mean():
    image = torch.full((1, 3, 2, 2), 7.0)
    mask = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    assert masked_image(image, mask)[0, 0].tolist() == [[0.0, 7.0], [3.5, 7.0]]


@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize("padding", [1, 100])
@pytest.mark.parametrize("size", [(64, 64), (50, 77)])
def test_attention_lies_where_the_features_are(stride, padding, size):
    """A map that is 1 in one cell peaks in the pixels that the cell covers."""
    grid = AttentionGrid(stride, padding)
    row, column = (((padding - 1) + side // 2) // stride for side in size)
    attention = torch.zeros(1, *grid.shape(size))
    attention[0, row, column] = 1.0
    image = attention_to_image(attention, size, grid)
    assert image.shape == (1, *size)
    peak = divmod(int(image.flatten().argmax()), size[1])
    assert [(position + padding - 1) // stride for position in peak] == [row, column]


def test_no_map_is_no_image():
    assert attention_to_image(torch.zeros(0, 2, 3), (32, 40), AttentionGrid(16, 1)).shape == (0, 32, 40)


def test_pairs_are_all_ground_truth_classes(batch):
    pairs = class_pairs(batch.image_labels, max_classes_per_image=4)
    assert pairs.image_index.tolist() == [0, 1, 1, 3, 3, 3]
    assert pairs.class_index.tolist() == [0, 1, 2, 0, 1, 2]


def test_pairs_are_capped_at_random_per_image(batch):
    choices = set()
    for seed in range(20):
        keys = class_keys(batch.sample_index, 3, seed=seed, epoch=0)
        pairs = class_pairs(batch.image_labels, 1, keys)
        assert pairs.image_index.tolist() == [0, 1, 3]
        assert batch.image_labels[pairs.image_index, pairs.class_index].tolist() == [1, 1, 1]
        choices.add(tuple(pairs.class_index.tolist()))
    assert {c[1] for c in choices} == {1, 2}
    assert {c[2] for c in choices} == {0, 1, 2}


def test_choice_of_pairs_is_of_seed_epoch_and_image_alone(batch):
    """Neither the rest of the batch nor what else is drawn at random decides it."""
    together = class_keys(batch.sample_index, 3, seed=5, epoch=2)
    torch.manual_seed(1)
    alone = torch.cat([class_keys(batch.sample_index[i : i + 1], 3, seed=5, epoch=2) for i in (3, 2, 1, 0)])
    assert torch.equal(together, alone.flip(0))
    assert len({tuple(row) for row in together.tolist()}) == 4
    assert not torch.equal(together, class_keys(batch.sample_index, 3, seed=5, epoch=3))
    with pytest.raises(ValueError, match="more than 1 classes"):
        class_pairs(batch.image_labels, 1)


def test_no_pairs_without_objects(tiny_model):
    network = GuidedNetwork(tiny_model(), attention_section())
    output = network(torch.randn(2, 3, 32, 32), class_pairs(torch.zeros(2, 3), 4), ALL_LOSSES)
    assert output.attention.shape[0] == output.masked_logits.shape[0] == 0


def test_batch_equals_stacked_singles(tiny_model, batch):
    network = GuidedNetwork(tiny_model(), attention_section())
    together = network(batch.image, class_pairs(batch.image_labels, 4), ALL_LOSSES)
    singles = [
        network(batch.image[i : i + 1], class_pairs(batch.image_labels[i : i + 1], 4), ALL_LOSSES) for i in range(4)
    ]
    for name in ("seg_logits", "class_logits", "attention", "masked_logits"):
        stacked = torch.cat([getattr(single, name) for single in singles])
        assert torch.allclose(getattr(together, name), stacked, atol=1e-5), name


@pytest.mark.parametrize("masked_gradient", ["shared", "attention_only"])
@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
def test_masked_logits_are_the_pairs_own_class_on_its_own_image(tiny_model, batch, layer, masked_gradient):
    model = tiny_model(attention_layer=layer)
    network = GuidedNetwork(model, attention_section(masked_gradient=masked_gradient))
    output = network(batch.image, class_pairs(batch.image_labels, 4), ALL_LOSSES)
    for n, (i, c) in enumerate(zip(*output.pairs, strict=True)):
        upsampled = attention_to_image(output.attention[n : n + 1], (48, 40), model.attention_grid)
        mask = soft_mask(upsampled, threshold=0.5, slope=10.0) * output.alive[n]
        logit = model(masked_image(batch.image[i : i + 1], mask))[1][0, c]
        assert torch.allclose(output.masked_logits[n], logit, atol=1e-5)


def test_losses_that_are_not_needed_cost_no_pass(tiny_model, batch):
    model = tiny_model()
    passes = []
    model.trunk.register_forward_hook(lambda *_: passes.append(1))
    output = GuidedNetwork(model, attention_section())(
        batch.image, class_pairs(batch.image_labels, 4), frozenset({"segmentation"})
    )
    assert (len(passes), output.class_logits, output.attention) == (1, None, None)
    GuidedNetwork(model, attention_section())(
        batch.image, class_pairs(batch.image_labels, 4), frozenset({"external_supervision"})
    )
    assert len(passes) == 2
    GuidedNetwork(model, attention_section())(
        batch.image, class_pairs(batch.image_labels, 4), frozenset({"attention_mining"})
    )
    assert len(passes) == 4


def test_masked_images_do_not_enter_batch_norm_statistics(tiny_model, batch):
    model = tiny_model()
    training_mode(model, training_section(update_batch_norm=False))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    GuidedNetwork(model, attention_section())(batch.image, class_pairs(batch.image_labels, 4), ALL_LOSSES)
    assert before
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


# ---- who learns from the attention losses ----------------------------------------------------------------------------


def mining(network, batch):
    """L_am, the attention that it came from, and the gradient of L_am with respect to that attention."""
    output = network(batch.image, class_pairs(batch.image_labels, 4), frozenset({"attention_mining"}))
    loss = attention_mining_loss(output.masked_logits, output.alive)
    (gradient,) = torch.autograd.grad(loss, output.attention, retain_graph=True)
    return loss, output.attention, gradient


def parameter_gradients(model, value, upstream=None):
    """By parameter; None where `value` does not depend on it."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, parameters.values(), upstream, retain_graph=True, allow_unused=True)
    return dict(zip(parameters, gradients, strict=True))


def test_both_judges_give_the_same_loss_and_the_same_gradient_to_the_map(tiny_model, batch):
    model = tiny_model()
    shared, alone = (
        mining(GuidedNetwork(model, attention_section(masked_gradient=masked_gradient)), batch)
        for masked_gradient in ("shared", "attention_only")
    )
    assert torch.equal(shared[0], alone[0])
    assert torch.equal(shared[2], alone[2])
    assert alone[2].abs().max() > 0


def test_attention_only_mining_reaches_parameters_through_the_map_alone(tiny_model, batch):
    model = tiny_model()
    network = GuidedNetwork(
        model, attention_section(second_order=True, trunk_gradient=0.5, masked_gradient="attention_only")
    )
    loss, attention, upstream = mining(network, batch)
    whole, through_the_map = parameter_gradients(model, loss), parameter_gradients(model, attention, upstream)
    for name, gradient in through_the_map.items():
        if gradient is None:
            assert whole[name] is None, name
        else:
            assert torch.allclose(whole[name], gradient, rtol=1e-4, atol=1e-9), name
    assert whole["trunk.conv5_3.weight"].abs().max() > 0
    assert whole["classifier.fc1.weight"].abs().max() > 0


@pytest.mark.parametrize("masked_gradient", ["shared", "attention_only"])
def test_judge_of_the_masked_image_learns_only_if_shared(tiny_model, batch, masked_gradient):
    """With nothing let through the map, what is left is what the masked pass gives to those who classify it."""
    model = tiny_model()
    loss, _, _ = mining(
        GuidedNetwork(model, attention_section(trunk_gradient=0.0, masked_gradient=masked_gradient)), batch
    )
    learning = {
        name
        for name, gradient in parameter_gradients(model, loss).items()
        if gradient is not None and gradient.abs().max() > 0
    }
    if masked_gradient == "attention_only":
        assert learning == set()
    else:
        assert {"trunk.conv1_1.weight", "trunk.conv5_3.weight", "classifier.fc1.weight"} <= learning


def test_judge_that_stands_still_keeps_its_statistics_too(tiny_model, batch):
    model = tiny_model()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training_mode(model, training_section(update_batch_norm=False))
    mining(GuidedNetwork(model, attention_section(masked_gradient="attention_only")), batch)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert all(p.requires_grad for p in model.trunk.parameters())


def guided_gradients(model, batch, needs, trunk_gradient):
    network = GuidedNetwork(
        model, attention_section(second_order=True, trunk_gradient=trunk_gradient, masked_gradient="attention_only")
    )
    output = network(batch.image, class_pairs(batch.image_labels, 4), frozenset({needs}))
    if needs == "attention_mining":
        loss = attention_mining_loss(output.masked_logits, output.alive)
    else:
        loss = output.attention.square().mean()
    gradients = parameter_gradients(model, loss)
    trunk = {name: g for name, g in gradients.items() if name.startswith("trunk.")}
    classifier = {name: g for name, g in gradients.items() if name.startswith("classifier.") and g is not None}
    return output.attention, trunk, classifier


@pytest.mark.parametrize("needs", ["attention_mining", "external_supervision"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_trunk_gets_its_share_of_the_gradient_and_the_classifier_all(tiny_model, batch, needs, share):
    model = tiny_model()
    attention, trunk, classifier = guided_gradients(model, batch, needs, share)
    whole_attention, whole_trunk, whole_classifier = guided_gradients(model, batch, needs, 1.0)
    assert torch.equal(attention, whole_attention)
    assert max(g.abs().max() for g in whole_trunk.values()) > 0
    for name, gradient in whole_trunk.items():
        assert torch.allclose(trunk[name], share * gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max()), name
    if share == 0.0:
        assert all(not g.any() for g in trunk.values())
    assert set(classifier) == {"classifier.fc1.weight", "classifier.fc2.weight", "classifier.score.weight"}
    for name, gradient in whole_classifier.items():
        assert torch.equal(classifier[name], gradient), name


@pytest.mark.parametrize("second_order", [False, True])
def test_attention_losses_reach_the_classifier_with_second_order_alone(tiny_model, batch, second_order):
    model = tiny_model()
    network = GuidedNetwork(model, attention_section(second_order=second_order))
    output = network(batch.image, class_pairs(batch.image_labels, 4), frozenset({"external_supervision"}))
    output.attention.square().mean().backward()
    for layer in (model.classifier.fc1, model.classifier.fc2, model.classifier.score):
        assert (layer.weight.grad is not None and bool(layer.weight.grad.any())) is second_order
