"""Put the data set into place: the embedded drawings, in VOC layout."""

import os

from pipeline.config import Params
from pipeline.data.synthetic import draw_dataset
from pipeline.files import atomic_folder
from pipeline.progress import progress_bar
from stages import Workspace, run_stage


def download(params: Params, space: Workspace) -> None:
    """params.yaml to data/voc."""
    options = params.profile.download.model_dump(exclude={"source"})
    total = sum(options[name] for name in ("num_train", "num_val", "num_test")) + 2 * options["num_counterfactual"]
    with atomic_folder(space.data) as folder, progress_bar("download: images drawn", total) as advance:
        draw_dataset(folder, seed=params.seed, num_workers=os.cpu_count() or 1, on_image=advance, **options)


if __name__ == "__main__":
    run_stage("download", download)
