"""Samples: their pixels, their augmentation, and the cache of decoded images."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from PIL import Image
from small_samples import IDS, same

from pipeline.base.sections import Augmentation
from pipeline.data import voc
from pipeline.data.images import decode_image
from pipeline.data.samples import SegmentationDataset, _training_transform, denormalise, image_labels, normalise


def flips(dataset: SegmentationDataset, plain: SegmentationDataset) -> list[bool]:
    """Which samples are mirrored; every one must be as it is without augmentation, or its mirror image as a whole."""
    mirrored = []
    for index in range(len(dataset)):
        sample, original = dataset[index], plain[index]
        flipped = original._replace(
            image=original.image.flip(-1), target=original.target.flip(-1), guidance=original.guidance.flip(-1)
        )
        assert same(sample, original) != same(sample, flipped) or original.target.eq(original.target.flip(-1)).all()
        assert same(sample, original) or same(sample, flipped)
        mirrored.append(not torch.equal(sample.image, original.image))
    return mirrored


# ---- pixels ----------------------------------------------------------------------------------------------------------


def test_normalisation_uses_the_statistics_of_imagenet_in_rgb_order():
    image = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert normalise(image).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert normalise(image).dtype == torch.float32


def test_mean_colour_becomes_zero():
    mean = torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1)  # 255 times the means, rounded
    assert normalise(mean).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 3, 16, 16)])
def test_denormalise_inverts_normalise_for_every_value(shape):
    values = torch.arange(256, dtype=torch.uint8).view(16, 16).expand(shape)
    assert torch.equal(denormalise(normalise(values)), values)
    assert denormalise(normalise(values)).dtype == torch.uint8


def test_denormalise_clamps():
    assert denormalise(torch.full((3, 1, 1), 9.0)).flatten().tolist() == [255, 255, 255]
    assert denormalise(torch.full((3, 1, 1), -9.0)).flatten().tolist() == [0, 0, 0]


def test_channels_come_in_rgb_order(voc_root, make):
    path = voc.image_path(voc_root, "t0")
    Image.new("RGB", (8, 6), (200, 90, 30)).save(path, quality=100, subsampling=0)
    red, green, blue = denormalise(make(horizontal_flip=0.0)[0].image).float().mean(dim=(1, 2)).tolist()
    assert [red, green, blue] == pytest.approx([200, 90, 30], abs=2)


def test_sample_is_the_file_normalised_with_its_mask(voc_root, make):
    sample = make(horizontal_flip=0.0)[0]
    decoded = torch.from_numpy(decode_image(voc.image_path(voc_root, "t0"))).permute(2, 0, 1)
    assert torch.equal(denormalise(sample.image), decoded)
    assert (sample.image.shape, sample.image.dtype) == ((3, 6, 8), torch.float32)
    assert sample.target.dtype == torch.int64
    assert sample.target.tolist() == 2 * [[1, 1, 1, 0, 0, 0, 0, 0]] + 3 * [8 * [0]] + [8 * [255]]
    assert (sample.image_labels.dtype, sample.guidance.dtype) == (torch.float32, torch.uint8)


def test_labels_guidance_and_positions_follow_the_rows(make):
    samples = [make()[index] for index in range(4)]
    assert [sample.image_labels.tolist() for sample in samples] == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert [bool((sample.guidance != 255).any()) for sample in samples] == [False, True, False, False]
    assert [int(sample.sample_index) for sample in samples] == [0, 1, 2, 3]


def test_guidance_lies_beside_the_mask_of_its_image(make):
    sample = make(horizontal_flip=0.0)[1]
    assert sample.guidance.tolist() == 2 * [8 * [0]] + 4 * [[0, 2, 2, 0, 0, 0, 0, 0]]
    assert sample.target.tolist() == 6 * [[2, 2, 2, 2, 0, 0, 0, 0]]


def test_without_guidance_nothing_is_known(make):
    sample = make(guidance=None)[1]
    assert torch.equal(sample.guidance, torch.full((6, 8), 255, dtype=torch.uint8))


def test_without_augmentation_a_sample_is_as_the_file(make):
    unchanged = make(horizontal_flip=0.0)
    assert all(same(make(augmentation=None)[index], unchanged[index]) for index in range(4))


@given(hypothesis_numpy.arrays(np.uint8, (3, 4), elements=st.sampled_from([0, 1, 2, 3, 4, 5, 255])))
def test_image_labels_are_the_classes_of_the_mask(mask):
    labels = image_labels(torch.from_numpy(mask), 5)
    assert (labels.shape, labels.dtype) == ((5,), torch.float32)
    assert {index + 1 for index, value in enumerate(labels.tolist()) if value} == set(mask.flatten().tolist()) - {
        0,
        255,
    }
    assert set(labels.tolist()) <= {0.0, 1.0}


def test_missing_image_is_named_when_it_is_loaded(voc_root, make, refused):
    dataset, path = make(), voc.image_path(voc_root, "t2")
    path.unlink()
    assert refused(dataset.__getitem__, 2).startswith(f"{path}: image missing")


# ---- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("horizontal_flip", "mirrored"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_flips_move_image_mask_and_guidance_together(make, horizontal_flip, mirrored):
    assert set(flips(make(horizontal_flip=horizontal_flip), make(horizontal_flip=0.0))) == mirrored


def test_flips_come_as_often_as_asked(make):
    share = np.mean(flips(make(400, cache_images=True), make(400, horizontal_flip=0.0, cache_images=True)))
    assert share == pytest.approx(0.5, abs=0.1)  # four standard deviations


def test_augmentation_depends_on_seed_epoch_and_index_alone(make):
    plain = make(horizontal_flip=0.0)

    def drawn(seed: int, epoch: int) -> tuple[bool, ...]:
        dataset = make(seed=seed)
        dataset.set_epoch(epoch)
        return tuple(flips(dataset, plain))

    assert drawn(0, 3) == drawn(0, 3)
    assert len({drawn(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 3)}) == 6


def test_augmentation_does_not_depend_on_what_was_drawn_before(make):
    dataset, again = make(), make()
    forwards = [dataset[index] for index in range(24)]
    torch.manual_seed(1234)
    np.random.seed(1234)
    random.seed(1234)
    backwards = [again[index] for index in reversed(range(24))]
    assert all(map(same, forwards, reversed(backwards)))


def test_augmentation_leaves_the_global_generators_untouched(make):
    dataset = make(horizontal_flip=0.5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for index in range(24):
        dataset[index]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augmentation_leaves_the_generator_of_the_gpu_untouched(make):
    state = torch.cuda.get_rng_state()
    make()[0]
    assert torch.equal(torch.cuda.get_rng_state(), state)


# ---- crops -----------------------------------------------------------------------------------------------------------


def test_crops_are_windows_of_image_mask_and_guidance_alike(make):
    plain, cropped = make(horizontal_flip=0.0), make(horizontal_flip=0.0, crop_size=4)
    offsets = set()
    for index in range(24):
        whole, window = plain[index], cropped[index]
        assert window.image.shape == (3, 4, 4)
        (found,) = [
            (top, left)
            for top in range(3)
            for left in range(5)
            if torch.equal(whole.image[:, top : top + 4, left : left + 4], window.image)
        ]
        rows, columns = slice(found[0], found[0] + 4), slice(found[1], found[1] + 4)
        assert torch.equal(whole.target[rows, columns], window.target)
        assert torch.equal(whole.guidance[rows, columns], window.guidance)
        assert torch.equal(window.image_labels, image_labels(window.target, 2))
        offsets.add(found)
    assert len(offsets) > 5


def test_smaller_images_are_padded_with_the_data_mean_and_void(make):
    sample = make(horizontal_flip=0.0, crop_size=12)[1]
    assert sample.image.shape == (3, 12, 12)
    added = sample.image.abs().amax(dim=0) < 0.01
    assert added.sum() >= 12 * 12 - 6 * 8
    assert (sample.target[added] == 255).all()
    assert (sample.guidance[added] == 255).all()
    assert (sample.target == 2).sum() == 24


def test_scales_resize_before_the_crop(make):
    """t1 is a dog in its left half: 24 pixels at factor 1, about 96 at 2."""
    sizes = {factor: make(horizontal_flip=0.0, crop_size=32, scale=(factor, factor))[1] for factor in (1.0, 2.0)}
    assert (sizes[1.0].target == 2).sum() == 24
    assert (sizes[2.0].target == 2).sum() == 96
    assert set(sizes[2.0].target.unique().tolist()) == {0, 2, 255}
    varied = make(horizontal_flip=0.0, crop_size=32, scale=(0.5, 2.0))
    assert len({int((varied[1 + 4 * k].target != 255).sum()) for k in range(6)}) > 3


@pytest.mark.parametrize("factor", [0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.7, 2.0, 3.0])
def test_resized_masks_lie_over_their_images(factor):
    """An edge at each column in turn: where it comes to lie, in source pixels, on average over columns.

    The image tells by interpolation, masks by counting; a single edge of a mask is rounded to a pixel.
    """
    from torchvision import tv_tensors

    plain = Augmentation(horizontal_flip=0.0, crop_size=None, scale=(1.0, 1.0))
    transform = _training_transform(plain.model_copy(update={"scale": (factor, factor)}))  # unchecked: without a crop
    side, moved = 60, []
    for column in range(15, 45):
        mask = torch.zeros(side, side, dtype=torch.uint8)
        mask[:, column:] = 1
        image = (mask * 200).expand(3, -1, -1).contiguous()
        found = transform(tv_tensors.Image(image), tv_tensors.Mask(mask), tv_tensors.Mask(mask))
        right_of_it = [found[0][0].double().mean() / 200, found[1].double().mean(), found[2].double().mean()]
        moved.append([side * (1.0 - float(share)) - column for share in right_of_it])
    of_image, of_target, of_guidance = torch.tensor(moved).mean(dim=0).tolist()
    assert of_image == pytest.approx(0.0, abs=0.05)
    assert of_target == of_guidance == pytest.approx(0.0, abs=0.15)


def test_crops_depend_on_seed_epoch_and_index_alone(make):
    options = {"crop_size": 4, "scale": (0.75, 1.5)}
    first, again = make(**options), make(**options)
    assert all(same(first[i], again[i]) for i in (5, 3, 5))
    again.set_epoch(1)
    assert not all(same(first[i], again[i]) for i in range(24))


# ---- cache -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizontal_flip", [0.0, 0.5, 1.0])
def test_cache_changes_nothing(make, horizontal_flip):
    cached = make(horizontal_flip=horizontal_flip, cache_images=True)
    uncached = make(horizontal_flip=horizontal_flip)
    for epoch in (0, 1, 0):  # the cache must survive an augmented epoch
        cached.set_epoch(epoch)
        uncached.set_epoch(epoch)
        assert all(same(cached[index], uncached[index]) for index in range(24))


def test_cached_images_are_not_read_again(voc_root, make, refused):
    cached, uncached = make(cache_images=True), make()
    for image_id in IDS:
        voc.image_path(voc_root, image_id).unlink()
        voc.mask_path(voc_root, image_id).unlink()
    voc.annotation_path(voc_root, "t1").unlink()
    assert cached[3].image.shape == (3, 6, 8)
    assert (cached[1].guidance == 2).sum() == 8
    assert str(voc.image_path(voc_root, "t3")) in refused(uncached.__getitem__, 3)
