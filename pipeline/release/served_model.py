"""The served model: an image in, class probabilities, segmentation and attention out.

MLflow runs this file to build the model ("models from code"): nothing is unpickled, and the weights are safetensors.
The package is logged with it, so that a server needs no checkout.
"""

import base64
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.environment_variables import MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from numpy.typing import NDArray

from pipeline.base.errors import PipelineError
from pipeline.data.voc import voc_palette
from pipeline.model.weights import load_weights
from pipeline.release.images import grey_png, palette_png, requested_image, run_lengths
from pipeline.release.prediction import Outputs, Prediction, batches, predict_batch

MAX_IMAGES = 16  # of one request
MAX_REQUEST_PIXELS = 32_000_000  # of one request, however fast the machine
MIN_REQUEST_PIXELS = 100_000  # that any machine must answer
TIME_SHARE = 0.5  # of the server's time limit, for computing; the rest is for decoding, encoding and other requests
BATCH_PIXELS = 1 << 20  # that are computed together
WARM_UP_SIDE = 256
SEGMENTATIONS = ("png", "run_length")


class GuidedSegmentation(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """pyfunc flavour: a data frame with a column `image` in, one row of predictions per image out.

    An image is base64 of a PNG or JPEG file, or nested lists (H, W, 3) of 0 to 255, of any size up to
    `images.MAX_PIXELS`. The images of a request have `budget` pixels at most, together: what this machine computes in
    half of the server's time limit.
    """

    def load_context(self, context: Any) -> None:
        """Load the safetensors artifact, onto the GPU if there is one."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.class_names = load_weights(Path(context.artifacts["weights"]))
        self.outputs = Outputs(model.to(memory_format=torch.channels_last).to(self.device).eval())
        seconds = MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT.get() * TIME_SHARE
        self.budget = int(min(MAX_REQUEST_PIXELS, max(MIN_REQUEST_PIXELS, seconds * self._pixels_per_second())))
        print(f"answers requests of up to {self.budget / 1e6:.1f} million pixels", file=sys.stderr, flush=True)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The predictions, at the size of each image.

        Args:
            params: {"segmentation": "png" or "run_length"}; PNG without it.

        Returns:
            Columns class_probs (name to probability), segmentation (base64 of a palette PNG of class values, or
            `images.run_lengths`) and attention (name of each predicted class to base64 of a grey PNG, 0 to 255).

        Raises:
            MlflowException: the request is malformed; the server answers with status 400 and the reason.
        """
        form = (params or {}).get("segmentation", SEGMENTATIONS[0])
        try:
            images = _requested_images(model_input, form)
            if (pixels := sum(image.shape[0] * image.shape[1] for image in images)) > self.budget:
                raise PipelineError(
                    f"the request has {pixels} pixels; this server answers {self.budget} within its time limit; send "
                    "fewer images, or smaller ones"
                )
        except PipelineError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        found: dict[int, Prediction] = {}
        for batch in batches(images, BATCH_PIXELS):
            of_batch = predict_batch(self.outputs, self.class_names, [images[i] for i in batch], self.device)
            found |= dict(zip(batch, of_batch, strict=True))
        rows = [self._row(found[index], form) for index in range(len(images))]
        return pd.DataFrame(rows, columns=["class_probs", "segmentation", "attention"])

    def _pixels_per_second(self) -> float:
        """Of the forward pass, on this machine; the first one is slower than those that follow."""
        image = np.zeros((WARM_UP_SIDE, WARM_UP_SIDE, 3), np.uint8)
        for _ in range(2):
            began = time.perf_counter()
            predict_batch(self.outputs, self.class_names, [image], self.device)
        return WARM_UP_SIDE**2 / (time.perf_counter() - began)

    def _row(self, found: Prediction, form: str) -> dict[str, Any]:
        segmentation = (
            _text(palette_png(found.segmentation, voc_palette()))
            if form == "png"
            else run_lengths(found.segmentation, self.class_names)
        )
        attention = {name: _text(grey_png(pixels)) for name, pixels in found.attention.items()}
        return {"class_probs": found.class_probs, "segmentation": segmentation, "attention": attention}


def _requested_images(request: pd.DataFrame, form: str) -> list[NDArray[np.uint8]]:
    """All images of a request, decoded before the first is computed."""
    if form not in SEGMENTATIONS:
        raise PipelineError(f"params: segmentation is {form!r}; choose one of {', '.join(SEGMENTATIONS)}")
    if "image" not in request or len(request) > MAX_IMAGES:
        raise PipelineError(f"a request has a column image with 1 to {MAX_IMAGES} images")
    return [requested_image(value, f"image {row}") for row, value in enumerate(request["image"])]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


mlflow.models.set_model(GuidedSegmentation())
