from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import voc
from pipeline.data.images import decode_image, decode_mask
from pipeline.data.manifest import (
    ManifestRow,
    build_manifest,
    class_counts,
    data_digest,
    pixel_label_ranking,
    read_manifest,
)

SPLITS = ("train", "val", "test")
IDS = ["t0", "t1", "t2", "t3", "v0", "x0"]
HEADER = "image_id,split,height,width,classes,contexts,pixel_label_rank,digest\n"
NAMES = ("cat", "dog", "fox")

image_class_lists = st.lists(st.lists(st.sampled_from(NAMES), unique=True), max_size=30)


def build(root: Path, *, seed: int = 0):
    return build_manifest(root, splits=SPLITS, seed=seed)


def round_trip(root: Path, path: Path) -> list[ManifestRow]:
    build(root).to_csv(path, index=False)
    return read_manifest(path)


# ---- what a manifest says --------------------------------------------------------------------------------------------


def test_manifest_holds_the_documented_columns_and_one_row_per_image(voc_root):
    manifest = build(voc_root)
    described = ["image_id", "split", "height", "width", "classes", "contexts", "pixel_label_rank", "digest"]
    assert sorted(manifest.columns[:8]) == sorted(described)
    assert list(manifest.columns[8:]) == ["pixels_background", "pixels_cat", "pixels_dog", "pixels_void"]
    assert list(manifest["image_id"]) == IDS
    assert list(manifest["split"]) == 4 * ["train"] + ["val", "test"]


def test_manifest_counts_pixels(voc_root):
    manifest = build(voc_root).set_index("image_id")
    pixels = ["pixels_background", "pixels_cat", "pixels_dog", "pixels_void"]
    assert {image_id: tuple(manifest.loc[image_id, pixels]) for image_id in IDS} == {
        "t0": (34, 6, 0, 8),
        "t1": (24, 0, 24, 0),
        "t2": (46, 1, 1, 0),
        "t3": (48, 0, 0, 0),
        "v0": (0, 0, 1, 15),
        "x0": (40, 8, 0, 0),
    }


def test_manifest_names_classes_contexts_and_sizes(voc_root):
    manifest = build(voc_root)
    assert list(manifest["classes"]) == ["cat", "dog", "cat dog", "", "dog", "cat"]
    assert list(manifest["contexts"]) == ["cat", "cat dog", "", "", "", ""]
    assert list(zip(manifest["width"], manifest["height"], strict=True)) == [*4 * [(8, 6)], (4, 4), (8, 6)]


def test_only_training_images_with_a_class_are_ranked(voc_root):
    for seed in range(5):
        ranks = list(build(voc_root, seed=seed)["pixel_label_rank"])
        ranking = pixel_label_ranking([["cat"], ["dog"], ["cat", "dog"], []], ("cat", "dog"), seed=seed)
        assert [ranks[position] for position in ranking] == [0, 1, 2]
        assert ranks[3:] == [-1, -1, -1]


def test_training_images_are_ranked_after_other_splits_too(voc_root):
    manifest = build_manifest(voc_root, splits=("test", "train"), seed=0)
    assert list(manifest["pixel_label_rank"]) == [-1, *build(voc_root)["pixel_label_rank"][:4]]


def test_images_are_counted_by_split_and_class(voc_root):
    assert class_counts(build(voc_root)) == [
        {"split": "test", "classes": "cat", "images": 1},
        {"split": "train", "classes": "cat", "images": 2},
        {"split": "train", "classes": "dog", "images": 2},
        {"split": "train", "classes": "none", "images": 1},
        {"split": "val", "classes": "dog", "images": 1},
    ]


def test_splits_are_read_in_the_order_asked_for(voc_root):
    manifest = build_manifest(voc_root, splits=("test", "train"), seed=0)
    assert list(manifest["image_id"]) == ["x0", "t0", "t1", "t2", "t3"]


def test_progress_is_reported_once_per_image(voc_root):
    reports: list[int] = []
    build_manifest(voc_root, splits=SPLITS, seed=0, on_image=lambda: reports.append(len(reports)))
    assert len(reports) == 6


def test_manifest_survives_the_file(voc_root, tmp_path):
    rows, ranks = round_trip(voc_root, tmp_path / "manifest.csv"), list(build(voc_root)["pixel_label_rank"])
    assert [row.image_id for row in rows] == IDS
    assert rows[1] == ManifestRow("t1", "train", 6, 8, ("dog",), ("cat", "dog"), ranks[1], rows[1].digest)
    assert rows[2] == ManifestRow("t2", "train", 6, 8, ("cat", "dog"), (), ranks[2], rows[2].digest)
    assert rows[3] == ManifestRow("t3", "train", 6, 8, (), (), -1, rows[3].digest)
    assert rows[4] == ManifestRow("v0", "val", 4, 4, ("dog",), (), -1, rows[4].digest)
    assert [row.digest for row in rows] == list(build(voc_root)["digest"])


def test_class_named_na_survives_the_file(voc_root, tmp_path):
    (voc_root / "classes.txt").write_text("NA\nnan\n")
    assert round_trip(voc_root, tmp_path / "manifest.csv")[2].classes == ("NA", "nan")


def test_digest_follows_every_pixel(voc_root, tmp_path):
    before = round_trip(voc_root, tmp_path / "manifest.csv")
    assert round_trip(voc_root, tmp_path / "manifest.csv") == before
    mask = decode_mask(voc.mask_path(voc_root, "t1"))
    mask[5, 7] = 1
    Image.fromarray(mask).save(voc.mask_path(voc_root, "t1"))
    image = decode_image(voc.image_path(voc_root, "x0"))
    image[0, 0] = 255 - image[0, 0]
    Image.fromarray(image).save(voc.image_path(voc_root, "x0"), quality=95)
    after = round_trip(voc_root, tmp_path / "manifest.csv")
    changed = [old.image_id for old, new in zip(before, after, strict=True) if old.digest != new.digest]
    assert changed == ["t1", "x0"]
    assert data_digest(before) != data_digest(after)
    assert data_digest(before[2:5]) == data_digest(after[2:5])


def test_digest_follows_the_annotation_where_there_is_one(voc_root):
    digests = []
    for boxes in (None, [], [voc.Box("cat", 0, 0, 3, 2)], [voc.Box("cat", 0, 0, 3, 3)]):
        if boxes is not None:
            voc.write_boxes(voc_root, "t0", boxes, height=6, width=8)
        digests.append(list(build(voc_root)["digest"]))
    assert len({first for first, *_ in digests}) == 4
    assert len({tuple(others) for _, *others in digests}) == 1


def test_data_digest_depends_on_ids_digests_and_their_number():
    def row(image_id: str, digest: str) -> ManifestRow:
        return ManifestRow(image_id, "train", 6, 8, (), (), -1, digest)

    rows = [row("a", "0"), row("b", "1")]
    others = (rows[:1], [row("a", "0"), row("c", "1")], [row("a", "0"), row("b", "2")], [])
    assert data_digest(rows) == data_digest(list(rows))
    assert len({data_digest(rows), *map(data_digest, others)}) == 5


# ---- bad data --------------------------------------------------------------------------------------------------------


def test_missing_split_is_named(voc_root, refused):
    voc.split_path(voc_root, "val").unlink()
    assert refused(build, voc_root).startswith(f"{voc.split_path(voc_root, 'val')}: missing")


def test_empty_split_is_named(voc_root, refused):
    voc.split_path(voc_root, "test").write_text("\n")
    assert refused(build, voc_root).startswith(f"{voc.split_path(voc_root, 'test')}: empty")


def test_id_listed_twice_is_named(voc_root, refused):
    voc.split_path(voc_root, "train").write_text("t0\nt1\nt1\n")
    message = refused(build, voc_root)
    assert message == f"{voc.split_path(voc_root, 'train')}: t1 is listed twice; remove one"


def test_image_in_two_splits_is_named_with_both(voc_root, refused):
    voc.split_path(voc_root, "test").write_text("x0\nt2\n")
    message = refused(build, voc_root)
    assert message == f"{voc.split_path(voc_root, 'test')}: t2 is in the split 'train' too; splits must be disjoint"


def test_image_without_mask_is_named(voc_root, refused):
    path = voc.mask_path(voc_root, "v0")
    path.unlink()
    assert refused(build, voc_root).startswith(f"{path}: mask missing; a split lists it")


def test_mask_without_image_is_named(voc_root, refused):
    path = voc.image_path(voc_root, "v0")
    path.unlink()
    assert refused(build, voc_root).startswith(f"{path}: image missing; a split lists it")


def test_mask_of_another_size_is_named_with_both_sizes(voc_root, refused):
    path = voc.mask_path(voc_root, "t1")
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(path)
    assert refused(build, voc_root) == f"{path}: mask is 6x8 pixels, its image 8x6; they must be equal"


@pytest.mark.parametrize("value", [3, 254])
def test_undeclared_class_is_named(voc_root, refused, value):
    path = voc.mask_path(voc_root, "x0")
    mask = decode_mask(path)
    mask[5, 7] = value
    Image.fromarray(mask).save(path)
    message = refused(build, voc_root)
    assert message.startswith(f"{path}: class value {value} is undeclared; classes.txt names 2 classes")


def test_damaged_annotation_is_named(voc_root, refused):
    path = voc.annotation_path(voc_root, "v0")
    path.write_text("<annotation>")
    assert refused(build, voc_root).startswith(f"{path}: no readable VOC annotation (")


def test_undeclared_class_of_a_box_is_named(voc_root, refused):
    voc.write_boxes(voc_root, "t1", [voc.Box("cat", 0, 0, 8, 6), voc.Box("fox", 0, 0, 1, 1)], height=6, width=8)
    path = voc.annotation_path(voc_root, "t1")
    assert refused(build, voc_root) == f"{path}: class 'fox' is undeclared; classes.txt names cat, dog"


def test_box_that_is_a_pixel_too_large_is_taken_for_rounded(voc_root):
    voc.write_boxes(voc_root, "t1", [voc.Box("dog", -1, -1, 9, 7)], height=6, width=8)
    build(voc_root)


@pytest.mark.parametrize("corners", [(-2, 0, 8, 6), (0, -2, 8, 6), (0, 0, 10, 6), (0, 0, 8, 8)])
def test_box_that_leaves_its_image_is_named(voc_root, refused, corners):
    voc.write_boxes(voc_root, "t1", [voc.Box("dog", 0, 0, 8, 6), voc.Box("cat", *corners)], height=6, width=8)
    left, top, right, bottom = corners
    assert refused(build, voc_root).startswith(
        f"{voc.annotation_path(voc_root, 't1')}: the box of 'cat', ({left + 1}, {top + 1}) to ({right}, {bottom}), "
        "leaves the image of 8x6 pixels; "
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_mask_that_is_no_class_map_is_named_with_its_mode(voc_root, refused, mode):
    path = voc.mask_path(voc_root, "t0")
    Image.new(mode, (8, 6)).save(path)
    message = refused(build, voc_root)
    assert message.startswith(
        f"{path}: mask has mode {mode}; expected a palette or 8-bit grey PNG; `gain import-masks "
    )
    assert ("--classes 0=background,1=NAME" in message) == (mode == "1")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("role", ["image", "mask"])
def test_truncated_file_is_named(voc_root, refused, role, kept):
    path = {"image": voc.image_path, "mask": voc.mask_path}[role](voc_root, "t2")
    data = path.read_bytes()
    cut = len(data) if role == "image" else data.index(b"IEND") - 8  # decoding a PNG needs no more than its pixels
    path.write_bytes(data[: int(kept * cut)])
    assert refused(build, voc_root).startswith(f"{path}: {role} cannot be decoded (")


def test_all_bad_files_are_told_at_once(voc_root, refused):
    for name in ("t0", "t2"):
        voc.image_path(voc_root, name).write_bytes(b"none")
    voc.mask_path(voc_root, "x0").unlink()
    message = refused(build, voc_root)
    assert message.startswith(f"3 bad files: {voc.image_path(voc_root, 't0')}: image cannot be decoded (")
    assert f" | {voc.image_path(voc_root, 't2')}: " in message
    assert f" | {voc.mask_path(voc_root, 'x0')}: mask missing" in message


# ---- palettes --------------------------------------------------------------------------------------------------------


def write_palette_mask(path: Path, values: list[list[int]], *colours: tuple[int, int, int]) -> None:
    image = Image.fromarray(np.array(values, np.uint8)).convert("P")
    image.putpalette([channel for colour in colours for channel in colour])
    image.save(path)


CAT_RED, DOG_GREEN, BLACK, VOID = (128, 0, 0), (0, 128, 0), (0, 0, 0), (224, 224, 192)
PIXELS = 3 * [[0, 0, 1, 1, 2, 2, 2, 2], 8 * [0]]


@pytest.mark.parametrize(
    ("colours", "wrong", "meant"),
    [
        ((BLACK, DOG_GREEN, CAT_RED), 1, 2),
        ((CAT_RED, BLACK, DOG_GREEN), 0, 1),
        ((BLACK, VOID, DOG_GREEN), 1, 255),
        ((BLACK, CAT_RED, VOID), 2, 255),
    ],
)
def test_palette_with_vocs_colours_in_another_order_is_refused(voc_root, refused, colours, wrong, meant):
    """As a quantiser leaves them: the picture looks the same, and the classes are swapped."""
    path = voc.mask_path(voc_root, "t1")
    write_palette_mask(path, PIXELS, *colours)
    message = refused(build, voc_root)
    assert message.startswith(f"{path}: value {wrong} has the colour of VOC's value {meant}, {colours[wrong]}")
    assert (
        f"`gain import-masks {voc_root}/SegmentationClass --classes {voc_root}/classes.txt --out {voc_root}" in message
    )
    assert "--by colours" in message


@pytest.mark.parametrize(
    "colours",
    [
        (BLACK, CAT_RED, DOG_GREEN),
        (BLACK, BLACK, BLACK),
        (BLACK, (255, 0, 0), (0, 255, 0)),
        ((0, 0, 0), (1, 1, 1), (2, 2, 2)),
        (BLACK, (0, 0, 128), (128, 128, 128)),  # VOC's, but of classes that this list does not have
    ],
)
def test_other_palettes_are_taken_by_value(voc_root, colours):
    write_palette_mask(voc.mask_path(voc_root, "t1"), PIXELS, *colours)
    assert build(voc_root).set_index("image_id").loc["t1", ["pixels_cat", "pixels_dog"]].tolist() == [6, 12]


def test_mask_that_a_quantiser_has_renumbered_is_refused(voc_root, refused):
    """What Pillow makes of the colours: dog, the second class, is value 1 afterwards."""
    path = voc.mask_path(voc_root, "t1")
    with Image.open(path) as mask:
        quantised = mask.convert("RGB").quantize()
    quantised.save(path)
    assert set(np.unique(np.asarray(quantised))) == {0, 1}
    assert "has reordered the palette" in refused(build, voc_root)


def test_text_in_place_of_an_image_is_named(voc_root, refused):
    path = voc.image_path(voc_root, "t0")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refused(build, voc_root).startswith(f"{path}: image cannot be decoded (")


# ---- in which order images get their pixel labels --------------------------------------------------------------------


@given(image_class_lists, st.integers(0, 9))
def test_ranking_holds_every_image_with_a_class_once(image_classes, seed):
    ranking = pixel_label_ranking(image_classes, NAMES, seed=seed)
    assert sorted(ranking) == [position for position, classes in enumerate(image_classes) if classes]


@given(image_class_lists, st.integers(0, 9))
def test_each_place_goes_to_the_class_with_the_fewest_labels(image_classes, seed):
    waiting = pixel_label_ranking(image_classes, NAMES, seed=seed)
    counts = dict.fromkeys(NAMES, 0)
    while waiting:
        having = [name for name in NAMES if any(name in image_classes[position] for position in waiting)]
        classes = image_classes[waiting.pop(0)]
        assert min(having, key=counts.__getitem__) in classes
        for name in classes:
            counts[name] += 1


def test_rare_class_gets_its_label_first():
    image_classes = 90 * [["cat"]] + 9 * [["dog"]] + [["fox"]]
    ranking = pixel_label_ranking(image_classes, NAMES, seed=0)
    assert [image_classes[position] for position in ranking[:5]] == [["cat"], ["dog"], ["fox"], ["cat"], ["dog"]]


def test_ranking_depends_on_the_seed_alone():
    image_classes = [[NAMES[position % 3]] for position in range(60)]
    rankings = [pixel_label_ranking(image_classes, NAMES, seed=seed) for seed in (0, 1, 2, 0)]
    assert rankings[0] == rankings[3]
    assert len({tuple(ranking[:12]) for ranking in rankings}) == 3


def test_ranking_within_a_class_is_the_seeded_shuffle():
    shuffled = np.random.default_rng(7).permutation(20).tolist()
    assert pixel_label_ranking(20 * [["cat"]], NAMES, seed=7) == shuffled


# ---- broken manifests ------------------------------------------------------------------------------------------------


def test_missing_manifest_says_how_to_get_it(tmp_path, refused):
    path = tmp_path / "manifest.csv"
    assert refused(read_manifest, path) == f"{path}: missing; it lists the images; run `dvc repro prepare`"


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n",
        HEADER.replace("digest", "hash").encode() + b"a,train,6,8,cat,cat,0,00\n",
        HEADER.encode() + b"a,train,six,8,cat,cat,0,00\n",
        HEADER.encode() + b"a,train\n",
        HEADER.encode() + b"\xff,train,6,8,cat,cat,0,00\n",
        HEADER.encode() + b"a,train,6,8,\n",
        HEADER.encode() + b"a,train,6,8,cat,cat\n",
        HEADER.encode() + b"a,train,6,8,cat,cat,True,00\n",
        b"",
    ],
)
def test_broken_manifest_is_named(tmp_path, refused, content):
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    message = refused(read_manifest, path)
    assert message.startswith(f"{path}: not a manifest (")
    assert message.endswith("run `dvc repro --force prepare`")
