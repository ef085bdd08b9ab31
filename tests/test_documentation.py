"""README.md and docs/ say the truth about the code."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from pipeline.base.params import SECTIONS, load_params, read_document, resolve
from pipeline.cli.main import app
from pipeline.report.tables import results_table

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))  # docs/ is no package of the distribution

from docs.stage_tables import ROOMS, parameter_table, room_table  # noqa: E402

DVC = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())
STUDY = yaml.safe_load((REPOSITORY / "study" / "study.yaml").read_text())
PARAMS = read_document(REPOSITORY / "params.yaml")
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8") for page in PAGES}


def committed(path: str) -> str:
    result = subprocess.run(
        ["git", "show", f"HEAD:{path}"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.skip(f"{path} is not committed")
    return result.stdout


def between_markers(text: str, name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.DOTALL)
    assert found is not None, f"the markers of {name} are missing"
    return found[1].strip()


def blocks(text: str, language: str = "") -> list[str]:
    """The fenced blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> str:
    """What a page shows as code, in blocks or in a line."""
    return "\n".join([*blocks(text), *re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))])


def test_readme_table_is_the_committed_metrics():
    """Read from the commit: a checkout whose metrics another machine has made again is no less true."""
    metrics = json.loads(committed("reports/evaluate/metrics.json"))
    assert between_markers(committed("README.md"), "results") == results_table(metrics)


def test_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_readme_explains_the_models_and_scores_before_it_shows_them():
    before, table = TEXTS["README.md"].split("<!-- results -->")
    header, _, *rows = table.split("\n\n")[0].strip().splitlines()
    columns = [column.strip() for column in header.strip("|").split("|")][1:]
    models = [row.split("|")[1].strip() for row in rows]
    assert set(models) == {"pretrained", *DVC["stages"]["finetune"]["matrix"]["variant"]}
    unexplained = [name for name in columns if f"**{name}**" not in " ".join(before.split())]
    assert not unexplained + [name for name in models if f"`{name}`" not in before]


def test_tree_names_every_room_and_every_stage():
    tree = next(block for block in blocks(TEXTS["README.md"].split("## The tree")[1]))
    rooms = [path.parent.name for path in (REPOSITORY / "pipeline").glob("*/__init__.py")]
    assert rooms
    assert not [room for room in rooms if not re.search(rf"^  {room}/ +\S", tree, re.MULTILINE)]
    assert not [stage for stage in (*DVC["stages"], "summarise") if not re.search(rf"\b{stage}\b", tree)]
    # Nothing in it that is not there.
    assert set(re.findall(r"^  (\w+)/ ", tree, re.MULTILINE)) == set(rooms)


def test_study_page_shows_the_table_and_names_the_run_of_every_row():
    assert between_markers(committed("docs/study.md"), "study") == committed("study/results/table.md").strip()
    rows = [line for line in committed("docs/study-runs.md").splitlines() if re.match(r"\| \w+ \| \d \|", line)]
    models = 1 + len(STUDY["study"]["variants"])
    assert len({re.search(r"`([0-9a-f]{32})` \|$", row)[1] for row in rows}) == 3 * models


def test_tables_of_stages_are_those_of_dvc():
    assert between_markers(TEXTS["docs/parameters.md"], "parameters") == parameter_table(DVC)
    assert between_markers(TEXTS["docs/development.md"], "rooms") == room_table(DVC)
    assert set(ROOMS) == {path.parent.name for path in (REPOSITORY / "pipeline").glob("*/__init__.py")}


def test_index_names_every_page():
    for page in (REPOSITORY / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in TEXTS["docs/README.md"], page.name


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (REPOSITORY / page).parent / name if name else REPOSITORY / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


def test_equations_are_where_the_page_says():
    rows = re.findall(
        r"^\| (Eq\. \d) \|.*\| `(\w+)` \| \[[\w.]+\]\(\.\./([\w/.]+)\) \|$", TEXTS["docs/method.md"], re.M
    )
    assert {equation for equation, _, _ in rows} == {f"Eq. {number}" for number in range(1, 9)}
    for equation, function, path in rows:
        nodes = ast.walk(ast.parse((REPOSITORY / path).read_text()))
        documented = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.FunctionDef) and n.name == function]
        assert documented, f"{function} is not in {path}"
        number = equation.removeprefix("Eq. ")
        assert re.search(rf"\bEqs?\.[^.:]*\b{number}\b", documented[0]), f"{function} does not name {equation}"


def test_parameters_that_are_set_exist_and_would_change():
    settings = [(page, *pair) for page in TEXTS for pair in re.findall(r"-S '?([\w.+]+)=([\w.-]+)", TEXTS[page])]
    assert settings
    for page, key, value in settings:
        if (key, value) in [("profile", "mine"), ("profile", "heavy")]:
            continue  # written by the reader, from the page
        document = PARAMS if key.startswith(("profile", "++")) else resolve(PARAMS)
        parts = key.removeprefix("++").split(".")
        found = document
        for part in parts[:-1] if key.startswith("++") else parts:
            assert part in found, f"{page}: {key}"
            found = found[part]
        assert str(found) != value, f"{page}: {key} is {value} already"


def test_added_keys_are_those_that_the_profile_lacks():
    added = [pair for text in TEXTS.values() for pair in re.findall(r"-S \+\+([\w.]+)\.(\w+)=", text)]
    assert added
    for section, key in added:
        _, profile, name = section.split(".")
        assert key not in PARAMS["profiles"][profile].get(name, {})
        assert key in PARAMS[name]


def test_keys_that_the_pages_name_exist():
    """`section.key` of params.yaml, in the text of any page."""
    sections = set(SECTIONS) - {"variants"}  # whose keys are names
    pattern = rf"`(({'|'.join(sections)})\.[a-z_][a-z_.]*[a-z_])(?:: [^`]*)?`"
    other = ("yaml", "py", "md", "json", "onnx", "archive", "sbd", "path")  # files, and keys of other sources
    missing = []
    for page, text in TEXTS.items():
        for key, section in re.findall(pattern, text):
            parts = key.split(".")[1:]
            if parts[0] not in PARAMS[section] and not set(parts) & set(other):
                missing.append(f"{page}: {key}")
    assert not missing


OWN = [(page, block) for page in TEXTS for block in blocks(TEXTS[page], "yaml") if block.startswith("profiles:")]


@pytest.mark.parametrize(("page", "block"), OWN, ids=[f"{page}-{index}" for index, (page, _) in enumerate(OWN)])
def test_profiles_on_the_pages_load_and_are_short(page, block, tmp_path):
    ((name, profile),) = yaml.safe_load(block)["profiles"].items()
    assert len(block.splitlines()) <= 1 + 10
    document = {**PARAMS, "profile": name, "profiles": {**PARAMS["profiles"], name: profile}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    params = load_params(tmp_path / "params.yaml")
    assert list(params.variants) == DVC["stages"]["finetune"]["matrix"]["variant"]


@pytest.mark.parametrize("page", TEXTS)
def test_targets_and_commands_that_the_pages_name_exist(page):
    targets = re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    shown = commands(TEXTS[page])
    assert not set(re.findall(r"(?:^|[ `(])make ([a-z][a-z0-9-]*)", shown, re.MULTILINE)) - set(targets)
    known = typer.main.get_command(app).commands
    for name, options in re.findall(r"(?:^|[ `(])gain ([a-z][a-z-]*)([^`\n#]*)", shown, re.MULTILINE):
        assert name in known, f"gain {name}"
        accepted = [option for parameter in known[name].params for option in parameter.opts]
        assert not set(re.findall(r"(?<!\S)(--[a-z-]+)", options)) - set(accepted), f"gain {name}{options}"


def test_examples_have_a_list_of_what_tried_them():
    without = [page for page in TEXTS if page.startswith("docs/") and "\n## Tried\n" not in TEXTS[page]]
    assert without == ["docs/README.md", "docs/photographs-runs.md", "docs/study-runs.md"]
