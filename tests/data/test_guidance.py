import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import voc
from pipeline.data.guidance import Guidance, num_labelled_images
from pipeline.data.images import decode_mask
from pipeline.data.manifest import ManifestRow

NAMES = ("cat", "dog")
VOID = torch.full((6, 8), 255, dtype=torch.uint8)
CLASSES = {"t0": ("cat",), "t1": ("dog",), "t2": ("cat", "dog"), "t3": ()}
RANKS = {"t0": 2, "t1": 0, "t2": 1, "t3": -1}


def row(image_id: str, classes: tuple[str, ...], rank: int, split: str = "train") -> ManifestRow:
    return ManifestRow(image_id, split, 6, 8, classes, (), rank, "")


@pytest.fixture
def guide(voc_root):
    """Guidance of t0 to t3, of which t1, t2 and t0 are labelled in that order, by image id."""

    def guidance(source: str, num_labelled: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
        rows = [row(image_id, CLASSES[image_id], RANKS[image_id]) for image_id in CLASSES]
        guided = Guidance(voc_root, rows, NAMES, source=source, num_labelled=num_labelled, seed=seed)
        return {image_id: guided(index, mask_of(voc_root, image_id)) for index, image_id in enumerate(CLASSES)}

    return guidance


def mask_of(root, image_id: str) -> torch.Tensor:
    return torch.from_numpy(decode_mask(voc.mask_path(root, image_id)))


def lenders(root, num_images: int, seed: int) -> list[int]:
    """Who lends its cat to whom among images whose masks are one pixel each, image i's being pixel i."""
    rows = [row(f"m{index}", ("cat",), index) for index in range(num_images)]
    for index, entry in enumerate(rows):
        Image.fromarray(np.eye(num_images, dtype=np.uint8)[[index]]).save(voc.mask_path(root, entry.image_id))
    guided = Guidance(root, rows, NAMES, source="shuffled_masks", num_labelled=num_images, seed=seed)
    return [int(guided(index, torch.zeros(1, num_images, dtype=torch.uint8)).argmax()) for index in range(num_images)]


# ---- who is labelled -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["masks", "boxes", "shuffled_masks"])
@pytest.mark.parametrize(
    ("num_labelled", "labelled"), [(0, ""), (1, "t1"), (2, "t1 t2"), (3, "t0 t1 t2"), (9, "t0 t1 t2")]
)
def test_images_without_label_are_void(voc_root, guide, source, num_labelled, labelled):
    for image_id in CLASSES:
        voc.write_boxes(voc_root, image_id, [], height=6, width=8)
    guidance = guide(source, num_labelled)
    assert [image_id for image_id in CLASSES if not torch.equal(guidance[image_id], VOID)] == labelled.split()
    assert all((tensor.shape, tensor.dtype) == ((6, 8), torch.uint8) for tensor in guidance.values())


def test_unlabelled_images_need_no_annotation(voc_root, guide):
    voc.write_boxes(voc_root, "t1", [], height=6, width=8)
    assert torch.equal(guide("boxes", num_labelled=1)["t0"], VOID)


# ---- masks and boxes -------------------------------------------------------------------------------------------------


def test_masks_guide_as_they_are(voc_root, guide):
    for image_id in ("t0", "t1", "t2"):
        assert torch.equal(guide("masks")[image_id], mask_of(voc_root, image_id))


def test_boxes_are_painted_and_void_where_classes_overlap(voc_root, guide):
    boxes = [
        voc.Box("cat", 0, 0, 3, 2),
        voc.Box("dog", 2, 1, 6, 4),
        voc.Box("cat", 2, 1, 3, 3),
        voc.Box("dog", 5, 0, 8, 3),
    ]
    voc.write_boxes(voc_root, "t1", boxes, height=6, width=8)
    assert guide("boxes", num_labelled=1)["t1"].tolist() == [
        [1, 1, 1, 0, 0, 2, 2, 2],
        [1, 1, 255, 2, 2, 2, 2, 2],
        [0, 0, 255, 2, 2, 2, 2, 2],
        [0, 0, 2, 2, 2, 2, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


@given(st.permutations([("cat", 0, 3), ("dog", 2, 5), ("cat", 1, 4), ("dog", 6, 8)]))
def test_order_of_boxes_does_not_matter(tmp_path_factory, order):
    root = tmp_path_factory.mktemp("boxes")
    voc.annotation_path(root, "a").parent.mkdir()
    voc.write_boxes(root, "a", [voc.Box(name, left, 0, right, 1) for name, left, right in order], height=1, width=8)
    guided = Guidance(root, [row("a", NAMES, 0)], NAMES, source="boxes", num_labelled=1, seed=0)
    assert guided(0, torch.zeros(1, 8, dtype=torch.uint8)).tolist() == [[1, 1, 255, 255, 2, 0, 2, 2]]


def test_missing_annotation_is_named(voc_root, guide, refused):
    path = voc.annotation_path(voc_root, "t0")
    assert refused(guide, "boxes").startswith(f"{path}: missing; external supervision by boxes needs it")


# ---- masks of other images -------------------------------------------------------------------------------------------


def test_shuffled_masks_are_those_of_the_partners(guide):
    """t0 and t2 swap their cats, t1 and t2 their dogs. In t2 the dog covers t0's void, and the two classes overlap."""
    guidance = guide("shuffled_masks")
    first, second, both = (torch.zeros(6, 8, dtype=torch.uint8) for _ in range(3))
    first[0, 0], second[1, 1] = 1, 2
    both[5], both[:, :4], both[:2, :3] = 255, 2, 255
    assert torch.equal(guidance["t0"], first)
    assert torch.equal(guidance["t1"], second)
    assert torch.equal(guidance["t2"], both)


def test_class_of_a_single_labelled_image_gets_no_pixels(guide):
    guidance = guide("shuffled_masks", num_labelled=2)
    assert set(guidance["t1"].unique().tolist()) == set(guidance["t2"].unique().tolist()) == {0, 2}
    assert not guide("shuffled_masks", num_labelled=1)["t1"].any()


@pytest.mark.parametrize("num_images", [2, 3, 7])
def test_every_image_lends_to_one_other_image(voc_root, num_images):
    for seed in range(10):
        partners = lenders(voc_root, num_images, seed)
        assert sorted(partners) == list(range(num_images))
        assert all(partner != index for index, partner in enumerate(partners))


def test_partners_depend_on_the_seed_alone(voc_root):
    assert lenders(voc_root, 7, 3) == lenders(voc_root, 7, 3)
    assert len({tuple(lenders(voc_root, 7, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(("height", "width"), [(2, 3), (4, 6), (1, 3)])
def test_partner_of_another_size_is_resized_to_the_nearest_pixel(voc_root, height, width):
    Image.fromarray(np.array([[1, 0, 255], [2, 0, 1]], np.uint8)).save(voc.mask_path(voc_root, "small"))
    rows = [row("small", ("cat",), 0), row("other", ("cat",), 1)]
    guided = Guidance(voc_root, rows, ("cat",), source="shuffled_masks", num_labelled=2, seed=0)
    expected = {
        2: [[1, 0, 255], [0, 0, 1]],
        4: 2 * [[1, 1, 0, 0, 255, 255]] + 2 * [[0, 0, 0, 0, 1, 1]],
        1: [[1, 0, 255]],  # halfway between the two rows
    }
    assert guided(1, torch.zeros(height, width, dtype=torch.uint8)).tolist() == expected[height]


def test_missing_mask_of_a_partner_is_named(voc_root, refused):
    rows = [row("t0", ("cat",), 0), row("gone", ("cat",), 1)]
    guided = Guidance(voc_root, rows, NAMES, source="shuffled_masks", num_labelled=2, seed=0)
    assert refused(guided, 0, mask_of(voc_root, "t0")).startswith(f"{voc.mask_path(voc_root, 'gone')}: mask missing")


# ---- how many --------------------------------------------------------------------------------------------------------


def rows_with(num_ranked: int, num_empty: int) -> list[ManifestRow]:
    ranked = [row(f"r{rank}", ("cat",), rank) for rank in range(num_ranked)]
    others = [row("v", ("cat",), -1, split="val"), row("x", ("cat",), -1, split="test")]
    return ranked + num_empty * [row("e", (), -1)] + others


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 0), (1e-6, 1), (0.1, 1), (0.16, 2), (0.5, 5), (0.8, 8), (0.9, 8), (1.0, 8)]
)
def test_fraction_is_of_all_training_images_and_capped_at_those_with_a_class(fraction, expected):
    assert num_labelled_images(rows_with(8, 2), count=None, fraction=fraction) == expected


def test_fraction_of_images_without_any_class_is_none():
    assert num_labelled_images(rows_with(0, 5), count=None, fraction=0.5) == 0


@pytest.mark.parametrize("count", [0, 1, 8])
def test_count_is_taken_as_it_is(count):
    assert num_labelled_images(rows_with(8, 2), count=count, fraction=None) == count


def test_count_of_more_images_than_show_a_class_is_refused(refused):
    message = refused(num_labelled_images, rows_with(8, 2), count=9, fraction=None)
    assert message == "pixel labels: 9 training images asked for, only 8 show a class; ask for fewer"


@pytest.mark.parametrize(("count", "fraction"), [(None, None), (1, 0.5)])
def test_count_and_fraction_exclude_each_other(refused, count, fraction):
    message = refused(num_labelled_images, rows_with(8, 2), count=count, fraction=fraction)
    assert message == f"pixel labels: count is {count} and fraction {fraction}; give one of the two"


def test_box_that_begins_before_the_image_is_painted_inside_it(voc_root, guide):
    voc.write_boxes(voc_root, "t1", [voc.Box("dog", -1, -1, 2, 1)], height=6, width=8)
    painted = guide("boxes", num_labelled=1)["t1"]
    assert painted.nonzero().tolist() == [[0, 0], [0, 1]]


def test_missing_annotation_is_named_before_any_image_is_loaded(voc_root, refused):
    rows = [row("t0", ("cat",), 0), row("t1", ("dog",), 1)]
    voc.write_boxes(voc_root, "t0", [], height=6, width=8)
    message = refused(Guidance, voc_root, rows, NAMES, source="boxes", num_labelled=2, seed=0)
    assert "t1.xml: missing" in message
    Guidance(voc_root, rows, NAMES, source="boxes", num_labelled=1, seed=0)
