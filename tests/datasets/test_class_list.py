"""Class lists of other programs."""

import pytest

from pipeline.datasets.class_list import class_list_of_labels, parse_class_list, read_class_list

CAT, DOG, BLACK, VOID = (128, 0, 0), (0, 128, 0), (0, 0, 0), (224, 224, 192)


@pytest.mark.parametrize(
    "lines",
    [
        ["cat", "dog"],
        ["_background_", "cat", "dog"],
        ["Background", "cat", "dog"],
        ["bg", "", "cat", "dog", ""],
        ["__ignore__", "_background_", "cat", "dog"],
        ["__ignore__", "cat", "dog"],
        ["1:cat", "2:dog"],
        ["0: background", "1: cat", "2: dog"],
        ["2=dog", "1=cat", "255=void"],
        ["1 cat", "2 dog"],
        ["1. cat", "2. dog"],
        ["cat: 1", "dog: 2"],
        ['"cat",', '"dog"'],
    ],
)
def test_names_and_values_are_those_of_the_masks(lines):
    found = parse_class_list(lines, "list")
    assert found.names == ("cat", "dog")
    assert found.values == {0: 0, 1: 1, 2: 2, 255: 255}
    assert {key: found.colours[key] for key in (BLACK, CAT, DOG, VOID)} == {BLACK: 0, CAT: 1, DOG: 2, VOID: 255}


def test_values_may_be_any():
    assert parse_class_list(["0=cat", "7=dog", "9=cat", "3=background", "5=ignore"], "list").values == {
        0: 1,
        7: 2,
        9: 1,
        3: 0,
        5: 255,
        255: 255,
    }
    assert parse_class_list(["255=cat"], "list").values == {0: 0, 255: 1}
    assert parse_class_list(["unlabeled", "road", "void"], "list").values == {0: 255, 1: 1, 2: 255, 255: 255}


@pytest.mark.parametrize(
    "lines",
    [
        ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:250,50,83::", "house dog:1,2,3:head,leg:run"],
        ["name,r,g,b", "background,0,0,0", "cat,250,50,83", "house dog,1,2,3"],
        ["0 0 0\tbackground", "250 50 83\tcat", "1 2 3\thouse dog"],
        ["cat 250 50 83", "house dog 1 2 3"],
    ],
)
def test_label_maps_name_colours(lines):
    found = parse_class_list(lines, "list")
    assert found.names == ("cat", "house_dog")
    assert found.colours == {BLACK: 0, VOID: 255, (250, 50, 83): 1, (1, 2, 3): 2}
    assert (found.kind, found.values) == ("colours", {})
    assert found.value_of("house dog") == 2


def test_labels_are_found_by_name():
    found = class_list_of_labels(["Zebra", "_background_", "cat"], "labels")
    assert found.names == ("Zebra", "cat")
    labels = ("Zebra", "cat", "_background_", "__ignore__", "dog")
    assert [found.value_of(label) for label in labels] == [1, 2, 0, 255, None]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "no entry"),
        (["# nothing"], "no entry"),
        (["cat", "background"], "background is not the first name"),
        (["cat", "2:dog"], "entries of several kinds (names, values)"),
        (["1=cat", "1=dog"], "two names have the same value"),
        (["cat:1,2,3", "dog:1,2,3"], "two names have the same colour"),
        (["cat:1,2,300"], "has a colour above 255"),
        (["background"], "0 classes"),
        ([f"c{index}" for index in range(255)], "255 classes"),
        (["1=ca[t]"], "'ca[t]' looks like several names"),
    ],
)
def test_bad_lists_are_refused(refused, lines, problem):
    assert refused(parse_class_list, lines, "list").startswith("list: ")
    assert problem in refused(parse_class_list, lines, "list")


def test_list_is_a_file_or_stands_in_the_command(tmp_path, refused):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf_background_\r\ncat\r\n")
    assert read_class_list(str(tmp_path / "labels.txt")).names == ("cat",)
    assert read_class_list("0=background,255=cat").values == {0: 0, 255: 1}
    assert "missing.txt: missing" in refused(read_class_list, "missing.txt")
    (tmp_path / "labels.txt").write_bytes(b"\xe9")
    assert "not UTF-8" in refused(read_class_list, str(tmp_path / "labels.txt"))
