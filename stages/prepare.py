"""Check every image, mask and annotation and list them in the manifest."""

from pipeline.base.errors import warn
from pipeline.base.files import atomic_file, write_csv
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.counts import check_counts
from pipeline.data.demands import check_demands
from pipeline.data.manifest import build_manifest, class_counts
from pipeline.data.voc import list_splits, read_split
from pipeline.tracking.progress import progress_bar
from stages.run import run_stage


def prepare(params: Params, space: Workspace) -> None:
    """data/voc to data/manifest.csv, and the images per split and class to reports/prepare/classes.csv.

    What later stages ask of the data is checked too, early. It changes no output, so DVC need not run this stage again
    when it changes: the stage that asks it checks it as well.
    """
    splits = list_splits(space.data)
    total = sum(len(read_split(space.data, split)) for split in splits)
    with progress_bar("prepare: images checked", total) as advance:
        manifest = build_manifest(space.data, splits=splits, seed=params.seed, on_image=advance)
    warnings = check_counts(space.data, manifest, params.prepare.allow)
    check_demands(params, space.data, manifest)
    for warning in warnings:
        warn(f"prepare: {warning}")
    with atomic_file(space.manifest) as partial:
        manifest.to_csv(partial, index=False)
    write_csv(space.reports / "prepare" / "classes.csv", class_counts(manifest))


if __name__ == "__main__":
    run_stage("prepare", prepare)
