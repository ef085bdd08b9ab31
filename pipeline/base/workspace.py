"""Where a run of the pipeline keeps what its stages hand on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PRETRAINED = "pretrained"  # the network before fine-tuning: FCN8s with its classifier, as the stage classify leaves it


@dataclass(frozen=True)
class Workspace:
    """The folders and files of one run below `folder`."""

    folder: Path = Path()

    @property
    def params(self) -> Path:
        """The resolved, checked profile, written by the stage configure."""
        return self.reports / "configure" / "params.yaml"

    @property
    def outside(self) -> Path:
        """Links to what is read from outside the project, see base/outside.py."""
        return self.reports / "configure" / "outside"

    @property
    def data(self) -> Path:
        """The data set in VOC layout."""
        return self.folder / "data" / "voc"

    @property
    def initial_weights(self) -> Path:
        """A folder with the file of imported weights, or empty."""
        return self.folder / "data" / "weights"

    @property
    def manifest(self) -> Path:
        """One row per image."""
        return self.folder / "data" / "manifest.csv"

    @property
    def counterfactual(self) -> Path:
        """Test images with object and ground separated, in VOC layout, with a table of their own."""
        return self.folder / "data" / "counterfactual"

    @property
    def models(self) -> Path:
        """Weights, STAGE.safetensors or finetune/VARIANT.safetensors."""
        return self.folder / "models"

    @property
    def reports(self) -> Path:
        """Curves, tables and pictures, a folder per stage."""
        return self.folder / "reports"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of interrupted trainings; outside every DVC output, since DVC deletes those before a stage."""
        return self.folder / "checkpoints"

    def weights(self, model: str) -> Path:
        """The weights of a model that is compared: `PRETRAINED`, or a variant."""
        return self.models / f"{self._training(model)}.safetensors"

    def training_report(self, model: str) -> Path:
        """Curves and summary of the training that made a model."""
        return self.reports / self._training(model)

    def compared_models(self, variants: Iterable[str]) -> dict[str, Path]:
        """Name to weights of every model to compare: `PRETRAINED`, then the variants."""
        return {name: self.weights(name) for name in (PRETRAINED, *variants)}

    @staticmethod
    def _training(model: str) -> str:
        return "classify" if model == PRETRAINED else f"finetune/{model}"
