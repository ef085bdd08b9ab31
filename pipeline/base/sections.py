"""One frozen, strict class per section of params.yaml: every range checked, unknown keys refused.

These classes are the only list of their fields: the drawing recipe, the architecture, the augmentation and the rest are
handed on as they are. Units and sources stand beside the values in params.yaml.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.base.ranges import BatchSize, Channels, Count, Fraction, PositiveCount, PositiveFactor, Section, Weight
from pipeline.base.remote_files import PUBLISHED_VGG16, RemoteFile

Resizing = Annotated[float, Field(ge=0.05, le=20.0)]
MOST_EPOCHS = 100_000
Part = Literal["trunk", "decoder", "classifier"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # of what becomes part of a file's name, an address or a stage of DVC


class Runtime(Section):
    """Where and how precisely to compute. `auto` picks the best that is present and says what it picked."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    devices: Annotated[int, Field(ge=1, le=1024)]
    num_nodes: Annotated[int, Field(ge=1, le=1024)]
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"]
    compile: bool

    @property
    def num_ranks(self) -> int:
        """Processes of a training, one per device."""
        return self.devices * self.num_nodes


class Resources(Section):
    """What changes the speed and never a result; DVC does not track it."""

    num_workers: Annotated[int, Field(ge=0, le=256)]
    cache_images: bool
    activation_checkpointing: bool


class EmbeddedData(Section):
    """The embedded data set: how many pictures, and how they are drawn (see datasets/embedded.py)."""

    source: Literal["embedded"]
    image_size: Annotated[int, Field(ge=32, le=1024)]
    num_train: PositiveCount
    num_val: PositiveCount
    num_test: PositiveCount
    num_counterfactual: PositiveCount
    context_strength: Fraction
    empty_fraction: Fraction
    multi_object_fraction: Fraction
    object_scale: Annotated[tuple[Fraction, Fraction], Field(strict=False)]
    max_rotation: Annotated[float, Field(ge=0.0, le=180.0)]
    occlusion_fraction: Fraction
    void_border: Annotated[int, Field(ge=0, le=8)]
    jpeg_quality: Annotated[int, Field(ge=50, le=100)]

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "EmbeddedData":
        low, high = self.object_scale
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"object_scale must be 0 < low <= high <= 1, got [{low}, {high}]")
        return self


class Voc2012Data(Section):
    """PASCAL VOC 2012, on request with the masks of SBD (see datasets/sbd.py)."""

    source: Literal["voc2012"]
    archive: RemoteFile
    sbd: RemoteFile | None
    train_split: Literal["train", "trainaug"]
    test_split: Literal["seg11valid", "val"]
    num_val: Count

    @model_validator(mode="after")
    def _sbd_is_there_when_needed(self) -> "Voc2012Data":
        if self.train_split == "trainaug" and self.sbd is None:
            raise ValueError("train_split: trainaug needs the archive of SBD under sbd")
        if (self.test_split == "val") != (self.num_val > 0):
            raise ValueError(
                "num_val is the number of training images that validate when test_split is val; 0 with seg11valid"
            )
        return self


class FolderData(Section):
    """Images and masks of your own in VOC layout: a folder, or a tar or zip archive of one (datasets/own_folder.py)."""

    source: Literal["folder"]
    path: str
    ignore_index: Annotated[int, Field(ge=1, le=255)]


class Prepare(Section):
    """What the stage prepare lets pass with a warning (see data/counts.py)."""

    allow: list[Literal["missing_classes", "duplicates"]]


class Counterfactual(Section):
    """Test images with object and ground separated, made from the masks (see datasets/counterfactual)."""

    max_per_class: PositiveCount | None
    least_object: Annotated[float, Field(gt=0.0, le=1.0)]
    least_ground: Annotated[float, Field(gt=0.0, le=1.0)]
    margin: Annotated[float, Field(ge=0.0, le=0.5)]
    fill_blur: Annotated[float, Field(ge=0.0, le=0.5)]


Download = EmbeddedData | Voc2012Data | FolderData
SOURCES: dict[str, type[Section]] = {"embedded": EmbeddedData, "voc2012": Voc2012Data, "folder": FolderData}


class Architecture(Section):
    """FCN8s: VGG16's topology at a multiple of its width; it goes into every weights file."""

    width: Annotated[float, Field(gt=0.0, le=2.0)]
    fc_channels: Channels
    head_channels: Channels
    head_bias: bool
    batch_norm: bool
    padding: Literal[1, 100]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    skip_scales: Annotated[tuple[PositiveFactor, PositiveFactor], Field(strict=False)]
    attention_layer: Literal["conv5_3", "pool5"]


class Augmentation(Section):
    """How a training image differs from the file: a flip, a change of size, a crop, in this order."""

    horizontal_flip: Fraction
    crop_size: Annotated[int, Field(ge=32, le=8192)] | None
    scale: Annotated[tuple[Resizing, Resizing], Field(strict=False)]

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "Augmentation":
        low, high = self.scale
        if low > high:
            raise ValueError(f"scale must be low <= high, got [{low}, {high}]")
        if (low, high) != (1.0, 1.0) and self.crop_size is None:
            raise ValueError("scale changes the size of images: a batch of them needs a crop_size")
        return self


class Training(Augmentation):
    """One run of the training loop; pretrain, classify and finetune differ only in these values."""

    num_epochs: Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
    batch_size: BatchSize
    accumulate_grad_batches: BatchSize
    optimizer: Literal["adamw", "sgd"]
    learning_rate: Annotated[float, Field(gt=0.0, le=1000.0)]
    learning_rate_scales: dict[Part, Weight]
    momentum: Fraction
    weight_decay: Annotated[float, Field(ge=0.0, le=1000.0)]
    warmup_fraction: Fraction
    max_gradient_norm: Annotated[float, Field(gt=0.0, le=1.0e12)]
    frozen: list[Part]
    trainable_trunk_blocks: Annotated[int, Field(ge=1, le=5)]
    update_batch_norm: bool
    select: Literal["best", "last"]
    num_panel_images: Annotated[int, Field(ge=0, le=1000)]

    @model_validator(mode="after")
    def _trunk_learns_in_part_or_not_at_all(self) -> "Training":
        if "trunk" in self.frozen and self.trainable_trunk_blocks < 5:
            raise ValueError(
                f"frozen names trunk, so that trainable_trunk_blocks: {self.trainable_trunk_blocks} changes nothing; "
                "take trunk out of frozen, or leave the blocks at 5"
            )
        return self


class InitialWeights(Section):
    """What pretraining starts from, or what replaces it (see model/imported.py).

    With source `imagenet`, `file: null` is the file that torchvision publishes.
    """

    source: Literal["random", "imagenet", "pytorch_fcn8s", "pytorch_fcn8s_atonce", "safetensors"]
    file: RemoteFile | None

    @property
    def file_name(self) -> str:
        """What the file is called once it is here."""
        return f"{self.source}.safetensors" if self.source == "safetensors" else f"{self.source}.pth"

    @model_validator(mode="before")
    @classmethod
    def _imagenet_is_published(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("source") == "imagenet" and values.get("file", ...) is None:
            return {**values, "file": dict(PUBLISHED_VGG16)}
        return values

    @model_validator(mode="after")
    def _file_fits_the_source(self) -> "InitialWeights":
        if (self.source == "random") != (self.file is None):
            raise ValueError(
                "file says where imported weights come from; it is null with source: random, and with source: imagenet "
                "for torchvision's own"
            )
        return self


class Pretrain(Training):
    """FCN8s on the segmentation loss; with 0 epochs, imported weights as they are."""

    num_epochs: Annotated[int, Field(ge=0, le=MOST_EPOCHS)]
    weights: InitialWeights

    @model_validator(mode="after")
    def _weights_are_complete_or_trained(self) -> "Pretrain":
        if self.num_epochs == 0 and self.weights.source in ("random", "imagenet"):
            raise ValueError(
                f"num_epochs is 0, but weights of source {self.weights.source!r} cannot segment yet; train at least 1"
            )
        return self


class Classify(Training):
    """The classifier on the frozen trunk."""

    @model_validator(mode="after")
    def _trunk_is_frozen(self) -> "Classify":
        if "trunk" not in self.frozen or "classifier" in self.frozen:
            raise ValueError(
                "classify trains the classifier on the frozen trunk: frozen must name trunk, not classifier"
            )
        return self


class Evaluate(Section):
    """How the models are scored; the scores are listed in base/scores.py."""

    scale: Resizing
    batch_size: BatchSize
    attention_threshold: Fraction
    num_panels: Annotated[int, Field(ge=1, le=1000)]
    panel_scale: Annotated[int, Field(ge=1, le=8)]
    num_page_images: Annotated[int, Field(ge=0, le=1000)]
    num_replicates: Annotated[int, Field(ge=100, le=1_000_000)]
    num_deletion_images: Count
    deletion_steps: Annotated[int, Field(ge=2, le=1000)]


class Register(Section):
    """Which variant becomes the challenger: of `candidates`, the one with the highest `metric` on validation images."""

    registered_model_name: Annotated[str, Field(pattern=NAME, max_length=100)]
    candidates: list[str]
    metric: str


class Promote(Section):
    """What a challenger must show to become the champion, both scored on the same test data.

    `at_least` maps a score to the value that every champion must reach, the first one too; `not_below` a score to how
    far below the champion's it may lie; of the scores in `better`, one at least must be higher than the champion's.
    """

    at_least: dict[str, Fraction]
    not_below: dict[str, Fraction]
    better: list[str]

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Promote":
        if not self.better:
            raise ValueError("better must name at least one score in which a challenger can win")
        if not self.at_least:
            raise ValueError("at_least must name at least one score, and the value that a first champion must reach")
        return self
