"""Which stage depends on which parameters and rooms, from dvc.yaml: tables of parameters.md and development.md."""

from collections.abc import Mapping
from typing import Any

ROOMS = (
    "base",
    "datasets",
    "data",
    "model",
    "gain",
    "training",
    "evaluation",
    "report",
    "tracking",
    "release",
    "flows",
    "cli",
)
RESOLVED = "reports/configure/params.yaml"
NO_STAGE = {
    "resources": "none: speed and memory only",
    "promote": "none: read by `gain promote`",
}


def parameter_table(dvc: Mapping[str, Any]) -> str:
    """Markdown: a section, or the one key of it that matters, and the stages whose results depend on it.

    Stages that read a whole section depend on each of its keys.

    Args:
        dvc: dvc.yaml as it is written.
    """
    readers: dict[str, list[str]] = {}
    for name, stage in dvc["stages"].items():
        for entry in stage["params"]:
            if isinstance(entry, dict):
                for key in entry.get(RESOLVED) or []:
                    readers.setdefault(key.replace("${item.variant}", "VARIANT"), []).append(name)
    rows = []
    for key, names in readers.items():
        of_section = readers.get(key.rpartition(".")[0], [])
        stages = (f"`{name}`" for name in dvc["stages"] if name in names or name in of_section)
        rows.append(f"| `{key}` | {', '.join(stages)} |")
    rows += [f"| `{key}` | {text} |" for key, text in NO_STAGE.items()]
    return "\n".join(["| key | stages |", "|---|---|", *sorted(rows)])


def room_table(dvc: Mapping[str, Any]) -> str:
    """Markdown: a room of pipeline/, or files of it, and the stages that run again when it is edited.

    Args:
        dvc: dvc.yaml as it is written.
    """
    lines = ["| room | stages that run again |", "|---|---|"]
    for room in ROOMS:
        by_entry: dict[str, list[str]] = {}
        for name, stage in dvc["stages"].items():
            for path in stage["deps"]:
                entry = path.removeprefix("pipeline/")
                if path.startswith("pipeline/") and entry.split("/")[0] == room:
                    by_entry.setdefault(entry, []).append(name)
        for entry, names in sorted(by_entry.items() or {room: []}.items()):
            found = "all" if len(names) == len(dvc["stages"]) else ", ".join(f"`{name}`" for name in names)
            lines.append(f"| `{entry}` | {found or 'none'} |")
    return "\n".join(lines)
