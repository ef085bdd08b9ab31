"""dvc.yaml, dvc.lock, params.yaml and the files of the project say the truth about the code."""

import ast
import hashlib
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.base.dvc_files import check_matrix
from pipeline.base.params import SECTIONS, load_params, read_document

REPOSITORY = Path(__file__).parents[1]
DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
PARAMS = read_document(REPOSITORY / "params.yaml")
STUDY = yaml.safe_load((REPOSITORY / "study" / "dvc.yaml").read_text())
STUDIES = ("study", "photos-study")  # folders and profiles
MOST_LINES = 50  # of a stage

# They change how a stage is started, what is watched and what is recorded, never a result.
NO_RESULT = ("pipeline/tracking/", "stages/run.py", "stages/launch.py", "stages/record.py", "stages/environment.py")
# The pictures of a training are no result of it: record.py draws them for MLflow.
CODE = ("pipeline", "stages")


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
    return {name for name in found if name.split(".")[0] in CODE and module_path(name)}


def closure(*names: str) -> set[str]:
    """Files that modules import, directly or not; those of NO_RESULT and what only they import are left out."""
    seen: set[str] = set()
    queue = list(names)
    while queue:
        path = module_path(queue.pop())
        name = str(path.relative_to(REPOSITORY))
        if name not in seen and not name.startswith(NO_RESULT):
            seen.add(name)
            queue += imports(path)
    return {name for name in seen if not name.endswith("__init__.py")}  # which hold a docstring


def covers(dependency: str, file: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


def dependencies(stage: dict) -> list[str]:
    return [dependency for dependency in stage["deps"] if dependency.split("/")[0] in CODE]


@pytest.mark.parametrize("name", [*DVC["stages"], "summarise"])
def test_every_module_that_a_stage_imports_lies_in_its_dependencies_and_none_is_unused(name):
    stage = {**STUDY["stages"], **DVC["stages"]}[name]
    modules = {
        "register": ["stages.register", "pipeline.release.served_model"],  # shipped as a file
        # run.py imports stages.train by name, once the sender is on its way.
        **{key: [f"stages.{name}", "stages.train"] for key in ("pretrain", "classify", "finetune")},
    }.get(name, [f"stages.{name}"])
    needed, listed = closure(*modules), dependencies(stage)
    assert not [file for file in needed if not any(covers(dependency, file) for dependency in listed)]
    assert not [dependency for dependency in listed if not any(covers(dependency, file) for file in needed)]


def test_dependencies_are_folders_where_a_stage_needs_more_than_one_file():
    entries = [dependency for stage in DVC["stages"].values() for dependency in dependencies(stage)]
    assert len(entries) <= 60
    assert not any(dependency.startswith("pipeline/tracking") for dependency in entries)


def test_no_training_waits_for_the_counterfactual_sets():
    made = DVC["stages"]["counterfactual"]["outs"]
    assert made == ["data/counterfactual"]
    readers = {name for name, stage in DVC["stages"].items() if set(stage["deps"]) & set(made)}
    assert readers == {"evaluate", "register"}


def in_folder(entry: object) -> object:
    """A dependency, output or file of parameters of dvc.yaml as study/dvc.yaml must name it."""
    if isinstance(entry, dict):
        key, value = next(iter(entry.items()))
        return {in_folder(key): value}
    return f"seed${{item.seed}}/{entry}" if entry.split("/")[0] in ("data", "models", "reports") else entry


@pytest.mark.parametrize("stage", [name for name in DVC["stages"] if name != "register"])
def test_study_runs_the_same_stages_in_a_folder_per_seed(stage):
    expected, found = DVC["stages"][stage], STUDY["stages"][stage]
    for key in ("deps", "params", "outs"):
        assert found[key] == [in_folder(entry) for entry in expected[key]]
    asked = " --profile ${study.profile} --seed ${item.seed}" if stage == "configure" else ""
    assert found["cmd"] == f"cd .. && {expected['cmd']}{asked} --folder ${{study.folder}}/seed${{item.seed}}"


@pytest.mark.parametrize("study", STUDIES)
def test_study_is_a_project_of_its_own_over_the_same_code(study):
    folder = REPOSITORY / study
    assert (folder / ".dvc" / "config").exists()
    for name in ("pipeline", "stages", "params.yaml"):
        assert (folder / name).resolve() == REPOSITORY / name
    assert (folder / "dvc.yaml").resolve() == REPOSITORY / "study" / "dvc.yaml"
    options = yaml.safe_load((folder / "study.yaml").read_text())["study"]
    assert (options["folder"], options["seeds"]) == (study, [0, 1, 2])  # which `summarise` names
    assert (folder / ".dvcignore").read_text().strip() in (REPOSITORY / ".dvcignore").read_text()


def test_every_stage_has_its_script_its_section_and_nothing_else():
    stages = list(DVC["stages"])
    assert stages == [
        "configure", "download", "prepare", "counterfactual", "pretrain", "classify", "finetune",
        "evaluate", "register",
    ]  # fmt: skip
    assert set(stages) - set(SECTIONS) == {"configure"}  # which has nothing to choose
    shared = {"runtime", "resources", "model", "attention", "variants", "promote"}  # promotion is no stage
    assert set(SECTIONS) - set(stages) == shared
    for stage in [*stages, "summarise"]:
        assert len((REPOSITORY / "stages" / f"{stage}.py").read_text().splitlines()) <= MOST_LINES


def test_params_have_no_aliases():
    """`dvc exp run -S` writes every profile back; through an alias, another profile's old value would win."""
    events = yaml.parse((REPOSITORY / "params.yaml").read_text())
    assert not [event for event in events if isinstance(event, yaml.AliasEvent)]


@pytest.mark.parametrize("profile", list(PARAMS["profiles"]))
def test_variants_of_dvc_are_the_variants_of_every_profile(profile):
    project = next((folder for folder in STUDIES if profile.startswith(folder)), ".")
    check_matrix(load_params(REPOSITORY / "params.yaml", profile=profile), REPOSITORY / project / "dvc.yaml")


def folder_digest(folder: Path) -> str:
    """As DVC computes it: the digest of the sorted list of files, without what .dvcignore names."""
    files = [
        {"md5": hashlib.md5(path.read_bytes()).hexdigest(), "relpath": path.relative_to(folder).as_posix()}
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts)
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
        and not path.name.endswith((".swp", "~")) and path.name != ".DS_Store"
    ]  # fmt: skip
    return (
        hashlib.md5(json.dumps(sorted(files, key=lambda file: file["relpath"]), sort_keys=True).encode()).hexdigest()
        + ".dir"
    )


@pytest.mark.parametrize("name", ["dvc.lock", "study/dvc.lock"])
def test_lock_belongs_to_the_committed_code(name):
    """The lock's digests of code are those of the code: its results were made by what is here."""
    lock = yaml.safe_load((REPOSITORY / name).read_text())
    code = {
        d["path"]: d["md5"] for stage in lock["stages"].values() for d in stage["deps"] if d["path"].startswith(CODE)
    }
    assert code
    for path, md5 in code.items():
        full = REPOSITORY / path
        found = folder_digest(full) if full.is_dir() else hashlib.md5(full.read_bytes()).hexdigest()
        assert found == md5, f"{path}: run `make repro` or `make study` and commit the lock and what it made"


@pytest.mark.parametrize(("name", "profile"), [("dvc.lock", "embedded"), ("study/dvc.lock", "study")])
def test_lock_belongs_to_the_committed_parameters(name, profile):
    lock = read_document(REPOSITORY / name)
    for stage_name, stage in lock["stages"].items():
        seed = int(re.search(r"@(\d)|-(\d)", stage_name)[1] or 0) if "study" in name and "@" in stage_name else 0
        for file, used in stage.get("params", {}).items():
            if file == "params.yaml":
                assert used == PARAMS
                continue
            params = load_params(REPOSITORY / "params.yaml", profile=profile, seed=seed)
            values = params.model_dump(mode="json", by_alias=True)
            for key, value in used.items():
                found = values
                for part in key.split("."):
                    found = found[part]
                assert found == value, f"{stage_name}: {key}: run `make repro` or `make study` and commit {name}"


@pytest.mark.parametrize("study", STUDIES)
def test_results_of_a_study_are_those_of_its_lock(study):
    lock = yaml.safe_load((REPOSITORY / study / "dvc.lock").read_text())
    (out,) = lock["stages"]["summarise"]["outs"]
    assert folder_digest(REPOSITORY / study / out["path"]) == out["md5"]
    evaluated = [name for name in lock["stages"] if name.startswith("evaluate@")]
    assert sorted(evaluated) == ["evaluate@0", "evaluate@1", "evaluate@2"]


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
