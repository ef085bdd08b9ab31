"""Put the data set and the initial weights into place: drawn, downloaded, or copied from a path of the user's."""

from pipeline.base.files import atomic_folder
from pipeline.base.profile import Params
from pipeline.base.sections import EmbeddedData, Voc2012Data
from pipeline.base.workspace import Workspace
from pipeline.datasets.embedded import draw_dataset, split_sizes
from pipeline.datasets.fetch import copy_into, obtain
from pipeline.datasets.own_folder import place_folder
from pipeline.datasets.parallel import most_workers
from pipeline.datasets.voc2012 import obtain_archives, place_voc2012
from pipeline.tracking.progress import progress_bar
from stages.run import run_stage


def download(params: Params, space: Workspace) -> None:
    """params.yaml to data/voc and data/weights."""
    options = params.download
    if isinstance(options, EmbeddedData):
        total = sum(split_sizes(options).values())
        with atomic_folder(space.data) as folder, progress_bar("download: images drawn", total) as advance:
            draw_dataset(folder, options, seed=params.seed, num_workers=most_workers(), on_image=advance)
    elif isinstance(options, Voc2012Data):
        archives = obtain_archives(options)
        with atomic_folder(space.data) as folder, progress_bar("download: images in place", None) as advance:
            place_voc2012(folder, archives, options, seed=params.seed, num_workers=most_workers(), on_image=advance)
    else:
        with atomic_folder(space.data) as folder, progress_bar("download: images in place", None) as advance:
            place_folder(folder, options, on_image=advance)
    weights = params.pretrain.weights
    with atomic_folder(space.initial_weights) as folder:
        if weights.file is not None:
            copy_into(folder, obtain(weights.file, weights.file_name))
        else:  # DVC warns of an empty folder again and again
            (folder / "none.txt").write_text("pretrain.weights.source is random: nothing is imported\n")


if __name__ == "__main__":
    run_stage("download", download)
