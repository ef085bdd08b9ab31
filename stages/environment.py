"""Imported before any package: where packages are missing, one line says so instead of a traceback."""

import sys
from importlib.util import find_spec

# What the stages compute with. Without DVC, MLflow and Prefect they run too, one by one, and record nothing in MLflow.
NEEDED = ("torch", "torchvision", "lightning_fabric", "safetensors", "pydantic", "pandas", "yaml", "rich")

if missing := [name for name in NEEDED if find_spec(name) is None]:
    sys.exit(
        f"error: {sys.executable} has no {', '.join(missing)}: the environment of the project is not active; "
        "type: . .venv/bin/activate (`make doctor` makes one)"
    )
