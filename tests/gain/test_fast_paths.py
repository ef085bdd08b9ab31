"""Every fast path of a step beside a slow and obvious one: same losses, same gradients.

The masked pass and its reference, one pair at a time with Grad-CAM by autograd, both compute in float64: in float32 a
ReLU or a pooling window whose inputs agree to seven digits may take another side than in float64, which moves gradients
by some percent on one CPU and not on another. Where both sides compute in float32, the same inputs meet the same
kernels, and the largest error of a layer must stay below 1e-4 of its largest gradient.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from sections import attention_section, training_section

from pipeline.data.samples import Sample
from pipeline.gain.losses import LOSS_NAMES, Criterion
from pipeline.gain.network import GuidedNetwork, class_pairs
from pipeline.training.loop import build_optimizer, freeze, training_mode

RELATIVE = 1e-4
RELATIVE_FLOAT64 = 1e-10
WEIGHTS = {"segmentation": 1.0, "classification": 1.0, "attention_mining": 0.5, "external_supervision": 2.0}


def gradients(network: GuidedNetwork, batch: Sample, weights=WEIGHTS) -> dict[str, torch.Tensor]:
    """By parameter, and the losses as loss/NAME."""
    network.zero_grad()
    criterion = Criterion(weights, network.model.attention_grid, attention_section())
    output = network(batch.image, class_pairs(batch.image_labels, 4), criterion.needs)
    losses = criterion(output, batch)
    criterion.total(losses, 1.0).backward()
    found = {name: p.grad.clone() for name, p in network.model.named_parameters() if p.grad is not None}
    return found | {f"loss/{name}": loss.detach() for name, loss in losses.items()}


def assert_close(found, expected, relative=RELATIVE):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value.double()).abs().max() / value.double().abs().max().clamp(min=1e-12)
        assert error < relative, f"{name}: {float(error):.2g}"


def mined_by_hand(model, batch: Sample, *, stride: int, learn: bool) -> dict[str, torch.Tensor]:
    """L_am in float64: for each ground-truth class of each image, one Grad-CAM, one masked image, one more pass."""
    model = copy.deepcopy(model).double()
    judge = copy.deepcopy(model).requires_grad_(learn)
    if learn:
        judge = model

    def classify(network, conv5_3):
        pooled = F.max_pool2d(conv5_3, 2, 2, ceil_mode=True).mean(dim=(2, 3))
        return network.classifier(pooled)

    scores = []
    for image, labels in zip(batch.image.double(), batch.image_labels, strict=True):
        for label in labels.nonzero()[:, 0].tolist():
            conv5_3 = model.features(image[None]).conv5_3
            at_conv5_3 = conv5_3.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(classify(model, at_conv5_3)[0, label], at_conv5_3)
            attention = (gradient.mean(dim=(2, 3), keepdim=True) * conv5_3).sum(dim=1).relu()
            if attention.max() < 1e-6:
                continue
            upsampled = F.interpolate((attention / attention.max())[None], scale_factor=16, mode="bilinear")[0, 0]
            height, width = image.shape[1:]
            masked = image * (1.0 - torch.sigmoid(10.0 * (upsampled[:height, :width] - 0.5)))
            cells = masked.reshape(3, height // stride, stride, width // stride, stride)
            seen = cells.mean(dim=(2, 4))[None]
            scores.append(classify(judge, judge.features(seen).conv5_3)[0, label].sigmoid())
    loss = torch.stack(scores).mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss/attention_mining": loss.detach()}


@pytest.fixture
def in_float64(monkeypatch) -> None:
    """What the code casts to float32, so that autocast leaves it exact, stays in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("masked_gradient", ["shared", "attention_only"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_masked_pass_is_one_pass_per_pair(tiny_model, scene, in_float64, stride, masked_gradient):
    model = tiny_model().double()
    network = GuidedNetwork(model, attention_section(masked_stride=stride, masked_gradient=masked_gradient))
    exact = scene._replace(image=scene.image.double(), image_labels=scene.image_labels.double())
    found = gradients(network, exact, {"attention_mining": 1.0})
    expected = mined_by_hand(model, scene, stride=stride, learn=masked_gradient == "shared")
    assert any(name.startswith("trunk") for name in expected)
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert_close(found, expected, RELATIVE_FLOAT64)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_masked_pass_in_float32_has_the_loss_of_one_pass_per_pair(tiny_model, scene, stride):
    model = tiny_model()
    found = gradients(GuidedNetwork(model, attention_section(masked_stride=stride)), scene, {"attention_mining": 1.0})
    expected = mined_by_hand(model, scene, stride=stride, learn=True)
    assert found["loss/attention_mining"].dtype == torch.float32
    assert float(found["loss/attention_mining"]) == pytest.approx(float(expected["loss/attention_mining"]), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(50, 77), (33, 48)])
def test_masked_pass_takes_any_size(tiny_model, stride, size):
    model = tiny_model()
    labels = torch.tensor([[1.0, 0.0, 1.0]])
    network = GuidedNetwork(model, attention_section(masked_stride=stride))
    output = network(torch.randn(1, 3, *size), class_pairs(labels, 4), frozenset({"attention_mining"}))
    assert torch.isfinite(output.masked_logits).all()


@pytest.mark.parametrize("masked_gradient", ["shared", "attention_only"])
@pytest.mark.parametrize("update_batch_norm", [True, False])
def test_recomputed_activations_give_the_same_step(tiny_model, scene, masked_gradient, update_batch_norm):
    """Gradients, and statistics of batch normalisation, which a second pass must not enter twice."""
    results = []
    start = tiny_model().state_dict()
    for checkpoint_activations in (False, True):
        model = tiny_model()
        model.load_state_dict(start)
        model.trunk.checkpoint_activations = checkpoint_activations
        training_mode(model, training_section(update_batch_norm=update_batch_norm))
        network = GuidedNetwork(
            model, attention_section(second_order=True, masked_stride=2, masked_gradient=masked_gradient)
        )
        results.append(gradients(network, scene) | {name: b.clone().float() for name, b in model.named_buffers()})
    assert_close(results[1], results[0])
    assert bool(results[0]["trunk.bn1_1.num_batches_tracked"]) is update_batch_norm


def test_recomputed_activations_are_not_kept(tiny_model, scene):
    """What a step holds for its backward pass, in bytes."""
    held = {}
    for checkpoint_activations in (False, True):
        model = tiny_model(width=0.25)
        model.trunk.checkpoint_activations = checkpoint_activations
        storages: dict[int, int] = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = model.features(scene.image)
        held[checkpoint_activations] = sum(storages.values())
        del features
    assert held[True] < 0.35 * held[False]


@pytest.mark.system  # the compiler takes many seconds
def test_compiled_step_is_the_plain_step(tiny_model, scene):
    """As traced and differentiated by torch.compile; its code generator, which takes minutes, is left to torch."""
    model = tiny_model()
    network = GuidedNetwork(model, attention_section(second_order=True, masked_stride=2))
    expected = gradients(network, scene)
    compiled = torch.compile(network, backend="aot_eager")
    assert_close(gradients(compiled, scene), expected)
    fewer = scene._replace(image_labels=scene.image_labels * torch.tensor([1.0, 0.0, 0.0]))
    assert_close(gradients(compiled, fewer), gradients(network, fewer))  # another number of pairs


def test_fused_step_is_the_plain_step(tiny_model, training_options):
    results = []
    start = tiny_model().state_dict()
    for fused in (False, True):
        model = tiny_model()
        model.load_state_dict(start)
        model.double()
        freeze(model, training_section())
        options = training_options.model_copy(update={"weight_decay": 0.01})
        steps = build_optimizer(model, options, fused=fused)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            steps.step()
        results.append({name: p.detach() for name, p in model.named_parameters()})
    assert_close(results[1], results[0], relative=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("fused", [True, False])
def test_part_may_have_its_first_gradient_later(tiny_model, training_options, optimizer, fused):
    model = tiny_model()
    freeze(model, training_section())
    steps = build_optimizer(model, training_options.model_copy(update={"optimizer": optimizer}), fused=fused)
    for parts in (("trunk",), ("trunk", "classifier")):
        for part in parts:
            for parameter in model.get_submodule(part).parameters():
                parameter.grad = torch.ones_like(parameter)
        before = [p.detach().clone() for p in model.classifier.parameters()]
        steps.step()
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.classifier.parameters(), strict=True))
        assert moved is ("classifier" in parts)


def test_bfloat16_leaves_scores_attention_and_losses_in_float32(tiny_model, scene):
    model = tiny_model()
    network, criterion = (
        GuidedNetwork(model, attention_section(masked_stride=2)),
        Criterion(WEIGHTS, model.attention_grid, attention_section()),
    )
    pairs = class_pairs(scene.image_labels, 4)
    exact = criterion(network(scene.image, pairs, criterion.needs), scene)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(scene.image, pairs, criterion.needs)
        losses = criterion(output, scene)
        assert model.features(scene.image).conv5_3.dtype == torch.bfloat16
    given = (output.seg_logits, output.attention, output.class_logits, *losses.values())
    assert {value.dtype for value in given} == {torch.float32}
    assert set(losses) == set(LOSS_NAMES)
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(float(exact[name].detach()), rel=0.05), name
