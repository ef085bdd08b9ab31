"""Folders and archives of the user's own in the project's layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_archives import encoded

from pipeline.base.sections import FolderData
from pipeline.data import voc
from pipeline.data.images import decode_mask
from pipeline.data.manifest import build_manifest
from pipeline.datasets.own_folder import place_folder


def place(root: Path, source: Path, ignore_index: int = 255) -> None:
    place_folder(root, FolderData(source="folder", path=str(source), ignore_index=ignore_index))


def splits(root: Path) -> dict[str, tuple[str, ...]]:
    return {split: voc.read_split(root, split) for split in voc.list_splits(root)}


def own(folder: Path, name: str = "place") -> Path:
    root = folder / name
    root.mkdir()
    return root


def test_folder_is_copied_as_its_splits_list_it(voc_root, tmp_path):
    (voc_root / "JPEGImages" / "stray.jpg").write_bytes(b"in no list")
    root = own(tmp_path)
    place(root, voc_root)
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
    place(root, outer)
    assert splits(root) == splits(voc_root)


def test_archive_is_unpacked_and_its_rest_removed(voc_root, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "mine"), "zip", voc_root)
    root = own(tmp_path)
    place(root, Path(archive))
    assert splits(root) == splits(voc_root)
    assert not (root / ".unpacked").exists()


def test_path_that_does_not_exist_is_named(tmp_path, refused):
    message = refused(place, own(tmp_path), tmp_path / "nothing")
    assert "nothing: missing; download.path in params.yaml" in message


def test_images_may_be_png(voc_root, tmp_path):
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    voc.image_path(voc_root, "t1").unlink()
    Image.fromarray(pixels).save(voc_root / "JPEGImages" / "t1.png")
    root = own(tmp_path)
    place(root, voc_root)
    assert voc.image_path(root, "t1").name == "t1.png"
    assert len(build_manifest(root, splits=voc.list_splits(root), seed=0)) == 6


def test_users_ignore_index_becomes_255(voc_root, tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[0], mask[1] = 1, 200
    voc.mask_path(voc_root, "t0").write_bytes(encoded(mask, "PNG"))
    root = own(tmp_path)
    place(root, voc_root, ignore_index=200)
    copied = decode_mask(voc.mask_path(root, "t0"))
    assert (copied[0] == 1).all()
    assert (copied[1] == 255).all()
    assert (copied[2:] == 0).all()


def test_ignore_index_of_a_class_is_refused(voc_root, tmp_path, refused):
    message = refused(place, own(tmp_path), voc_root, ignore_index=2)
    assert "2 is the mask value of class 'dog'" in message


def test_missing_parts_are_named(voc_root, tmp_path, refused):
    assert "needs classes.txt" in refused(place, own(tmp_path), tmp_path / "place")
    voc.mask_path(voc_root, "t2").unlink()
    assert "t2.png: missing; a split lists it" in refused(place, own(tmp_path, "b"), voc_root)
    voc.split_path(voc_root, "val").unlink()
    assert "val.txt: missing" in refused(place, own(tmp_path, "c"), voc_root)


@pytest.mark.parametrize("name", ["t1.JPG", "t1.jpeg", "t1.PNG"])
def test_endings_of_images_may_be_spelt_in_any_way(voc_root, tmp_path, name):
    image = Image.open(voc.image_path(voc_root, "t1"))
    voc.image_path(voc_root, "t1").unlink()
    image.save(voc_root / "JPEGImages" / name)
    root = own(tmp_path)
    place(root, voc_root)
    assert voc.image_path(root, "t1").suffix == (".png" if name.endswith("PNG") else ".jpg")
    assert len(build_manifest(root, splits=voc.list_splits(root), seed=0)) == 6


@pytest.mark.parametrize("orientation", [3, 6])
def test_image_with_an_exif_orientation_is_refused(voc_root, tmp_path, refused, orientation):
    """Decoders here ignore it, and at 3 (upside down) the size of the image is that of its mask."""
    image = Image.open(voc.image_path(voc_root, "t1"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(voc.image_path(voc_root, "t1"), exif=exif)
    assert f"EXIF orientation {orientation}" in refused(place, own(tmp_path), voc_root)


def test_image_that_is_none_is_named(voc_root, tmp_path, refused):
    voc.image_path(voc_root, "t1").write_bytes(b"none")
    assert "t1.jpg: image cannot be decoded" in refused(place, own(tmp_path), voc_root)
    voc.image_path(voc_root, "t1").unlink()
    assert "and no .jpeg or .png of that name" in refused(place, own(tmp_path, "b"), voc_root)


def test_split_cannot_name_files_outside(voc_root, tmp_path, refused):
    (tmp_path / "evil.jpg").write_bytes(b"x")
    voc.split_path(voc_root, "train").write_text("../../evil\n")
    assert "is no image id" in refused(place, own(tmp_path), voc_root)
