"""Folders of any make, their modes, formats, orientations and lists at random: each is right or refused in one line."""

import shutil
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.sections import FolderData
from pipeline.data import voc
from pipeline.data.images import decode_image, decode_mask, save_mask
from pipeline.datasets.own_folder import place_folder

# What a viewer does to the stored rows and columns, by the table of the EXIF standard.
SHOWN = {
    0: lambda a: a,
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
LOSSLESS = {".png": {}, ".tif": {}, ".TIFF": {}, ".bmp": {}, ".webp": {"lossless": True}}
MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "I", "F", "LA", "CMYK")

sides = st.integers(1, 7)
value_sets = st.sampled_from([(0, 1), (0, 1, 2, 255), (0, 1, 255), (0, 255), (255,), (0, 3), (0, 254), (0, 85, 170)])
GOOD_LISTS = ("cat\ndog\n", "cat\n")
OTHER_LISTS = ("_background_\ncat\n", "1:cat\n", "cat:1,2,3::\n", "\n", "cat\ncat\n", "house cat\n")
lists = st.sampled_from([*(3 * GOOD_LISTS), *OTHER_LISTS])
mask_modes = st.sampled_from(["P", "P", "L", "L", "1", "RGB", "LA", "I;16"])


def picture(values: np.ndarray, mode: str) -> tuple[Image.Image, np.ndarray | None]:
    """An image of values 0 to 255 (H, W) in a mode, and the RGB that it must become; None where none is certain."""
    grey = Image.fromarray(values)
    rgb = np.repeat(values[..., None], 3, axis=2)
    if mode == "I;16":
        low = 0 < int(values.max()) < 16
        return Image.fromarray(values.astype(np.uint16) << 8), None if low else rgb
    if mode in ("I", "F"):
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32)), None
    if mode == "1":
        return grey.point(lambda level: 255 if level > 127 else 0).convert("1"), np.where(rgb > 127, 255, 0)
    if mode == "CMYK":  # black ink alone
        channels = [Image.new("L", grey.size)] * 3 + [grey.point(lambda level: 255 - level)]
        return Image.merge("CMYK", channels), rgb
    return grey.convert(mode), rgb


def write_mask(path: Path, values: np.ndarray, mode: str) -> None:
    if mode == "P":
        save_mask(values, path)
    elif mode == "I;16":
        Image.fromarray(values.astype(np.uint16)).save(path)
    else:
        Image.fromarray(values).convert(mode).save(path)


@given(data=st.data())
@settings(max_examples=100)
def test_any_folder_is_copied_as_viewers_show_it_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any", numbered=True)
    source, root = folder / "mine", folder / "copy"
    voc.make_folders(source)
    root.mkdir()
    height, width = data.draw(sides), data.draw(sides)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    orientation = data.draw(st.sampled_from([1, 1, 1, *SHOWN]))
    suffix = data.draw(st.sampled_from(list(LOSSLESS)))
    # WebP has 8 bits; what Pillow writes of others is white.
    modes = MODES[:5] if suffix == ".webp" else MODES
    image, rgb = picture(rng.integers(0, 256, (height, width), dtype=np.uint8), data.draw(st.sampled_from(modes)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        image.save(source / "JPEGImages" / f"x{suffix}", exif=exif, **LOSSLESS[suffix])
    except (OSError, ValueError):  # the format has no such mode
        shutil.rmtree(folder)
        return
    values = rng.choice(data.draw(value_sets), (height, width)).astype(np.uint8)
    turned_mask = data.draw(st.sampled_from([True, True, True, False]))
    mask = SHOWN[orientation](values) if turned_mask and suffix != ".bmp" else values
    mask_mode = data.draw(mask_modes)
    for split, name in {"train": "x", "val": "y", "test": "z"}.items():
        voc.split_path(source, split).write_text(name)
        if name != "x":
            Image.new("RGB", (4, 4)).save(source / "JPEGImages" / f"{name}.png")
            save_mask(np.ones((4, 4), np.uint8), voc.mask_path(source, name))
    write_mask(voc.mask_path(source, "x"), mask, mask_mode)
    class_list = data.draw(lists)
    (source / "classes.txt").write_text(class_list)
    try:
        place_folder(root, FolderData(source="folder", path=str(source), ignore_index=255))
    except PipelineError as error:
        assert "\n" not in str(error)
        assert str(source) in str(error)
    else:
        shown = rgb if suffix == ".bmp" else SHOWN[orientation](rgb)  # None would be refused
        assert np.array_equal(decode_image(voc.image_path(root, "x")), shown)
        assert np.array_equal(decode_mask(voc.mask_path(root, "x")), mask)
        assert mask_mode in ("P", "L")
        assert class_list in GOOD_LISTS
        assert set(np.unique(mask)) - {0, 255} <= set(range(1, 1 + class_list.count("\n")))
        assert set(np.unique(mask)) & {1, 2} or 255 not in mask
    shutil.rmtree(folder)
