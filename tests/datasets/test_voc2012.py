"""VOC2012 and SBD in the project's layout."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from small_archives import voc2012_ids, write_sbd, write_voc2012

from pipeline.base.remote_files import RemoteFile
from pipeline.base.sections import Voc2012Data
from pipeline.data import voc
from pipeline.data.images import decode_mask
from pipeline.data.manifest import build_manifest
from pipeline.datasets.voc2012 import VOC_CLASSES, Archives, obtain_archives, place_voc2012, seg11valid

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


def options(archive: Path, sbd_archive: Path | None = None, **changes: object) -> Voc2012Data:
    """The section of params.yaml with some values changed, which this does not check."""
    files = [RemoteFile(path=str(path), mirrors=[], checksum=None) for path in (archive, sbd_archive) if path]
    section = Voc2012Data(
        source="voc2012", archive=files[0], sbd=files[-1] if len(files) > 1 else None,
        train_split="train", test_split="seg11valid", num_val=0,
    )  # fmt: skip
    return section.model_copy(update=changes)


def place(
    root: Path,
    archive: Path,
    *,
    sbd_archive: Path | None = None,
    seed: int = 0,
    num_workers: int = 1,
    **changes: object,
) -> Path:
    root.mkdir()
    section = options(archive, sbd_archive, **changes)
    place_voc2012(root, Archives(archive, sbd_archive), section, seed=seed, num_workers=num_workers)
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


def test_archive_of_sbd_is_obtained_where_it_is_used(archive, sbd):
    assert obtain_archives(options(archive, sbd)) == (archive, None)
    assert obtain_archives(options(archive, sbd, train_split="trainaug")) == (archive, sbd)
