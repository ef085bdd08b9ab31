"""The embedded data set: its layout, its reproducibility, and the relation of objects to contexts that it promises."""

import multiprocessing
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.base.errors import PipelineError
from pipeline.base.sections import EmbeddedData
from pipeline.data import voc
from pipeline.datasets.drawing.objects import OBJECTS
from pipeline.datasets.embedded import CLASS_NAMES, HABITUAL_GROUNDS, draw_dataset, split_sizes

RECIPE = EmbeddedData(
    source="embedded",
    image_size=64,
    num_train=18,
    num_val=4,
    num_test=4,
    num_counterfactual=12,
    context_strength=0.8,
    empty_fraction=0.1,
    multi_object_fraction=0.4,
    object_scale=(0.3, 0.5),
    max_rotation=20.0,
    occlusion_fraction=0.3,
    void_border=1,
    jpeg_quality=90,
)
MANY = RECIPE.model_copy(update={"num_train": 250})
TRAIN_ONLY = {"num_val": 1, "num_test": 1, "num_counterfactual": 1}
SIZES = {"train": 18, "val": 4, "test": 4, "object_without_context": 12, "context_without_object": 12}

Draw = Callable[..., Path]


@pytest.fixture(scope="module")
def draw(tmp_path_factory: pytest.TempPathFactory) -> Draw:
    """Draws into a new folder with some values of the recipe changed."""

    def draw_changed(*, seed: int = 0, num_workers: int = 1, **changes: object) -> Path:
        root = tmp_path_factory.mktemp("drawn")
        draw_dataset(root, RECIPE.model_copy(update=changes), seed=seed, num_workers=num_workers)
        return root

    return draw_changed


@pytest.fixture(scope="module")
def drawn(draw: Draw) -> Path:
    return draw()


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read_mask(root: Path, image_id: str) -> NDArray[np.uint8]:
    with Image.open(voc.mask_path(root, image_id)) as image:
        return np.array(image)


def classes_in(mask: NDArray[np.uint8]) -> set[str]:
    return {CLASS_NAMES[value - 1] for value in np.unique(mask).tolist() if value not in (0, 255)}


def hulls(boxes: Iterable[voc.Box]) -> dict[int, tuple[int, int, int, int]]:
    """Class value to the rectangle (left, top, right, bottom) around all boxes of that class."""
    by_class: dict[int, list[voc.Box]] = {}
    for box in boxes:
        by_class.setdefault(CLASS_NAMES.index(box.class_name) + 1, []).append(box)
    return {
        value: (min(b.left for b in of), min(b.top for b in of), max(b.right for b in of), max(b.bottom for b in of))
        for value, of in by_class.items()
    }


def mask_hulls(mask: NDArray[np.uint8]) -> dict[int, tuple[int, int, int, int]]:
    """Class value to the rectangle (left, top, right, bottom) around its pixels."""
    places = {value: np.argwhere(mask == value) for value in set(np.unique(mask).tolist()) - {0, 255}}
    return {
        value: (*at.min(axis=0)[::-1].tolist(), *(at.max(axis=0) + 1)[::-1].tolist()) for value, at in places.items()
    }


def shown(root: Path, split: str) -> list[tuple[set[str], set[str]]]:
    """Classes in the mask and contexts in the picture, for each image of a split."""
    contexts = voc.read_contexts(root)
    return [(classes_in(read_mask(root, name)), set(contexts[name].split())) for name in voc.read_split(root, split)]


def test_layout_is_complete(drawn: Path) -> None:
    ids = {split: voc.read_split(drawn, split) for split in voc.SPLITS}
    assert {split: len(listed) for split, listed in ids.items()} == SIZES == split_sizes(RECIPE)
    expected = {"classes.txt", "contexts.csv"}
    for split, listed in ids.items():
        expected.add(f"ImageSets/Segmentation/{split}.txt")
        expected |= {f"JPEGImages/{name}.jpg" for name in listed} | {f"SegmentationClass/{name}.png" for name in listed}
        expected |= {f"Annotations/{name}.xml" for name in listed}
    assert set(contents(drawn)) == expected
    assert voc.read_class_names(drawn) == ("aeroplane", "boat", "car", "tree", "cactus", "snowman")
    assert list(voc.read_contexts(drawn)) == [name for listed in ids.values() for name in listed]


def test_images_are_rgb_and_masks_paletted_at_the_same_size(drawn: Path) -> None:
    for name in voc.read_contexts(drawn):
        with Image.open(voc.image_path(drawn, name)) as image, Image.open(voc.mask_path(drawn, name)) as mask:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
            assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (64, 64))


def test_every_class_has_an_object_and_a_ground() -> None:
    assert tuple(OBJECTS) == tuple(HABITUAL_GROUNDS) == CLASS_NAMES
    assert len(set(HABITUAL_GROUNDS.values())) == len(set(OBJECTS.values())) == 6


@pytest.mark.system
def test_same_seed_draws_the_same_bytes_with_any_number_of_workers(drawn: Path, draw: Draw) -> None:
    expected = contents(drawn)
    assert contents(draw()) == expected
    assert contents(draw(num_workers=2)) == expected


def test_another_seed_draws_other_images(drawn: Path, draw: Draw) -> None:
    first, second = contents(drawn), contents(draw(seed=1))
    assert first.keys() == second.keys()
    assert [name for name in first if name.endswith(".jpg") and first[name] == second[name]] == []


def test_growing_a_split_keeps_its_first_images_and_the_other_splits(drawn: Path, draw: Draw) -> None:
    first, grown = contents(drawn), contents(draw(num_train=21, num_counterfactual=13))
    lists = ("ImageSets/Segmentation/", "contexts.csv")
    assert len(grown) == len(first) + 3 * (3 + 1 + 1)
    assert [name for name in first if not name.startswith(lists) and first[name] != grown[name]] == []


def test_neighbours_in_a_split_and_images_of_two_splits_differ(drawn: Path) -> None:
    images = [data for name, data in contents(drawn).items() if name.endswith(".jpg")]
    assert len(set(images)) == len(images)


def test_masks_hold_every_class_background_and_void_and_nothing_else(drawn: Path) -> None:
    values = np.unique([read_mask(drawn, name) for name in voc.read_contexts(drawn)])
    assert values.tolist() == [0, 1, 2, 3, 4, 5, 6, 255]


def test_masks_carry_the_palette_of_voc(drawn: Path) -> None:
    first = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 255: (224, 224, 192)}
    for name in voc.read_contexts(drawn):
        with Image.open(voc.mask_path(drawn, name)) as mask:
            colours = np.array(mask.getpalette()).reshape(-1, 3)
        assert {index: tuple(colours[index].tolist()) for index in first} == first


def test_train_shows_each_class_alone_equally_often(draw: Draw) -> None:
    root = draw(**TRAIN_ONLY, empty_fraction=0.0, multi_object_fraction=0.0)
    classes = [name for present, _ in shown(root, "train") for name in present]
    assert sorted(classes) == sorted(3 * CLASS_NAMES)


def test_two_objects_share_a_picture_only_where_asked(draw: Draw) -> None:
    root = draw(**TRAIN_ONLY, empty_fraction=0.0, multi_object_fraction=1.0, context_strength=1.0)
    examples = shown(root, "train")
    assert {len(present) for present, _ in examples} == {1, 2}  # two of one class, or two classes
    assert all(present == contexts for present, contexts in examples)


def test_object_without_context_shows_one_object_on_the_ground_of_another(drawn: Path) -> None:
    for present, contexts in shown(drawn, "object_without_context"):
        assert len(present) == len(contexts) == 1
        assert not present & contexts


def test_context_without_object_shows_one_ground_and_an_empty_mask(drawn: Path) -> None:
    for name in voc.read_split(drawn, "context_without_object"):
        assert not read_mask(drawn, name).any()
    contexts = [ground for _, grounds in shown(drawn, "context_without_object") for ground in grounds]
    assert sorted(contexts) == sorted(2 * CLASS_NAMES)


def test_contexts_are_all_habitual_at_full_strength(draw: Draw) -> None:
    root = draw(**TRAIN_ONLY, context_strength=1.0, empty_fraction=0.0)
    assert all(present == contexts for present, contexts in shown(root, "train"))


def test_contexts_are_never_habitual_at_strength_zero(draw: Draw) -> None:
    root = draw(**TRAIN_ONLY, context_strength=0.0, empty_fraction=0.0, multi_object_fraction=0.0)
    assert all(len(contexts) == 1 and not present & contexts for present, contexts in shown(root, "train"))


def test_empty_images_have_empty_masks_and_no_context(draw: Draw) -> None:
    root = draw(empty_fraction=1.0, num_counterfactual=1)
    for split in ("train", "val", "test"):
        assert shown(root, split) == SIZES[split] * [(set(), set())]
        assert not any(read_mask(root, name).any() for name in voc.read_split(root, split))


@pytest.mark.parametrize("void_border", [1, 2, 3])
def test_void_separates_objects_from_all_else(draw: Draw, void_border: int) -> None:
    root = draw(**TRAIN_ONLY, void_border=void_border, empty_fraction=0.0)
    for name in voc.read_split(root, "train"):
        mask = read_mask(root, name)
        for value in set(np.unique(mask).tolist()) - {0, 255}:
            inside = Image.fromarray((mask == value).astype(np.uint8))
            reached = np.asarray(inside.filter(ImageFilter.MaxFilter(3))) > 0
            assert set(np.unique(mask[reached]).tolist()) == {value, 255}


def test_no_void_without_a_border(draw: Draw) -> None:
    root = draw(**TRAIN_ONLY, void_border=0)
    assert not any((read_mask(root, name) == 255).any() for name in voc.read_contexts(root))


def test_the_void_ring_of_one_pixel_lies_outside_the_object(draw: Draw) -> None:
    without = draw(**TRAIN_ONLY, void_border=0, multi_object_fraction=0.0)
    ringed = draw(**TRAIN_ONLY, void_border=1, multi_object_fraction=0.0)
    for name in voc.read_contexts(without):
        before, after = read_mask(without, name), read_mask(ringed, name)
        assert np.array_equal(np.where(after == 255, 0, after), before)


def test_box_of_a_single_object_is_tight_around_its_mask(draw: Draw) -> None:
    root = draw(void_border=0, multi_object_fraction=0.0, occlusion_fraction=0.5)
    for name in voc.read_contexts(root):
        boxes = voc.read_boxes(root, name)
        assert len(boxes) <= 1
        assert hulls(boxes) == mask_hulls(read_mask(root, name))


def test_each_of_two_objects_has_its_box(draw: Draw) -> None:
    root = draw(**TRAIN_ONLY, void_border=0, empty_fraction=0.0, multi_object_fraction=1.0)
    pairs = [voc.read_boxes(root, name) for name in voc.read_split(root, "train")]
    assert [len(boxes) for boxes in pairs] == 18 * [2]
    assert {len({box.class_name for box in boxes}) for boxes in pairs} == {1, 2}
    for name, boxes in zip(voc.read_split(root, "train"), pairs, strict=True):
        assert hulls(boxes) == mask_hulls(read_mask(root, name))


def test_void_ring_leaves_the_boxes_alone(drawn: Path, draw: Draw) -> None:
    first, ringed = contents(drawn), contents(draw(void_border=3))
    annotations = [name for name in first if name.startswith("Annotations/")]
    assert [name for name in annotations if first[name] != ringed[name]] == []
    assert any(b"<object>" in first[name] for name in annotations)


def test_object_of_which_nothing_shows_has_no_box(draw: Draw) -> None:
    root = draw(image_size=8, object_scale=(0.1, 0.2), void_border=0, empty_fraction=0.0)
    unseen = [name for name in voc.read_split(root, "train") if not read_mask(root, name).any()]
    assert unseen
    assert all(voc.read_boxes(root, name) == () for name in unseen)


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.system)])
def test_progress_is_reported_once_per_image(tmp_path: Path, num_workers: int) -> None:
    reports: list[int] = []
    recipe = RECIPE.model_copy(update=TRAIN_ONLY)
    draw_dataset(tmp_path, recipe, seed=0, num_workers=num_workers, on_image=lambda: reports.append(1))
    assert len(reports) == 18 + 1 + 1 + 2 * 1


def test_folder_that_holds_something_is_refused_and_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(PipelineError) as refusal:
        draw_dataset(tmp_path, RECIPE, seed=0)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert contents(tmp_path) == {"keep.txt": b"mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_file_in_place_of_the_folder_is_refused_and_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(PipelineError):
        draw_dataset(tmp_path / "keep.txt", RECIPE, seed=0)
    assert (tmp_path / "keep.txt").read_text() == "mine"


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.system)])
def test_failed_write_ends_the_drawing(tmp_path: Path, num_workers: int) -> None:
    masks = tmp_path / "SegmentationClass"

    def take_the_masks_away() -> None:
        if masks.exists():
            masks.rename(tmp_path / "elsewhere")

    with pytest.raises(FileNotFoundError, match=r"SegmentationClass.*\.png"):
        draw_dataset(tmp_path, MANY, seed=0, num_workers=num_workers, on_image=take_the_masks_away)
    assert len(list((tmp_path / "JPEGImages").iterdir())) < 200
    assert multiprocessing.active_children() == []


@pytest.mark.system
def test_killed_process_is_one_line(tmp_path: Path) -> None:
    def kill() -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(PipelineError, match=r"one of 2 processes was killed.*rerun"):
        draw_dataset(tmp_path, MANY, seed=0, num_workers=2, on_image=kill)
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_image_that_does_not_fit_is_an_error_not_a_shorter_file(
    tmp_path: Path, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the disk cuts short: masks fit into 2000 bytes, images do not."""
    import resource

    assert max(path.stat().st_size for path in (drawn / "SegmentationClass").iterdir()) < 2000
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            draw_dataset(tmp_path, RECIPE.model_copy(update={"jpeg_quality": 100}), seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
