"""The image files that a command line names: files, folders and patterns."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.data.images import FORMATS


def named_images(arguments: Sequence[str], but: Path | None = None) -> dict[Path, Path]:
    """The images that `arguments` name, in their order, those of a folder or a pattern by name.

    Args:
        arguments: a file; a folder, which stands for the image files in it and in its subfolders; or a pattern with
            `*`, `?`, `[...]` or `**`, as shells have it.
        but: a folder that neither a folder nor a pattern stands for: that of the results, which are images too.

    Returns:
        File to what its results are called: its stem, or its name where several have the stem, after its subfolders in
        the folder named.

    Raises:
        PipelineError: there is no such file, a folder or a pattern has no image, or two results would be one file.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        images = {path: name for path, name in _images_of(argument) if not _lies_in(path, but, argument)}
        if not images:
            raise PipelineError(f"{argument}: no image here; taken are files ending in {', '.join(_suffixes())}")
        found |= images
    shared = {result for result, number in Counter(found.values()).items() if number > 1}
    found = {path: result.with_name(path.name) if result in shared else result for path, result in found.items()}
    if twice := [result for result, number in Counter(found.values()).items() if number > 1]:
        paths = " and ".join(str(path) for path, result in found.items() if result == twice[0])
        raise PipelineError(f"{paths}: their results would be the same files; predict them into two folders")
    return found


def _images_of(argument: str) -> Iterator[tuple[Path, Path]]:
    path = Path(argument)
    if path.is_dir():
        for image in sorted(path.rglob("*")):
            if image.suffix.lower() in _suffixes() and image.is_file():
                yield image, image.relative_to(path).with_suffix("")
    elif path.exists() or not glob.has_magic(argument):
        if not path.is_file():
            raise PipelineError(f"{argument}: No such file or folder")
        yield path, Path(path.stem)
    else:
        for image in sorted(map(Path, glob.glob(argument, recursive=True))):  # noqa: PTH207 - Path.glob refuses `a**`
            if image.is_file():
                yield image, Path(image.stem)


def _lies_in(path: Path, folder: Path | None, argument: str) -> bool:
    return folder is not None and str(path) != argument and path.resolve().is_relative_to(folder.resolve())


def _suffixes() -> list[str]:
    return sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
