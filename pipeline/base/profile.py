"""One profile of params.yaml as a whole, and what must hold between its sections."""

import re
from collections.abc import Iterator
from typing import Annotated, get_args

from pydantic import Field, ValidationError, model_validator

from pipeline.base.attention import Attention, LossName, Variant
from pipeline.base.errors import did_you_mean
from pipeline.base.ranges import Section
from pipeline.base.scores import LOWER_IS_BETTER, NO_AIM, SCORES, TEST_ONLY, score_names
from pipeline.base.sections import (
    Architecture,
    Classify,
    Counterfactual,
    Download,
    EmbeddedData,
    Evaluate,
    FolderData,
    Part,
    Prepare,
    Pretrain,
    Promote,
    Register,
    Resources,
    Runtime,
    Training,
    Voc2012Data,
)
from pipeline.base.workspace import PRETRAINED

# A name is part of file names, of DVC's stages and of dotted keys.
VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
# The parts of the network that the gradient of a loss reaches.
TRAINED_BY: dict[LossName, tuple[Part, ...]] = {
    "segmentation": ("trunk", "decoder"),
    "classification": ("trunk", "classifier"),
    "attention_mining": ("trunk", "classifier"),
    "external_supervision": ("trunk", "classifier"),
}
PARTS: tuple[Part, ...] = get_args(Part)
VOC2012_IMAGES = {"train": 1_464, "trainaug": 10_582}  # see datasets/voc2012.py
VOC2012_SIDE = 500  # pixels at most


class Params(Section):
    """The chosen profile, section by section, and the seed: what every stage reads."""

    profile: str  # its name
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    runtime: Runtime
    resources: Resources
    download: Download = Field(discriminator="source")
    prepare: Prepare
    counterfactual: Counterfactual
    model: Architecture
    pretrain: Pretrain
    classify: Classify
    finetune: Training
    attention: Attention
    variants: dict[str, Variant]
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    promote: Promote

    @model_validator(mode="after")
    def _sections_agree(self) -> "Params":
        problem = next(_contradictions(self), None)
        if problem is not None:
            raise ValueError(problem)
        return self

    def attention_of(self, variant: str) -> Attention:
        """The attention choices of a variant: those of the section, save what the variant says otherwise."""
        return Attention.model_validate({**self.attention.model_dump(), **self.variants[variant].attention})

    def on_one_device(self) -> "Params":
        """The same with one device, for what is not worth several."""
        return self.model_copy(update={"runtime": self.runtime.model_copy(update={"devices": 1, "num_nodes": 1})})

    @property
    def doubts(self) -> list[str]:
        """What is allowed but makes a result mean less, a line each."""
        return [*_seen_test_images(self), *_unseen_scale(self), *_idle_losses(self)]


def _seen_test_images(params: Params) -> Iterator[str]:
    published = params.pretrain.weights.source.startswith("pytorch_fcn8s")
    if published and isinstance(params.download, Voc2012Data) and params.download.test_split == "val":
        yield (
            "the published FCN8s weights saw SBD-train, which overlaps VOC12 val: scores on val are too good; set "
            "download.test_split: seg11valid"
        )


def _unseen_scale(params: Params) -> Iterator[str]:
    scale = params.evaluate.scale
    for name in ("pretrain", "classify", "finetune"):
        options: Training = getattr(params, name)
        low, high = options.scale
        if options.num_epochs and not low <= scale <= high:
            yield (
                f"evaluate.scale: {scale:g} lies outside {name}.scale, [{low:g}, {high:g}]: networks are scored on "
                f"objects of a size that {name} never showed them; set it to a value within"
            )


def _idle_losses(params: Params) -> Iterator[str]:
    for name, variant in params.variants.items():
        for loss, weight in variant.loss_weights.items():
            if weight > 0 and not _learning(params.finetune) & set(TRAINED_BY[loss]):
                parts = " and ".join(TRAINED_BY[loss])
                yield f"variants.{name}.loss_weights.{loss} changes nothing: finetune freezes {parts}, which it trains"


def _contradictions(params: Params) -> Iterator[str]:
    yield from _of_variants(params)
    yield from _of_learning(params)
    yield from _of_registration(params)
    yield from _of_steps(params)
    yield from _of_crops(params)
    yield from _of_images(params)


def _of_variants(params: Params) -> Iterator[str]:
    for name in params.variants:
        if name == PRETRAINED or not VARIANT_NAME.fullmatch(name):
            reason = (
                "the network before finetune is called so" if name == PRETRAINED else "it becomes part of file names"
            )
            yield (f"variants: {name!r} cannot name a variant, since {reason}; use letters, digits, '_' and '-'")
        try:
            params.attention_of(name)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in ("variants", name, "attention", *first["loc"]))
            unknown = f"unknown key; {did_you_mean(str(first['loc'][-1]), Attention.model_fields)}"
            message = unknown if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            yield f"{place}: {message}"


def _of_learning(params: Params) -> Iterator[str]:
    """Every training has a loss, and a part of the network that the loss trains."""
    trainings: list[tuple[str, Training, list[LossName]]] = [("classify", params.classify, ["classification"])]
    if params.pretrain.num_epochs > 0:
        trainings.insert(0, ("pretrain", params.pretrain, ["segmentation"]))
    for name, variant in params.variants.items():
        weighted = [loss for loss, weight in variant.loss_weights.items() if weight > 0]
        if not weighted:
            yield f"variants.{name}.loss_weights: no loss weighs anything; give at least one a weight above 0"
        trainings.append((f"finetune (variant {name})", params.finetune, weighted))
    for stage, options, losses in trainings:
        trained = {part for loss in losses for part in TRAINED_BY[loss]}
        if not _learning(options) & trained:
            parts = ", ".join(part for part in PARTS if part in trained)
            yield (
                f"{stage} would learn nothing: its loss trains {parts}, and each is in frozen or has 0 in "
                "learning_rate_scales; let one learn"
            )


def _learning(options: Training) -> set[Part]:
    return {part for part in PARTS if part not in options.frozen and options.learning_rate_scales.get(part, 1.0) > 0}


def _of_registration(params: Params) -> Iterator[str]:
    unknown = sorted(set(params.register_.candidates) - set(params.variants))
    if unknown or not params.register_.candidates:
        known = ", ".join(params.variants)
        yield f"register.candidates must name variants ({known}), got {unknown or 'none'}"
    named = {
        "register.metric": [params.register_.metric],
        "promote.at_least": list(params.promote.at_least),
        "promote.not_below": list(params.promote.not_below),
        "promote.better": params.promote.better,
    }
    for place, names in named.items():
        for name in names:
            yield from _of_score(params, place, name)


def _of_score(params: Params, place: str, name: str) -> Iterator[str]:
    if name not in score_names():
        yield f"{place}: no score is called {name!r}; {did_you_mean(name, score_names())}"
    elif name in NO_AIM or name in LOWER_IS_BETTER:
        yield f"{place}: {name} cannot be named here, where higher is better; choose another score"
    elif place == "register.metric" and name in TEST_ONLY:
        known = ", ".join(score for score in score_names() if score not in (*NO_AIM, *LOWER_IS_BETTER, *TEST_ONLY))
        yield f"{place}: the challenger is chosen on validation images, which have no {name}; choose one of {known}"
    elif name in SCORES["context_bias"] and not isinstance(params.download, EmbeddedData):
        yield (
            f"{place}: {name} needs drawn counterfactual sets, which only download.source: embedded has; "
            "counterfactual_worst_group is scored on any data set"
        )
    elif name == "insertion_auc" and params.evaluate.num_deletion_images == 0:
        yield f"{place}: {name} needs evaluate.num_deletion_images above 0"


def _of_steps(params: Params) -> Iterator[str]:
    for name in ("pretrain", "classify", "finetune"):
        options: Training = getattr(params, name)
        if options.batch_size % (params.runtime.num_ranks * options.accumulate_grad_batches):
            yield (
                f"{name}.batch_size: {options.batch_size} images cannot be shared out evenly over "
                f"{params.runtime.num_ranks} devices times {options.accumulate_grad_batches} accumulated batches"
            )
    if params.runtime.num_ranks > 1 and params.finetune.update_batch_norm and params.model.batch_norm:
        for name, variant in params.variants.items():
            if variant.loss_weights.get("attention_mining", 0.0) > 0:
                yield (
                    f"finetune.update_batch_norm must be false where several devices mine attention ({name}): those "
                    "whose images show no object would not take part"
                )


def _of_crops(params: Params) -> Iterator[str]:
    """Images of a folder are measured by the stage prepare."""
    if isinstance(params.download, FolderData):
        return
    side = params.download.image_size if isinstance(params.download, EmbeddedData) else VOC2012_SIDE
    if (problem := crop_problem(params, side)) is not None:
        yield problem


def crop_problem(params: Params, side: int) -> str | None:
    """What is wrong with the first crop_size that images with sides of up to `side` pixels would fill to less than a
    quarter; None if there is none.
    """
    for name in ("pretrain", "classify", "finetune"):
        options: Training = getattr(params, name)
        if options.num_epochs and options.crop_size and options.crop_size > 2 * side * options.scale[1]:
            return (
                f"{name}.crop_size: {options.crop_size} pixels, but no image has a side above {side}, resized "
                f"{side * options.scale[1]:.0f}: most of every crop would be filler; crop less"
            )
    return None


def _of_images(params: Params) -> Iterator[str]:
    """There are as many images as are asked for, where that is known without looking at them."""
    options = params.download
    if isinstance(options, FolderData):
        return
    if isinstance(options, EmbeddedData):
        available, source = options.num_train, f"download.num_train is {options.num_train}"
    else:
        official = VOC2012_IMAGES["train"]
        if options.num_val >= official:
            yield f"download.num_val: {options.num_val} of VOC12 train's {official} images leave none to train"
        available = VOC2012_IMAGES[options.train_split] - options.num_val
        source = f"there are {available} training images"
    for name, variant in params.variants.items():
        asks = variant.loss_weights.get("external_supervision", 0.0) > 0
        count = (params.attention_of(name).pixel_labels.count or 0) if asks else 0
        if count > available:
            yield f"attention.pixel_labels.count: {count} images asked for ({name}), and {source}; ask for fewer"
