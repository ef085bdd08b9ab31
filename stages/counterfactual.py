"""Make test images with object and ground separated from images and masks of the test split."""

from collections import Counter

from pipeline.base.errors import warn
from pipeline.base.files import atomic_folder
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace
from pipeline.data.manifest import read_manifest
from pipeline.data.voc import read_class_names
from pipeline.datasets.counterfactual.making import make_sets, plan_of
from pipeline.datasets.counterfactual.plan import said
from pipeline.datasets.parallel import most_workers
from pipeline.tracking.progress import progress_bar
from stages.run import run_stage


def counterfactual(params: Params, space: Workspace) -> None:
    """data/voc to data/counterfactual; what cannot be made is said in a line."""
    image_ids = [row.image_id for row in read_manifest(space.manifest) if row.split == "test"]
    plan = plan_of(space.data, image_ids, params.counterfactual, seed=params.seed)
    with (
        atomic_folder(space.counterfactual) as folder,
        progress_bar("counterfactual: objects", len(plan.cutouts)) as advance,
    ):
        made = make_sets(space.data, plan, folder, params.counterfactual, num_workers=most_workers(), on_object=advance)
    sizes = Counter(row.split for row in made)
    counts = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "no image: no object can be separated"
    print(f"counterfactual: {counts}", flush=True)
    if lacking := said(plan, read_class_names(space.data)):
        warn(f"counterfactual: {lacking}")


if __name__ == "__main__":
    run_stage("counterfactual", counterfactual)
