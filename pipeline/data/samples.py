"""Images and masks as tensors; augmentation is a pure function of (seed, epoch, image)."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.base.sections import Augmentation
from pipeline.data import voc
from pipeline.data.guidance import Guidance
from pipeline.data.images import RGB_MEAN, RGB_STD, decode_image, decode_mask
from pipeline.data.manifest import ManifestRow
from pipeline.data.resizing import resized_mask


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
        augmentation: how image, mask and guidance are changed together; None in evaluation. What a crop adds to a
            smaller image is the data mean, void in mask and guidance. Without a crop images keep their size, and a
            batch must be of one size.
        seed: with the epoch and the index, decides every random choice, in every process alike.
        cache_images: decode each file once and keep it in memory as uint8.
        guidance: of the same rows; without it, the guidance of every sample is void.
        raw: return uint8 samples, a quarter of the bytes to pass between processes and to a GPU; `finished` completes
            them on the device.
    """

    def __init__(
        self,
        root: Path,
        rows: Sequence[ManifestRow],
        *,
        num_foreground_classes: int,
        augmentation: Augmentation | None = None,
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
        changes = augmentation is not None and (augmentation.horizontal_flip > 0 or augmentation.crop_size is not None)
        self._transform = _training_transform(augmentation) if augmentation is not None and changes else None
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
    """A raw sample or batch in the types that networks and losses expect, on its device; any other unchanged."""
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


@cache  # creating them in each step would make it wait for the GPU
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.tensor(RGB_MEAN, device=device).view(3, 1, 1), torch.tensor(RGB_STD, device=device).view(3, 1, 1)


def image_labels(target: Tensor, num_foreground_classes: int) -> Tensor:
    """Multi-hot (C,) float32 of the classes in a mask, background and void left out."""
    counts = torch.bincount(target.flatten().long(), minlength=256)
    return (counts[1 : num_foreground_classes + 1] > 0).float()


def _training_transform(options: Augmentation) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # Imported here: evaluation needs no augmentation, and the import takes seconds.
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps: list[nn.Module] = [v2.RandomHorizontalFlip(p=options.horizontal_flip)]
    if options.crop_size is not None:
        mean = [round(255 * value) for value in RGB_MEAN]
        fill = {tv_tensors.Image: mean, tv_tensors.Mask: voc.IGNORE_INDEX}
        steps.append(v2.RandomCrop(options.crop_size, pad_if_needed=True, fill=fill))
    rest = v2.Compose(steps)

    def transform(image: Tensor, target: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if options.scale != (1.0, 1.0):
            factor = float(torch.empty(1).uniform_(*options.scale))
            height, width = (max(1, round(side * factor)) for side in target.shape)
            image = v2.Resize([height, width])(image)
            target, guidance = (tv_tensors.Mask(resized_mask(mask, (height, width))) for mask in (target, guidance))
        changed: tuple[Tensor, Tensor, Tensor] = rest(image, target, guidance)
        return changed

    return transform
