"""Profiles say what differs, and what makes no difference or no sense together is said."""

import json
import threading
from pathlib import Path

import pytest
import yaml
from checkouts import REPOSITORY

from pipeline.base import dvc_files
from pipeline.base.dvc_files import check_matrix, locked_document
from pipeline.base.errors import PipelineError
from pipeline.base.outside import NOTHING, link_outside_files
from pipeline.base.overrides import explained, unused_changes
from pipeline.base.params import load_params, place_of, resolve
from pipeline.base.workspace import Workspace

DOCUMENT = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
OWN = {"download": {"source": "folder", "path": "mine", "ignore_index": 255}, "promote": {"better": ["attention_iou"]}}


def document(**changes: object) -> dict:
    """The committed parameters with top-level keys changed."""
    return {**json.loads(json.dumps(DOCUMENT)), **changes}


def written(folder: Path, content: dict) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_a_profile_of_ones_own_takes_ten_lines(tmp_path):
    own = yaml.safe_dump(OWN, default_flow_style=None)
    assert len(own.splitlines()) <= 10
    params = load_params(written(tmp_path, document(profile="own", profiles={"own": OWN})))
    assert params.download.path == "mine"
    assert params.pretrain.learning_rate == DOCUMENT["pretrain"]["learning_rate"]


def test_sections_merge_key_by_key_but_another_source_replaces_all():
    profiles = {"p": {"pretrain": {"num_epochs": 1}, "download": {"source": "folder", "path": "x", "ignore_index": 1}}}
    found = resolve(document(profile="p", profiles=profiles))
    assert found["pretrain"] == {**DOCUMENT["pretrain"], "num_epochs": 1}
    assert found["download"] == profiles["p"]["download"]


def test_variant_set_to_null_is_left_out_and_a_new_one_comes_last():
    new = {"loss_weights": {"segmentation": 1.0}}
    found = resolve(document(profile="p", profiles={"p": {"variants": {"gain": None, "mine": new}}}))
    assert list(found["variants"]) == ["control", "gain_ext", "mine"]


def test_profile_that_is_like_another_builds_on_it():
    """Key by key on what the other makes of the sections, through any number of profiles."""
    profiles = {
        "a": {"pretrain": {"num_epochs": 1, "batch_size": 4}, "download": OWN["download"], "variants": {"gain": None}},
        "b": {"like": "a", "pretrain": {"batch_size": 2}},
        "c": {"like": "b", "download": {"path": "other"}, "variants": {"gain_ext": None}},
    }
    found = resolve(document(profile="c", profiles=profiles))
    assert found["pretrain"] == {**DOCUMENT["pretrain"], "num_epochs": 1, "batch_size": 2}
    assert found["download"] == {**OWN["download"], "path": "other"}
    assert list(found["variants"]) == ["control"]
    assert "like" not in found


def test_place_and_unused_changes_follow_what_a_profile_is_like():
    before, after = document(profile="voc2012-imagenet"), document(profile="voc2012-imagenet")
    assert place_of(after, "model.padding") == "profiles.voc2012-imagenet.model.padding"
    assert place_of(after, "pretrain.batch_size") == "profiles.voc2012.pretrain.batch_size"
    assert place_of(after, "classify.batch_size") == "classify.batch_size"
    after["profiles"]["voc2012"]["model"]["padding"] = 1
    after["profiles"]["voc2012"]["pretrain"]["batch_size"] = 32
    after["profiles"]["voc2012-atonce"]["model"]["padding"] = 1
    assert unused_changes(before, after) == ["profiles.voc2012.model.padding", "profiles.voc2012-atonce.model.padding"]
    after["profiles"]["voc2012-atonce"]["pretrain"]["batch_size"] = 4
    assert unused_changes(before, after) == ["profiles.voc2012.model.padding", "profiles.voc2012-atonce"]
    assert explained("profiles.voc2012-atonce", after) == "the chosen profile is voc2012-imagenet"
    said = explained("profiles.voc2012.model.padding", after)
    assert said == "profile voc2012-imagenet says otherwise; change profiles.voc2012-imagenet.model.padding"
    assert explained("profiles.voc2012-atonce.model.padding", after) == "the chosen profile is voc2012-imagenet"


@pytest.mark.parametrize(
    ("profiles", "problem"),
    [
        ({"p": {"like": "q"}}, "profiles.p.like: 'q' is not under profiles; known: none"),
        ({"p": {"like": "smok"}, "smoke": {}}, "profiles.p.like: 'smok' is not under profiles; did you mean 'smoke'?"),
        ({"p": {"like": None}}, "profiles.p.like: None is not under profiles"),
        ({"p": {"like": ["p"]}}, "profiles.p.like: ['p'] is not under profiles"),
        ({"p": {"like": "p"}}, "profiles.p.like: p builds on p itself; name another profile"),
        ({"p": {"like": "q"}, "q": {"like": "p"}}, "profiles.q.like: p builds on q itself"),
        ({"p": {"like": "q"}, "q": [1]}, "profiles.q: expected a mapping of sections, got [1]"),
        ({"p": {"like": "q"}, "q": {"pretran": {}}}, "profiles.q: unknown key 'pretran'; did you mean 'pretrain'?"),
        ({"p": {"like": "q"}, "q": {"seed": 1}}, "profiles.q: unknown key 'seed'"),
        ({"p": {"like": "q"}, "q": {"model": {"width": 9.0}}}, "profiles.q.model.width: Input should be less than"),
    ],
)
def test_like_that_names_no_profile_is_refused(tmp_path, refused, profiles, problem):
    assert problem in refused(load_params, written(tmp_path, document(profile="p", profiles=profiles)))


def test_voc2012_from_imagenet_differs_in_what_its_start_asks_for():
    from_caffe, from_imagenet = (
        load_params(REPOSITORY / "params.yaml", profile=name) for name in ("voc2012", "voc2012-imagenet")
    )
    assert from_imagenet.pretrain.weights.source == "imagenet"
    assert from_imagenet.pretrain.num_epochs > 0
    assert from_imagenet.download.test_split == from_caffe.download.test_split  # so that the two can be compared
    files = [from_imagenet.download.archive, from_imagenet.download.sbd, from_imagenet.pretrain.weights.file]
    assert all(file.path is None and file.mirrors and file.checksum for file in files)  # none by hand
    assert from_imagenet.doubts == []


def test_resolved_file_reads_as_the_profile_that_it_came_from(tmp_path):
    params = load_params(REPOSITORY / "params.yaml", profile="smoke", seed=3)
    path = written(tmp_path, params.model_dump(mode="json", by_alias=True))
    assert load_params(path) == params


def test_place_names_where_the_value_is_said():
    changed = document(profile="smoke")
    assert place_of(changed, "pretrain.num_epochs") == "profiles.smoke.pretrain.num_epochs"
    assert place_of(changed, "pretrain.learning_rate") == "pretrain.learning_rate"


@pytest.mark.parametrize(
    ("key", "value", "unused"),
    [
        ("pretrain.num_epochs", 1, True),  # smoke says otherwise
        ("pretrain.learning_rate", 1.0, False),
        ("profiles.voc2012.pretrain.num_epochs", 1, True),
        ("profiles.smoke.pretrain.num_epochs", 9, False),
        ("seed", 7, False),
    ],
)
def test_change_that_the_profile_does_not_read_is_found(key, value, unused):
    before, after = document(profile="smoke"), document(profile="smoke")
    *parents, last = key.split(".")
    place = after
    for parent in parents:
        place = place[parent]
    place[last] = value
    assert unused_changes(before, after) == ([key] if unused else [])


def test_unused_change_is_told_what_to_change_instead():
    changed = document(profile="smoke")
    assert "change profiles.smoke.pretrain.num_epochs" in explained("pretrain.num_epochs", changed)
    assert explained("profiles.voc2012.seed", changed) == "the chosen profile is smoke"


def test_every_profile_registers_under_a_name_of_its_own():
    """A model of one profile displaces no challenger of another."""
    names = {name: load_params(REPOSITORY / "params.yaml", profile=name) for name in DOCUMENT["profiles"]}
    registered = [params.register_.registered_model_name for params in names.values()]
    assert sorted(set(registered)) == sorted(registered)
    assert names["embedded"].register_.registered_model_name == "fcn8s-gain"
    assert names["smoke"].register_.registered_model_name == "fcn8s-gain-smoke"
    assert names["embedded"].promote.at_least == {"mean_iou": 0.5, "macro_f1": 0.5}
    assert names["photos-study"].promote.at_least == {"mean_iou": 0.25, "macro_f1": 0.4}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"register": {"metric": "attention_ious"}}, "register.metric: no score is called 'attention_ious'; did you"),
        ({"promote": {"better": ["overal"]}}, "promote.better: no score is called 'overal'; did you mean 'overall'?"),
        ({"promote": {"not_below": {"mean_io": 0.1}}}, "promote.not_below: no score is called 'mean_io'"),
        ({"register": {"metric": "dead_map_rate"}}, "register.metric: dead_map_rate cannot be named here"),
        ({"promote": {"better": ["background_gap"]}}, "promote.better: background_gap cannot be named here"),
        ({"register": {"metric": "mixed_rand"}}, "on validation images, which have no mixed_rand"),
        ({"register": {"metric": "coverage"}}, "register.metric: coverage cannot be named here"),
        ({"register": {"metric": "worst_group"}}, "the challenger is chosen on validation images, which have no worst"),
        ({"register": {"metric": "insertion_auc"}}, "register.metric: the challenger is chosen on validation images"),
        ({"download": OWN["download"]}, "promote.better: worst_group needs drawn counterfactual sets"),
        (
            {"promote": {"better": ["insertion_auc"]}, "evaluate": {"num_deletion_images": 0}},
            "promote.better: insertion_auc needs evaluate.num_deletion_images above 0",
        ),
        ({"attention": {"pixel_labels": {"count": 961}}}, "attention.pixel_labels.count: 961 images asked for"),
        ({"runtime": {"devices": 3}}, "pretrain.batch_size: 8 images cannot be shared out evenly over 3 devices"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path, refused, changes, problem):
    assert problem in refused(load_params, written(tmp_path, document(profile="p", profiles={"p": changes})))


def test_matrix_of_dvc_lists_the_variants_of_the_profile(tmp_path, refused):
    params, path = load_params(REPOSITORY / "params.yaml"), tmp_path / "dvc.yaml"
    check_matrix(params, REPOSITORY / "dvc.yaml")
    check_matrix(params, path)  # none there
    for listed, problem in (
        (["control", "gain", "gain_ex"], "dvc.yaml: finetune.matrix.variant has 'gain_ex', params.yaml: variants has"),
        (["control", "gain"], "params.yaml: variants has 'gain_ext' (profile embedded), "),
    ):
        path.write_text(yaml.safe_dump({"stages": {"finetune": {"matrix": {"variant": listed}}}}))
        assert problem in refused(check_matrix, params, path)


def test_matrix_may_be_named_in_a_file_of_variables(tmp_path, refused):
    params, path = load_params(REPOSITORY / "params.yaml"), tmp_path / "dvc.yaml"
    stages = {"finetune": {"matrix": {"variant": "${study.variants}"}}}
    path.write_text(yaml.safe_dump({"vars": ["study.yaml"], "stages": stages}))
    listed = ["control", "gain", "gain_ext"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": {"variants": listed}}))
    check_matrix(params, path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"study": {"variants": listed[:2]}}))
    assert "variants has 'gain_ext' (profile embedded), " in refused(check_matrix, params, path)
    path.write_text(yaml.safe_dump({"stages": stages}))
    assert "expected the list of variants" in refused(check_matrix, params, path)


def test_lock_gives_the_parameters_of_the_last_run(tmp_path):
    path = tmp_path / "dvc.lock"
    assert locked_document(path) is None
    stages = {"configure@0": {"params": {"params.yaml": DOCUMENT}}}
    path.write_text(yaml.safe_dump({"stages": stages}))
    assert locked_document(path) == DOCUMENT


def test_lock_that_dvc_is_writing_for_another_stage_is_read_once_it_is_whole(tmp_path):
    """`make study` runs three DVCs at once, and each stage looks at the lock as it ends."""
    path, whole = (
        tmp_path / "dvc.lock",
        yaml.safe_dump({"stages": {"configure@0": {"params": {"params.yaml": DOCUMENT}}}}),
    )
    path.write_text("")
    writer = threading.Timer(0.3, path.write_text, [whole])
    writer.start()
    assert locked_document(path) == DOCUMENT
    writer.join()


def test_lock_that_stays_broken_is_refused(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(dvc_files, "WRITE_SECONDS", 0.2)
    (tmp_path / "dvc.lock").write_text("<<<<<<< HEAD\n")
    assert "dvc.lock" in refused(locked_document, tmp_path / "dvc.lock")


# ---- what lies outside the project -----------------------------------------------------------------------------------


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """A project folder to work in."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def own(folder: Path, path: str):
    profile = {**OWN, "download": {**OWN["download"], "path": path}}
    return load_params(written(folder, document(profile="own", profiles={"own": profile})))


def test_data_outside_are_linked_and_links_go_when_they_are_not_needed(inside, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("1")
    (inside / "here").mkdir()
    space = Workspace()
    for path in (str(tmp_path / "mine"), "../mine", "here"):
        link_outside_files(own(inside, path), space)
        assert (space.outside / "data").resolve() == Path(path).resolve()
        assert (space.outside / "weights").read_text() == NOTHING
    link_outside_files(load_params(written(inside, document())), space)
    assert not (space.outside / "data").is_symlink()
    assert (space.outside / "data").read_text() == NOTHING
    assert (tmp_path / "mine" / "a").read_text() == "1"


@pytest.mark.parametrize("path", ["data/mine", "models", "reports/x", "..", "."])
def test_data_where_the_pipeline_writes_are_refused_and_left_alone(inside, path):
    Path(path).mkdir(parents=True, exist_ok=True)
    kept = Path(path) / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(PipelineError, match=r"params.yaml: download.path: "):
        link_outside_files(own(inside, path), Workspace())
    assert kept.read_text() == "mine"


def test_data_that_are_not_there_are_named(inside, refused):
    message = refused(link_outside_files, own(inside, "nowhere"), Workspace())
    assert message == "params.yaml: download.path: nowhere does not exist; correct the path"


@pytest.mark.parametrize("score", ["counterfactual_worst_group", "counterfactual_overall", "mixed_rand"])
def test_scores_of_separated_objects_may_be_asked_for_on_any_data_set(tmp_path, score):
    changes = {**OWN, "promote": {"better": [score], "not_below": {"no_object_filled": 0.01}}}
    assert load_params(written(tmp_path, document(profile="p", profiles={"p": changes}))).promote.better == [score]
