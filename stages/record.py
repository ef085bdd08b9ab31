"""Who watches a training: the terminal, and on the first rank the record in MLflow. No result depends on them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.files import atomic_file, digest_file, write_csv, write_json
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.manifest import data_digest
from pipeline.data.samples import Sample
from pipeline.model.weights import save_weights
from pipeline.report.curves import training_curves
from pipeline.report.panels import attention_panel, evolution_panel
from pipeline.tracking.progress import Progress
from pipeline.tracking.throughput import peak_flops, training_flops, utilisation
from pipeline.tracking.tracker import WEIGHTS_TAG, Tracker, Tracking
from pipeline.training.assembly import Assembly
from pipeline.training.state import History
from pipeline.training.task import Task
from pipeline.training.watchers import Watcher, Work

THREADS_TAG = "threads"  # several where a training was resumed with others; on a CPU, equal bytes take equal numbers


class Record:
    """The MLflow run of one training: a watcher, and what is added once its outputs are written.

    Args:
        samples: images under whose attention the run shows how it moves; none where it is not computed.
    """

    def __init__(self, tracking: Tracking, params: Params, run: Assembly, samples: Sequence[Sample]) -> None:
        self._run, self._samples, task = run, samples, run.task
        self._peak = peak_flops(task.fabric.device, run.device.precision)
        self._flops = training_flops(task.network.to(task.fabric.device), task.criterion, _image_size(run))
        stage, _, variant = task.name.partition("/")
        tags = {
            "stage": stage,
            "variant": variant,
            "profile": params.profile,
            "seed": str(params.seed),
            "device": run.device.reason,
            THREADS_TAG: str(torch.get_num_threads()),
            "peak": f"{self._peak.flops / 1e12:.3g} TFLOP/s ({self._peak.source})",
        }
        self._tracker = Tracker(
            tracking,
            f"{task.name.replace('/', '-')}-{run.key}",
            run_name=f"{variant or stage}-seed{params.seed}",
            params=run.used,
            tags=tags,
            dataset={"name": params.download.source, "digest": data_digest(run.rows), "context": "training"},
        )

    def begins(self, task: Task, first_epoch: int) -> None:
        """The run is open already: it also records the time before the first step."""

    def step(self, record: Mapping[str, Tensor]) -> None:
        """Steps are not recorded, epochs are."""

    def epoch(self, epoch: int, history: History, work: Work) -> None:
        """Losses, scores, speed and, where there are samples, a picture of their attention."""
        values = {name: value for name, value in history.rows[-1].items() if name != "epoch"}
        if work.num_images:
            values |= utilisation(
                self._flops, self._peak, **work._asdict(), num_devices=self._run.task.fabric.world_size
            )
        self._tracker.log_metrics(values, step=epoch)
        if self._samples:
            model, layer = self._run.task.name.rpartition("/")[2], self._run.task.model.attention_layer
            panel = attention_panel(
                self._samples, history.snapshots[-1], self._run.class_names, model=model, layer=layer
            )
            self._tracker.log_image("attention", panel, step=epoch)

    def ends(self) -> None:
        """A run that is not finished is marked as killed by the sender, until it is resumed."""

    def finish(self, history: History, weights: Path, folder: Path) -> None:
        """Curves and pictures of the whole training, its files, and the digest by which its weights find the run."""
        name, last = self._run.task.name, len(history.rows)
        self._tracker.log_image("loss_curves", training_curves(history.rows, name), step=last)
        if self._samples:
            layer = self._run.task.model.attention_layer
            strip = evolution_panel(self._samples, torch.stack(history.snapshots), self._run.class_names, layer=layer)
            self._tracker.log_image("attention_evolution", strip, step=last)
        for file in ("curves.csv", "summary.json"):
            self._tracker.log_artifact(folder / file)
        threads = ", then ".join(map(str, history.num_threads))
        self._tracker.set_tags({WEIGHTS_TAG: digest_file(weights), THREADS_TAG: threads})
        self._tracker.close(finished=True)


def write_results(space: Workspace, run: Assembly, history: History, *, draws: bool) -> tuple[Path, Path]:
    """Weights; curves, summary and, where it `draws`, attention maps. Returns the file and the folder of the others."""
    weights, folder = space.models / f"{run.task.name}.safetensors", space.reports / run.task.name
    save_weights(weights, run.task.model, run.class_names)
    write_csv(folder / "curves.csv", history.rows)
    summary = {"selected_epoch": history.selected_epoch, **history.selected, "frozen": history.frozen}
    write_json(folder / "summary.json", summary)
    if draws:
        with atomic_file(folder / "attention.safetensors") as partial:
            save_file({"attention": torch.stack(history.snapshots)}, partial)
    return weights, folder


def watchers_of(
    tracking: Tracking | None, params: Params, run: Assembly, samples: Sequence[Sample]
) -> tuple[list[Watcher], Record | None]:
    """The watchers of this rank, and the record among them; None but on the first rank."""
    if tracking is None:
        # Every rank must count: losses are reduced over ranks.
        training_flops(run.task.network.to(run.task.fabric.device), run.task.criterion, _image_size(run))
        return [], None
    record = Record(tracking, params, run, samples)
    return [Progress(), record], record


def _image_size(run: Assembly) -> tuple[int, int]:
    crop, first = run.task.options.crop_size, run.val_set.rows[0]
    return (crop, crop) if crop is not None else (first.height, first.width)
