"""VOC2012, SBD and folders of the user's own in the project's layout."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_archives import encoded, voc2012_ids, write_sbd, write_voc2012

from pipeline.data import voc
from pipeline.data.manifest import build_manifest, decode_mask
from pipeline.datasets.sources import VOC_CLASSES, place_folder, place_voc2012, seg11valid

TRAIN, VAL = voc2012_ids(8, 10)
SBD_ONLY = ["2008_900001", "2008_900002", "2008_900003"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_voc2012(tmp_path_factory.mktemp("voc") / "voc.tar", TRAIN, VAL, others=SBD_ONLY)


@pytest.fixture(scope="module")
def sbd(tmp_path_factory) -> Path:
    """Masks of two VOC training images, of two of val, and of three images that VOC does not segment."""
    masks = {image_id: np.full((50, 60), 7, np.uint8) for image_id in [*TRAIN[:2], *VAL[:2], *SBD_ONLY]}
    train, val = [*TRAIN[:2], VAL[0], *SBD_ONLY[:2]], [VAL[1], SBD_ONLY[2]]
    return write_sbd(tmp_path_factory.mktemp("sbd") / "benchmark.tgz", masks, train, val)


def place(root: Path, archive: Path, **options: object) -> Path:
    root.mkdir()
    defaults = {"train_split": "train", "test_split": "seg11valid", "num_val": 0, "seed": 0}
    place_voc2012(root, archive, **{**defaults, **options})
    return root


def splits(root: Path) -> dict[str, tuple[str, ...]]:
    return {split: voc.read_split(root, split) for split in voc.list_splits(root)}


def test_seg11valid_is_the_published_list():
    """736 ids; the digest is that of the list that the FCN authors ship."""
    ids = seg11valid()
    assert len(ids) == len(set(ids)) == 736
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16] == "33d3d44294e02741"
    assert (ids[0], ids[-1]) == ("2007_000033", "2011_003271")


def test_official_train_trains_seg11valid_tests_and_the_rest_of_val_validates(archive, tmp_path):
    root = place(tmp_path / "voc", archive)
    listed = set(seg11valid())
    assert splits(root) == {
        "train": tuple(TRAIN),
        "val": tuple(i for i in VAL if i not in listed),
        "test": tuple(i for i in VAL if i in listed),
    }
    assert voc.read_class_names(root) == VOC_CLASSES
    manifest = build_manifest(root, splits=voc.list_splits(root), seed=0)
    assert len(manifest) == len(TRAIN) + len(VAL)
    assert {path.name for path in root.iterdir()} == {
        "JPEGImages", "SegmentationClass", "Annotations", "ImageSets", "classes.txt",
    }  # fmt: skip
    assert len(list((root / "JPEGImages").iterdir())) == len(manifest)


def test_masks_and_boxes_are_those_of_the_archive(archive, tmp_path):
    root = place(tmp_path / "voc", archive)
    mask = decode_mask(voc.mask_path(root, TRAIN[3]))
    assert set(np.unique(mask).tolist()) == {0, 4, 255}
    (box,) = voc.read_boxes(root, TRAIN[3])
    assert (box.class_name, box.top) == ("boat", 2)
    assert mask[box.top : box.bottom, box.left : box.right].max() == 255


def test_val_tests_and_training_images_validate_on_request(archive, tmp_path):
    found = splits(place(tmp_path / "a", archive, test_split="val", num_val=3))
    assert found["test"] == tuple(VAL)
    assert len(found["val"]) == 3
    assert sorted(found["train"] + found["val"]) == TRAIN
    assert splits(place(tmp_path / "b", archive, test_split="val", num_val=3, seed=1))["val"] != found["val"]
    assert splits(place(tmp_path / "c", archive, test_split="val", num_val=3)) == found


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.system)])
def test_trainaug_is_voc_train_and_sbd_without_voc_val(archive, sbd, tmp_path, num_workers):
    root = place(tmp_path / "voc", archive, train_split="trainaug", sbd_archive=sbd, num_workers=num_workers)
    assert splits(root)["train"] == (*TRAIN, *SBD_ONLY)
    assert (decode_mask(voc.mask_path(root, SBD_ONLY[0])) == 7).all()
    # Images that VOC segments keep VOC's own, finer masks.
    assert set(np.unique(decode_mask(voc.mask_path(root, TRAIN[0]))).tolist()) == {0, 1, 255}


def test_trainaug_without_sbd_is_refused(archive, tmp_path, refused):
    assert "trainaug needs SBD" in refused(place, tmp_path / "voc", archive, train_split="trainaug")


@pytest.mark.parametrize("num_val", [0, 8])
def test_number_of_validation_images_must_leave_some_to_train(archive, tmp_path, refused, num_val):
    message = refused(place, tmp_path / "voc", archive, test_split="val", num_val=num_val)
    assert f"download.num_val: {num_val}" in message


def test_other_archives_are_refused(archive, sbd, tmp_path, refused):
    assert "not the archive of VOC2012" in refused(place, tmp_path / "a", sbd)
    message = refused(place, tmp_path / "b", archive, train_split="trainaug", sbd_archive=archive)
    assert "not the archive of SBD (it lacks" in message


def test_file_that_a_split_lists_and_the_archive_lacks_is_named(tmp_path, refused):
    short = write_voc2012(tmp_path / "short.tar", TRAIN, VAL, without_mask=[TRAIN[2]])
    assert "lacks SegmentationClass/2007_900002.png" in refused(place, tmp_path / "root", short)


def test_unreadable_mask_of_sbd_is_named(archive, tmp_path, refused):
    bad = write_sbd(tmp_path / "benchmark.tgz", {}, SBD_ONLY, [])
    message = refused(place, tmp_path / "voc", archive, train_split="trainaug", sbd_archive=bad)
    assert "no readable mask of 2008_900001" in message


# ---- the user's own --------------------------------------------------------------------------------------------------


def own(folder: Path, name: str = "place") -> Path:
    root = folder / name
    root.mkdir()
    return root


def test_folder_is_copied_as_its_splits_list_it(voc_root, tmp_path):
    (voc_root / "JPEGImages" / "stray.jpg").write_bytes(b"nobody lists me")
    root = own(tmp_path)
    place_folder(root, voc_root)
    assert splits(root) == splits(voc_root)
    for image_id in ("t0", "v0", "x0"):
        assert voc.image_path(root, image_id).read_bytes() == voc.image_path(voc_root, image_id).read_bytes()
        assert voc.mask_path(root, image_id).read_bytes() == voc.mask_path(voc_root, image_id).read_bytes()
    assert not (root / "JPEGImages" / "stray.jpg").exists()
    assert (root / "contexts.csv").exists()


def test_folder_may_lie_one_level_deeper_as_in_an_archive(voc_root, tmp_path):
    outer = own(tmp_path, "outer")
    shutil.copytree(voc_root, outer / "my data")
    root = own(tmp_path)
    place_folder(root, outer)
    assert splits(root) == splits(voc_root)


def test_images_may_be_png(voc_root, tmp_path):
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    voc.image_path(voc_root, "t1").unlink()
    Image.fromarray(pixels).save(voc_root / "JPEGImages" / "t1.png")
    root = own(tmp_path)
    place_folder(root, voc_root)
    assert voc.image_path(root, "t1").name == "t1.png"
    assert len(build_manifest(root, splits=voc.list_splits(root), seed=0)) == 6


def test_users_ignore_index_becomes_255(voc_root, tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[0], mask[1] = 1, 200
    voc.mask_path(voc_root, "t0").write_bytes(encoded(mask, "PNG"))
    root = own(tmp_path)
    place_folder(root, voc_root, ignore_index=200)
    copied = decode_mask(voc.mask_path(root, "t0"))
    assert (copied[0] == 1).all()
    assert (copied[1] == 255).all()
    assert (copied[2:] == 0).all()


def test_ignore_index_of_a_class_is_refused(voc_root, tmp_path, refused):
    message = refused(place_folder, own(tmp_path), voc_root, ignore_index=2)
    assert "2 is the mask value of class 'dog'" in message


def test_missing_parts_are_named(voc_root, tmp_path, refused):
    assert "needs classes.txt" in refused(place_folder, own(tmp_path), tmp_path / "place")
    voc.mask_path(voc_root, "t2").unlink()
    assert "t2.png: missing; a split lists it" in refused(place_folder, own(tmp_path, "b"), voc_root)
    voc.split_path(voc_root, "val").unlink()
    assert "val.txt: missing" in refused(place_folder, own(tmp_path, "c"), voc_root)


@pytest.mark.parametrize("name", ["t1.JPG", "t1.jpeg", "t1.PNG"])
def test_endings_of_images_may_be_spelt_in_any_way(voc_root, tmp_path, name):
    image = Image.open(voc.image_path(voc_root, "t1"))
    voc.image_path(voc_root, "t1").unlink()
    image.save(voc_root / "JPEGImages" / name)
    root = own(tmp_path)
    place_folder(root, voc_root)
    assert voc.image_path(root, "t1").suffix == (".png" if name.endswith("PNG") else ".jpg")
    assert len(build_manifest(root, splits=voc.list_splits(root), seed=0)) == 6


@pytest.mark.parametrize("orientation", [3, 6])
def test_image_that_a_note_turns_is_refused(voc_root, tmp_path, refused, orientation):
    """Decoders here do not read the note, and at 3 (upside down) not even the sizes would tell."""
    image = Image.open(voc.image_path(voc_root, "t1"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(voc.image_path(voc_root, "t1"), exif=exif)
    assert "with a note to turn it" in refused(place_folder, own(tmp_path), voc_root)


def test_image_that_is_none_is_named(voc_root, tmp_path, refused):
    voc.image_path(voc_root, "t1").write_bytes(b"none")
    assert "t1.jpg: image cannot be decoded" in refused(place_folder, own(tmp_path), voc_root)
    voc.image_path(voc_root, "t1").unlink()
    assert "and no .jpeg or .png of that name" in refused(place_folder, own(tmp_path, "b"), voc_root)


def test_split_cannot_name_files_outside(voc_root, tmp_path, refused):
    (tmp_path / "evil.jpg").write_bytes(b"x")
    voc.split_path(voc_root, "train").write_text("../../evil\n")
    assert "is no image id" in refused(place_folder, own(tmp_path), voc_root)
