"""Folders and archives of the user's own in the project's layout."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkouts import checkout, one_line, stage
from PIL import Image
from small_archives import encoded

from pipeline.base.sections import FolderData
from pipeline.data import voc
from pipeline.data.images import decode_image, decode_mask, save_mask
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


@pytest.mark.parametrize(
    "name", ["t1.JPG", "t1.jpeg", "t1.Jpeg", "t1.PNG", "t1.webp", "t1.WEBP", "t1.bmp", "t1.tif", "t1.TIFF"]
)
def test_images_may_be_of_any_common_format_and_spelling(voc_root, tmp_path, name):
    image = Image.open(voc.image_path(voc_root, "t1"))
    voc.image_path(voc_root, "t1").unlink()
    path = voc_root / "JPEGImages" / name
    image.save(path)
    root = own(tmp_path)
    place(root, voc_root)
    assert voc.image_path(root, "t1").suffix == (".jpg" if path.suffix.lower() in (".jpg", ".jpeg") else ".png")
    assert np.array_equal(decode_image(voc.image_path(root, "t1")), decode_image(path))
    assert len(build_manifest(root, splits=voc.list_splits(root), seed=0)) == 6


def test_mask_may_end_in_capitals(voc_root, tmp_path):
    path = voc.mask_path(voc_root, "t1")
    expected = decode_mask(path)
    path.rename(path.with_suffix(".PNG"))
    root = own(tmp_path)
    place(root, voc_root)
    assert np.array_equal(decode_mask(voc.mask_path(root, "t1")), expected)


def test_two_images_of_one_name_are_refused(voc_root, tmp_path, refused):
    """Which of them was trained on depended on the ending."""
    Image.new("RGB", (8, 6)).save(voc_root / "JPEGImages" / "t1.PNG")
    message = refused(place, own(tmp_path), voc_root)
    assert message == f"{voc_root}/JPEGImages/t1.PNG: t1.jpg has the same name; keep the one that is meant"


def turn(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_turned_image_is_copied_upright_with_the_mask_that_a_viewer_sees(voc_root, tmp_path, capsys, orientation):
    path = voc.image_path(voc_root, "t1")
    turn(path, orientation)
    upright = decode_image(path)
    assert upright.shape[:2] == ((8, 6) if orientation >= 5 else (6, 8))
    mask = np.ones(upright.shape[:2], np.uint8)
    mask[0, 0] = 2
    save_mask(mask, voc.mask_path(voc_root, "t1"))
    root = own(tmp_path)
    place(root, voc_root)
    with Image.open(voc.image_path(root, "t1")) as copy:
        assert copy.getexif().get(0x0112, 1) == 1
        assert np.array_equal(np.asarray(copy), upright)
    assert np.array_equal(decode_mask(voc.mask_path(root, "t1")), mask)
    assert f"1 images, {path} the first, were turned upright" in capsys.readouterr().err


def test_turned_mask_is_copied_upright(voc_root, tmp_path):
    path = voc.mask_path(voc_root, "t1")
    with Image.open(path) as stored:
        values = np.asarray(stored)
    turn(path, 3)
    root = own(tmp_path)
    place(root, voc_root)
    with Image.open(voc.mask_path(root, "t1")) as copy:
        assert np.array_equal(np.asarray(copy), values[::-1, ::-1])
        assert 0x0112 not in copy.getexif()


def test_mask_that_lies_on_the_stored_pixels_of_a_turned_image_is_refused(voc_root, tmp_path, refused):
    turn(voc.image_path(voc_root, "t1"), 6)
    message = refused(place, own(tmp_path), voc_root)
    assert message.startswith(
        f"{voc.mask_path(voc_root, 't1')}: mask is 8x6 pixels, its image 6x8 as viewers show it (EXIF orientation 6)"
    )


def test_all_bad_files_are_told_at_once_where_the_user_has_them(voc_root, tmp_path, refused):
    ids = [f"n{index:02}" for index in range(12)]
    for image_id in ids:
        voc.image_path(voc_root, image_id).write_bytes(b"none")
        shutil.copy(voc.mask_path(voc_root, "t0"), voc.mask_path(voc_root, image_id))
    voc.split_path(voc_root, "train").write_text("\n".join(["t0", *ids]))
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(voc.mask_path(voc_root, "v0"))
    voc.mask_path(voc_root, "x0").unlink()
    message = refused(place, own(tmp_path), voc_root)
    assert message.startswith(f"14 bad files in {voc_root}: {voc_root}/JPEGImages/n00.jpg: image cannot be decoded (")
    assert message.count("image cannot be decoded") == 10
    assert message.endswith(" | and 4 more")
    assert "place" not in message


def test_files_of_an_archive_are_named_as_in_the_archive(voc_root, tmp_path, refused):
    voc.image_path(voc_root, "t0").write_bytes(b"none")
    Image.new("1", (8, 6)).save(voc.mask_path(voc_root, "t1"))
    archive = Path(shutil.make_archive(str(tmp_path / "mine"), "zip", voc_root))
    message = refused(place, own(tmp_path), archive)
    assert f": {archive}/JPEGImages/t0.jpg: image cannot be decoded" in message
    assert f"`gain import-masks {archive}/SegmentationClass" in message
    assert message.endswith("(after unpacking it)")
    assert ".unpacked" not in message


@pytest.mark.parametrize("classes", ["cat\n", "cat\ndog\n"])
def test_masks_of_0_and_255_are_refused_with_the_command_that_converts_them(voc_root, tmp_path, refused, classes):
    """All of it was void, and every score 1."""
    (voc_root / "classes.txt").write_text(classes)
    for split in voc.list_splits(voc_root):
        for image_id in voc.read_split(voc_root, split):
            mask = decode_mask(voc.mask_path(voc_root, image_id))
            Image.fromarray((255 * (mask > 0)).astype(np.uint8)).save(voc.mask_path(voc_root, image_id))
    message = refused(place, own(tmp_path), voc_root)
    assert message.startswith(
        f"{voc_root}/SegmentationClass: the masks of the split 'train' hold no class, only 0 and 255"
    )
    name = "cat" if classes == "cat\n" else "NAME"
    assert f"--classes 0=background,255={name} --out {voc_root} --overwrite`" in message


def test_single_masks_of_0_and_255_are_warned_of(voc_root, tmp_path, capsys):
    mask = np.zeros((6, 8), np.uint8)
    mask[0] = 255
    save_mask(mask, voc.mask_path(voc_root, "t1"))
    place(own(tmp_path), voc_root)
    assert f"1 masks, {voc.mask_path(voc_root, 't1')} the first, hold 0 and 255 alone" in capsys.readouterr().err


def test_palettes_that_disagree_are_refused(voc_root, tmp_path, refused):
    """A quantiser numbers the colours of each file by how often they occur."""
    for image_id, colours in {"t1": [0, 0, 0, 9, 9, 9, 255, 0, 0], "t2": [0, 0, 0, 255, 0, 0, 9, 9, 9]}.items():
        image = Image.open(voc.mask_path(voc_root, image_id))
        image.putpalette(colours)
        image.save(voc.mask_path(voc_root, image_id))
    for image_id in ("t0", "v0", "x0"):
        Image.fromarray(decode_mask(voc.mask_path(voc_root, image_id))).save(voc.mask_path(voc_root, image_id))
    message = refused(place, own(tmp_path), voc_root)
    assert message.startswith(f"{voc.mask_path(voc_root, 't2')}: value 2 has the colour (9, 9, 9), but (255, 0, 0) in ")


def test_id_that_is_listed_with_its_ending_is_told_so(voc_root, tmp_path, refused):
    voc.split_path(voc_root, "val").write_text("v0.jpg\n")
    assert "v0.jpg.jpg: missing" in (message := refused(place, own(tmp_path), voc_root))
    assert message.endswith("list it without .jpg")


def test_image_that_is_none_is_named(voc_root, tmp_path, refused):
    voc.image_path(voc_root, "t1").write_bytes(b"none")
    assert "t1.jpg: image cannot be decoded" in refused(place, own(tmp_path), voc_root)
    voc.image_path(voc_root, "t1").unlink()
    assert "and no file of that name ends in .jpeg, .png, .webp" in refused(place, own(tmp_path, "b"), voc_root)


def test_split_cannot_name_files_outside(voc_root, tmp_path, refused):
    (tmp_path / "evil.jpg").write_bytes(b"x")
    voc.split_path(voc_root, "train").write_text("../../evil\n")
    assert "is no image id" in refused(place, own(tmp_path), voc_root)


@pytest.mark.system
def test_images_are_checked_before_weights_are_fetched(voc_root, tmp_path):
    """The header of a file that is cut short is intact, so that only decoding it tells."""
    path = voc.image_path(voc_root, "t1")
    path.write_bytes(path.read_bytes()[:-100])
    file = {
        "path": None,
        "mirrors": ["http://127.0.0.1:9/weights"],
        "checksum": f"md5:{'0' * 32}",
        "max_gigabytes": 0.1,
    }
    folder = checkout(
        tmp_path / "repo",
        **{
            ".download": {"source": "folder", "path": str(voc_root), "ignore_index": 255},
            ".pretrain.weights": {"source": "safetensors", "file": file},
            ".promote.better": ["attention_iou"],
        },
    )
    one_line(stage(folder, "download"), f"{path}: image cannot be decoded")
    assert not list((folder / "data").iterdir())
    assert not (folder / ".downloads").exists()
