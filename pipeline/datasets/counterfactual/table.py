"""The counterfactual sets by name, and the table of their images.

The table's columns are those of the manifest (data/manifest.py), of which `split` is the set and `contexts` the classes
whose ground shows, then `object` (the class that was cut or taken out), `source` (the test image that it is from) and
`ground` (the image that lent the ground; empty where none did).
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.base.errors import PipelineError
from pipeline.data.manifest import ManifestRow, columns_of

OBJECT_SETS = ("only_object", "mixed_same", "mixed_rand")  # the class is there, and must be found
GROUND_SETS = ("no_object_filled", "no_object_mean")  # the class was taken out, and must not be claimed
SETS = (*OBJECT_SETS, *GROUND_SETS)
TABLE = "counterfactual.csv"


@dataclass(frozen=True)
class MadeImage(ManifestRow):
    """One image of a set; its `split` is the set."""

    object: str
    source: str
    ground: str


FIELDS = tuple(MadeImage.__dataclass_fields__)
_LISTS = ("classes", "contexts")  # space-separated names


def write_table(root: Path, rows: Sequence[MadeImage]) -> None:
    """Write the table of `rows` into `root`; `read_table` gives them back."""
    with (root / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = asdict(row)
            writer.writerow({**cells, **{name: " ".join(cells[name]) for name in _LISTS}})


def read_table(root: Path) -> list[MadeImage]:
    """Rows of the table in `root`, in order; none where no image could be made.

    Raises:
        PipelineError: the table is missing, lacks a column, or holds a row that is cut short or of an unknown set.
    """
    path = root / TABLE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_parse(row) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise PipelineError(
            f"{path}: missing; it lists the counterfactual images; run `dvc repro counterfactual`"
        ) from None
    except (KeyError, ValueError, AttributeError) as error:
        raise PipelineError(
            f"{path}: not a table of counterfactual images ({error!r}); run `dvc repro --force counterfactual`"
        ) from error


def _parse(row: dict[str, str]) -> MadeImage:
    made = MadeImage(**columns_of(row), object=row["object"], source=row["source"], ground=row["ground"])
    if made.split not in SETS:
        raise ValueError(f"no set is called {made.split}")
    return made
