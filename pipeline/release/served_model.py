"""The served model: an image in, class probabilities, segmentation and attention out.

MLflow runs this file to build the model ("models from code"): nothing is unpickled, weights come as safetensors. The
package is logged beside it, so that a server needs no checkout.
"""

import base64
from typing import Any

import mlflow
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipeline.base.errors import PipelineError
from pipeline.data.voc import voc_palette
from pipeline.model.weights import load_weights
from pipeline.release.prediction import Outputs, grey_png, palette_png, predict, run_lengths, served_image

MAX_IMAGES = 16  # of one request
SEGMENTATIONS = ("png", "run_length")


class GuidedSegmentation(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """pyfunc flavour: a data frame with a column `image`, one prediction per row.

    An image is base64 of a PNG or JPEG file, or nested lists (H, W, 3) of 0 to 255, of any size up to
    `prediction.MAX_PIXELS`. The parameter `segmentation` chooses how that comes back.
    """

    def load_context(self, context: Any) -> None:
        """Load the safetensors artifact, onto the GPU where there is one."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.class_names = load_weights(context.artifacts["weights"])
        self.outputs = Outputs(model.to(memory_format=torch.channels_last).to(self.device).eval())

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Columns class_probs (name to probability), segmentation (base64 palette PNG of class values, or run lengths
        by name of each class found, see `prediction.run_lengths`) and attention (base64 grey PNG, 0 to 255, by name of
        each predicted class), all at the size of the image.

        Args:
            params: {"segmentation": "png" or "run_length"}; PNG without.

        Raises:
            MlflowException: a request that the server answers with status 400 and the reason.
        """
        form = (params or {}).get("segmentation", SEGMENTATIONS[0])
        try:
            if form not in SEGMENTATIONS:
                raise PipelineError(f"params: segmentation is {form!r}; choose one of {', '.join(SEGMENTATIONS)}")
            if "image" not in model_input or len(model_input) > MAX_IMAGES:
                raise PipelineError(f"a request has a column image with 1 to {MAX_IMAGES} images")
            # All are looked at before the first is computed.
            images = [served_image(value, f"image {row}") for row, value in enumerate(model_input["image"])]
        except PipelineError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        rows = []
        for image in images:
            found = predict(self.outputs, self.class_names, image, self.device)
            attention = {name: _text(grey_png(pixels)) for name, pixels in found.attention.items()}
            segmentation: Any = run_lengths(found.segmentation, self.class_names)
            if form == "png":
                segmentation = _text(palette_png(found.segmentation, voc_palette()))
            rows.append({"class_probs": found.class_probs, "segmentation": segmentation, "attention": attention})
        return pd.DataFrame(rows, columns=["class_probs", "segmentation", "attention"])


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


mlflow.models.set_model(GuidedSegmentation())
