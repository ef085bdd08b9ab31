"""The README's table and pictures, from the reports of the last `make repro`: `make docs`."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import voc
from pipeline.data.manifest import ManifestRow, decode_image, read_manifest
from pipeline.evaluation import results_table
from pipeline.visualization import Picture, panel

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "data" / "voc"
REPORTS = REPOSITORY / "reports" / "evaluate"


def main() -> None:
    """Write docs/*.png and the table between the markers in README.md."""
    dataset_figure().save(REPOSITORY / "docs" / "dataset.png", optimize=True)
    panels = Image.open(REPORTS / "panels" / "comparison.png").convert("RGB")
    panels.quantize(256, dither=Image.Dither.NONE).save(REPOSITORY / "docs" / "panels.png", optimize=True)
    table = results_table(json.loads((REPORTS / "metrics.json").read_text(encoding="utf-8")))
    readme = REPOSITORY / "README.md"
    block = f"<!-- results -->\n{table}\n<!-- /results -->"
    text = re.sub(r"<!-- results -->.*?<!-- /results -->", block, readme.read_text(encoding="utf-8"), flags=re.DOTALL)
    readme.write_text(text, encoding="utf-8")


def dataset_figure() -> Image.Image:
    """One picture per class as in training, and the two ways in which the counterfactual sets tear it apart."""
    rows = read_manifest(REPOSITORY / "data" / "manifest.csv")
    names = voc.read_class_names(DATA)
    habitual = [_first(rows, "train", classes=(name,), contexts=(name,)) for name in names]
    torn = [_first(rows, "object_without_context", classes=(name,)) for name in names]
    bare = [_first(rows, "context_without_object", contexts=(name,)) for name in names]
    return panel([habitual, torn, bare], names, ["training", "object without context", "context without object"])


def _first(rows: list[ManifestRow], split: str, **wanted: tuple[str, ...]) -> Picture:
    row = next(r for r in rows if r.split == split and all(getattr(r, key) == value for key, value in wanted.items()))
    return np.asarray(decode_image(voc.image_path(DATA, row.image_id)))


if __name__ == "__main__":
    main()
