"""Check every image and mask and list them in the manifest."""

from pipeline.config import load_params
from pipeline.data.manifest import build_manifest
from pipeline.data.voc import SPLITS, read_split
from pipeline.files import atomic_file, write_csv
from pipeline.progress import progress_bar
from stages import DATA, MANIFEST, REPORTS, run_stage


def prepare() -> None:
    """data/voc to data/manifest.csv, and the images per split and class to reports/prepare/classes.csv."""
    params = load_params()
    total = sum(len(read_split(DATA, split)) for split in SPLITS)
    with progress_bar("prepare: images checked", total) as advance:
        manifest = build_manifest(
            DATA,
            splits=SPLITS,
            pixel_label_fraction=params.profile.prepare.pixel_label_fraction,
            seed=params.seed,
            on_image=advance,
        )
    with atomic_file(MANIFEST) as partial:
        manifest.to_csv(partial, index=False)
    counts = manifest.assign(classes=manifest["classes"].str.split()).explode("classes").fillna({"classes": "none"})
    table = counts.groupby(["split", "classes"], sort=True).size().reset_index(name="images")
    records = [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]
    write_csv(REPORTS / "prepare" / "classes.csv", records)


if __name__ == "__main__":
    run_stage("prepare", prepare)
