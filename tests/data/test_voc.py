import pytest

from pipeline.data import voc


def test_palette_holds_the_colours_of_voc():
    palette = voc.voc_palette()
    colours = [tuple(palette[3 * index : 3 * index + 3]) for index in range(256)]
    assert len(palette) == 768
    assert colours[:6] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert (colours[8], colours[20], colours[255]) == ((64, 0, 0), (0, 64, 128), (224, 224, 192))
    assert len(set(colours)) == 256


def test_paths_are_those_of_voc(tmp_path):
    assert voc.image_path(tmp_path, "2007_000032") == tmp_path / "JPEGImages/2007_000032.jpg"
    assert voc.mask_path(tmp_path, "2007_000032") == tmp_path / "SegmentationClass/2007_000032.png"
    assert voc.split_path(tmp_path, "train") == tmp_path / "ImageSets/Segmentation/train.txt"


def test_names_ids_and_contexts_are_read_in_order(voc_root):
    assert voc.read_class_names(voc_root) == ("cat", "dog")
    assert voc.read_split(voc_root, "train") == ("t0", "t1", "t2", "t3")
    assert voc.read_contexts(voc_root) == {"t0": "cat", "t1": "cat dog", "t3": ""}


def test_blank_lines_and_spaces_around_a_line_do_not_count(voc_root):
    (voc_root / "classes.txt").write_text("\n cat \r\n\n\tdog\n\n")
    voc.split_path(voc_root, "val").write_text(" v0 \n\n")
    assert voc.read_class_names(voc_root) == ("cat", "dog")
    assert voc.read_split(voc_root, "val") == ("v0",)


def test_contexts_are_optional(voc_root):
    (voc_root / "contexts.csv").unlink()
    assert voc.read_contexts(voc_root) == {}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "missing; it holds the class names"),
        ("", "empty; it holds the class names"),
        (" \n\n", "empty; it holds the class names"),
        ("cat\ndog\ncat\n", "a class is named twice"),
        ("".join(f"c{i}\n" for i in range(255)), "255 classes; a mask holds at most 254"),
        pytest.param(
            "house cat\ndog\n",
            "house cat",
        ),
        pytest.param(
            "background\ncat\n",
            "background",
        ),
        pytest.param(
            b"ch\xe2t\n",
            "UTF-8",
        ),
    ],
)
def test_bad_class_names_are_refused(voc_root, refused, content, problem):
    path = voc_root / "classes.txt"
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    message = refused(voc.read_class_names, voc_root)
    assert message.startswith(f"{path}: ")
    assert problem in message


def test_as_many_classes_as_a_mask_can_hold_are_accepted(voc_root):
    (voc_root / "classes.txt").write_text("".join(f"c{i}\n" for i in range(254)))
    assert len(voc.read_class_names(voc_root)) == 254


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "missing; it holds the image ids of the split 'train', one a line; run `dvc repro download` or add it"),
        ("", "empty; it holds the image ids of the split 'train', one a line"),
        ("t0\nt1\nt0\n", "t0 is listed twice; remove one"),
    ],
)
def test_bad_split_is_refused(voc_root, refused, content, problem):
    path = voc.split_path(voc_root, "train")
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert refused(voc.read_split, voc_root, "train") == f"{path}: {problem}"
