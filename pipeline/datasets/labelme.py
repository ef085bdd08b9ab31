"""Annotations of labelme: polygons and other shapes in a JSON file an image, drawn as labelme itself draws them.

Later shapes lie over earlier ones. Points are (x, y) in pixels of the image as a viewer shows it.
"""

import base64
import io
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.base.errors import PipelineError

LARGEST_SIDE = 65_535  # pixels, of a JPEG


def read_labels(paths: Iterable[Path]) -> list[str]:
    """All labels in the files `paths`, sorted.

    Raises:
        PipelineError: a file is none of labelme's.
    """
    return sorted({str(shape.get("label")) for path in paths for shape in _document(path)["shapes"]})


def draw_labelme(path: Path, value_of: Callable[[str], int | None]) -> NDArray[np.uint8]:
    """The mask (H, W) that the shapes in `path` make, 0 where there is none.

    Args:
        value_of: the value of a label; None of one that is unknown.

    Raises:
        PipelineError: the file is none of labelme's, or a shape cannot be drawn or has an unknown label.
    """
    document = _document(path)
    try:
        height, width = int(document["imageHeight"]), int(document["imageWidth"])
        if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
            raise ValueError(f"imageWidth and imageHeight are {width} and {height}")
        image = Image.new("L", (width, height))
        for shape in document["shapes"]:
            label = str(shape.get("label"))
            if (value := value_of(label)) is None:
                raise ValueError(f"the label {label!r} is not in the class list; add it")
            _draw(image, shape, value)
    except Exception as error:  # json and Pillow have one for every kind of damage
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise PipelineError(f"{path}: no mask can be drawn ({reason})") from error
    return np.asarray(image)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise PipelineError(f"{path}: cannot be read as JSON ({error})") from error
    shapes = document.get("shapes") if isinstance(document, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise PipelineError(f"{path}: no file of labelme, which has a list of shapes; remove it from the folder")
    return document  # type: ignore[no-any-return]


def _draw(image: Image.Image, shape: dict[str, Any], value: int) -> None:
    kind = shape.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in shape["points"]]
    if not all(math.isfinite(coordinate) for point in points for coordinate in point):
        raise ValueError(f"a {kind} has a point that is no number")
    least = 3 if kind == "polygon" else 2
    if kind not in ("polygon", "rectangle", "circle", "mask"):
        raise ValueError(f"a {kind} covers no area; draw polygons, rectangles, circles or masks")
    if len(points) < least:
        raise ValueError(f"a {kind} has {len(points)} points; it needs {least}")
    drawing = ImageDraw.Draw(image)
    if kind == "polygon":
        drawing.polygon(points, fill=value, outline=value)
        return
    (x, y), (to_x, to_y) = points[:2]
    if kind == "rectangle":
        drawing.rectangle((min(x, to_x), min(y, to_y), max(x, to_x), max(y, to_y)), fill=value, outline=value)
    elif kind == "circle":
        radius = math.hypot(to_x - x, to_y - y)
        drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value, outline=value)
    else:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as part:
            image.paste(value, (int(x), int(y)), part.convert("L").point(lambda pixel: 255 if pixel else 0))
