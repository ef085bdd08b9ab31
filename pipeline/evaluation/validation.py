"""The scores of a network between two epochs of its training."""

from collections.abc import Callable

from pipeline.base.attention import Attention
from pipeline.base.fabric import Fabric
from pipeline.base.sections import Evaluate
from pipeline.data.loaders import evaluation_loader
from pipeline.data.samples import SegmentationDataset
from pipeline.evaluation.passes import Scoring, evaluate, validation_scores
from pipeline.model.fcn8s import FCN8s


def validator(
    val_set: SegmentationDataset, options: Evaluate, attention: Attention, fabric: Fabric, *, attends: bool
) -> Callable[[FCN8s], dict[str, float]]:
    """A function from a network in eval mode to its scores on `val_set`, by `val/NAME`; every rank must call it.

    Args:
        attends: score classes and attention too, which a network without a trained classifier cannot show.
    """
    loader = evaluation_loader(
        val_set,
        batch_size=options.batch_size,
        num_workers=0,
        rank=fabric.global_rank,
        num_ranks=fabric.world_size,
    )
    scoring = Scoring(options.attention_threshold, attention.mask_threshold, attention.mask_slope)

    def validate(model: FCN8s) -> dict[str, float]:
        scores = validation_scores(evaluate(model, loader, fabric.device, scoring, attention=attends))
        return {f"val/{name}": value for name, value in scores.items()}

    return validate
