"""One profile of params.yaml as a whole, and what must hold between its sections."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from pipeline.base.errors import did_you_mean
from pipeline.base.scores import LOWER_IS_BETTER, NO_AIM, SCORES, score_names
from pipeline.base.sections import (
    Architecture,
    Attention,
    Classify,
    Download,
    EmbeddedData,
    Evaluate,
    Pretrain,
    Promote,
    Register,
    Resources,
    Runtime,
    Section,
    Training,
    Variant,
    Voc2012Data,
)


class Params(Section):
    """The chosen profile, section by section, and the seed: what every stage reads."""

    profile: str  # its name
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    runtime: Runtime
    resources: Resources
    download: Download = Field(discriminator="source")
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
        published = self.pretrain.weights.source.startswith("pytorch_fcn8s")
        if published and isinstance(self.download, Voc2012Data) and self.download.test_split == "val":
            return [
                "the published FCN8s weights saw SBD-train, which overlaps VOC12 val: scores on val are too good; set "
                "download.test_split: seg11valid"
            ]
        return []


def _contradictions(params: Params) -> Iterator[str]:
    yield from _of_variants(params)
    yield from _of_registration(params)
    yield from _of_steps(params)
    yield from _of_labels(params)


def _of_variants(params: Params) -> Iterator[str]:
    for name in params.variants:
        try:
            params.attention_of(name)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in ("variants", name, "attention", *first["loc"]))
            unknown = f"unknown key; {did_you_mean(str(first['loc'][-1]), Attention.model_fields)}"
            message = unknown if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            yield f"{place}: {message}"


def _of_registration(params: Params) -> Iterator[str]:
    unknown = sorted(set(params.register_.candidates) - set(params.variants))
    if unknown or not params.register_.candidates:
        known = ", ".join(params.variants)
        yield f"register.candidates must name variants ({known}), got {unknown or 'none'}"
    named = {
        "register.metric": [params.register_.metric],
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
    elif name in SCORES["context_bias"] and not isinstance(params.download, EmbeddedData):
        yield (
            f"{place}: {name} needs counterfactual test sets, which only download.source: embedded has; choose another "
            "score"
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


def _of_labels(params: Params) -> Iterator[str]:
    if not isinstance(params.download, EmbeddedData):
        return
    for name in params.variants:
        count = params.attention_of(name).pixel_labels.count or 0
        if count > params.download.num_train:
            yield (
                f"attention.pixel_labels.count: {count} images asked for ({name}), and download.num_train is "
                f"{params.download.num_train}; ask for fewer"
            )
