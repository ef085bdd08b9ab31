"""What the trainings of a profile ask of the data: checked on the manifest, hours before the training that asks it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.errors import PipelineError
from pipeline.base.profile import Params, crop_problem
from pipeline.base.sections import Training
from pipeline.data import voc

if TYPE_CHECKING:
    import pandas as pd


def check_demands(params: Params, root: Path, manifest: "pd.DataFrame") -> None:
    """Check that all trainings of `params` can take the images of `manifest`, which are below `root`.

    Raises:
        PipelineError: images of several sizes are to be batched whole, crops are far larger than the images, or fewer
            images have pixel labels or boxes than a variant asks for.
    """
    training = manifest[manifest["split"] == "train"]
    problem = next(_of_sizes(params, training), None) or next(_of_labels(params, root, training), None)
    if problem is not None:
        raise PipelineError(f"params.yaml: {problem}")


def _of_sizes(params: Params, training: "pd.DataFrame") -> Iterator[str]:
    num_sizes = len(training[["height", "width"]].drop_duplicates())
    for name in ("pretrain", "classify", "finetune"):
        options: Training = getattr(params, name)
        if options.crop_size is None and num_sizes > 1 and options.batch_size > 1:
            yield (
                f"{name}.crop_size: the training images have {num_sizes} sizes, and a batch one; set a size in pixels, "
                f"or {name}.batch_size: 1"
            )
    if (problem := crop_problem(params, int(training[["height", "width"]].max().max()))) is not None:
        yield problem


def _of_labels(params: Params, root: Path, training: "pd.DataFrame") -> Iterator[str]:
    labelled = training[training["pixel_label_rank"] >= 0]
    for name, variant in params.variants.items():
        if not variant.loss_weights.get("external_supervision"):
            continue
        attention = params.attention_of(name)
        count = attention.pixel_labels.count
        if count is not None and count > len(labelled):
            yield (
                f"attention.pixel_labels.count: {count} images asked for ({name}), and only {len(labelled)} training "
                "images show a class; ask for fewer"
            )
        most = count if count is not None else round((attention.pixel_labels.fraction or 0.0) * len(training))
        guiding = labelled[labelled["pixel_label_rank"] < most]["image_id"]
        lacking = [path for i in guiding if not (path := voc.annotation_path(root, i)).exists()]
        if attention.guidance == "boxes" and lacking:
            yield (
                f"attention.guidance: boxes ({name}): {len(lacking)} of {most} images have none ({lacking[0]} is "
                "missing); add the annotations, or choose masks"
            )
