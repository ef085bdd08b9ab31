from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.base.errors import PipelineError
from pipeline.data import voc

ANNOTATION = """<?xml version="1.0"?>
<annotation>
  <folder>VOC2012</folder>
  <filename>t0.jpg</filename>
  <size><width>8</width><height>6</height><depth>3</depth></size>
  <segmented>1</segmented>
  <object>
    <name>cat</name>
    <difficult>0</difficult>
    <bndbox><xmax>3</xmax><xmin>1</xmin><ymax>2</ymax><ymin>1</ymin></bndbox>
    <part><name>head</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>2</xmax><ymax>1</ymax></bndbox></part>
  </object>
  <object>
    <name> dog </name>
    <bndbox><xmin>4.70</xmin><ymin>6</ymin><xmax>8</xmax><ymax>6.2</ymax></bndbox>
  </object>
</annotation>
"""

corners = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
box_lists = st.lists(
    st.builds(
        lambda name, at: voc.Box(name, at[0], at[1], at[0] + at[2], at[1] + at[3]),
        st.sampled_from(["cat", "<&>"]),
        corners,
    )
)


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
    assert voc.annotation_path(tmp_path, "2007_000032") == tmp_path / "Annotations/2007_000032.xml"
    assert voc.split_path(tmp_path, "train") == tmp_path / "ImageSets/Segmentation/train.txt"


def test_names_ids_and_contexts_are_read_in_order(voc_root):
    assert voc.read_class_names(voc_root) == ("cat", "dog")
    assert voc.read_split(voc_root, "train") == ("t0", "t1", "t2", "t3")
    assert voc.read_contexts(voc_root) == {"t0": "cat", "t1": "cat dog", "t3": ""}


def test_written_lists_are_read_back(tmp_path):
    voc.make_folders(tmp_path)
    voc.make_folders(tmp_path)  # they may exist
    voc.write_lists(tmp_path, ("cat", "dog"), {"train": ["a", "b"], "val": ["c"]})
    assert voc.read_class_names(tmp_path) == ("cat", "dog")
    assert (voc.read_split(tmp_path, "train"), voc.read_split(tmp_path, "val")) == (("a", "b"), ("c",))
    assert voc.image_path(tmp_path, "a").parent.is_dir()
    assert voc.mask_path(tmp_path, "a").parent.is_dir()
    assert voc.annotation_path(tmp_path, "a").parent.is_dir()


def test_blank_lines_and_spaces_around_a_line_do_not_count(voc_root):
    (voc_root / "classes.txt").write_text("\n cat \r\n\n\tdog\n\n")
    voc.split_path(voc_root, "val").write_text(" v0 \n\n")
    assert voc.read_class_names(voc_root) == ("cat", "dog")
    assert voc.read_split(voc_root, "val") == ("v0",)


def test_byte_order_mark_of_windows_is_no_part_of_a_name(voc_root):
    (voc_root / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert voc.read_class_names(voc_root) == ("cat", "dog")


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


FOREIGN = {
    "an entry for background": ["background", "Background", "BACKGROUND", "_background_", "__background__", "bg", "BG"],
    "an entry for void": ["void", "__ignore__", "Void", "unlabeled", "_unlabelled_", "ignore"],
    "a label map with colours": ["cat:128,0,0::", "cat:128,0,0", "cat, 128, 0, 0", "cat 128 0 0", "background:0,0,0::"],
    "the head of a label map": ["# label:color_rgb:parts:actions"],
    "a class with its value": ["1:cat", "1: cat", "1,cat", "1=cat", "1 cat", "1. cat", "cat:1", "cat = 1"],
    "several names, or one in quotes": ["cat,dog", '"cat"', "[cat]", "names:", "{cat}"],
}


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in FOREIGN.items() for line in lines])
def test_class_lists_of_other_programs_are_recognised(voc_root, refused, kind, line):
    """Taken for names, they shift every class by one."""
    path = voc_root / "classes.txt"
    path.write_text(f"{line}\nfox\n")
    message = refused(voc.read_class_names, voc_root)
    assert message.startswith(f"{path}: {line!r} looks like {kind}; ")
    command = f"gain import-masks {voc_root}/SegmentationClass --classes {path} --out {voc_root} --overwrite"
    assert f"`{command}`" in message


@pytest.mark.parametrize(
    "name", ["cat", "3d_printer", "tv-monitor", "bgs", "void_deck", "Katze", "\u732b", "2cv", "f1.5"]
)
def test_names_that_only_resemble_them_are_names(voc_root, name):
    (voc_root / "classes.txt").write_text(f"{name}\nfox\n", encoding="utf-8")
    assert voc.read_class_names(voc_root) == (name, "fox")


def test_as_many_classes_as_a_mask_can_hold_are_accepted(voc_root):
    (voc_root / "classes.txt").write_text("".join(f"c{i}\n" for i in range(254)))
    assert len(voc.read_class_names(voc_root)) == 254


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            None,
            "missing; it holds the image ids of the split 'train', one a line; add it, or run "
            "`dvc repro --force download`",
        ),
        ("", "empty; it holds the image ids of the split 'train', one a line"),
        ("t0\nt1\nt0\n", "t0 is listed twice; remove one"),
        ("../t0\n", "'../t0' is no image id; an id is a file name without its folder and its ending"),
        ("/etc/t0\n", "'/etc/t0' is no image id; an id is a file name without its folder and its ending"),
        ("a\\t0\n", "'a\\\\t0' is no image id; an id is a file name without its folder and its ending"),
        ("..\n", "'..' is no image id; an id is a file name without its folder and its ending"),
    ],
)
def test_bad_split_is_refused(voc_root, refused, content, problem):
    path = voc.split_path(voc_root, "train")
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert refused(voc.read_split, voc_root, "train") == f"{path}: {problem}"


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_are_half_open_and_count_from_zero(voc_root):
    voc.annotation_path(voc_root, "t0").write_text(ANNOTATION)
    assert voc.read_boxes(voc_root, "t0") == (voc.Box("cat", 0, 0, 3, 2), voc.Box("dog", 4, 5, 8, 6))


def test_written_corners_count_from_one_and_are_inclusive(voc_root):
    voc.write_boxes(voc_root, "t0", [voc.Box("cat", 0, 1, 3, 2)], height=6, width=8)
    annotation = ElementTree.parse(voc.annotation_path(voc_root, "t0")).getroot()
    assert {child.tag: child.text for child in annotation.find("object/bndbox")} == {
        "xmin": "1",
        "ymin": "2",
        "xmax": "3",
        "ymax": "2",
    }
    assert {child.tag: child.text for child in annotation.find("size")} == {"width": "8", "height": "6", "depth": "3"}
    assert (annotation.findtext("filename"), annotation.findtext("object/name")) == ("t0.jpg", "cat")


def test_written_annotation_is_one_that_torchvision_parses(voc_root):
    from torchvision.datasets import VOCDetection

    boxes = [voc.Box("cat", 0, 0, 3, 2), voc.Box("dog", 4, 5, 8, 6)]
    voc.write_boxes(voc_root, "t0", boxes, height=6, width=8)
    parsed = VOCDetection.parse_voc_xml(ElementTree.parse(voc.annotation_path(voc_root, "t0")).getroot())["annotation"]
    assert parsed["size"] == {"width": "8", "height": "6", "depth": "3"}
    assert [item["name"] for item in parsed["object"]] == ["cat", "dog"]
    assert parsed["object"][1]["bndbox"] == {"xmin": "5", "ymin": "6", "xmax": "8", "ymax": "6"}


@given(boxes=box_lists)
def test_boxes_survive_the_file(tmp_path_factory, boxes):
    root = tmp_path_factory.mktemp("boxes")
    voc.annotation_path(root, "a").parent.mkdir()
    voc.write_boxes(root, "a", boxes, height=60, width=60)
    assert voc.read_boxes(root, "a") == tuple(boxes)


def test_missing_annotation_says_who_needs_it(voc_root, refused):
    path = voc.annotation_path(voc_root, "t0")
    message = refused(voc.read_boxes, voc_root, "t0")
    assert message.startswith(f"{path}: missing; external supervision by boxes needs it; ")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (ANNOTATION, "", "no element found"),
        (ANNOTATION, "version https://git-lfs.github.com/spec/v1\n", "syntax error"),
        (ANNOTATION, "<svg></svg>", "its root is <svg>"),
        ("</annotation>", "", "no element found"),
        ('"1.0"', '"1.0" encoding="klingon"', "unknown encoding"),
        ("<name>cat</name>", "", "an object lacks name"),
        ("<name>cat</name>", "<name> </name>", "an object lacks name"),
        ("bndbox><xmax", "box><xmax", "mismatched tag"),
        ("<bndbox><xmin>4.70", "<bndbox><left>4.70</left><xmin>", "an object lacks bndbox/xmin"),
        ("<ymax>2</ymax>", "", "an object lacks bndbox/ymax"),
        ("<xmin>1<", "<xmin>one<", "could not convert string to float: 'one'"),
        ("<xmin>1<", "<xmin>nan<", "cannot convert float NaN to integer"),
        ("<xmax>3<", "<xmax>inf<", "cannot convert float infinity to integer"),
        ("<xmin>1<", "<xmin>4<", "the box of 'cat' is inverted: (4, 1) to (3, 2)"),
        ("<ymax>2<", "<ymax>0<", "the box of 'cat' is inverted: (1, 1) to (3, 0)"),
    ],
)
def test_bad_annotation_is_refused(voc_root, refused, old, new, problem):
    path = voc.annotation_path(voc_root, "t0")
    assert old in ANNOTATION
    path.write_text(ANNOTATION.replace(old, new))
    message = refused(voc.read_boxes, voc_root, "t0")
    assert message.startswith(f"{path}: no readable VOC annotation (")
    assert problem in message
    assert message.endswith("; correct or restore the file")


def test_folder_in_place_of_an_annotation_is_refused(voc_root, refused):
    path = voc.annotation_path(voc_root, "t0")
    path.mkdir()
    assert refused(voc.read_boxes, voc_root, "t0").startswith(f"{path}: no readable VOC annotation (")


@given(position=st.integers(0, len(ANNOTATION) - 1), bits=st.integers(1, 255))
def test_damaged_annotation_is_either_read_or_refused_by_name(tmp_path_factory, position, bits):
    """No flipped byte makes a traceback."""
    root = tmp_path_factory.mktemp("damaged")
    path = voc.annotation_path(root, "t0")
    path.parent.mkdir()
    content = bytearray(ANNOTATION.encode())
    content[position] ^= bits
    path.write_bytes(content)
    try:
        assert all(isinstance(box, voc.Box) for box in voc.read_boxes(root, "t0"))
    except PipelineError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
