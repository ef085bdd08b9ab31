"""Every kind of configuration that cannot work is found by `configure` and by `gain doctor`, in one line."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkouts import checkout, gain, one_line, set_params, stage
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from test_params import DOCUMENT, leaves, written

from pipeline.base.dvc_files import check_matrix, locked_document, output_at
from pipeline.base.errors import PipelineError
from pipeline.base.outside import located
from pipeline.base.params import SECTIONS, load_params
from pipeline.base.profile import Params
from pipeline.base.workspace import Workspace

NO_LEARNING = {"trunk": 0.0, "decoder": 0.0, "classifier": 0.0}


def renamed(name: object) -> dict[str, Any]:
    """The variants of the file, one of them under another name."""
    return {**DOCUMENT["variants"], name: DOCUMENT["variants"]["gain"]}


# What is set in params.yaml, and what the one line says; none of it may start a stage.
EXAMPLES: list[tuple[str, object, str]] = [
    ("register.metric", "attention_ious", "register.metric: no score is called 'attention_ious'; did you mean"),
    ("register.candidates", ["gian"], "register.candidates must name variants"),
    ("promote.better", ["overal"], "promote.better: no score is called 'overal'; did you mean 'overall'?"),
    ("promote.at_least", {"mean_io": 0.1}, "promote.at_least: no score is called 'mean_io'; did you mean 'mean_iou'?"),
    ("promote.at_least", {"mean_iou": 50}, "promote.at_least.mean_iou: Input should be less than or equal to 1"),
    ("promote.at_least", {}, "at_least must name at least one score"),
    ("promote.not_below", {"mean_io": 0.1}, "promote.not_below: no score is called 'mean_io'"),
    ("promote.not_below", {"mean_iou": 2.0}, "promote.not_below.mean_iou: Input should be less than or equal to 1"),
    ("pretrain.frozen", ["trunk", "decoder", "classifier"], "pretrain would learn nothing: its loss trains trunk, "),
    ("pretrain.frozen", ["trunk", "decoder"], "pretrain would learn nothing: its loss trains trunk, decoder"),
    ("pretrain.learning_rate_scales", NO_LEARNING, "pretrain would learn nothing"),
    ("classify.learning_rate_scales", {"classifier": 0.0}, "classify would learn nothing: its loss trains trunk, "),
    ("finetune.frozen", ["classifier", "trunk", "decoder"], "finetune (variant control) would learn nothing"),
    ("variants.gain.loss_weights", {}, "variants.gain.loss_weights: no loss weighs anything"),
    ("variants.gain.loss_weights", {"segmentation": 0.0}, "variants.gain.loss_weights: no loss weighs anything"),
    ("variants", renamed("pretrained"), "variants: 'pretrained' cannot name a variant, since the network "),
    ("variants", renamed(""), "variants: '' cannot name a variant, since it becomes part of file names"),
    ("variants", renamed("a/b"), "variants: 'a/b' cannot name a variant"),
    ("variants", renamed(".."), "variants: '..' cannot name a variant"),
    ("variants", renamed("a.b"), "variants: 'a.b' cannot name a variant"),  # DVC would read a key b of a variant a
    ("variants", renamed("-x"), "variants: '-x' cannot name a variant"),
    ("variants", renamed("a" * 101), "cannot name a variant"),
    ("variants", renamed("a b"), "variants: 'a b' cannot name a variant"),
    ("variants", renamed("a\nb"), "variants: 'a\\nb' cannot name a variant"),
    ("variants", renamed(1), "variants.1: Input should be a valid string, got 1"),
    ("resources.num_workers", 10**6, "resources.num_workers: Input should be less than or equal to 256, got 1000000"),
    ("download.num_train", 10**15, "download.num_train: Input should be less than or equal to 1000000, got 1000"),
    ("evaluate.deletion_steps", 10**7, "evaluate.deletion_steps: Input should be less than or equal to 1000, got 1000"),
    ("pretrain.crop_size", 4096, "pretrain.crop_size: 4096 pixels, but no image has a side above 128"),
    ("finetune.crop_size", 10**6, "finetune.crop_size: Input should be less than or equal to 8192"),
    ("attention.pixel_labels", {"count": 961}, "attention.pixel_labels.count: 961 images asked for (gain_ext)"),
    ("prepare.allow", ["missing_clases"], "prepare.allow.0: Input should be 'missing_classes' or 'duplicates'"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "problem"), EXAMPLES)
def test_what_cannot_work_is_refused_when_it_is_read(tmp_path, refused, key, value, problem):
    assert problem in refused(load_params, written(tmp_path, {key: value}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"download.test_split": "val", "download.num_val": 1464},
            "download.num_val: 1464 of VOC12 train's 1464 images",
        ),
        ({"attention.pixel_labels": {"count": 1465}}, "1465 images asked for (gain_ext), and there are 1464 training"),
        (
            {"finetune.crop_size": 1251},
            "finetune.crop_size: 1251 pixels, but no image has a side above 500, resized 625",
        ),
        ({"download.archive.mirrors": ["foo"]}, "download.archive.mirrors.0: String should match pattern"),
        ({"download.archive.mirrors": ["file:///etc/x"]}, "download.archive.mirrors.0: String should match pattern"),
    ],
)
def test_what_voc2012_cannot_give_is_refused_when_it_is_read(tmp_path, refused, changes, problem):
    path = written(tmp_path, {f"profiles.voc2012.{key}": value for key, value in changes.items()}, "voc2012")
    assert problem in refused(load_params, path)


def test_what_is_at_the_edge_is_accepted(tmp_path):
    edge = {
        "resources.num_workers": 256, "pretrain.crop_size": 256, "finetune.frozen": ["trunk", "decoder"],
        "variants": renamed("x_9-"), "promote.not_below": {"mean_iou": 1.0},
    }  # fmt: skip
    assert load_params(written(tmp_path, edge)).pretrain.crop_size == 256


SCALES = {  # wide ones, which contain what is tried
    "pretrain.scale": [0.1, 2.0], "pretrain.crop_size": 96, "classify.scale": [0.1, 2.0], "classify.crop_size": 96,
}  # fmt: skip


@pytest.mark.parametrize(("scale", "low", "high"), [(1.0, 0.35, 0.6), (0.3, 0.35, 0.6), (0.5, 1.0, 1.0)])
def test_scale_of_evaluation_that_a_training_never_showed_is_doubted(tmp_path, scale, low, high):
    changes = {"evaluate.scale": scale, **SCALES, "finetune.scale": [low, high], "finetune.crop_size": 96}
    (doubt,) = load_params(written(tmp_path, changes)).doubts
    assert doubt == (
        f"evaluate.scale: {scale:g} lies outside finetune.scale, [{low:g}, {high:g}]: networks are scored on objects "
        "of a size that finetune never showed them; set it to a value within"
    )
    within = {**changes, "evaluate.scale": low if low == high else 0.6}
    assert load_params(written(tmp_path, within)).doubts == []


def test_loss_that_trains_frozen_parts_alone_is_doubted(tmp_path):
    doubts = load_params(written(tmp_path, {"finetune.frozen": ["trunk", "decoder"]})).doubts
    assert doubts[0] == (
        "variants.control.loss_weights.segmentation changes nothing: finetune freezes trunk and decoder, which it "
        "trains"
    )
    assert len(doubts) == 3
    assert load_params(written(tmp_path, {})).doubts == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("? [a, b]\n: 1\n", "not valid YAML: "),
        ("seed: 0\nruntime: {device: cpu, device: cuda}\n", "the key 'device' is given twice"),
        (f"seed: {'1' * 5000}\n", "not valid YAML: "),
        ("seed: 2026-99-99\n", "not valid YAML: "),
        ("seed: !!python/object/apply:os.system ['touch executed']\n", "not valid YAML: "),
    ],
)
def test_file_that_yaml_cannot_read_is_one_line(tmp_path, refused, monkeypatch, text, problem):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(text)
    assert problem in refused(load_params, Path("params.yaml"))
    assert not Path("executed").exists()


def test_every_number_has_a_lower_and_an_upper_end():
    """Of every field of every section, those of lists and mappings too."""
    unbounded = sorted({place for place, schema in _numbers(Params) if not _bounded(schema)})
    assert unbounded == []


def _numbers(model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    schema = model.model_json_schema()
    definitions = {model.__name__: schema, **schema.get("$defs", {})}

    def walk(place: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, list):
            for child in node:
                yield from walk(place, child)
        elif isinstance(node, dict):
            if node.get("type") in ("integer", "number"):
                yield place, node
            for child in node.values():
                yield from walk(place, child)

    for name, definition in definitions.items():
        for field, node in definition.get("properties", {}).items():
            yield from walk(f"{name}.{field}", node)


def _bounded(schema: dict[str, Any]) -> bool:
    lower, upper = {"minimum", "exclusiveMinimum", "const"}, {"maximum", "exclusiveMaximum", "const"}
    return "enum" in schema or bool(lower & set(schema) and upper & set(schema))


# ---- dvc.yaml and paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "problem"),
    [
        ({"variant": ["control", "gain", "gain_ex"]}, "has 'gain_ex', params.yaml: variants has not"),
        ({"variant": ["control", "gain", "gain_ex"]}, "did you mean 'gain_ext'?"),
        ({"variant": ["control", "gain"]}, "params.yaml: variants has 'gain_ext'"),
        ({"varient": ["control", "gain", "gain_ext"]}, "finetune.matrix.variant: expected the list of variants"),
        ({"variant": None}, "finetune.matrix.variant: expected the list of variants"),
        (["control"], "finetune.matrix.variant: expected the list of variants"),
    ],
)
def test_matrix_that_is_misspelt_is_refused(tmp_path, refused, matrix, problem):
    path = tmp_path / "dvc.yaml"
    path.write_text(yaml.safe_dump({"stages": {"finetune": {"matrix": matrix}}}))
    assert problem in refused(check_matrix, load_params(written(tmp_path, {})), path)


@pytest.mark.parametrize("content", ["stages: [a]\n", "stages: {a: 1}\n"])
def test_dvc_file_that_is_none_is_refused(tmp_path, refused, content):
    (tmp_path / "dvc.yaml").write_text(content)
    assert "stages: expected a mapping of stages" in refused(locked_document, tmp_path / "dvc.yaml")


STAGES = {
    "a": {"outs": ["photos", {"deep/mine": {"persist": True}}, "models/${item.variant}.bin"]},
    "b": {"wdir": "sub", "outs": ["x"], "metrics": [{"m.json": {"cache": False}}], "plots": ["p"]},
    "c": {"cmd": "true", "outs": None},
}


@pytest.mark.parametrize(
    ("path", "output"),
    [
        ("photos", "photos"), ("photos/2019", "photos"), ("deep", "deep/mine"), ("deep/mine/a", "deep/mine"),
        ("models/x.bin", "models/${item.variant}.bin"), ("models", "models/${item.variant}.bin"), ("sub/x/y", "sub/x"),
        ("sub/m.json", "sub/m.json"), ("sub/p", "sub/p"), ("photos2", None), ("deep/other", None), ("sub/q", None),
        ("models/x.txt", None), ("..", None),
    ],
)  # fmt: skip
def test_path_in_an_output_of_dvc_or_around_one_is_found(tmp_path, path, output):
    project = tmp_path / "project"
    project.mkdir()
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    assert output_at((project / path).resolve(), project) == output


def test_data_in_an_output_of_dvc_are_refused_and_left_alone(tmp_path, monkeypatch, refused):
    """DVC removes the outputs of a stage before it runs."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}))
    Path("photos").mkdir()
    (Path("photos") / "kept.jpg").write_text("mine")
    (tmp_path / "link").symlink_to("photos")
    for path in ("photos", str(tmp_path / "photos"), "link"):
        message = refused(located, "download.path", path, Workspace())
        assert message == (
            f"params.yaml: download.path: DVC would remove {path}, since dvc.yaml has the output photos; move it "
            "elsewhere"
        )
    assert (Path("photos") / "kept.jpg").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "path", "problem"),
    [
        ("download.path", "~nosuchuser/photos", "download.path: '~nosuchuser/photos' is no path ("),
        ("download.path", "a\0b", "download.path: "),
        ("download.path", "a" * 5000, "download.path: "),
        ("download.archive.path", "folder", "download.archive.path: folder is a folder; name the file itself"),
        ("download.path", "nowhere", "download.path: nowhere does not exist; correct the path"),
        ("download.path", "", "holds this project itself"),
        ("download.path", "/", "holds this project itself"),
    ],
)
def test_path_that_is_none_is_one_line(tmp_path, monkeypatch, refused, key, path, problem):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert f"params.yaml: {key}: " in refused(located, key, path, Workspace())
    assert problem in refused(located, key, path, Workspace())


# ---- by the commands -------------------------------------------------------------------------------------------------

OWN = {".promote.better": ["attention_iou"]}
COMMANDS: list[tuple[dict[str, Any], str]] = [
    ({"resources.num_workers": 10**6}, "resources.num_workers: Input should be less than or equal to 256"),
    ({".variants.a/b": {"loss_weights": {"segmentation": 1.0}}}, "variants: 'a/b' cannot name a variant"),
    ({".variants.more": {"loss_weights": {"segmentation": 1.0}}}, "variants has 'more'"),
    ({".finetune.crop_size": 4096}, "finetune.crop_size: 4096 pixels, but no image has a side above 64"),
    (
        {**OWN, ".download": {"source": "folder", "path": "~nosuchuser", "ignore_index": 255}},
        "'~nosuchuser' is no path",
    ),
    ({**OWN, ".download": {"source": "folder", "path": "data/x", "ignore_index": 255}}, "data/x lies in data, which"),
]


@pytest.mark.system
@pytest.mark.parametrize(("changes", "problem"), COMMANDS)
def test_configure_and_doctor_find_it_and_nothing_is_written(tmp_path, changes, problem):
    folder = checkout(tmp_path / "repo")
    kept = folder / "data" / "x" / "kept.jpg"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    set_params(folder, changes)
    one_line(stage(folder, "configure"), problem)
    assert not (folder / "reports").exists()
    found = gain(folder, "doctor")
    assert found.returncode == 1
    assert problem in found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    assert kept.read_text() == "mine"


# ---- anything at all -------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["trunk", "~x", ".."]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {key for name in SECTIONS for key in [name, *leaves(DOCUMENT[name], name)]} | {"profile", "seed", "profiles"}
)


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2))
def test_any_value_anywhere_is_taken_or_refused_in_one_line(changes):
    with tempfile.TemporaryDirectory() as folder:
        document = json.loads(json.dumps(DOCUMENT))
        for dotted, value in sorted(changes.items(), reverse=True):  # the inner ones first
            *parents, key = dotted.split(".")
            place = document
            for parent in parents:
                place = place[parent]
            place[key] = value
        path = Path(folder) / "params.yaml"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        try:
            load_params(path)
        except PipelineError as error:
            assert "\n" not in str(error)
            assert str(error).startswith(f"{path}: ")
