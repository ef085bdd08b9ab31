"""dvc.yaml, dvc.lock, params.yaml and README.md say the truth about the code."""

import ast
import hashlib
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.evaluation.passes import results_table

REPOSITORY = Path(__file__).parents[1]
DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
STUDY = yaml.safe_load((REPOSITORY / "study" / "dvc.yaml").read_text())
# They change what is watched, recorded or shipped, never a result.
NO_RESULT = {
    "pipeline.tracking.tracker",
    "pipeline.tracking.provenance",
    "pipeline.tracking.server",
    "pipeline.tracking.sender",
    "pipeline.tracking.progress",
    "stages.launch",
    "pipeline.tracking.throughput",
}
PICTURES = {
    "pipeline.report.panels",
    "pipeline.report.overlays",
    "pipeline.report.charts",
}  # a result of evaluate alone


def module_path(name: str) -> Path | None:
    base = REPOSITORY / name.replace(".", "/")
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.exists()), None)


def imports(path: Path) -> set[str]:
    """Modules of this project that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("pipeline", "stages") and module_path(name)}


def closure(name: str, without: set[str]) -> set[Path]:
    seen: set[str] = set()
    queue = [name]
    while queue:
        module = queue.pop()
        if module in seen or module in without:
            continue
        seen.add(module)
        queue += imports(module_path(module))
    paths = {module_path(module) for module in seen}
    # A package's own file holds a docstring, save for stages, which holds the paths.
    return {p for p in paths if p.name != "__init__.py" or p.parent.name == "stages"}


@pytest.mark.parametrize("stage", DVC["stages"])
def test_stage_dependencies_are_the_modules_that_it_imports(stage):
    without = NO_RESULT | (PICTURES if stage in ("pretrain", "classify", "finetune") else set())
    expected = closure(f"stages.{stage}", without)
    if stage == "register":
        expected |= closure("pipeline.release.served_model", without)  # shipped as a file, not imported
    listed = {dependency for dependency in DVC["stages"][stage]["deps"] if dependency.endswith(".py")}
    assert listed == {str(path.relative_to(REPOSITORY)) for path in expected}


def in_folder(entry: object) -> object:
    """A dependency or output of dvc.yaml as study/dvc.yaml must name it."""
    if isinstance(entry, dict):
        return in_folder(next(iter(entry)))
    return f"study/seed${{item.seed}}/{entry}" if entry.split("/")[0] in ("data", "models", "reports") else entry


@pytest.mark.parametrize("stage", [name for name in DVC["stages"] if name != "register"])
def test_study_runs_the_same_stages_in_a_folder_per_seed(stage):
    expected, found = DVC["stages"][stage], STUDY["stages"][stage]
    assert found["deps"] == [in_folder(entry) for entry in expected["deps"]]
    outputs = [*expected["outs"], *expected.get("metrics", [])]
    assert [*found["outs"], *found.get("metrics", [])] == [in_folder(entry) for entry in outputs]
    params = [key.replace("${profile}", "study") for key in expected["params"] if key != "seed"]
    assert found.get("params", []) == params
    assert found["cmd"].startswith(expected["cmd"].split(" ${")[0])
    assert "--profile study --seed ${item.seed} --folder study/seed${item.seed}" in found["cmd"]


def test_summary_depends_on_what_it_imports():
    expected = closure("stages.summarise", NO_RESULT)
    listed = {dependency for dependency in STUDY["stages"]["summarise"]["deps"] if dependency.endswith(".py")}
    assert listed == {str(path.relative_to(REPOSITORY)) for path in expected}


def test_every_stage_has_its_script_its_section_and_nothing_else():
    stages = list(DVC["stages"])
    assert stages == ["download", "prepare", "pretrain", "classify", "finetune", "evaluate", "register"]
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for profile in params["profiles"].values():
        assert set(stages) - set(profile) == {"prepare"}  # which has nothing to choose
        assert set(profile) - set(stages) == {"runtime", "resources", "model", "promote"}  # promotion is no stage


def test_params_have_no_aliases():
    """`dvc exp run -S` writes every profile back; through an alias, another profile's old value would win."""
    events = yaml.parse((REPOSITORY / "params.yaml").read_text())
    assert not [event for event in events if isinstance(event, yaml.AliasEvent)]


def test_variants_of_dvc_are_the_variants_of_every_profile():
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for name, profile in params["profiles"].items():
        stages = STUDY if name == "study" else DVC
        assert list(profile["finetune"]["variants"]) == stages["stages"]["finetune"]["matrix"]["variant"]


@pytest.mark.parametrize("name", ["dvc.lock", "study/dvc.lock"])
def test_lock_belongs_to_the_committed_code(name):
    """dvc.lock's digests of code are those of the code: its results were made by what is here."""
    lock = yaml.safe_load((REPOSITORY / name).read_text())
    files = {d["path"]: d["md5"] for s in lock["stages"].values() for d in s["deps"] if d["path"].endswith(".py")}
    assert files
    changed = [p for p, md5 in files.items() if hashlib.md5((REPOSITORY / p).read_bytes()).hexdigest() != md5]
    assert not changed, "run `make repro` or `make study` and commit the lock and what it made"


@pytest.mark.parametrize("name", ["dvc.lock", "study/dvc.lock"])
def test_lock_belongs_to_the_committed_parameters(name):
    lock = yaml.safe_load((REPOSITORY / name).read_text())
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    for stage in lock["stages"].values():
        for key, used in stage.get("params", {}).get("params.yaml", {}).items():
            value = params
            for part in key.split("."):
                value = value[part]
            assert value == used, f"{key}: run `make repro` or `make study` and commit {name}"


def committed(path: str) -> str:
    result = subprocess.run(
        ["git", "show", f"HEAD:{path}"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(f"{path} is not committed")
    return result.stdout


def test_readme_table_is_the_committed_metrics():
    """Read from the commit: a checkout whose metrics another machine has made anew is no less true."""
    readme, metrics = committed("README.md"), json.loads(committed("reports/evaluate/metrics.json"))
    table = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", readme, re.DOTALL)
    assert table is not None
    assert table[1].strip() == results_table(metrics)


def test_readme_shows_the_study_and_names_the_run_of_every_row():
    table = re.search(r"<!-- study -->\n(.*?)\n<!-- /study -->", committed("README.md"), re.DOTALL)
    assert table is not None
    assert table[1].strip() == committed("study/results/table.md").strip()
    rows = [line for line in committed("docs/study.md").splitlines() if re.match(r"\| \w+ \| \d \|", line)]
    models = 1 + len(STUDY["stages"]["finetune"]["matrix"]["variant"])
    assert len({re.search(r"`([0-9a-f]{32})` \|$", row)[1] for row in rows}) == 3 * models


def test_readme_tree_names_every_file():
    tree = re.search(r"## The tree\n.*?```\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    for folder in ("pipeline", "stages"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert path.name in tree[1], f"{path.relative_to(REPOSITORY)} is missing from the tree in README.md"


def test_parameters_that_readme_sets_exist_and_would_change():
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    settings = re.findall(r"-S '?([\w.]+)=([\w.]+)", (REPOSITORY / "README.md").read_text())
    assert settings
    for key, value in settings:
        found = params
        for part in key.split("."):
            found = found[part]
        assert str(found) != value, key


def test_version_and_pythons_are_the_same_everywhere():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    released = re.search(r"^## (\S+) - (\S+)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released.groups() == (project["version"], str(citation["date-released"]))
    assert citation["version"] == project["version"]
    jobs = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())["jobs"]
    pythons = jobs["check"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={pythons[0]},<3.{int(pythons[-1].removeprefix('3.')) + 1}"
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(f"python{version} " in makefile for version in pythons)


def test_lock_names_no_server():
    assert "://" not in (REPOSITORY / "requirements.lock").read_text()
