"""One tracked, resumable training: what pretrain, classify and finetune have in common."""

from contextlib import nullcontext

from torch import Tensor

from pipeline.base.finished import remove_committed
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.evaluation.snapshots import attention_maps, panel_samples
from pipeline.evaluation.validation import validator
from pipeline.model.fcn8s import FCN8s
from pipeline.tracking.tracker import Tracking
from pipeline.training.assembly import assemble
from pipeline.training.checkpoints import CheckpointFile
from pipeline.training.loop import fit
from stages.record import watchers_of, write_results


def train(tracking: Tracking | None, params: Params, space: Workspace, stage: str, variant: str = "") -> None:
    """One training to models/NAME.safetensors and reports/NAME; with several ranks, the first one writes.

    Args:
        tracking: of the first rank; None on the others.
    """
    run = assemble(params, space, stage, variant)
    checkpoint = CheckpointFile(space.checkpoints / run.task.name, run.key)
    guides = "classification" in run.task.criterion.needs
    samples = panel_samples(run.val_set, run.class_names, run.task.options.num_panel_images) if guides else []

    def observe(model: FCN8s) -> Tensor:
        return attention_maps(model, samples)

    validate = validator(run.val_set, params.evaluate, run.task.attention, run.task.fabric, attends=guides)
    with nullcontext() if tracking is None else checkpoint.held():
        # A finished training has its record; only what DVC could not commit is missing.
        watchers, record = ([], None) if checkpoint.is_finished else watchers_of(tracking, params, run, samples)
        history = fit(run.task, checkpoint, validate, observe, watchers)
        if tracking is None:
            return
        weights, folder = write_results(space, run, history, draws=bool(samples))
        if record is not None:
            record.finish(history, weights, folder)
        checkpoint.finish()
    remove_committed(space, but=run.task.name)
