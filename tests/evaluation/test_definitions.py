"""What docs/definitions.md says of the scores of others, and of ours beside them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from benchmarks.definitions import Seen, model_guidance, ours, torchfcn, torchmetrics_scores, torchray_pointing_game

VOID = 255


def seen(seed: int = 0, num_images: int = 6, num_classes: int = 3) -> Seen:
    """Random predictions and maps for random truth with void, in which every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes + 1, (num_images, 8, 10), generator=generator)
    target[:, 0] = VOID
    labels = torch.stack([(target == value + 1).flatten(1).any(dim=1) for value in range(num_classes)], dim=1)
    image_index, class_index = labels.nonzero(as_tuple=True)
    maps = torch.rand(len(image_index), 8, 10, generator=generator)
    return Seen(
        prediction=torch.randint(num_classes + 1, (num_images, 8, 10), generator=generator),
        target=target,
        class_probs=torch.rand(num_images, num_classes, generator=generator),
        image_labels=labels.float(),
        maps=maps / maps.amax(dim=(1, 2), keepdim=True),
        class_index=class_index,
        image_index=image_index,
        boxes=target[image_index] == class_index[:, None, None] + 1,
    )


def test_all_agree_where_every_class_occurs():
    images = seen()
    own, fcn, others = ours(images, threshold=0.2), torchfcn(images), torchmetrics_scores(images)
    assert {name: own[name] for name in fcn} == pytest.approx(fcn, abs=1e-12)
    valid = images.target != VOID
    truth, found = (np.asarray(tensor[valid]) for tensor in (images.target, images.prediction))
    assert own["mean_iou"] == pytest.approx(jaccard_score(truth, found, average="macro"))
    assert others["MulticlassJaccardIndex"] == pytest.approx(own["mean_iou"], abs=1e-6)
    assert others["MulticlassAccuracy"] == pytest.approx(own["mean_accuracy"], abs=1e-6)
    assert others["MulticlassAccuracy, micro"] == pytest.approx(own["pixel_accuracy"], abs=1e-6)
    assert others["MultilabelF1Score"] == pytest.approx(own["macro_f1"], abs=1e-6)
    assert others["MultilabelAveragePrecision"] == pytest.approx(own["mean_average_precision"], abs=1e-6)
    assert others["MultilabelExactMatch"] == pytest.approx(own["exact_match"], abs=1e-6)
    labels, decisions = (np.asarray(tensor >= 0.5) for tensor in (images.image_labels, images.class_probs))
    assert model_guidance(images)["F-Score"] == pytest.approx(f1_score(labels, decisions, average="micro"))


def test_class_that_is_predicted_and_not_there_counts_for_others():
    images = seen()
    absent = images.target.masked_fill(images.target == 3, 2)  # no pixel of the last class, which is still predicted
    images = Seen(**{**vars(images), "target": absent})
    own, fcn, others = ours(images, threshold=0.2), torchfcn(images), torchmetrics_scores(images)
    assert fcn["mean_iou"] == pytest.approx(own["mean_iou"] * 3 / 4)  # a fourth class with IoU 0
    assert others["MulticlassJaccardIndex"] == pytest.approx(fcn["mean_iou"], abs=1e-6)
    assert fcn["mean_accuracy"] == pytest.approx(own["mean_accuracy"])
    assert others["MulticlassAccuracy"] == pytest.approx(own["mean_accuracy"] * 3 / 4, abs=1e-6)


def one_pair(peak: tuple[int, int], box: tuple[slice, slice]) -> Seen:
    """A map that falls from its peak over an object of class 1 of 2 that is a box."""
    target = torch.zeros(1, 40, 40, dtype=torch.int64)
    target[0][box] = 1
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    distance = ((rows - peak[0]) ** 2 + (columns - peak[1]) ** 2).float().sqrt()
    probs, index = torch.tensor([[0.9, 0.1]]), torch.zeros(1, dtype=torch.int64)
    maps = (0.2 + 0.8 * (1 - distance / 60).clamp(min=0))[None]
    return Seen(target, target, probs, (probs > 0.5).float(), maps, index, index, target == 1)


@pytest.mark.parametrize(("column", "hit"), [(20, True), (35 - 1, True), (35, False), (36, False)])
def test_torchray_forgives_a_peak_nearer_than_15_pixels(column, hit):
    images = one_pair((20, column), (slice(10, 30), slice(10, 21)))  # the object ends at column 20
    assert torchray_pointing_game(images, 15) == (0.5 if hit else 0.0)  # the second class has no pair and counts as 0
    assert ours(images, threshold=0.2)["pointing_game"] == float(column <= 20)


def test_min_max_of_a_map_that_is_nowhere_0_is_another_region():
    images = one_pair((20, 20), (slice(15, 26), slice(15, 26)))
    own, others = ours(images, threshold=0.5), model_guidance(images)
    scaled = (images.maps - images.maps.min()) / (images.maps.max() - images.maps.min())
    attended = scaled > 0.5
    assert others["IoU"] == pytest.approx(float((attended & images.boxes).sum() / (attended | images.boxes).sum()))
    assert others["IoU"] > own["attention_iou"]  # over its maximum, the map is above 0.5 almost everywhere
    assert others["energy"] == pytest.approx(own["energy_pointing_game"])  # the mask is its box
