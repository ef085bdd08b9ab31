"""Masks of other programs, converted: what they become, and what is refused before anything is written."""

import base64
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.sections import FolderData
from pipeline.cli.main import app
from pipeline.data import voc
from pipeline.data.images import decode_mask
from pipeline.datasets.import_masks import Imported, import_masks
from pipeline.datasets.own_folder import place_folder

# 0 background, 1 cat, 2 dog, 255 void
VALUES = np.array([[0, 1, 1, 2], [0, 0, 2, 2], [255, 0, 0, 0]], np.uint8)
CVAT = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\nhouse dog:51,221,255::\n"
CVAT_COLOURS = {0: (0, 0, 0), 1: (250, 50, 83), 2: (51, 221, 255), 255: (224, 224, 192)}


def coloured(values: np.ndarray, colours: dict[int, tuple[int, ...]]) -> np.ndarray:
    pixels = np.zeros((*values.shape, 3), np.uint8)
    for value, shown in colours.items():
        pixels[values == value] = shown
    return pixels


def put(folder: Path, name: str, image: Image.Image) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    return folder


def run(source: Path, out: Path, classes: str | None = None, *, by=None, overwrite: bool = False) -> Imported:
    return import_masks(source, classes, out, by=by, overwrite=overwrite)


def imported(out: Path, name: str = "a") -> np.ndarray:
    return decode_mask(out / "SegmentationClass" / f"{name}.png")


def names(out: Path) -> tuple[str, ...]:
    return voc.read_class_names(out)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what masks become -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_export_of_cvat_is_converted_by_its_label_map(tmp_path, mode, packed):
    export = tmp_path / "export"
    image = Image.fromarray(coloured(VALUES, CVAT_COLOURS))
    put(export / "SegmentationClass", "a.png", image.quantize() if mode == "P" else image.convert(mode))
    (export / "labelmap.txt").write_text(CVAT)
    source = Path(shutil.make_archive(str(tmp_path / "cvat"), "zip", export)) if packed else export
    found = run(source, tmp_path / "mine")
    assert np.array_equal(imported(tmp_path / "mine"), VALUES)
    assert names(tmp_path / "mine") == found.names == ("cat", "house_dog")
    assert found.pixels == {0: 6, 1: 2, 2: 3, 255: 1}
    with Image.open(tmp_path / "mine" / "SegmentationClass" / "a.png") as mask:
        assert (mask.mode, mask.getpalette()) == ("P", voc.voc_palette())


def test_masks_in_vocs_colours_need_only_names(tmp_path):
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
    source = put(tmp_path / "masks", "a.png", Image.fromarray(coloured(VALUES, colours)))
    run(source, tmp_path / "mine", "background,cat,dog")
    assert np.array_equal(imported(tmp_path / "mine"), VALUES)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_masks_of_0_and_255_are_one_class(tmp_path, mode, suffix):
    drawn = np.array([[0, 255, 255], [0, 0, 255]], np.uint8)
    source = put(tmp_path / "masks", f"a.{suffix}", Image.fromarray(drawn).convert(mode))
    run(source, tmp_path / "mine", "0=background,1=cat" if mode == "1" else "0=background,255=cat")
    mask = decode_mask(next((tmp_path / "mine" / "SegmentationClass").iterdir()))
    assert np.array_equal(mask, drawn // 255)
    assert names(tmp_path / "mine") == ("cat",)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_levels_are_converted(tmp_path, dtype):
    levels = np.array([[0, 85, 170, 240]], dtype)
    source = put(tmp_path / "masks", "a.png", Image.fromarray(levels))
    run(source, tmp_path / "mine", "0=background,85=cat,170=dog,240=ignore")
    assert imported(tmp_path / "mine").tolist() == [[0, 1, 2, 255]]


def test_reordered_palette_is_converted_by_colours_or_by_values(tmp_path, refused):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 0, 128, 0, 128, 0, 0])
    source = put(tmp_path / "masks", "a.png", image)
    message = refused(run, source, tmp_path / "mine", "cat,dog")
    assert "value 1 has the colour of VOC's value 2" in message
    assert "--by colours if the colours are right, --by values" in message
    run(source, tmp_path / "mine", "cat,dog", by="colours")
    assert imported(tmp_path / "mine").tolist() == [[0, 2, 1]]
    run(source, tmp_path / "mine", "cat,dog", by="values", overwrite=True)
    assert imported(tmp_path / "mine").tolist() == [[0, 1, 2]]


def test_turned_mask_is_written_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "masks").mkdir()
    Image.fromarray(VALUES).save(tmp_path / "masks" / "a.png", exif=exif)
    run(tmp_path / "masks", tmp_path / "mine", "cat,dog")
    assert np.array_equal(imported(tmp_path / "mine"), np.rot90(VALUES, -1))


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([0, 1, 2, 255]))
)
def test_colours_and_values_give_the_same_masks(tmp_path_factory, values):
    values[0, 0] = 1
    folder = tmp_path_factory.mktemp("import")
    put(folder / "colours", "a.png", Image.fromarray(coloured(values, CVAT_COLOURS)))
    put(folder / "values", "a.png", Image.fromarray(values))
    (folder / "labelmap.txt").write_text(CVAT)
    run(folder / "colours", folder / "one", str(folder / "labelmap.txt"))
    run(folder / "values", folder / "two", "_background_,cat,house_dog")
    assert np.array_equal(imported(folder / "one"), values)
    assert everything(folder / "one") == everything(folder / "two")


# ---- labelme ---------------------------------------------------------------------------------------------------------


def labelme(path: Path, *shapes: dict[str, object], **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": "5.4.1", "imagePath": "a.jpg", "imageHeight": 6, "imageWidth": 8, "shapes": list(shapes)}
    path.write_text(json.dumps({**document, **changes}))
    return path.parent


def shape(label: str, points: list[list[float]], kind: str = "polygon", **more: object) -> dict[str, object]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **more}


def test_shapes_of_labelme_are_drawn_in_their_order(tmp_path):
    dot = io.BytesIO()
    Image.fromarray(np.array([[False, True]])).save(dot, "PNG")
    source = labelme(
        tmp_path / "labelme" / "a.json",
        shape("dog", [[0, 0], [3, 0], [3, 2], [0, 2]]),
        shape("cat", [[5, 3], [3, 1]], "rectangle"),
        shape("__ignore__", [[6, 4], [7, 4]], "circle"),
        shape("cat", [[0, 5], [1, 5]], "mask", mask=base64.b64encode(dot.getvalue()).decode()),
    )
    run(source, tmp_path / "mine")
    expected = np.zeros((6, 8), np.uint8)
    expected[0:3, 0:4] = 2
    expected[1:4, 3:6] = 1
    expected[4, 5:8], expected[3:6, 6] = 255, 255
    expected[5, 1] = 1
    assert imported(tmp_path / "mine").tolist() == expected.tolist()
    assert names(tmp_path / "mine") == ("cat", "dog")


def test_class_list_orders_the_labels_of_labelme(tmp_path, refused):
    source = labelme(tmp_path / "labelme" / "a.json", shape("cat", [[0, 0], [3, 0], [0, 3]]))
    run(source, tmp_path / "mine", "__ignore__,_background_,dog,cat")
    assert set(np.unique(imported(tmp_path / "mine"))) == {0, 2}
    message = refused(run, source, tmp_path / "other", "dog,fox")
    assert message == f"{source}/a.json: no mask can be drawn (the label 'cat' is not in the class list; add it)"


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no file of labelme"),
        ('{"shapes": [1]}', "no file of labelme"),
        ('{"shapes": [{"label": "cat", "points": []}]}', "lacks 'imageHeight'"),
    ],
)
def test_file_that_is_none_of_labelmes_is_named(tmp_path, refused, document, problem):
    source = labelme(tmp_path / "labelme" / "a.json", shape("cat", [[0, 0], [3, 0], [0, 3]]))
    (source / "b.json").write_text(document)
    message = refused(run, source, tmp_path / "mine", "cat")
    assert message.startswith(f"{source}/b.json: ")
    assert problem in message


@pytest.mark.parametrize(
    ("drawn", "problem"),
    [
        (shape("cat", [[0, 0], [1, 1]]), "a polygon has 2 points; it needs 3"),
        (shape("cat", [[0, 0], [1, 1]], "line"), "a line covers no area"),
        (shape("cat", [[0, 0], [1, float("nan")], [2, 2]]), "a point that is no number"),
        (shape("cat", [[0], [1, 1], [2, 2]]), "not enough values to unpack"),
        (shape("cat", [[0, 0], [1, 1]], "mask", mask="%"), "no mask can be drawn"),
    ],
)
def test_shape_that_cannot_be_drawn_is_named(tmp_path, refused, drawn, problem):
    source = labelme(tmp_path / "labelme" / "a.json", drawn)
    message = refused(run, source, tmp_path / "mine")
    assert message.startswith(f"{source}/a.json: no mask can be drawn (")
    assert problem in message


# ---- what is refused, with nothing written ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "classes", "problem"),
    [
        (Image.fromarray(coloured(VALUES, {1: (1, 2, 3), 2: (9, 9, 9)})), "cat:1,2,3", "(9, 9, 9) on 3 pixels"),
        (Image.fromarray(VALUES), "cat", "2 on 3 pixels in no entry of the class list"),
        (Image.fromarray(coloured(VALUES, CVAT_COLOURS)), "1=cat,2=dog", "mask has colours, the class list values"),
        (Image.fromarray(255 * (VALUES > 0).astype(np.uint8)), "cat", "no mask shows a class"),
        (Image.fromarray(np.array([[0, 300]], np.uint16)), "cat", "300 on 1 pixels"),
        (Image.fromarray(np.array([[0, 300]], np.uint16)), "cat:1,2,3", "mask of mode I;16 has values, no colours"),
        (Image.new("RGBA", (2, 2)), "cat:1,2,3", "has transparent pixels"),
    ],
)
def test_what_the_list_does_not_cover_is_refused(tmp_path, refused, image, classes, problem):
    source = put(tmp_path / "masks", "a.png", image)
    (tmp_path / "list.txt").write_text(classes.replace(",", "\n") if "=" in classes else classes)
    before = everything(tmp_path)
    message = refused(run, source, tmp_path / "mine", str(tmp_path / "list.txt"))
    assert message.startswith(str(source))
    assert problem in message
    assert everything(tmp_path) == before
    assert not (tmp_path / "mine").exists()


def test_lossy_masks_are_refused(tmp_path, refused):
    source = put(tmp_path / "masks", "a.jpg", Image.fromarray(VALUES))
    assert "a.jpg: mask is a JPEG file, which changes values" in refused(run, source, tmp_path / "mine", "cat,dog")


def test_all_bad_masks_are_told_at_once_and_nothing_is_written(tmp_path, refused):
    source = put(tmp_path / "masks", "good.png", Image.fromarray(VALUES))
    for index in range(12):
        (source / f"bad{index:02}.png").write_bytes(b"none")
    message = refused(run, source, tmp_path / "mine", "cat,dog")
    assert message.startswith(f"12 masks that cannot be converted: {source}/bad00.png: mask cannot be decoded (")
    assert message.endswith(" | and 2 more")
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]


def test_nothing_is_overwritten_unless_asked_for(tmp_path, refused):
    source = put(tmp_path / "masks", "a.png", Image.fromarray(VALUES))
    out = tmp_path / "mine"
    run(source, out, "cat,dog")
    before = everything(out)
    assert refused(run, source, out, "cat,dog") == (
        f"{out}/SegmentationClass/a.png: there already; choose another --out, or add --overwrite to replace"
    )
    (source / "a.png").rename(source / "b.png")
    assert f"{out}/classes.txt: there already" in refused(run, source, out, "dog,cat")
    assert everything(out) == before
    run(source, out, "cat,dog")  # more masks of the same classes
    run(source, out, "dog,cat", overwrite=True)
    assert names(out) == ("dog", "cat")
    assert everything(out)["SegmentationClass/a.png"] == before["SegmentationClass/a.png"]


def test_what_is_no_source_is_refused(tmp_path, refused):
    assert "missing: missing; give the folder" in refused(run, tmp_path / "missing", tmp_path / "mine", "cat")
    (tmp_path / "empty").mkdir()
    assert "no masks in it" in refused(run, tmp_path / "empty", tmp_path / "mine", "cat")
    source = put(tmp_path / "masks", "a.png", Image.fromarray(VALUES))
    assert "add --classes" in refused(run, source, tmp_path / "mine")
    put(source, "a.bmp", Image.fromarray(VALUES))
    assert "a.png: a.bmp has the same name" in refused(run, source, tmp_path / "mine", "cat,dog")
    (tmp_path / "file").write_text("")
    assert refused(run, put(tmp_path / "b", "b.png", Image.fromarray(VALUES)), tmp_path / "file", "cat,dog")


# ---- the commands that refusals of own folders give ------------------------------------------------------------------


def command_line(*arguments: str) -> None:
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)


def place(root: Path, source: Path) -> None:
    root.mkdir()
    place_folder(root, FolderData(source="folder", path=str(source), ignore_index=255))


LISTS = {
    "background": "_background_\ncat\ndog\n",
    "values": "1:cat\n2:dog\n",
    "label map": CVAT.replace("house ", ""),
    "0/255": "cat\n",
    "bilevel": "cat\n",
}


def spoilt(root: Path, kind: str) -> None:
    """Make the masks and the class list of `root` what another program would have written."""
    (root / "classes.txt").write_text(LISTS.get(kind, "cat\ndog\n"))
    for path in (root / "SegmentationClass").iterdir():
        mask = decode_mask(path)
        with Image.open(path) as file:
            image = file.copy()
        if kind in ("0/255", "bilevel"):
            objects = Image.fromarray((255 * (mask % 255 > 0)).astype(np.uint8))
            image = objects.convert("1") if kind == "bilevel" else objects
        elif kind == "label map":
            image = Image.fromarray(coloured(mask, CVAT_COLOURS))
        elif kind == "colours":
            image = image.convert("RGB")
        elif kind == "quantised":
            palette = voc.voc_palette()
            palette[3:9] = [*palette[6:9], *palette[3:6]]
            image = Image.fromarray(np.where((mask == 1) | (mask == 2), 3 - mask, mask)).convert("P")
            image.putpalette(palette)
        image.save(path)


@pytest.mark.parametrize("kind", ["background", "values", "label map", "colours", "quantised", "0/255", "bilevel"])
def test_command_that_a_refusal_gives_converts_the_folder(voc_root, tmp_path, refused, capsys, kind):
    before = {image_id: decode_mask(voc.mask_path(voc_root, image_id)) for image_id in ("t0", "t1", "t2", "t3", "x0")}
    spoilt(voc_root, kind)
    command = re.search(r"`gain (import-masks [^`]*)`", refused(place, tmp_path / "one", voc_root))[1]
    command_line(*shlex.split(command.replace("=NAME", "=cat")))
    assert "import-masks: 6 masks in" in capsys.readouterr().out
    place(tmp_path / "two", voc_root)
    one_class = kind in ("0/255", "bilevel")
    assert names(tmp_path / "two") == (("cat",) if one_class else ("cat", "dog"))
    for image_id, mask in before.items():
        expected = mask % 255 > 0 if one_class else mask
        assert np.array_equal(decode_mask(voc.mask_path(tmp_path / "two", image_id)), expected), image_id


def test_command_prints_the_shares_and_refuses_in_one_line(tmp_path, capsys):
    source = put(tmp_path / "masks", "a.png", Image.fromarray(VALUES))
    arguments = ["import-masks", str(source), "--classes", "cat,dog", "--out", str(tmp_path / "mine")]
    command_line(*arguments)
    out = f"{tmp_path}/mine/SegmentationClass"
    shares = "background 50.0%, cat 16.7%, dog 25.0%, void 8.3%"
    assert capsys.readouterr().out == f"import-masks: 1 masks in {out}; {shares}\n"
    with pytest.raises(SystemExit, match=r"^import-masks: error: [^\n]*there already[^\n]*$"):
        command_line(*arguments)


@given(data=st.data())
def test_damaged_masks_are_converted_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    source = put(folder / "masks", "a.png", Image.fromarray(VALUES))
    content = bytearray((source / "a.png").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (source / "a.png").write_bytes(content)
    try:
        run(source, folder / "mine", "cat,dog")
    except PipelineError as error:
        assert "\n" not in str(error)
        assert not (folder / "mine").exists()
