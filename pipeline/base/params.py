"""params.yaml as frozen, strict models: one class per section, every range checked, unknown keys refused."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.base.errors import PipelineError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]

Part = Literal["trunk", "decoder", "classifier"]
CHECKSUM = r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$"
TOP_LEVEL = ["profile", "seed", "profiles"]
LossName = Literal["segmentation", "classification", "attention_mining", "external_supervision"]


class Section(BaseModel):
    """Base of every params.yaml section: immutable, no unknown keys, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Runtime(Section):
    """Where and how precisely to compute. `auto` picks the best that is present and says what it picked."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    devices: PositiveInt
    num_nodes: PositiveInt
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"]
    compile: bool

    @property
    def num_ranks(self) -> int:
        """Processes of a training, one per device."""
        return self.devices * self.num_nodes


class Resources(Section):
    """What changes the speed and never a result; DVC does not track it."""

    num_workers: Annotated[int, Field(ge=0)]
    cache_images: bool
    activation_checkpointing: bool


class RemoteFile(Section):
    """A file from elsewhere: where you have it, or which mirrors deliver it, in the order in which they are asked."""

    path: str | None
    mirrors: list[str]
    checksum: Annotated[str, Field(pattern=CHECKSUM)] | None

    @model_validator(mode="after")
    def _can_be_had_and_checked(self) -> "RemoteFile":
        if self.path is None and not self.mirrors:
            raise ValueError("name the path of the file, or mirrors to fetch it from")
        if self.path is None and self.checksum is None:
            raise ValueError("a file that is fetched needs a checksum, md5:HEX or sha256:HEX")
        return self


class EmbeddedData(Section):
    """The embedded data set: how many pictures, and how they are drawn (see data/synthetic.py)."""

    source: Literal["embedded"]
    image_size: Annotated[int, Field(ge=32, le=1024)]
    num_train: PositiveInt
    num_val: PositiveInt
    num_test: PositiveInt
    num_counterfactual: PositiveInt
    context_strength: Fraction
    empty_fraction: Fraction
    multi_object_fraction: Fraction
    object_scale: Annotated[tuple[float, float], Field(strict=False)]
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
    """PASCAL VOC 2012, on request with the masks of SBD (see data/sources.py)."""

    source: Literal["voc2012"]
    archive: RemoteFile
    sbd: RemoteFile | None
    train_split: Literal["train", "trainaug"]
    test_split: Literal["seg11valid", "val"]
    num_val: Annotated[int, Field(ge=0)]

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
    """Images and masks of your own in VOC layout: a folder, or a tar or zip archive of one (see data/sources.py)."""

    source: Literal["folder"]
    path: str
    ignore_index: Annotated[int, Field(ge=1, le=255)]


Download = EmbeddedData | Voc2012Data | FolderData
SOURCES: dict[str, type[Section]] = {"embedded": EmbeddedData, "voc2012": Voc2012Data, "folder": FolderData}


class Model(Section):
    """FCN8s: VGG16's topology at a multiple of its width."""

    width: Annotated[float, Field(gt=0.0, le=2.0)]
    fc_channels: PositiveInt
    head_channels: PositiveInt
    head_bias: bool
    batch_norm: bool
    padding: Literal[1, 100]
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)]
    skip_scales: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]
    attention_layer: Literal["conv5_3", "pool5"]


class Training(Section):
    """One run of the training loop; pretrain, classify and finetune differ only in these values."""

    num_epochs: PositiveInt
    batch_size: PositiveInt
    accumulate_grad_batches: PositiveInt
    optimizer: Literal["adamw", "sgd"]
    learning_rate: PositiveFloat
    learning_rate_scales: dict[Part, NonNegativeFloat]
    weight_decay: NonNegativeFloat
    warmup_fraction: Fraction
    max_gradient_norm: PositiveFloat
    horizontal_flip: Fraction
    crop_size: Annotated[int, Field(ge=32)] | None
    scale: Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]
    frozen: list[Part]
    update_batch_norm: bool
    select: Literal["best", "last"]
    num_panel_images: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _scales_are_ordered(self) -> "Training":
        low, high = self.scale
        if low > high:
            raise ValueError(f"scale must be low <= high, got [{low}, {high}]")
        if (low, high) != (1.0, 1.0) and self.crop_size is None:
            raise ValueError("scale changes the size of images: a batch of them needs a crop_size")
        return self


class InitialWeights(Section):
    """What pretraining starts from, or what replaces it (see model/imported.py)."""

    source: Literal["random", "imagenet", "pytorch_fcn8s", "pytorch_fcn8s_atonce", "safetensors"]
    file: RemoteFile | None

    @property
    def file_name(self) -> str:
        """What the file is called once it is here."""
        return f"{self.source}.safetensors" if self.source == "safetensors" else f"{self.source}.pth"

    @model_validator(mode="after")
    def _file_fits_the_source(self) -> "InitialWeights":
        if (self.source == "random") != (self.file is None):
            raise ValueError(
                "file says where imported weights come from; it is null with source: random, and only then"
            )
        return self


class Pretrain(Training):
    """FCN8s on the segmentation loss; with 0 epochs, imported weights as they are."""

    num_epochs: Annotated[int, Field(ge=0)]
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


class PixelLabels(Section):
    """How many training images keep their pixel labels for external supervision: a count, or a fraction of all."""

    count: Annotated[int, Field(ge=0)] | None = None
    fraction: Fraction | None = None

    @model_validator(mode="after")
    def _is_one_of_two(self) -> "PixelLabels":
        if (self.count is None) == (self.fraction is None):
            raise ValueError("name either count (images) or fraction (of the training images), one of the two")
        return self


class Attention(Section):
    """Equations 1 to 7 and the choices that the paper leaves open."""

    mask_threshold: Fraction
    mask_slope: PositiveFloat
    max_classes_per_image: PositiveInt
    masked_stride: Literal[1, 2, 4]
    second_order: bool
    trunk_gradient: Fraction
    am_grad: Literal["shared", "attention_only"]
    guidance: Literal["masks", "boxes", "shuffled_masks"]
    guidance_resolution: Literal["grid", "image"]
    guidance_reduction: Literal["mean", "sum"]
    guidance_sharpness: PositiveFloat
    guidance_distance: Literal["squared", "absolute"]
    pixel_labels: PixelLabels
    ramp_fraction: Fraction


class Variant(Section):
    """One way to fine-tune: the weights of its losses, and the attention choices in which it differs."""

    loss_weights: dict[LossName, NonNegativeFloat]
    attention: dict[str, Any] = Field(default_factory=dict)


class Finetune(Section):
    """The joint stage: `training` and `attention` shared by every variant, save what a variant says otherwise."""

    training: Training
    attention: Attention
    variants: dict[str, Variant]

    @model_validator(mode="after")
    def _variants_are_complete(self) -> "Finetune":
        for name in self.variants:
            try:
                self.attention_of(name)
            except ValidationError as error:
                first = error.errors()[0]
                key = ".".join(str(part) for part in ("variants", name, "attention", *first["loc"]))
                unknown = _unknown_key(str(first["loc"][-1]), list(Attention.model_fields))
                message = unknown if first["type"] == "extra_forbidden" else first["msg"]
                raise ValueError(f"{key}: {message.removeprefix('Value error, ')}") from error
        return self

    def attention_of(self, variant: str) -> Attention:
        """The attention choices of a variant."""
        return Attention.model_validate({**self.attention.model_dump(), **self.variants[variant].attention})


class Evaluate(Section):
    """How the models are scored (every metric: evaluation.py)."""

    batch_size: PositiveInt
    attention_threshold: Fraction
    num_panels: PositiveInt
    panel_scale: Annotated[int, Field(ge=1, le=8)]
    num_replicates: Annotated[int, Field(ge=100)]
    num_deletion_images: Annotated[int, Field(ge=0)]
    deletion_steps: Annotated[int, Field(ge=2)]


class Register(Section):
    """Which variant becomes the challenger."""

    registered_model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    candidates: list[str]
    metric: str


class Promote(Section):
    """What a challenger must show to become the champion, both scored on the same data.

    `not_below` maps a score to how far below the champion's it may lie; of the scores in `better`, one at least must be
    higher than the champion's.
    """

    not_below: dict[str, NonNegativeFloat]
    better: list[str]

    @model_validator(mode="after")
    def _asks_for_something(self) -> "Promote":
        if not self.better:
            raise ValueError("better must name at least one score in which a challenger can win")
        return self


class Profile(Section):
    """Everything that one run of the pipeline needs."""

    runtime: Runtime
    resources: Resources
    download: Download = Field(discriminator="source")
    model: Model
    pretrain: Pretrain
    classify: Classify
    finetune: Finetune
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    promote: Promote

    @model_validator(mode="after")
    def _candidates_are_variants(self) -> "Profile":
        unknown = sorted(set(self.register_.candidates) - set(self.finetune.variants))
        if unknown or not self.register_.candidates:
            known = ", ".join(self.finetune.variants)
            raise ValueError(f"register.candidates must name variants of finetune ({known}), got {unknown or 'none'}")
        return self

    @model_validator(mode="after")
    def _steps_can_be_shared_out(self) -> "Profile":
        sections = {"pretrain": self.pretrain, "classify": self.classify, "finetune.training": self.finetune.training}
        for name, options in sections.items():
            shares = self.runtime.num_ranks * options.accumulate_grad_batches
            if options.batch_size % shares:
                raise ValueError(
                    f"{name}.batch_size: {options.batch_size} images cannot be shared out evenly over "
                    f"{self.runtime.num_ranks} devices times {options.accumulate_grad_batches} accumulated batches"
                )
        joint = self.finetune.training
        if self.runtime.num_ranks > 1 and joint.update_batch_norm and self.model.batch_norm:
            for name, variant in self.finetune.variants.items():
                if variant.loss_weights.get("attention_mining", 0.0) > 0:
                    raise ValueError(
                        f"finetune.training.update_batch_norm must be false where several devices mine attention "
                        f"({name}): those whose images show no object would not take part"
                    )
        return self

    @property
    def doubts(self) -> list[str]:
        """What is allowed but makes a result mean less, a line each."""
        published = self.pretrain.weights.source.startswith("pytorch_fcn8s")
        if published and isinstance(self.download, Voc2012Data) and self.download.test_split == "val":
            return [
                "the published FCN8s weights saw SBD-train, which overlaps VOC12 val: scores on val are too good; set "
                "download.test_split: seg11valid"
            ]
        return []


class Params(Section):
    """The chosen profile of a params.yaml and its seed."""

    profile_name: str
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    profile: Profile

    def on_one_device(self) -> "Params":
        """The same with one device, for what is not worth several."""
        runtime = self.profile.runtime.model_copy(update={"devices": 1, "num_nodes": 1})
        return self.model_copy(update={"profile": self.profile.model_copy(update={"runtime": runtime})})


def load_params(path: Path = Path("params.yaml"), *, profile: str | None = None, seed: int | None = None) -> Params:
    """Read `path` and check the profile that it names.

    Args:
        profile, seed: instead of those that the file names.

    Raises:
        PipelineError: the file is missing or no YAML, the profile does not exist, or a value is missing, unknown,
            of the wrong type or out of range. The message names the file and the key.
    """
    document = _read_yaml(path)
    for key in document:
        if key not in TOP_LEVEL:
            raise PipelineError(f"{path}: {_unknown_key(str(key), TOP_LEVEL)}")
    for key in TOP_LEVEL:
        if key not in document:
            raise PipelineError(f"{path}: {key} is missing")
    name, profiles = document["profile"] if profile is None else profile, document["profiles"]
    if not isinstance(profiles, dict) or not isinstance(name, str) or name not in profiles:
        known = ", ".join(map(str, profiles)) if isinstance(profiles, dict) else "none"
        raise PipelineError(f"{path}: profile: {name!r} is not under profiles; choose one of: {known}")
    try:
        seed = document["seed"] if seed is None else seed
        return Params(profile_name=name, seed=seed, profile=Profile.model_validate(profiles[name]))
    except ValidationError as error:
        raise PipelineError(f"{path}: {_one_line(error, name)}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path}: not found; run from the repository root, where params.yaml lies") from None
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise PipelineError(f"{path}: expected a mapping with profile, seed and profiles at the top")
    return document


def _one_line(error: ValidationError, profile: str) -> str:
    errors = error.errors()
    # A misspelt key is also a missing one; the misspelling is what the user wants to hear of.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    prefix = "" if error.title == "Params" else f"profiles.{profile}."
    location = tuple(part for part in first["loc"] if part not in ("[key]", *SOURCES))
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        message = _unknown_key(str(location[-1]), _known_keys(first["loc"]))
        key = ".".join(map(str, location[:-1]))
    elif first["type"] == "union_tag_invalid":
        key, message = f"{key}.source", f"must be one of {', '.join(SOURCES)}, got {first['ctx']['tag']!r}"
    elif first["type"] == "union_tag_not_found":
        key, message = f"{key}.source", "is missing"
    elif first["type"] == "missing":
        message = "is missing"
    else:
        message = f"{first['msg'].removeprefix('Value error, ')}"
        if not isinstance(first["input"], (dict, BaseModel)):
            message += f", got {first['input']!r}"
        if isinstance(first["input"], str) and first["type"].startswith("float"):
            message += " (YAML reads 1e-3 as text: write 1.0e-3)"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    place = f"{prefix}{key}".rstrip(".")
    return f"{place}: {message}{more}" if place else f"{message}{more}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    fields: dict[str, Any] = dict(Profile.model_fields)
    for part in location[:-1]:
        if part in SOURCES:  # pydantic names the member of a union as if it were a key
            fields = dict(SOURCES[str(part)].model_fields)
            continue
        annotation: Any = next((f.annotation for n, f in fields.items() if (f.alias or n) == part), None)
        members = [annotation, *get_args(annotation)]  # X | None
        fields = next((dict(m.model_fields) for m in members if hasattr(m, "model_fields")), {})
    return [field.alias or name for name, field in fields.items()]


def _unknown_key(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"unknown key {key!r}; {hint}"
