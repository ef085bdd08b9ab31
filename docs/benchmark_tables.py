"""The tables of `make bench` in docs/: `python -m docs.benchmark_tables`, and part of `make docs`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
BENCHMARKS = REPOSITORY / "benchmarks"
NAMES = ("definitions", "guidance", "guidance-cuda", "loading", "loading-cuda", "memory", "startup", "scaling", "fleet")


def insert(page: Path, tables: Mapping[str, str]) -> None:
    """Replace what stands between the markers of each table.

    Raises:
        ValueError: the page does not have the markers of one.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        block = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
        pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
        text, found = re.subn(pattern, block.replace("\\", r"\\"), text, flags=re.DOTALL)
        if not found:
            raise ValueError(f"{page}: no markers <!-- {name} --> ... <!-- /{name} -->")
    page.write_text(text, encoding="utf-8")


def insert_benchmarks() -> None:
    """The tables of `make bench`."""
    found = {name: json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
    insert(
        REPOSITORY / "docs" / "performance.md",
        {
            "performance": performance_table(found["guidance"], found["loading"]),
            "seconds": seconds_table(found["guidance"]),
            "performance-cuda": performance_table(found["guidance-cuda"], found["loading-cuda"]),
            "seconds-cuda": seconds_table(found["guidance-cuda"]),
            "memory": memory_table(found["memory"]),
            "startup": startup_table(found["startup"]),
        },
    )
    definitions = found["definitions"]
    insert(
        REPOSITORY / "docs" / "definitions.md",
        {"definitions": definitions_table(definitions), "ties": ties_sentence(definitions)},
    )
    scaling = {"scaling": scaling_tables(found["scaling"]), "fleet": fleet_table(found["fleet"])}
    insert(REPOSITORY / "docs" / "scaling.md", scaling)


def definitions_table(definitions: dict[str, Any]) -> str:
    """Markdown: each score by our definition and by another, on all test images and without those of one class."""
    left_out, count = definitions["left_out"], definitions["num_images"]
    lines = [
        f"| score | defined by | {count} images: ours | theirs | {left_out['num_images']} without "
        f"{left_out['class']}: ours | theirs |",
        "|---|---|---|---|---|---|",
    ]
    for row in definitions["rows"]:
        values = (row[images][side] for images in ("all", "without") for side in ("ours", "theirs"))
        cells = " | ".join(f"{100 * value:.1f}" for value in values)
        lines.append(f"| `{row['score']}` | {row['other']} | {cells} |")
    return "\n".join(lines)


def ties_sentence(definitions: dict[str, Any]) -> str:
    """Insertion with ties as their expectation, and in the order of the array or its reverse."""
    values = ", ".join(f"{name} {100 * value:.1f}" for name, value in definitions["insertion"].items())
    return f"Insertion of {definitions['model']}, mean over pairs, ties as {values}."


def performance_table(guidance: dict[str, Any], loading: dict[str, Any]) -> str:
    """Markdown: what is compared, the goal, and the ratio in float32 and in bfloat16."""
    ratios: dict[str, float] = guidance["ratios"]
    precisions = [name for name in ("fp32", "bf16") if name in guidance["seconds"]["steps"]]
    rows = [
        (
            "all 20 maps with the forward pass / forward pass",
            "forward pass with all maps / forward pass",
            "at most 1.02",
        ),
        (
            "`autograd.grad` at conv5_3 for each class / all maps and the pass that both need",
            "autograd at conv5_3 per class / all maps with the pass that they need",
            "",
        ),
        (
            "pytorch-grad-cam (fp32) / all maps and the pass that they need",
            "pytorch-grad-cam on the network, fp32 / all maps with the pass that they need",
            "75; 150 in bf16",
        ),
        (
            "the same, given the network without its decoder",
            "pytorch-grad-cam on the network without its decoder, fp32 / all maps with the pass that they need",
            "",
        ),
        ("captum (fp32) / the same", "captum on the network, fp32 / all maps with the pass that they need", ""),
        ("GAIN step / plain segmentation step", "GAIN step / plain step", "at most 1.5"),
        (
            "the same, masked pass at full resolution",
            "GAIN step, masked pass at full resolution / plain step",
            "",
        ),
        ("GAIN step / the reference's step", "GAIN step / reference's step", "at most 0.45"),
        ("GAIN step with L_e / without", "GAIN step with L_e / GAIN step", "at most 1.02"),
        ("plain step with padding 100 / padding 1", "plain step, padding 100 / padding 1", ""),
        (
            "plain step, activations recomputed / kept",
            "plain step, activations recomputed / plain step",
            "",
        ),
    ]
    lines = ["| | goal | " + " | ".join(precisions) + " |", "|---" * (2 + len(precisions)) + "|"]
    for title, key, goal in rows:
        if any(f"{key}, {p}" in ratios for p in precisions):
            cells = (_figures(ratios[f"{key}, {p}"]) if f"{key}, {p}" in ratios else "" for p in precisions)
            lines.append(f"| {title} | {goal} | {' | '.join(cells)} |")
    if "bf16" in precisions:
        gained = _figures(ratios["GAIN step, fp32 / GAIN step, bf16"])
        lines.append(f"| GAIN step in fp32 / in bf16 | at least 1.8 | | {gained} |")
    if f"gain step, compiled / as written, {precisions[-1]}" in ratios:
        compiled = _figures(ratios[f"gain step, compiled / as written, {precisions[-1]}"])
        lines.append("| GAIN step with `compile: true` / without | |" + " |" * (len(precisions) - 1) + f" {compiled} |")
    workers, rate = max(loading["loader_images_per_second"].items(), key=lambda item: item[1])
    share = _figures(rate / loading["training_step_images_per_second"])
    lines.append(f"| loader, {workers} / training step, images a second | at least 2 | | {share} |")
    return "\n".join(lines)


def seconds_table(guidance: dict[str, Any]) -> str:
    """Markdown: the seconds behind the ratios."""
    lines = ["| | " + " | ".join(guidance["seconds"]["steps"]) + " |"]
    lines.append("|---" * (1 + len(guidance["seconds"]["steps"])) + "|")
    for kind in ("maps", "steps"):
        by_precision = guidance["seconds"][kind]
        for name in list(by_precision.values())[-1]:
            values = " | ".join(_time(seconds[name]) if name in seconds else "" for seconds in by_precision.values())
            lines.append(f"| {'evaluation' if kind == 'maps' else 'step'}: {name} | {values} |")
    for name, seconds in guidance["seconds"]["peers"].items():
        lines.append(f"| {name}, 20 classes | {_time(seconds)} |" + " |" * (len(guidance["seconds"]["steps"]) - 1))
    shares = guidance["mfu"]
    lines += [
        f"| share of the peak, {side} step | {' | '.join(f'{share[side]:.2f}' for share in shares.values())} |"
        for side in ("plain", "gain")
    ]
    return "\n".join(lines)


def memory_table(memory: dict[str, Any]) -> str:
    """Markdown: what an image adds to a step's peak."""
    lines = [f"| step, {memory['input']} | MiB an image |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value:.0f} |" for name, value in memory["mebibytes_by_image"].items()])


def fleet_table(fleet: dict[str, Any]) -> str:
    """Markdown: what became of the requests of so many workers, and how long the answers took."""
    lines = [
        "| workers | trainings begun | requests lost | sent again "
        "| progress, median / p95 | a worker's poll | an epoch to MLflow |",
        "|---|---|---|---|---|---|---|",
    ]
    for count, found in fleet["workers"].items():
        kinds = found["kinds"]
        times = (
            f"{kinds[k]['median']:.2f} / {kinds[k]['p95']:.2f} s" for k in ("progress", "worker poll", "MLflow epoch")
        )
        begun, again = kinds["run created"]["answers"], sum(found["errors"].values())
        lines.append(f"| {count} | {begun} | {found['lost']} | {again} | {' | '.join(times)} |")
    return "\n".join(lines)


def startup_table(startup: dict[str, Any]) -> str:
    """Markdown: imports of every stage beside their budget."""
    lines = ["| stage | imports | budget |", "|---|---|---|"]
    for name, seconds in startup["seconds"].items():
        budget = startup["budget_seconds"].get(name)
        lines.append(f"| {name} | {seconds:.1f} s | {f'{budget:.0f} s' if budget else ''} |")
    return "\n".join(lines)


def scaling_tables(scaling: dict[str, Any]) -> str:
    """Markdown: two ranks as measured, many as computed."""
    computed = scaling["computed"]
    lines = [f"| measured here: {scaling['input']} | a step | summing the gradients alone |", "|---|---|---|"]
    for name, seconds in scaling["measured_seconds"].items():
        lines.append(f"| {name} | {seconds['step']:.2f} s | {seconds['all_reduce']:.2f} s |")
    lines += ["", "| efficiency, computed | " + " | ".join(map(str, computed["devices"])) + " |"]
    lines.append("|---" * (1 + len(computed["devices"])) + "|")
    for name, shares in computed["efficiency"].items():
        lines.append(f"| {name} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _figures(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}"


if __name__ == "__main__":
    insert_benchmarks()
