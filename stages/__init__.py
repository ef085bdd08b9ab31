"""The stages of dvc.yaml, a file each: `python -m stages.NAME` wires rooms of pipeline/ together and nothing more."""
