"""One tracked, resumable training: what pretrain, classify and finetune have in common."""

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.files import atomic_file, write_csv, write_json
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.evaluation.snapshots import attention_maps, panel_samples
from pipeline.evaluation.validation import validator
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import save_weights
from pipeline.tracking.tracker import Tracking
from pipeline.training.assembly import assemble
from pipeline.training.checkpoints import CheckpointFile
from pipeline.training.loop import fit
from stages.record import watchers_of


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
    watchers, record = watchers_of(tracking, params, run, samples)
    history = fit(run.task, checkpoint, validate, observe, watchers)
    if record is None:
        return
    weights, folder = space.models / f"{run.task.name}.safetensors", space.reports / run.task.name
    save_weights(weights, run.task.model, run.class_names)
    write_csv(folder / "curves.csv", history.rows)
    summary = {"selected_epoch": history.selected_epoch, **history.selected, "frozen": history.frozen}
    write_json(folder / "summary.json", summary)
    if samples:
        with atomic_file(folder / "attention.safetensors") as partial:
            save_file({"attention": torch.stack(history.snapshots)}, partial)
    record.finish(history, weights, folder)
    checkpoint.remove()
