"""Which image files a command line names, and what their results are called."""

from pathlib import Path

import pytest

from pipeline.base.errors import PipelineError
from pipeline.cli.named_images import named_images


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder `photos` with images, one of them deeper, and files that are none."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.jpg", "photos/a.PNG", "photos/sub/a.png", "photos/notes.txt", "photos/one[1].tif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Path("photos")


def test_a_folder_stands_for_its_images_and_those_of_its_subfolders(photos):
    assert named_images(["photos"]) == {
        photos / "a.PNG": Path("a"),
        photos / "b.jpg": Path("b"),
        photos / "one[1].tif": Path("one[1]"),
        photos / "sub/a.png": Path("sub/a"),
    }


@pytest.mark.parametrize("argument", ["photos", "photos/**/*g", "photos/sub/a.png"])
def test_results_in_the_folder_are_not_taken_for_images_of_it(photos, argument):
    named = argument == "photos/sub/a.png"
    assert (photos / "sub/a.png" in named_images([argument, "photos/b.jpg"], but=photos / "sub")) == named


def test_images_of_one_stem_have_results_under_their_whole_names(photos):
    (photos / "b.png").touch()
    found = named_images(["photos"])
    assert (found[photos / "b.png"], found[photos / "b.jpg"]) == (Path("b.png"), Path("b.jpg"))
    assert found[photos / "a.PNG"] == Path("a")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["photos/*.jpg"], ["photos/b.jpg"]),
        (["photos/**/a.*"], ["photos/sub/a.png"]),
        (["photos/one[1].tif"], ["photos/one[1].tif"]),  # a file of that name comes before the pattern
        (["photos/b.jpg", "photos/b.jpg"], ["photos/b.jpg"]),
        (["photos/notes.txt"], ["photos/notes.txt"]),  # named one by one, a file is looked at whatever its name
    ],
)
def test_files_and_patterns(photos, arguments, names):
    if "**" in arguments[0]:
        (photos / "a.PNG").unlink()
    assert [str(path) for path in named_images(arguments)] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos/c.jpg"], "photos/c.jpg: No such file or folder"),
        (["photos/*.bmp"], r"photos/\*.bmp: no image here; taken are files ending in .*\.jpg"),
        (["empty"], "empty: no image here"),
        (
            ["photos/sub/a.png", "other/a.png"],
            "photos/sub/a.png and other/a.png: their results would be the same files",
        ),
    ],
)
def test_what_names_nothing_or_one_thing_twice_is_refused(photos, arguments, message):
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/a.png").touch()
    with pytest.raises(PipelineError, match=message):
        named_images(arguments)
