import pytest
import torch
import torch.nn.functional as F
from sections import full_architecture_section, training_section

from pipeline.model.decoder import (
    UPSAMPLING,
    FullyConnected,
    bilinear_kernel,
    upsample,
    upsample_by_products,
    upsample_like_caffe,
)
from pipeline.model.fcn8s import AttentionGrid, FCN8s
from pipeline.model.trunk import pool
from pipeline.training.optimization import freeze


def test_full_size_has_the_published_number_of_parameters():
    """134,489,759 in the Caffe model with 21 classes, its fixed upsampling included; the classifier not counted."""
    with torch.device("meta"):
        model = FCN8s(20, full_architecture_section())
    parts = (model.trunk, model.decoder)
    fixed = sum(bilinear_kernel(21, factor).numel() for factor in UPSAMPLING.values())
    assert sum(p.numel() for part in parts for p in part.parameters()) + fixed == 134_489_759


def test_layers_keep_their_caffe_names(tiny_model):
    names = {name.rsplit(".", 1)[0] for name, _ in tiny_model(batch_norm=False).named_parameters()}
    blocks = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
    expected = {f"trunk.conv{b}_{i}" for b, n in blocks.items() for i in range(1, n + 1)}
    expected |= {f"decoder.{n}" for n in ("fc6", "fc7", "score_fr", "score_pool3", "score_pool4")}
    assert names - {"classifier.fc1", "classifier.fc2", "classifier.score"} == expected


@pytest.mark.parametrize("padding", [1, 100])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (50, 77), (17, 100)])
def test_any_image_size_gives_scores_of_that_size(tiny_model, padding, size):
    model = tiny_model(padding=padding)
    with torch.no_grad():
        features = model.features(torch.randn(2, 3, *size))
        seg_logits = model.segment(features, size)
    assert seg_logits.shape == (2, 4, *size)
    assert features.conv5_3.shape[2:] == AttentionGrid(16, padding).shape(size)
    assert pool(features.conv5_3).shape[2:] == AttentionGrid(32, padding).shape(size)


@pytest.mark.parametrize(("layer", "stride"), [("conv5_3", 16), ("pool5", 32)])
@pytest.mark.parametrize("padding", [1, 100])
def test_attention_grid_is_that_of_the_layer(tiny_model, layer, stride, padding):
    assert tiny_model(attention_layer=layer, padding=padding).attention_grid == AttentionGrid(stride, padding)


def test_pass_without_segmentation_leaves_the_decoder_out(tiny_model):
    model, image = tiny_model(), torch.randn(2, 3, 32, 32)
    passes = []
    model.decoder.register_forward_hook(lambda *_: passes.append(1))
    none, class_logits = model(image, segmentation=False)
    assert (none, passes) == (None, [])
    assert torch.equal(class_logits, model(image)[1])
    assert passes == [1]


def test_padding_100_is_a_pad_of_99_before_padding_1(tiny_model):
    """The one stateless module equals Caffe's conv1_1 with padding 100; nothing toggles between the two."""
    model = tiny_model(padding=100, batch_norm=False)
    image = torch.randn(1, 3, 20, 30)
    conv1_1 = model.trunk.conv1_1
    caffe = F.conv2d(image, conv1_1.weight, conv1_1.bias, padding=100)
    ours = conv1_1(F.pad(image, [99] * 4))
    assert torch.allclose(caffe, ours, atol=3e-6)
    first, second = model.features(image).conv5_3, model.features(image).conv5_3
    assert torch.equal(first, second)
    assert conv1_1.padding == (1, 1)


@pytest.mark.parametrize(("side", "margin"), [(7, 3), (7, 0), (1, 0)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_fully_connected_layers_as_a_product_are_the_convolution(side, margin, memory):
    layer = FullyConnected(3, 5, side=side, margin=margin).double().to(memory_format=memory)
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64).contiguous(memory_format=memory)
    of_product, of_convolution = (x.clone().requires_grad_() for _ in range(2))
    product, convolution = layer.product(of_product), layer(of_convolution)
    assert torch.allclose(product, convolution, rtol=0, atol=1e-12)
    weights = torch.randn_like(convolution)
    grads, expected = (
        torch.autograd.grad((result * weights).sum(), [given, layer.weight, layer.bias])
        for given, result in ((of_product, product), (of_convolution, convolution))
    )
    for found, slow in zip(grads, expected, strict=True):
        assert torch.allclose(found, slow, rtol=0, atol=1e-11)


def test_sixteen_bits_take_the_product_and_agree_with_float32():
    layer = FullyConnected(3, 5, side=7, margin=3)
    x = torch.randn(2, 3, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        short = layer(x.bfloat16())
    assert short.dtype == torch.bfloat16
    assert torch.equal(short, layer.bfloat16().product(x.bfloat16()))
    assert torch.allclose(short.float(), layer.float()(x), atol=0.02)


@pytest.mark.parametrize("factor", sorted(set(UPSAMPLING.values())))
@pytest.mark.parametrize("size", [(5, 6), (1, 3)])
def test_upsampling_is_the_papers_transposed_convolution(factor, size):
    scores = torch.rand(2, 3, *size, dtype=torch.float64)
    slow = F.conv_transpose2d(scores, bilinear_kernel(3, factor).double(), stride=factor)
    assert torch.allclose(upsample_like_caffe(scores, factor), slow, rtol=0, atol=1e-12)
    edge = factor // 2
    inner = (..., slice(edge, -edge or None), slice(edge, -edge or None))
    away = (..., slice(factor, -factor), slice(factor, -factor))  # from the border, where one fades and one does not
    assert torch.allclose(upsample(scores, factor)[away], slow[..., edge:-edge, edge:-edge][away], rtol=0, atol=1e-12)
    assert slow[inner].shape == (2, 3, factor * size[0], factor * size[1])


@pytest.mark.parametrize("factor", [2, 8, 16])
@pytest.mark.parametrize("size", [(5, 6), (1, 3)])
def test_upsampling_by_products_is_interpolation(factor, size):
    slow, fast = (torch.rand(2, 3, *size, dtype=torch.float64).requires_grad_() for _ in range(2))
    fast.data.copy_(slow.data)
    by_interpolation, by_products = upsample(slow, factor), upsample_by_products(fast, factor)
    assert torch.allclose(by_products, by_interpolation, rtol=0, atol=1e-12)
    gradient = torch.rand_like(by_interpolation)
    by_interpolation.backward(gradient)
    by_products.backward(gradient)
    assert torch.allclose(fast.grad, slow.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 8])
def test_upsampling_does_not_fade_at_the_border(factor):
    assert torch.equal(upsample(torch.ones(1, 2, 3, 4), factor), torch.ones(1, 2, 3 * factor, 4 * factor))


@pytest.mark.parametrize("padding", [1, 100])
@pytest.mark.parametrize("skip", ["score_pool3", "score_pool4", "score_fr"])
def test_scores_lie_over_the_pixels_that_they_score(tiny_model, padding, skip):
    """A score map with one hot cell must come out centred on that cell's pixels, whatever was cropped on the way."""
    model = tiny_model(padding=padding, batch_norm=False)
    decoder, stride = model.decoder, {"score_pool3": 8, "score_pool4": 16, "score_fr": 32}[skip]
    size = (160, 192)
    features = model.features(torch.zeros(1, 3, *size))
    canvas = tuple(side + 2 * (padding - 1) for side in size)
    hot = tuple((padding - 1 + side // 2) // stride for side in size)
    for name in ("score_pool3", "score_pool4", "score_fr"):
        grid = tuple(-(-side // {"score_pool3": 8, "score_pool4": 16, "score_fr": 32}[name]) for side in canvas)
        if name == "score_fr" and padding == 100:
            grid = tuple(side - 6 for side in grid)  # fc6 without padding eats three cells on each side
        scores = torch.zeros(1, 4, *grid)
        if name == skip:
            offset = 3 if name == "score_fr" and padding == 100 else 0
            scores[0, :, hot[0] - offset, hot[1] - offset] = 1.0
        getattr(decoder, name).forward = lambda _, scores=scores: scores
    with torch.no_grad():
        response = model.segment(features, size)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    centre = [float((response * axis).sum() / response.sum()) for axis in (rows, columns)]
    expected = [(cell + 0.5) * stride - 0.5 - (padding - 1) for cell in hot]
    # Caffe's crop offsets are whole pixels of the padded canvas and leave the grid up to half a stride off.
    tolerance = 0.5 if padding == 1 else stride / 2
    assert centre == pytest.approx(expected, abs=tolerance)


def test_frozen_parts_get_no_gradient_and_the_others_do(tiny_model):
    model = tiny_model()
    freeze(model, training_section(frozen=["trunk"]))
    seg_logits, class_logits = model(torch.randn(2, 3, 32, 32))
    (seg_logits.sum() + class_logits.sum()).backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert all(p.grad is not None for p in model.classifier.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())
