"""Comparisons of small networks on drawn noise, for tests of the page: any number of classes, images and variants."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from sections import architecture_section
from torch.utils.data import DataLoader

from pipeline.base.params import load_params
from pipeline.base.profile import Params
from pipeline.data.manifest import ManifestRow
from pipeline.data.samples import Sample, image_labels
from pipeline.datasets.counterfactual.table import MadeImage
from pipeline.model.fcn8s import FCN8s
from pipeline.report.comparison import Comparison, score_options
from pipeline.report.model_scores import HeldOutData, score_model

CPU = torch.device("cpu")


class Drawn:
    """What a comparison needs of a data set: clouds, with a square of the class of each row in them."""

    def __init__(self, rows: Sequence[ManifestRow], class_names: Sequence[str], *, size: tuple[int, int]) -> None:
        self.rows, self._names, self._size = list(rows), class_names, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if index >= len(self):
            raise IndexError(index)
        random = np.random.default_rng(index)
        target = torch.zeros(self._size, dtype=torch.int64)
        for name in self.rows[index].classes:
            height, width = (int(random.integers(side // 6, side // 2)) for side in self._size)
            top, left = (int(random.integers(0, side // 2)) for side in self._size)
            target[top : top + height, left : left + width] = self._names.index(name) + 1
        clouds = torch.from_numpy(random.normal(size=(1, 3, 6, 6)).astype(np.float32))
        image = F.interpolate(clouds, size=self._size, mode="bicubic")[0]
        labels = image_labels(target, len(self._names))
        return Sample(image, target, torch.full(self._size, 255, dtype=torch.uint8), labels, torch.tensor(index))


def params_with(variants: Sequence[str], **evaluate: object) -> Params:
    """The profile smoke with some of its variants; `evaluate` changes that section."""
    params = load_params(profile="smoke")
    chosen = {name: params.variants[name] for name in variants}
    changed = params.evaluate.model_copy(update=evaluate)
    return params.model_copy(update={"variants": chosen, "evaluate": changed})


def comparison_of(
    params: Params,
    class_names: Sequence[str] = ("cat", "dog", "fox"),
    *,
    num_images: int = 6,
    size: tuple[int, int] = (48, 40),
    empty: bool = False,
    separated: bool = True,
) -> Comparison:
    """Random networks, scored on the test images alone.

    Args:
        empty: no image shows a class.
        separated: add images cut out of the test images.
    """
    names = tuple(class_names)
    classes = [() if empty else (names[i % len(names)],) for i in range(num_images)]
    rows = [ManifestRow(f"x{i}", "test", *size, of, of, -1, f"{i}") for i, of in enumerate(classes)]
    sets = {"test": Drawn(rows, names, size=size)}
    if separated and not empty:
        for split, there in (("mixed_rand", True), ("no_object_mean", False)):
            made = [
                MadeImage(f"{split}{i}", split, *size, of if there else (), of, -1, "", of[0], f"x{i}", "")
                for i, of in enumerate(classes)
            ]
            sets[split] = Drawn(made, names, size=size)
    models, scores = {}, {}
    batches = {split: DataLoader(of, batch_size=4) for split, of in sets.items()}
    data = HeldOutData(names, batches["test"], batches["test"], {}, torch.zeros(0, len(names)), [])
    for seed, name in enumerate(("pretrained", *params.variants)):
        torch.manual_seed(seed)
        model = FCN8s(len(names), architecture_section()).eval()
        for layer in (model.decoder.score_fr, model.decoder.score_pool3, model.decoder.score_pool4):
            torch.nn.init.normal_(layer.weight, std=0.1)
        models[name] = model
        scores[name] = score_model(model, data, score_options(params), CPU)
    return Comparison(models, scores, sets, names, [])
