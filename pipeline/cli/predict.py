"""`gain predict`: classes, segmentation and attention of images, as overlays and numbers."""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.errors import PipelineError
from pipeline.base.files import write_json
from pipeline.base.params import load_params
from pipeline.cli.named_images import named_images
from pipeline.data.images import FORMATS
from pipeline.data.voc import voc_palette
from pipeline.model.weights import load_weights
from pipeline.release.images import palette_png, read_image
from pipeline.release.prediction import Outputs, Prediction, predict, probability_table
from pipeline.release.registry import download_weights
from pipeline.report.overlays import attention_overlay, segmentation_overlay
from pipeline.tracking.progress import progress_bar


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


def predict_images(arguments: Sequence[str], out: Path, weights: Path) -> None:
    """Write NAME_segmentation.png, NAME_mask.png and NAME_attention_CLASS.png for each image, and predictions.json.

    An image that cannot be read does not keep the others from their results.

    Args:
        arguments: files, folders and patterns, see `named_images`; images of any size, in a format of data/images.py.
        out: a folder, made if it does not exist.

    Raises:
        PipelineError: images or weights are missing, `out` cannot be written, or, once all others have their results,
            some images could not be read.
    """
    images = named_images(arguments, but=out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, class_names = load_weights(weights)
    outputs = Outputs(model.to(device).eval())
    class_probs, problems = {}, []
    try:
        with progress_bar("predict", len(images)) as advance:
            for path, name in images.items():
                try:
                    image = read_image(path.read_bytes(), str(path), formats=FORMATS)
                except PipelineError as error:
                    problems.append(str(error))
                except OSError as error:
                    problems.append(f"{path}: {error.strerror}")
                else:
                    found = predict(outputs, class_names, image, device)
                    _write(found, image, out / name)
                    class_probs[str(path)] = found.class_probs
                    print(f"{path}: {probability_table(found.class_probs)}", flush=True)
                advance()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PipelineError(f"{error.filename or out}: {error.strerror}") from error
    finally:
        if class_probs:  # what is done is not lost where the rest fails
            write_json(out / "predictions.json", class_probs)
    if len(problems) == 1:
        raise PipelineError(problems[0])
    if problems:
        raise PipelineError("\n  ".join([f"{len(problems)} of {len(images)} images have no prediction:", *problems]))


def _write(found: Prediction, image: NDArray[np.uint8], place: Path) -> None:
    """To files whose paths begin with `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(segmentation_overlay(image, found.segmentation)).save(f"{place}_segmentation.png")
    for name, attention in found.attention.items():
        Image.fromarray(attention_overlay(image, attention)).save(f"{place}_attention_{_in_file_names(name)}.png")
    Path(f"{place}_mask.png").write_bytes(palette_png(found.segmentation, voc_palette()))


def _in_file_names(class_name: str) -> str:
    """A class name with the characters that file systems keep for themselves as in addresses: `tv%2Fmonitor`."""
    return re.sub(r'[/\\:*?"<>|%\x00-\x1f]', lambda found: f"%{ord(found[0]):02X}", class_name)
