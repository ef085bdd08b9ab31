"""Every model of a run, scored on the same held-out images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from pipeline.base.errors import PipelineError, warn
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.manifest import data_digest
from pipeline.data.samples import Sample, SegmentationDataset
from pipeline.data.voc import read_class_names
from pipeline.evaluation.passes import Scoring
from pipeline.evaluation.snapshots import panel_samples
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import load_weights
from pipeline.report.held_out import held_out_data, read_held_out_sets, read_set
from pipeline.report.model_scores import ModelScores, ScoreOptions, score_model
from pipeline.report.tables import best_guided, reference_model
from pipeline.training.devices import choose_device, make_deterministic

SCORED_IN = "32-true"  # whatever precision the models were trained in
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


@dataclass(frozen=True)
class Comparison:
    """The models by name, in the order of `Workspace.compared_models`, and what they were scored on."""

    models: dict[str, FCN8s]  # in eval mode
    scores: dict[str, ModelScores]
    sets: dict[str, SegmentationDataset]  # by split
    class_names: tuple[str, ...]
    samples: list[Sample]  # of the test split, to be drawn

    @property
    def reference(self) -> str:
        """The model that the others are compared with."""
        return reference_model(self.scores)

    @property
    def best_guided(self) -> str:
        """See `tables.best_guided`."""
        return best_guided({name: scores.validation for name, scores in self.scores.items()})

    @property
    def data_digest(self) -> str:
        """Of all images that the models were scored on, see `manifest.data_digest`."""
        return data_digest(row for dataset in self.sets.values() for row in dataset.rows)


def compare(params: Params, space: Workspace, progress: Progress) -> Comparison:
    """Score every model of `space` on one device.

    Args:
        progress: opens a progress bar with a title and a total; what it yields is called after each model.

    Raises:
        PipelineError: an input is missing or damaged, or the machine lacks what params.yaml asks for.
    """
    device = choose_device(params.runtime.device, SCORED_IN)
    make_deterministic(device)
    print(f"evaluate: on {device.reason}", flush=True)
    for doubt in params.doubts:
        warn(doubt)
    class_names = read_class_names(space.data)
    sets = read_held_out_sets(space, cache_images=params.resources.cache_images)
    validation = read_set(space, "val", cache_images=params.resources.cache_images)
    data, options = held_out_data(validation, sets, class_names, params.evaluate), score_options(params)
    samples = panel_samples(sets["test"], class_names, params.evaluate.num_panels)
    comparison = Comparison({}, {}, sets, class_names, samples)
    weights = space.compared_models(params.variants)
    with progress("evaluate: models scored", len(weights)) as advance:
        for name, path in weights.items():
            model = load_weights(path)[0].to(memory_format=torch.channels_last).to(device.torch_device).eval()
            if model.scale != params.evaluate.scale:
                raise PipelineError(
                    f"{path}: sees images at scale {model.scale:g}, and params.yaml says evaluate.scale: "
                    f"{params.evaluate.scale:g}; train it again (`dvc repro`), or set evaluate.scale to what it has"
                )
            comparison.models[name] = model
            comparison.scores[name] = score_model(model, data, options, device.torch_device)
            advance()
    return comparison


def score_options(params: Params) -> ScoreOptions:
    """How params.yaml wants models to be scored: all alike, by the section `attention` without a variant's changes."""
    options, attention = params.evaluate, params.attention
    return ScoreOptions(
        Scoring(options.attention_threshold, attention.mask_threshold, attention.mask_slope),
        options.deletion_steps,
        options.num_replicates,
        params.seed,
    )
