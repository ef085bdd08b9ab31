"""One tracked, resumable training: what pretrain, classify and finetune have in common."""

from collections.abc import Mapping
from pathlib import Path

from lightning_fabric import Fabric
from torch.utils.data import DataLoader

from pipeline.checkpoints import CheckpointFile, fingerprint
from pipeline.config import Attention, Params, Training
from pipeline.data.loading import Sample, SegmentationDataset, evaluation_loader, training_loader
from pipeline.data.manifest import ManifestRow, data_digest, read_manifest
from pipeline.data.voc import read_class_names
from pipeline.devices import choose_device, make_deterministic
from pipeline.evaluation import evaluate, validation_row
from pipeline.files import digest_file, write_csv, write_json
from pipeline.gain.attention import GuidedNetwork
from pipeline.model.fcn8s import FCN8s
from pipeline.model.weights import build_model, load_weights, save_weights
from pipeline.panels import attention_panel, panel_samples
from pipeline.tracking import WEIGHTS_TAG, Tracker, Tracking
from pipeline.training import History, Row, fit
from stages import DATA, MANIFEST, MODELS, REPORTS


def train(
    tracking: Tracking,
    stage: str,
    params: Params,
    options: Training,
    loss_weights: Mapping[str, float],
    *,
    variant: str | None = None,
    initial_weights: Path | None = None,
) -> None:
    """From `initial_weights`, or from scratch, to models/NAME.safetensors and reports/NAME; NAME is STAGE[/VARIANT]."""
    name = f"{stage}/{variant}" if variant else stage
    profile, attention = params.profile, params.profile.finetune.attention
    device = choose_device(profile.runtime.device, profile.runtime.precision)
    make_deterministic(device)
    print(f"{name}: on {device.reason}", flush=True)
    rows, class_names, architecture = read_manifest(MANIFEST), read_class_names(DATA), profile.model.model_dump()
    used = {
        "seed": params.seed,
        "profile": params.profile_name,
        "runtime": profile.runtime.model_dump(),
        "model": architecture,
        stage: {**options.model_dump(), "loss_weights": dict(loss_weights), "attention": attention.model_dump()},
    }
    run = fingerprint(name, used, [MANIFEST, *([initial_weights] if initial_weights else [])])
    checkpoint = CheckpointFile(Path("checkpoints") / name, run)
    if initial_weights:
        model, _ = load_weights(initial_weights)
    else:
        model = build_model(architecture, class_names, seed=params.seed)
    fabric = Fabric(accelerator=device.accelerator, devices=1, precision=device.precision)
    fabric.seed_everything(params.seed, verbose=False)
    loader, val_set = _data(params, options, rows, len(class_names))
    val_loader = evaluation_loader(val_set, batch_size=profile.evaluate.batch_size, num_workers=0)
    samples = panel_samples(val_set, options.num_panel_images)
    guides = "classification" in loss_weights
    tags = {"stage": stage, "variant": variant or "", "profile": params.profile_name, "seed": str(params.seed)}
    dataset = {"name": params.profile.download.source, "digest": data_digest(rows), "context": "training"}

    def validate(model: FCN8s) -> Row:
        return validation_row(evaluate(model, val_loader, device.torch_device, attention=guides))

    with Tracker(
        tracking,
        f"{name.replace('/', '-')}-{run}",
        run_name=f"{variant or stage}-seed{params.seed}",
        params=used,
        tags=tags,
        dataset=dataset,
    ) as tracker:

        def on_epoch(epoch: int, row: Row) -> None:
            tracker.log_metrics({k: v for k, v in row.items() if k != "epoch"}, step=epoch)
            if guides and samples:
                tracker.log_image("attention", attention_panel(model, samples, class_names), step=epoch)

        history = fit(
            fabric,
            guided_network(model, attention),
            loader,
            title=name,
            options=options,
            loss_weights=loss_weights,
            ramp_fraction=attention.ramp_fraction,
            validate=validate,
            on_epoch=on_epoch,
            checkpoint=checkpoint,
        )
        weights = MODELS / f"{name}.safetensors"
        save_weights(weights, model, architecture, class_names)
        _report(REPORTS / name, history)
        tracker.log_artifact(REPORTS / name / "curves.csv")
        tracker.log_artifact(REPORTS / name / "summary.json")
        tracker.set_tags({WEIGHTS_TAG: digest_file(weights)})
    checkpoint.remove()


def guided_network(model: FCN8s, attention: Attention) -> GuidedNetwork:
    """The network as params.yaml wants it guided."""
    return GuidedNetwork(model, **attention.model_dump(exclude={"ramp_fraction"}))


def _data(
    params: Params, options: Training, rows: list[ManifestRow], num_classes: int
) -> tuple[DataLoader[Sample], SegmentationDataset]:
    resources = params.profile.resources
    train_set, val_set = (
        SegmentationDataset(
            DATA,
            [row for row in rows if row.split == split],
            num_foreground_classes=num_classes,
            horizontal_flip=options.horizontal_flip if split == "train" else 0.0,
            seed=params.seed,
            cache_images=resources.cache_images,
        )
        for split in ("train", "val")
    )
    loader = training_loader(
        train_set, batch_size=options.batch_size, seed=params.seed, num_workers=resources.num_workers
    )
    return loader, val_set


def _report(folder: Path, history: History) -> None:
    write_csv(folder / "curves.csv", history.rows)
    selected = history.rows[history.selected_epoch - 1]
    write_json(
        folder / "summary.json", {"selected_epoch": history.selected_epoch, **selected, "frozen": history.frozen}
    )
