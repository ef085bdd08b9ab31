"""Which stage reads which section of params.yaml, from dvc.yaml: the table of docs/parameters.md."""

from collections.abc import Mapping
from typing import Any

RESOLVED = "reports/configure/params.yaml"
NO_STAGE = {
    "resources": "none: speed and memory only",
    "promote": "none: read by `gain promote`",
}


def parameter_table(dvc: Mapping[str, Any]) -> str:
    """Markdown: a section, or the one key of it that matters, and the stages whose results depend on it.

    Args:
        dvc: dvc.yaml as it is written.
    """
    readers: dict[str, list[str]] = {}
    for name, stage in dvc["stages"].items():
        for entry in stage["params"]:
            if isinstance(entry, dict):
                for key in entry.get(RESOLVED) or []:
                    readers.setdefault(key.replace("${item.variant}", "VARIANT"), []).append(name)
    rows = [f"| `{key}` | {', '.join(f'`{name}`' for name in names)} |" for key, names in readers.items()]
    rows += [f"| `{key}` | {text} |" for key, text in NO_STAGE.items()]
    return "\n".join(["| key | stages |", "|---|---|", *sorted(rows)])
