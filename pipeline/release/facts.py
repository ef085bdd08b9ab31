"""What a model version says of itself. No torch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.base.files import digest_file
from pipeline.base.profile import Params
from pipeline.data.voc import TRAINING_SPLITS
from pipeline.tracking.tracker import WEIGHTS_TAG

if TYPE_CHECKING:
    from pipeline.data.manifest import ManifestRow

TEST_DATA_TAG = "test_data_digest"


@dataclass(frozen=True)
class VersionFacts:
    """What a model version says of itself."""

    run_name: str  # of the run that is made for it if the server knows none that trained the weights
    tags: Mapping[str, str]  # of `version_tags`
    scores: Mapping[str, float]  # fractions
    description: str  # Markdown
    page: Path | None = None  # of its evaluation


def version_tags(params: Params, variant: str, weights: Path, rows: "Sequence[ManifestRow]") -> dict[str, str]:
    """The tags by which a model version and what it was made of are known.

    Args:
        weights: the variant's safetensors file.
        rows: the images that it was trained and tested on: the manifest, then those of the stage counterfactual.
    """
    from pipeline.data.manifest import data_digest

    return {
        WEIGHTS_TAG: digest_file(weights),
        "variant": variant,
        "profile": params.profile,
        "seed": str(params.seed),
        "data_digest": data_digest(rows),
        TEST_DATA_TAG: data_digest(row for row in rows if row.split not in TRAINING_SPLITS),
        "dvc_md5": hashlib.md5(weights.read_bytes(), usedforsecurity=False).hexdigest(),  # as in dvc.lock
    }
