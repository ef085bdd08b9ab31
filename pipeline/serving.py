"""The served model: an image in, class probabilities, segmentation and attention out.

MLflow runs this file to build the model ("models from code"): nothing is unpickled, weights come as safetensors.
"""

import base64
import io
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from PIL import Image

from pipeline.data.loading import normalise
from pipeline.data.voc import voc_palette
from pipeline.gain.attention import attention_to_image, class_attention, normalise_attention
from pipeline.model.weights import load_weights


class GuidedSegmentation(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """pyfunc flavour: a data frame with a column `image` of base64 PNG or JPEG files, one prediction per row."""

    def load_context(self, context: Any) -> None:
        """Load the safetensors artifact, onto the GPU where there is one."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.class_names = load_weights(context.artifacts["weights"])
        self.model = model.to(self.device).eval()

    def predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        """Columns class_probs (name to probability), segmentation (base64 palette PNG of class values) and attention
        (base64 grey PNG, 0 to 255, by name of each predicted class), all at the size of the image."""
        return pd.DataFrame([self._predict_one(encoded) for encoded in model_input["image"]])

    @torch.no_grad()
    def _predict_one(self, encoded: str) -> dict[str, Any]:
        rgb = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
        image = normalise(torch.from_numpy(rgb.copy()).permute(2, 0, 1))[None].to(self.device)
        size = (image.shape[2], image.shape[3])
        features = self.model.features(image)
        probs = self.model.classify(features.conv5_3).sigmoid()[0].tolist()
        classes = self.model.segment(features, size).argmax(dim=1)[0]
        maps, _ = normalise_attention(class_attention(self.model, features.conv5_3)[0])
        attention = attention_to_image(maps, size, self.model.attention_grid)
        return {
            "class_probs": dict(zip(self.class_names, probs, strict=True)),
            "segmentation": _png(classes.to(torch.uint8).cpu().numpy(), palette=True),
            "attention": {
                name: _png((attention[i] * 255).round().to(torch.uint8).cpu().numpy())
                for i, name in enumerate(self.class_names)
                if probs[i] >= 0.5
            },
        }


def _png(pixels: np.ndarray, *, palette: bool = False) -> str:
    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putpalette(voc_palette())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


mlflow.models.set_model(GuidedSegmentation())
