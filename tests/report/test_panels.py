"""What the panels show: which samples, whose attention, which epochs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pipeline.report.panels
from pipeline.evaluation.snapshots import attention_maps, panel_samples
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.report.overlays import attention_overlay, outlined
from pipeline.report.panels import EVOLUTION_COLUMNS, attention_panel, comparison_panel, evolution_panel, picture

CLASS_NAMES = ("cat", "dog", "fox")


@pytest.fixture
def samples(batch):
    """The first two images of the batch: a cat; a dog and a fox."""
    return [type(batch)(*(values[i] for values in batch)) for i in range(2)]


@pytest.fixture
def drawn(monkeypatch):
    """What a panel is drawn from: rows of pictures, titles and labels of each call; the drawing itself goes on."""
    calls, panel, tiles = [], pipeline.report.panels.panel, pipeline.report.panels.tiles

    def recorded_panel(rows, titles, labels, *others, **key):
        calls.append(SimpleNamespace(rows=rows, titles=titles, labels=labels))
        return panel(rows, titles, labels, *others, **key)

    def recorded_tiles(pictures, captions, *others):
        calls.append(SimpleNamespace(rows=[pictures], titles=captions, labels=[""]))
        return tiles(pictures, captions, *others)

    monkeypatch.setattr(pipeline.report.panels, "panel", recorded_panel)
    monkeypatch.setattr(pipeline.report.panels, "tiles", recorded_tiles)
    return calls


def overlay(sample, value: float) -> np.ndarray:
    """Even attention over a sample, its first class outlined."""
    size = sample.target.shape
    mask = sample.target.numpy() == int(sample.image_labels.nonzero()[0]) + 1
    return outlined(attention_overlay(picture(sample), np.full(size, value)), mask)


class Split:
    """A data set that gives the index of a sample in its place."""

    def __init__(self, *classes):
        self.rows = [SimpleNamespace(classes=names) for names in classes]

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(
    ("count", "expected"), [(0, []), (1, [1]), (3, [1, 3, 5]), (4, [1, 3, 5, 2]), (9, [1, 3, 5, 2, 4])]
)
def test_samples_go_round_the_classes_and_leave_empty_images_out(count, expected):
    """Judged by the class with the lowest index: dogs are 1 and 2, cats 3 and 4, the only fox is 5."""
    split = Split((), ("fox", "dog"), ("dog",), ("cat",), ("fox", "cat"), ("fox",))
    assert panel_samples(split, CLASS_NAMES, count) == expected


@pytest.mark.parametrize("layer", ["conv5_3", "pool5"])
@pytest.mark.parametrize("padding", [1, 100])
def test_maps_are_those_of_each_samples_first_class(tiny_model, samples, layer, padding):
    model = tiny_model(attention_layer=layer, padding=padding)
    state = torch.get_rng_state()
    maps = attention_maps(model, samples)
    assert torch.equal(torch.get_rng_state(), state)
    assert (maps.dtype, maps.shape) == (torch.uint8, (2, 48, 40))
    for sample, found, class_index in zip(samples, maps, (0, 1), strict=True):
        attention = class_attention(model, model.features(sample.image[None]).conv5_3)[:, class_index]
        normalised, _ = normalise_attention(attention)
        expected = attention_to_image(normalised, (48, 40), model.attention_grid)[0].detach()
        assert (found.float() / 255 - expected).abs().max() <= 0.51 / 255
        assert found.max() > 0


def test_samples_of_two_sizes_keep_theirs(tiny_model, samples, drawn):
    """The second is cut to 32x24: its map has that size, and nothing beyond it."""
    model, (first, second) = tiny_model(), samples
    second = second._replace(image=second.image[:, :32, :24], target=second.target[:32, :24])
    maps = attention_maps(model, [first, second])
    assert maps.shape == (2, 48, 40)
    assert torch.equal(maps[1, :32, :24], attention_maps(model, [second])[0])
    assert not maps[1, 32:].any()
    assert not maps[1, :, 24:].any()
    attention_panel([first, second], maps, CLASS_NAMES, model="gain", layer="conv5_3")
    (row,) = drawn[0].rows
    assert [shown.shape for shown in row] == [(48, 40, 3), (32, 24, 3)]


def test_no_samples_have_no_maps(tiny_model):
    assert attention_maps(tiny_model(), []).shape[0] == 0


def test_attention_panel_names_model_and_class_and_is_readable(samples, drawn):
    maps = torch.stack([torch.full((48, 40), value, dtype=torch.uint8) for value in (51, 204)])
    image = attention_panel(samples, maps, CLASS_NAMES, model="gain", layer="conv5_3")
    assert drawn[0].titles == ["gain: cat", "gain: dog"]
    for sample, value, shown in zip(samples, (51, 204), drawn[0].rows[0], strict=True):
        assert np.array_equal(shown, overlay(sample, value / 255))
    assert image.height > 200


@pytest.mark.parametrize(
    ("num_epochs", "shown"),
    [
        (0, [0]),
        (1, [0, 1]),
        (3, [0, 1, 2, 3]),
        (8, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (9, [0, 1, 2, 3, 4, 6, 7, 8, 9]),
        (32, [0, 4, 8, 12, 16, 20, 24, 28, 32]),
    ],
)
def test_evolution_shows_image_before_and_epochs_up_to_the_last(samples, drawn, num_epochs, shown):
    snapshots = torch.arange(num_epochs + 1, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 48, 40) * 7
    image = evolution_panel(samples, snapshots, CLASS_NAMES, layer="conv5_3")
    assert len(shown) <= EVOLUTION_COLUMNS
    assert drawn[0].titles == ["image", "before", *(f"epoch {epoch}" for epoch in shown[1:])]
    assert drawn[0].labels == ["cat", "dog"]
    for sample, row in zip(samples, drawn[0].rows, strict=True):
        assert np.array_equal(row[0], picture(sample))
        assert len(row) == 1 + len(shown)
        for epoch, found in zip(shown, row[1:], strict=True):
            assert np.array_equal(found, overlay(sample, 7 * epoch / 255))
    assert image.width > 40 * (1 + len(shown))


def test_comparison_shows_the_attention_of_every_model(tiny_model, samples, drawn):
    comparison_panel({"control": tiny_model(), "gain": tiny_model()}, samples, CLASS_NAMES, 1)
    assert drawn[0].titles == [
        "image",
        "truth",
        "prediction of gain",
        "attention of control",
        "attention of gain",
        "strongest maps of gain at conv5_3",
    ]
    assert drawn[0].labels == ["cat", "dog"]
    assert all(len(row) == 6 for row in drawn[0].rows)
