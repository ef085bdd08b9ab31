"""How fast images of VOC's size are checked, decoded and augmented, beside the training step that waits for them.

`python -m benchmarks.loading` draws the images, prints a table and writes benchmarks/loading.json, or
loading-cuda.json on a GPU.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.guidance import FULL_WIDTH, result_file
from benchmarks.machine import machine
from pipeline.base.cores import usable_cores
from pipeline.base.files import write_json
from pipeline.base.sections import Augmentation, EmbeddedData
from pipeline.data.loaders import start_epoch, training_loader
from pipeline.data.manifest import ManifestRow, build_manifest, read_manifest
from pipeline.data.samples import SegmentationDataset
from pipeline.data.voc import REQUIRED_SPLITS
from pipeline.datasets.embedded import CLASS_NAMES, draw_dataset
from pipeline.gain.losses import segmentation_loss
from pipeline.model.fcn8s import FCN8s
from pipeline.training.devices import Device, choose_device

IMAGES, SIDE, CROP = 240, 432, 384  # as many pixels as VOC's 375 x 500; the crop of the profile voc2012
BATCHES, STEPS = {"cpu": 2, "cuda": 16}, 3
PASSES = 3  # over the images
DRAWING = EmbeddedData(
    source="embedded", image_size=SIDE, num_train=IMAGES, num_val=1, num_test=1, num_counterfactual=1,
    context_strength=0.96, empty_fraction=0.05, multi_object_fraction=0.35, object_scale=(0.25, 0.5), max_rotation=15.0,
    occlusion_fraction=0.15, void_border=3, jpeg_quality=95,
)  # fmt: skip
AUGMENTATION = Augmentation(horizontal_flip=0.5, crop_size=CROP, scale=(0.75, 1.25))


def main() -> None:
    """Measure and report."""
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "voc"
        draw_dataset(root, DRAWING, seed=0, num_workers=cores)
        rate, used = _prepare(root)
        rows = [row for row in read_manifest(root.parent / "manifest.csv") if row.split == "train"]
        loaded = {workers: _load(root, rows, workers) for workers in (0, cores)}
    chosen = choose_device("auto", "auto")
    batch = BATCHES[chosen.accelerator]
    step = _step(chosen, batch)
    result = {
        "machine": machine(),
        "image": f"{SIDE}x{SIDE} JPEG and PNG, cropped to {CROP}x{CROP}",
        "prepare_images_per_second": rate,
        "prepare_cores_used": used,
        "prepare_seconds_for_2913_masks": 2913 / rate,
        "loader_images_per_second": {f"{workers} workers": value for workers, value in loaded.items()},
        "training_step_images_per_second": step,
        "training_step": f"full width, padding 100, batch {batch}, {chosen.precision}, segmentation loss",
    }
    write_json(result_file(__file__, chosen.torch_device), result)
    print("| what | images a second |\n|---|---|")
    print(f"| prepare: decode, check, digest ({used:.1f} cores used) | {rate:.0f} |")
    for workers, value in loaded.items():
        print(f"| load and augment, {workers} workers | {value:.0f} |")
    print(f"| training step, {chosen.precision} | {step:.2f} |")


def _prepare(root: Path) -> tuple[float, float]:
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    manifest = build_manifest(root, splits=REQUIRED_SPLITS, seed=0)
    elapsed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    manifest.to_csv(root.parent / "manifest.csv", index=False)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return len(manifest) / elapsed, busy / elapsed


def _load(root: Path, rows: list[ManifestRow], num_workers: int) -> float:
    dataset = SegmentationDataset(
        root, rows, num_foreground_classes=len(CLASS_NAMES), augmentation=AUGMENTATION, raw=True
    )
    loader = training_loader(dataset, batch_size=8, seed=0, num_workers=num_workers)
    next(iter(loader))  # starts the workers
    started, images = time.monotonic(), 0
    for epoch in range(PASSES):
        start_epoch(loader, epoch)
        for batch in loader:
            images += len(batch.image)
    return images / (time.monotonic() - started)


def _step(device: Device, batch: int) -> float:
    model = (
        FCN8s(20, FULL_WIDTH.model_copy(update={"padding": 100}))
        .to(memory_format=torch.channels_last)
        .to(device.torch_device)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0e-5)
    image = torch.randn(batch, 3, CROP, CROP, device=device.torch_device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 21, (batch, CROP, CROP), device=device.torch_device)

    def step() -> None:
        with torch.autocast(device.accelerator, torch.bfloat16, enabled=device.precision == "bf16-mixed"):
            loss = segmentation_loss(model(image)[0], target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return batch / _median_seconds(step)


def _median_seconds(step: Callable[[], None]) -> float:
    step()
    seconds = []
    for _ in range(STEPS):
        started = time.monotonic()
        step()
        seconds.append(time.monotonic() - started)
    return sorted(seconds)[len(seconds) // 2]


if __name__ == "__main__":
    main()
