"""The stages of dvc.yaml, a file each: `python -m stages.NAME` wires rooms of pipeline/ together and nothing more."""

import stages.environment  # noqa: F401 -- ends here, in one line, where packages are missing
