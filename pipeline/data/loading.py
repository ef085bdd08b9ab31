"""Images and masks as normalised tensors in batches; augmentation is a pure function of (seed, epoch, image)."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from pipeline.base.errors import PipelineError
from pipeline.data import voc
from pipeline.data.guidance import Guidance
from pipeline.data.manifest import ManifestRow, decode_image, decode_mask

# Mean and standard deviation of ImageNet in RGB, the convention of torchvision's VGG16 weights.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)


class Sample(NamedTuple):
    """One image, or a batch of them with a leading dimension B; a raw one has image and target in uint8."""

    image: Tensor  # (3, H, W) float32, RGB in [0, 1] minus RGB_MEAN over RGB_STD: 0 is the data mean; raw, 0 to 255
    target: Tensor  # (H, W) int64: 0 background, 1..C, 255 void
    guidance: Tensor  # (H, W) uint8, what external supervision compares attention with: class values, 255 unknown
    image_labels: Tensor  # (C,) float32 multi-hot: set(target) - {0, 255}
    sample_index: Tensor  # () int64: position in the data set


class SegmentationDataset(Dataset[Sample]):
    """The images of one split under a VOC-layout folder.

    Args:
        rows: manifest rows, one per image.
        num_foreground_classes: C.
        horizontal_flip: probability of mirroring an image, its mask and its guidance.
        crop_size: side in pixels of the random square cut out of them; smaller images are padded with the data mean,
            void in mask and guidance. Without it images keep their size, and a batch must be of one size.
        scale: (lowest, highest) factor by which an image is resized before it is cut.
        seed: with the epoch and the index, decides every random choice, whatever process loads the image.
        cache_images: decode each file once and keep it in memory as uint8.
        guidance: of the same rows; without it, external supervision knows nothing of any image.
        raw: give raw samples, a quarter of the bytes to hand on between processes and to a GPU; `finished` does the
            rest on the device.
    """

    def __init__(
        self,
        root: Path,
        rows: Sequence[ManifestRow],
        *,
        num_foreground_classes: int,
        horizontal_flip: float = 0.0,
        crop_size: int | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
        seed: int = 0,
        cache_images: bool = False,
        guidance: Guidance | None = None,
        raw: bool = False,
    ) -> None:
        self.root = root
        self.rows = list(rows)
        self.num_foreground_classes = num_foreground_classes
        self.seed = seed
        self.guidance = guidance
        self.raw = raw
        # In shared memory, so that worker processes that live on see the epoch change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        augments = horizontal_flip > 0 or crop_size is not None
        self._transform = _training_transform(horizontal_flip, crop_size, scale) if augments else None
        self._cache = [self._decode(index) for index in range(len(self.rows))] if cache_images else None

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass draw the augmentation of `epoch`."""
        self._epoch[0] = epoch

    def __getitem__(self, index: int) -> Sample:
        image, target, guidance = self._cache[index] if self._cache is not None else self._decode(index)
        if self._transform is not None:
            image, target, guidance = self._augment(image, target, guidance, index)
        labels = image_labels(target, self.num_foreground_classes)
        sample = Sample(image, target, guidance, labels, torch.tensor(index))
        return sample if self.raw else finished(sample)

    def _decode(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        image_id = self.rows[index].image_id
        image = torch.from_numpy(decode_image(voc.image_path(self.root, image_id))).permute(2, 0, 1)
        target = torch.from_numpy(decode_mask(voc.mask_path(self.root, image_id)))
        if self.guidance is None:
            return image, target, torch.full_like(target, voc.IGNORE_INDEX)
        return image, target, self.guidance(index, target)

    def _augment(self, image: Tensor, target: Tensor, guidance: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        from torchvision import tv_tensors

        with torch.random.fork_rng(devices=[]):
            entropy = np.random.SeedSequence([self.seed, int(self._epoch[0]), index])
            # torch.manual_seed would reseed the GPUs as well, for good.
            torch.default_generator.manual_seed(int(entropy.generate_state(1)[0]))
            augmented = self._transform(  # type: ignore[misc]
                tv_tensors.Image(image), tv_tensors.Mask(target), tv_tensors.Mask(guidance)
            )
        return augmented[0].as_subclass(Tensor), augmented[1].as_subclass(Tensor), augmented[2].as_subclass(Tensor)


def finished(sample: Sample) -> Sample:
    """A raw sample, or a batch of them, as networks and losses take it, on its device; any other as it is."""
    if sample.image.dtype != torch.uint8:
        return sample
    return sample._replace(image=normalise(sample.image), target=sample.target.to(torch.int64))


def normalise(image: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 RGB to float32 minus RGB_MEAN over RGB_STD; 0 is the data mean."""
    mean, std = _mean_and_std(image.device)
    return (image.float() / 255.0 - mean) / std


def denormalise(image: Tensor) -> Tensor:
    """Inverse of `normalise`: float32 (..., 3, H, W) to uint8 RGB."""
    mean, std = _mean_and_std(torch.device("cpu"))
    return ((image.cpu() * std + mean) * 255.0).round().clamp(0, 255).to(torch.uint8)


@cache  # making them anew would let every step wait for the GPU
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(RGB_MEAN, device=device).view(3, 1, 1), torch.tensor(RGB_STD, device=device).view(3, 1, 1)


def image_labels(target: Tensor, num_foreground_classes: int) -> Tensor:
    """Multi-hot (C,) float32 of the classes in a mask, background and void left out."""
    counts = torch.bincount(target.flatten().long(), minlength=256)
    return (counts[1 : num_foreground_classes + 1] > 0).float()


def training_loader(
    dataset: SegmentationDataset,
    *,
    batch_size: int,
    seed: int,
    num_workers: int,
    accumulate_grad_batches: int = 1,
    rank: int = 0,
    num_ranks: int = 1,
) -> DataLoader[Sample]:
    """Shuffled batches of equal size, the order a function of seed and epoch. Call `start_epoch` before each pass.

    However many ranks and accumulated batches share a step, together they have the same images.

    Args:
        batch_size: images of a step, of all ranks and accumulated batches; fewer where the data set has fewer.
        rank, num_ranks: whose share this is.

    Raises:
        PipelineError: a step has more ranks and accumulated batches than images.
    """
    shares = num_ranks * accumulate_grad_batches
    images = min(batch_size, len(dataset)) // shares
    if images == 0:
        raise PipelineError(
            f"{len(dataset)} training images in steps of {batch_size} are too few for {num_ranks} devices and "
            f"{accumulate_grad_batches} accumulated batches; raise batch_size, or lower the other two in params.yaml"
        )
    # The sampler adds the epoch to its seed: neighbouring seeds would share orders.
    sampler_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    sampler: DistributedSampler[Sample] = DistributedSampler(
        dataset, num_replicas=num_ranks, rank=rank, shuffle=True, seed=sampler_seed, drop_last=True
    )
    return DataLoader(
        dataset,
        batch_size=images,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


def start_epoch(loader: DataLoader[Sample], epoch: int) -> None:
    """Fix the order and the augmentation of the next pass over a `training_loader`."""
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    loader.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


def evaluation_loader(
    dataset: SegmentationDataset, *, batch_size: int, num_workers: int, rank: int = 0, num_ranks: int = 1
) -> DataLoader[Sample]:
    """Every image once, at its own size, in batches of one size each; in order where all sizes are equal.

    Args:
        rank, num_ranks: whose share of the batches this is.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(dataset.rows):
        groups.setdefault((row.height, row.width), []).append(index)
    batches = [
        indices[first : first + batch_size]
        for indices in groups.values()
        for first in range(0, len(indices), batch_size)
    ]
    return DataLoader(
        dataset,
        batch_sampler=batches[rank::num_ranks],
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def _training_transform(
    horizontal_flip: float, crop_size: int | None, scale: tuple[float, float]
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # Imported here: evaluation needs no augmentation, and the import takes seconds.
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps: list[nn.Module] = [v2.RandomHorizontalFlip(p=horizontal_flip)]
    if crop_size is not None:
        mean = [round(255 * value) for value in RGB_MEAN]
        fill = {tv_tensors.Image: mean, tv_tensors.Mask: voc.IGNORE_INDEX}
        steps.append(v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill))
    rest = v2.Compose(steps)

    def transform(image: Tensor, target: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if scale != (1.0, 1.0):
            factor = float(torch.empty(1).uniform_(*scale))
            size = [max(1, round(side * factor)) for side in target.shape]
            image, target, guidance = v2.Resize(size)(image, target, guidance)
        changed: tuple[Tensor, Tensor, Tensor] = rest(image, target, guidance)
        return changed

    return transform
