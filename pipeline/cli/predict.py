"""`gain predict`: classes, segmentation and attention of images, as overlays and numbers."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.files import write_json
from pipeline.base.params import load_params
from pipeline.data.images import FORMATS
from pipeline.data.voc import voc_palette
from pipeline.model.weights import load_weights
from pipeline.release.images import palette_png, read_image
from pipeline.release.prediction import Outputs, Prediction, predict, probability_table
from pipeline.release.registry import download_weights
from pipeline.report.overlays import attention_overlay, segmentation_overlay


@contextmanager
def chosen_weights(weights: Path | None, alias: str, profile: str | None) -> Iterator[Path]:
    """The file that the user names, or a temporary copy of the weights behind an alias of the registry.

    Raises:
        PipelineError: no version has the alias, or the registry does not answer.
    """
    if weights is not None:
        yield weights
        return
    name = load_params(profile=profile).register_.registered_model_name
    with tempfile.TemporaryDirectory() as folder:
        yield download_weights(name, alias, Path(folder))


def predict_images(images: list[Path], out: Path, weights: Path) -> None:
    """Write STEM_segmentation.png, STEM_mask.png and STEM_attention_CLASS.png for each image, and predictions.json.

    Args:
        images: files of any size, in a format of data/images.py; all are read before the first is computed.
        out: a folder, made if it does not exist.

    Raises:
        PipelineError: an image or the weights cannot be read, or `out` cannot be written.
    """
    decoded = _decoded(images, out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, class_names = load_weights(weights)
    outputs = Outputs(model.to(device).eval())
    class_probs = {}
    for path, image in decoded.items():
        found = predict(outputs, class_names, image, device)
        _write(found, image, out, path.stem)
        class_probs[str(path)] = found.class_probs
        print(f"{path}: {probability_table(found.class_probs)}", flush=True)
    write_json(out / "predictions.json", class_probs)


def _decoded(images: list[Path], out: Path) -> dict[Path, NDArray[np.uint8]]:
    """Path to (H, W, 3) RGB."""
    stems = [path.stem for path in images]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise PipelineError(f"{twice[0]}: two images of this name; their results would be one file")
    try:
        contents = {path: path.read_bytes() for path in images}
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{error.filename}: {error.strerror}") from error
    return {path: read_image(content, str(path), formats=FORMATS) for path, content in contents.items()}


def _write(found: Prediction, image: NDArray[np.uint8], out: Path, stem: str) -> None:
    Image.fromarray(segmentation_overlay(image, found.segmentation)).save(out / f"{stem}_segmentation.png")
    for name, attention in found.attention.items():
        Image.fromarray(attention_overlay(image, attention)).save(out / f"{stem}_attention_{_in_file_names(name)}.png")
    (out / f"{stem}_mask.png").write_bytes(palette_png(found.segmentation, voc_palette()))


def _in_file_names(class_name: str) -> str:
    """A class name with the characters that file systems keep for themselves as in addresses: `tv%2Fmonitor`."""
    return re.sub(r'[/\\:*?"<>|%\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", class_name)
