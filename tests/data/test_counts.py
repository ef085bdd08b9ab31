"""What prepare says of data whose counts show that something is wrong with them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from checkouts import checkout, one_line, set_params, stage
from small_folders import save_mask

from pipeline.base.params import load_params
from pipeline.base.profile import Params
from pipeline.data import voc
from pipeline.data.counts import check_counts
from pipeline.data.demands import check_demands
from pipeline.data.manifest import build_manifest

SPLITS = ("train", "val", "test")
PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def sound(voc_root) -> Path:
    """The small folder with a cat and a dog in every split."""
    for image_id, image in (("v0", np.eye(4, dtype=np.uint8)), ("x0", np.eye(6, 8, dtype=np.uint8))):
        image[0, -1] = 2
        save_mask(voc.mask_path(voc_root, image_id), image)
    return voc_root


def check(root: Path, *allow: str) -> list[str]:
    return check_counts(root, build_manifest(root, splits=SPLITS, seed=0), allow)


def fill(root: Path, split: str, value: int) -> None:
    """Give every image of a split a mask of one value."""
    for image_id in voc.read_split(root, split):
        shape = build_manifest(root, splits=(split,), seed=0).set_index("image_id").loc[image_id, ["height", "width"]]
        save_mask(voc.mask_path(root, image_id), np.full(tuple(map(int, shape)), value, np.uint8))


def test_sound_data_pass_without_a_word(sound):
    assert check(sound) == []


def test_classes_that_a_split_lacks_are_named_with_their_number(voc_root, refused):
    """In v0 there is only a dog, in x0 only a cat."""
    lists = voc_root / "ImageSets" / "Segmentation"
    found = (
        f"{lists}: none of the 1 images of val shows cat (1 of 2 classes), and none of the 1 images of test shows dog "
        "(1 of 2 classes)"
    )
    assert refused(check, voc_root) == (
        f"{found}; correct the lists, or set prepare.allow: [missing_classes] in params.yaml"
    )
    assert check(voc_root, "missing_classes") == [found]


@pytest.mark.parametrize("split", SPLITS)
def test_class_that_one_split_lacks_is_found_in_each(sound, refused, split):
    (sound / "classes.txt").write_text("cat\ndog\nfox\n")
    for other in set(SPLITS) - {split}:
        image_id = voc.read_split(sound, other)[0]
        save_mask(voc.mask_path(sound, image_id), np.tile(np.uint8([1, 2, 3, 0]), (6 if image_id != "v0" else 4, 2))[
            :, : 4 if image_id == "v0" else 8
        ])  # fmt: skip
    assert f"images of {split} shows fox (1 of 3 classes);" in refused(check, sound)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("value", "problem"),
    [(0, "are without an object, only background and void; list images that show the classes (cat, dog)"),
     (255, "is void (255): nothing can be learnt or scored; correct the masks, or download.ignore_index")],
)  # fmt: skip
def test_split_without_an_object_is_refused_whatever_is_allowed(sound, refused, split, value, problem):
    fill(sound, split, value)
    message = refused(check, sound, "missing_classes", "duplicates")
    assert message.startswith(f"{voc.split_path(sound, split)}: ")
    assert f"all {len(voc.read_split(sound, split))} images" in message
    assert problem in message


def test_image_that_is_in_two_splits_under_two_names_is_found(sound, refused):
    """Its mask differs, as the annotation of VOC does, which holds the name: the digests of the manifest differ."""
    shutil.copy(voc.image_path(sound, "t1"), voc.image_path(sound, "x0"))
    found = f"{sound / 'JPEGImages'}: an image is in two splits under two names: t1 (train) is x0 (test)"
    assert refused(check, sound) == f"{found}; correct the lists, or set prepare.allow: [duplicates] in params.yaml"
    assert check(sound, "duplicates") == [found]


def test_image_that_is_twice_in_one_split_is_no_leak(sound):
    shutil.copy(voc.image_path(sound, "t1"), voc.image_path(sound, "t2"))
    assert check(sound) == []


def test_first_ten_of_many_images_are_named(sound, refused):
    ids = [f"n{number}" for number in range(12)]
    for image_id in ids:
        shutil.copy(voc.image_path(sound, "t1"), voc.image_path(sound, image_id))
        shutil.copy(voc.mask_path(sound, "t1"), voc.mask_path(sound, image_id))
    voc.split_path(sound, "test").write_text("\n".join(["x0", *ids]))
    message = refused(check, sound)
    assert "12 images are in two splits under two names: t1 (train) is n0 (test), " in message
    assert "t1 (train) is n9 (test), and 2 more;" in message


# ---- what the trainings will ask -------------------------------------------------------------------------------------


def params(**sections: dict) -> Params:
    """The profile embedded with some values changed, which this does not check."""
    loaded = load_params(PARAMS, profile="embedded")
    update = {name: getattr(loaded, name).model_copy(update=values) for name, values in sections.items()}
    return loaded.model_copy(update=update)


def demanded(root: Path, changed: Params) -> None:
    check_demands(changed, root, build_manifest(root, splits=SPLITS, seed=0))


def test_images_of_several_sizes_need_crops_in_every_training(sound, refused):
    demanded(sound, params())
    mask = np.zeros((12, 8), np.uint8)
    save_mask(voc.mask_path(sound, "t0"), mask)
    from PIL import Image

    Image.fromarray(np.zeros((12, 8, 3), np.uint8)).save(voc.image_path(sound, "t0"))
    crop = {"crop_size": 16}
    demanded(sound, params(pretrain=crop, classify=crop, finetune=crop))
    message = refused(demanded, sound, params(pretrain=crop, classify=crop))
    assert message.startswith("params.yaml: finetune.crop_size: the training images have 2 sizes, and a batch one; ")
    demanded(sound, params(pretrain=crop, classify=crop, finetune={"batch_size": 1}))


def test_crop_far_larger_than_every_image_is_refused(sound, refused):
    demanded(sound, params(pretrain={"crop_size": 16}))
    demanded(sound, params(pretrain={"crop_size": 4096, "num_epochs": 0}))  # imported weights as they are
    message = refused(demanded, sound, params(pretrain={"crop_size": 4096}))
    assert message.startswith("params.yaml: pretrain.crop_size: 4096 pixels, but no image has a side above 8")


def test_more_pixel_labels_than_images_with_a_class_are_refused(sound, refused):
    """Of the four training images, three show one."""
    labels = load_params(PARAMS).attention.pixel_labels
    three, four = ({"pixel_labels": labels.model_copy(update={"count": n, "fraction": None})} for n in (3, 4))
    demanded(sound, params(attention=three))
    message = refused(demanded, sound, params(attention=four))
    assert message == (
        "params.yaml: attention.pixel_labels.count: 4 images asked for (gain_ext), and only 3 training images show a "
        "class; ask for fewer"
    )


def test_boxes_that_are_not_there_are_refused(sound, refused):
    labels = load_params(PARAMS).attention.pixel_labels.model_copy(update={"fraction": 1.0})
    boxes = {"pixel_labels": labels, "guidance": "boxes"}
    message = refused(demanded, sound, params(attention=boxes))
    assert message.startswith("params.yaml: attention.guidance: boxes (gain_ext): 3 of 4 images have none (")
    for image_id in ("t0", "t1", "t2"):
        voc.write_boxes(sound, image_id, [], height=6, width=8)
    demanded(sound, params(attention=boxes))


# ---- the stage -------------------------------------------------------------------------------------------------------


@pytest.mark.system
def test_prepare_refuses_in_one_line_and_warns_of_what_is_allowed(tmp_path):
    """Eight images of the profile smoke show no aeroplane."""
    folder = checkout(tmp_path / "repo")
    assert stage(folder, "download").returncode == 0
    allowed = stage(folder, "prepare")
    problem = "none of the 8 images of val shows aeroplane (1 of 6 classes)"
    assert allowed.stderr.strip() == f"warning: prepare: data/voc/ImageSets/Segmentation: {problem}"
    assert allowed.returncode == 0
    (folder / "data" / "manifest.csv").unlink()
    set_params(folder, {".prepare.allow": []})
    one_line(stage(folder, "prepare"), problem, "prepare.allow: [missing_classes]")
    assert not (folder / "data" / "manifest.csv").exists()
