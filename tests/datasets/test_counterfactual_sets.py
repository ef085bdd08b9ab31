"""The sets of separated objects and grounds: what is planned, what is written, what cannot be made."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from small_folders import save_mask

from pipeline.base.sections import Counterfactual
from pipeline.data import voc
from pipeline.data.images import decode_image, decode_mask, save_png
from pipeline.data.manifest import build_manifest
from pipeline.datasets.counterfactual.making import make_sets, plan_of
from pipeline.datasets.counterfactual.plan import (
    NO_FOREIGN,
    NO_GROUND,
    NO_OTHER,
    TOO_SMALL,
    NotMade,
    plan_cutouts,
    said,
)
from pipeline.datasets.counterfactual.table import OBJECT_SETS, SETS, MadeImage, read_table, write_table

NAMES = ("cat", "dog")
SHAPES = {"a": (8, 10), "b": (8, 10), "c": (12, 6), "d": (8, 10), "e": (6, 20)}


def options(**changes: object) -> Counterfactual:
    values = {"max_per_class": None, "least_object": 0.01, "least_ground": 0.2, "margin": 0.0, "fill_blur": 0.0}
    return Counterfactual.model_validate({**values, **changes})


def counts(**pixels: dict[int, int]) -> dict[str, np.ndarray]:
    """Image id to pixels by value; what is missing from 100 is background."""
    found = {}
    for image_id, of_image in pixels.items():
        found[image_id] = np.zeros(256, np.int64)
        for value, number in of_image.items():
            found[image_id][value] = number
        found[image_id][0] = 100 - sum(of_image.values())
    return found


@pytest.fixture
def root(tmp_path) -> Path:
    """a and b: a cat; c: a dog; d: both, and void; e: nothing. No two of c, e and the others are of one size."""
    root = tmp_path / "voc"
    voc.make_folders(root)
    masks = {name: np.zeros(shape, np.uint8) for name, shape in SHAPES.items()}
    masks["a"][2:5, 2:5], masks["a"][5, 2:5] = 1, 255
    masks["b"][0:3, 6:9] = 1
    masks["c"][4:8, 2:5] = 2
    masks["d"][1:4, 1:3], masks["d"][4:7, 6:9], masks["d"][7, :] = 1, 2, 255
    rng = np.random.default_rng(0)
    for name, mask in masks.items():
        save_png(rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8), root / "JPEGImages" / f"{name}.png")
        save_mask(voc.mask_path(root, name), mask)
    voc.write_lists(root, NAMES, {"test": list(SHAPES)})
    return root


def made(root: Path, folder: Path, ids: list[str] | None = None, seed: int = 0, **changes: object) -> list[MadeImage]:
    wanted = options(**changes)
    folder.mkdir()
    return make_sets(root, plan_of(root, ids or list(SHAPES), wanted, seed=seed), folder, wanted)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- what is planned -------------------------------------------------------------------------------------------------


def test_every_object_is_planned_with_two_grounds():
    plan = plan_cutouts(counts(a={1: 10}, b={1: 10}, c={2: 20}, d={2: 5}, e={}), options(), seed=0)
    assert [(cutout.source, cutout.value) for cutout in plan.cutouts] == [("a", 1), ("b", 1), ("c", 2), ("d", 2)]
    assert [cutout.same for cutout in plan.cutouts] == ["b", "a", "d", "c"]
    for cutout in plan.cutouts:
        assert cutout.foreign in {1: ("c", "d", "e"), 2: ("a", "b", "e")}[cutout.value]
    assert plan.not_made == []
    assert said(plan, NAMES) == ""


def test_plan_depends_on_the_seed_and_not_on_the_order_of_the_images():
    images = counts(**{f"i{n}": {1 + n % 2: 10} for n in range(40)})
    shuffled = list(images.items())
    random.Random(0).shuffle(shuffled)
    first, again, other = (
        plan_cutouts(of, options(max_per_class=5), seed=seed)
        for of, seed in ((images, 0), (dict(shuffled), 0), (images, 1))
    )
    assert first == again
    assert first != other
    assert [cutout.value for cutout in first.cutouts] == 5 * [1] + 5 * [2]
    assert len({cutout.source for cutout in first.cutouts}) == 10
    assert len({cutout.foreign for cutout in first.cutouts}) > 3


def test_more_cutouts_add_to_those_that_are_there():
    images = counts(**{f"i{n}": {1 + n % 2: 10} for n in range(40)})
    few, many = (plan_cutouts(images, options(max_per_class=n), seed=0).cutouts for n in (5, 9))
    assert set(few) < set(many)


@pytest.mark.parametrize(
    ("images", "cutouts", "not_made"),
    [
        ({"a": {1: 10}, "b": {2: 10}, "c": {2: 10}}, 3, [NotMade(1, NO_OTHER, 1)]),  # a class in one image only
        ({"a": {1: 10}, "b": {1: 10}}, 2, [NotMade(1, NO_FOREIGN, 2)]),
        ({"a": {1: 81}, "b": {1: 10}, "c": {1: 10}, "e": {}}, 2, [NotMade(1, NO_GROUND, 1)]),
        ({"a": {1: 100}}, 0, [NotMade(1, NO_GROUND, 1)]),  # an object that fills the image
        ({"a": {1: 40, 255: 41}, "e": {}}, 0, [NotMade(1, NO_GROUND, 1)]),  # void is no ground
        ({"a": {1: 40, 2: 45}, "b": {1: 10}, "e": {}}, 3, [NotMade(1, NO_OTHER, 1), NotMade(2, NO_OTHER, 1)]),
        ({"a": {2: 10}, "b": {2: 10}, "c": {1: 1}, "d": {1: 2}, "e": {1: 2}}, 4, [NotMade(1, TOO_SMALL, 1)]),
        ({"a": {}, "b": {255: 50}}, 0, []),  # masks without objects
        ({}, 0, []),
    ],
)
def test_what_cannot_be_made_is_counted(images, cutouts, not_made):
    plan = plan_cutouts(counts(**images), options(least_object=0.02), seed=0)
    assert (len(plan.cutouts), plan.not_made) == (cutouts, not_made)
    lacking = {entry.value for entry in not_made if entry.reason in (NO_OTHER, NO_FOREIGN)}
    complete = [cutout for cutout in plan.cutouts if cutout.same and cutout.foreign]
    # Both mixed images are made of an object, or none.
    assert all((cutout.same is None) == (cutout.foreign is None) for cutout in plan.cutouts)
    assert lacking <= {cutout.value for cutout in plan.cutouts if cutout not in complete}


def test_what_cannot_be_made_is_said_in_one_line():
    plan = plan_cutouts(counts(a={1: 10}, b={2: 90}, c={2: 10}, d={2: 10}), options(), seed=0)
    assert said(plan, NAMES) == (
        f"no mixed images of 1 object, {NO_OTHER} (cat 1); no image of 1 object, {NO_GROUND} (dog 1)"
    )


def test_twenty_classes_in_ten_images_are_a_stated_count():
    images = counts(**{f"i{n}": {2 * n + 1: 10, 2 * n + 2: 10} for n in range(10)})
    plan = plan_cutouts(images, options(), seed=0)
    assert len(plan.cutouts) == 20
    assert not any(cutout.same or cutout.foreign for cutout in plan.cutouts)
    line = said(plan, [f"class{n}" for n in range(20)])
    assert line.startswith(f"no mixed images of 20 objects, {NO_OTHER} (class0 1, class1 1")
    assert "and 10 more" in line
    assert "\n" not in line


# ---- what is written -------------------------------------------------------------------------------------------------


def test_layout_is_that_of_voc_and_the_table_is_that_of_the_images(root, tmp_path):
    folder = tmp_path / "made"
    rows = made(root, folder)
    assert read_table(folder) == rows
    assert [row.split for row in rows] == [name for name in SETS for _ in range(5)]  # a, b, d; c, d
    manifest = build_manifest(folder, splits=SETS, seed=0)
    assert manifest["image_id"].tolist() == [row.image_id for row in rows]
    assert manifest["digest"].tolist() == [row.digest for row in rows]
    assert manifest["classes"].str.split().map(tuple).tolist() == [row.classes for row in rows]
    for row in rows:
        assert (row.height, row.width) == SHAPES[row.source]
        assert voc.image_path(folder, row.image_id).suffix == ".png"
    assert voc.read_class_names(folder) == NAMES


def test_same_objects_are_in_all_sets_and_their_pixels_are_those_of_the_source(root, tmp_path):
    folder = tmp_path / "made"
    rows = made(root, folder)
    objects = {name: [(row.source, row.object) for row in rows if row.split == name] for name in SETS}
    assert set(map(tuple, objects.values())) == {(("a", "cat"), ("b", "cat"), ("d", "cat"), ("c", "dog"), ("d", "dog"))}
    for row in rows:
        own = decode_mask(voc.mask_path(root, row.source)) == NAMES.index(row.object) + 1
        image, mask = (
            decode_image(voc.image_path(folder, row.image_id)),
            decode_mask(voc.mask_path(folder, row.image_id)),
        )
        source = decode_image(voc.image_path(root, row.source))
        if row.split in OBJECT_SETS:
            assert np.array_equal(image[own], source[own])
            assert np.array_equal(mask > 0, own | (mask == 255))
            assert row.classes == (row.object,)
        else:
            assert (image[own] != source[own]).any(axis=1).mean() > 0.9
            assert (mask[own] == 255).all()
            assert row.classes == (() if row.source != "d" else ({"cat": "dog", "dog": "cat"}[row.object],))


def test_grounds_are_of_other_images_with_and_without_the_class(root, tmp_path):
    folder = tmp_path / "made"
    for row in made(root, folder):
        classes = {"a": ("cat",), "b": ("cat",), "c": ("dog",), "d": NAMES, "e": ()}
        if row.split in ("mixed_same", "mixed_rand"):
            assert row.ground != row.source
            assert (row.object in classes[row.ground]) == (row.split == "mixed_same")
            assert row.contexts == classes[row.ground]
        else:
            assert row.ground == ""
            assert row.contexts == (() if row.split == "only_object" else classes[row.source])


def test_ground_shows_where_the_object_is_not(root, tmp_path):
    """a on the ground of b: the pixels of b, save its cat, which was filled, and a's own."""
    folder = tmp_path / "made"
    made(root, folder, ids=["a", "b", "e"])
    image, mask = (
        decode(path(folder, "a-1-mixed_same"))
        for decode, path in ((decode_image, voc.image_path), (decode_mask, voc.mask_path))
    )
    lender = decode_image(voc.image_path(root, "b"))
    expected = np.zeros((8, 10), np.uint8)
    expected[0:3, 6:9], expected[5, 2:5], expected[2:5, 2:5] = 255, 255, 1
    assert mask.tolist() == expected.tolist()
    assert np.array_equal(image[expected == 0], lender[expected == 0])
    assert np.array_equal(image[5, 2:5], lender[5, 2:5])  # a's void shows b
    assert image[0, 7].tolist() == lender[0, 5].tolist() or image[0, 7].tolist() == lender[0, 9].tolist()


def test_files_depend_on_the_seed_and_not_on_the_order(root, tmp_path):
    made(root, tmp_path / "first")
    made(root, tmp_path / "again", ids=["e", "c", "a", "d", "b"])
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    seeds = [contents(tmp_path / f"seed{s}") for s in range(1, 4) if made(root, tmp_path / f"seed{s}", seed=s)]
    assert any(files != contents(tmp_path / "first") for files in seeds)


def test_classes_that_cannot_be_mixed_are_listed_with_their_reason(root, tmp_path):
    folder = tmp_path / "made"
    rows = made(root, folder, ids=["a", "c", "d"], least_ground=0.81)
    with (folder / "not_made.csv").open() as file:
        assert list(csv.DictReader(file)) == [
            {"class": "cat", "reason": NO_OTHER, "objects": "1"},
            {"class": "cat", "reason": NO_GROUND, "objects": "1"},
            {"class": "dog", "reason": NO_OTHER, "objects": "1"},
            {"class": "dog", "reason": NO_GROUND, "objects": "1"},
        ]
    assert {row.split for row in rows} == {"only_object", "no_object_filled", "no_object_mean"}
    assert {path.stem for path in (folder / "ImageSets" / "Segmentation").iterdir()} == {row.split for row in rows}


def test_images_without_objects_leave_an_empty_table(root, tmp_path):
    folder = tmp_path / "made"
    assert made(root, folder, ids=["e"]) == []
    assert read_table(folder) == []
    assert list((folder / "ImageSets" / "Segmentation").iterdir()) == []


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("only_object,", "only_objekt,"), "no set is called only_objekt"),
        (lambda text: text.replace(",source", ",sauce"), "KeyError('source')"),
        (lambda text: text[: text.rindex(",a,")], "a row is cut short: a-1-"),
        (lambda text: text.replace(",8,10,", ",8,ten,"), "invalid literal"),
    ],
)
def test_damaged_table_is_refused(root, tmp_path, refused, change, problem):
    folder = tmp_path / "made"
    rows = made(root, folder, ids=["a", "b", "e"])
    write_table(folder, [row for row in rows if row.source == "a"])
    path = folder / "counterfactual.csv"
    path.write_text(change(path.read_text()))
    message = refused(read_table, folder)
    assert message.startswith(f"{path}: not a table of counterfactual images (")
    assert problem in message
    assert message.endswith("run `dvc repro --force counterfactual`")


def test_missing_table_says_which_stage_makes_it(tmp_path, refused):
    assert refused(read_table, tmp_path).endswith("run `dvc repro counterfactual`")
