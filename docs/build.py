"""Tables and pictures of README.md and docs/, from the last `make repro`, `make study`, `make bench`: `make docs`."""

import csv
import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from docs.benchmark_tables import insert, insert_benchmarks
from docs.stage_tables import parameter_table, room_table
from pipeline.base.files import digest_file
from pipeline.data import voc
from pipeline.data.images import decode_image
from pipeline.data.manifest import ManifestRow, read_manifest
from pipeline.report.grid import panel
from pipeline.report.overlays import Picture
from pipeline.report.tables import HEADLINES, results_table
from pipeline.tracking.server import connect, find_run

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "data" / "voc"
REPORTS = REPOSITORY / "reports" / "evaluate"
STUDY = REPOSITORY / "study"
QUALITY = 90  # of WebP, a third of what PNG takes
STUDIES = {  # page to folder, title and command
    "study": (STUDY, "The study", "make study"),
    "photographs": (REPOSITORY / "photos-study", "The study on photographs", "make photos-study"),
}


def main() -> None:
    """Write docs/*.webp, docs/*-runs.md, and the tables between the markers of README.md and docs/."""
    save_figure("dataset", dataset_figure())
    strip = STUDY / "seed0" / "reports" / "evaluate" / "pictures" / "gain_ext_10" / "attention_evolution.png"
    for name, picture in {"panels": REPORTS / "pictures" / "comparison.png", "evolution": strip}.items():
        save_figure(name, Image.open(picture).convert("RGB"))
    metrics = json.loads((REPORTS / "metrics.json").read_text(encoding="utf-8"))
    insert(REPOSITORY / "README.md", {"results": results_table(metrics)})
    for page, (folder, title, command) in STUDIES.items():
        if not list(folder.glob("seed*/models")):
            print(f"{folder.name}: no models here, run `{command}`; docs/{page}.md stays as it is")
            continue
        table = (folder / "results" / "table.md").read_text(encoding="utf-8").strip()
        insert(REPOSITORY / "docs" / f"{page}.md", {page: table})
        (REPOSITORY / "docs" / f"{page}-runs.md").write_text(study_runs(folder, title, command), encoding="utf-8")
    dvc = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))
    insert(REPOSITORY / "docs" / "parameters.md", {"parameters": parameter_table(dvc)})
    insert(REPOSITORY / "docs" / "development.md", {"rooms": room_table(dvc)})
    insert_benchmarks()


def save_figure(name: str, picture: Image.Image) -> None:
    """docs/NAME.webp, in full colour."""
    picture.save(REPOSITORY / "docs" / f"{name}.webp", "WEBP", quality=QUALITY, method=6)


def study_runs(folder: Path, title: str, command: str) -> str:
    """Every row behind the means of a study, with the MLflow run that trained and scored it.

    Args:
        folder: of the study.
        command: that runs it.
    """
    client, experiment_id = connect()
    with (folder / "results" / "per_seed.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["model"])
    shown = [name for name in rows[0] if name in HEADLINES]
    lines = [
        f"# {title}, run by run",
        "",
        f"Percent; the run id is that of the MLflow run in which the model was trained and scored (`{command}`, then",
        f"`gain ui`). Means, intervals and differences: [results.csv](../{folder.name}/results/results.csv).",
        "",
        "| model | seed | " + " | ".join(HEADLINES[name] for name in shown) + " | MLflow run |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for row in rows:
        models = folder / f"seed{row['seed']}" / "models"
        finetuned = models / "finetune" / f"{row['model']}.safetensors"
        weights = finetuned if finetuned.exists() else models / "classify.safetensors"
        scores = " | ".join(f"{100 * float(row[name]):.1f}" for name in shown)
        run_id = find_run(client, experiment_id, digest_file(weights)) or "not in this tracking server"
        lines.append(f"| {row['model']} | {row['seed']} | {scores} | `{run_id}` |")
    return "\n".join(lines) + "\n"


def dataset_figure() -> Image.Image:
    """One picture per class as in training, and the two ways in which the test separates object and ground."""
    rows = read_manifest(REPOSITORY / "data" / "manifest.csv")
    names = voc.read_class_names(DATA)
    habitual = [_first(rows, "train", classes=(name,), contexts=(name,)) for name in names]
    moved = [_first(rows, "object_without_context", classes=(name,)) for name in names]
    bare = [_first(rows, "context_without_object", contexts=(name,)) for name in names]
    return panel([habitual, moved, bare], names, ["training", "object without context", "context without object"])


def _first(rows: list[ManifestRow], split: str, **wanted: tuple[str, ...]) -> Picture:
    row = next(r for r in rows if r.split == split and all(getattr(r, key) == value for key, value in wanted.items()))
    return np.asarray(decode_image(voc.image_path(DATA, row.image_id)))


if __name__ == "__main__":
    main()
