"""A VOC-layout folder of six tiny images whose masks are easily counted by hand."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import voc

LISTS = {"train": ("t0", "t1", "t2", "t3"), "val": ("v0",), "test": ("x0",)}


def masks() -> dict[str, NDArray[np.uint8]]:
    """8x6 (width x height) masks of two classes, cat = 1 and dog = 2; v0 is 4x4."""
    drawn = {name: np.zeros((6, 8), np.uint8) for name in ("t0", "t1", "t2", "t3", "x0")}
    drawn["t0"][0:2, 0:3], drawn["t0"][5, :] = 1, 255
    drawn["t1"][:, :4] = 2
    drawn["t2"][0, 0], drawn["t2"][1, 1] = 1, 2
    drawn["x0"][2:4, 2:6] = 1
    drawn["v0"] = np.full((4, 4), 255, np.uint8)
    drawn["v0"][0, 0] = 2
    return drawn


def save_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    image = Image.fromarray(mask).convert("P")
    image.putpalette(voc.voc_palette())
    image.save(path)


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """classes.txt, contexts.csv, three splits, six images of noise and their masks; no annotation yet."""
    root = tmp_path / "voc"
    for path in (voc.image_path(root, "ID"), voc.mask_path(root, "ID"), voc.annotation_path(root, "ID")):
        path.parent.mkdir(parents=True)
    voc.split_path(root, "SPLIT").parent.mkdir(parents=True)
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "contexts.csv").write_text("image,contexts\nt0,cat\nt1,cat dog\nt3,\n")
    for split, ids in LISTS.items():
        voc.split_path(root, split).write_text("".join(f"{image_id}\n" for image_id in ids))
    rng = np.random.default_rng(0)
    for image_id, mask in masks().items():
        noise = rng.integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
        Image.fromarray(noise).save(voc.image_path(root, image_id), quality=95)
        save_mask(voc.mask_path(root, image_id), mask)
    return root
