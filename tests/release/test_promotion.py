"""The rules of promotion, and the registry before and after: what is promoted, refused, rolled back, and by whom."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, ViewType
from rivals import promote_in_two_processes

from pipeline.base.errors import PipelineError
from pipeline.base.sections import Promote
from pipeline.release import promotion
from pipeline.release.promotion import Contender, judge, promote, roll_back
from pipeline.release.succession import Succession, new_change
from pipeline.tracking.server import connect

NAME = "net"
RULES = Promote(at_least={"mean_iou": 0.5}, not_below={"mean_iou": 0.003}, better=["attention_iou", "worst_group"])
OLD = {"mean_iou": 0.8, "attention_iou": 0.4, "worst_group": 0.1}


def verdicts(new: dict[str, float], digests: tuple[str, str] = ("a", "a")) -> dict[str, bool]:
    found = judge(Contender(OLD, digests[0]), Contender(new, digests[1]), RULES)
    return {verdict.rule.split(" ")[0]: verdict.holds for verdict in found}


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({"attention_iou": 0.41}, set()),
        ({"worst_group": 0.11}, set()),
        ({"mean_iou": 0.797, "attention_iou": 0.41}, set()),
        ({"mean_iou": 0.7969, "attention_iou": 0.41}, {"mean_iou"}),
        ({}, {"better"}),
        ({"attention_iou": 0.3, "worst_group": 0.1}, {"better"}),
        ({"attention_iou": float("nan"), "worst_group": 0.2}, {"scores"}),
    ],
)
def test_rules_by_hand(changes, failing):
    assert {rule for rule, holds in verdicts({**OLD, **changes}).items() if not holds} == failing


def test_scores_on_other_data_or_missing_ones_fail():
    better = {**OLD, "attention_iou": 0.9}
    assert not verdicts(better, ("a", "b"))["same"]
    assert not verdicts(better, ("", ""))["same"]
    del better["mean_iou"]
    assert not verdicts(better)["scores"]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """A new registry with an empty registered model; MLflow takes seconds to create its tables."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        connect()[0].create_registered_model(NAME)
    return folder / "mlflow.db"


@pytest.fixture
def registry(database, tmp_path, monkeypatch):
    """A function that adds a version as challenger to a registry in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    shutil.copy(database, tmp_path)
    client, experiment = connect()

    def add(digest: str = "d", **scores: float) -> str:
        run = client.create_run(experiment).info.run_id
        model = client.create_logged_model(experiment, source_run_id=run)
        client.log_batch(run, [Metric(k, v, 1, 0, model_id=model.model_id, run_id=run) for k, v in scores.items()])
        version = client.create_model_version(NAME, f"models:/{model.model_id}", run, model_id=model.model_id).version
        client.set_model_version_tag(NAME, version, "test_data_digest", digest)
        client.set_registered_model_alias(NAME, "challenger", version)
        return str(version)

    add.client = client
    return add


def champion(registry) -> str:
    return str(registry.client.get_model_version_by_alias(NAME, "champion").version)


@pytest.mark.parametrize(
    ("mean_iou", "failing"),
    [(0.127, ["mean_iou at least 0.5"]), (0.4999, ["mean_iou at least 0.5"]), (0.5 - 1e-12, []), (0.5, []), (0.8, [])],
)
def test_a_first_champion_must_reach_the_least_values(mean_iou, failing):
    found = judge(None, Contender({**OLD, "mean_iou": mean_iou}, "a"), RULES)
    assert [verdict.rule for verdict in found if not verdict.holds] == failing


def test_later_champions_must_reach_them_too():
    old, new = ({"mean_iou": value, "attention_iou": value, "worst_group": 0.1} for value in (0.4, 0.45))
    found = judge(Contender(old, "a"), Contender(new, "a"), RULES)
    assert [verdict.rule for verdict in found if not verdict.holds] == ["mean_iou at least 0.5"]


def test_a_first_challenger_below_the_least_values_changes_nothing(registry):
    version = registry(**{**OLD, "mean_iou": 0.127})
    decision = promote(NAME, RULES)
    assert not decision.promoted
    assert decision.sentence == f"version {version} of net stays challenger: mean_iou at least 0.5"
    assert "| mean_iou at least 0.5 |  | 0.1270 | FAILS |" in decision.markdown()
    model = registry.client.get_registered_model(NAME)
    assert (model.aliases, model.tags) == ({"challenger": int(version)}, {})


def test_first_challenger_needs_no_champion_and_leaves_a_trail(registry):
    version = registry(**OLD)
    decision = promote(NAME, RULES, reason="the first")
    assert decision.promoted
    assert champion(registry) == version
    tags = registry.client.get_model_version(NAME, version).tags
    assert tags["promotion_reason"] == "the first"
    assert tags["promoted_from"] == ""
    assert "@" in tags["promoted_by"]
    trail = registry.client.get_registered_model(NAME).tags
    assert list(trail) == ["promotion.1"]
    assert f"none -> {version} by " in trail["promotion.1"]
    assert "challenger" not in registry.client.get_registered_model(NAME).aliases


def test_refusal_and_dry_run_change_nothing(registry):
    first = registry(**OLD)
    promote(NAME, RULES)
    registry(**OLD)
    before = registry.client.get_registered_model(NAME)
    assert not promote(NAME, RULES).accepted
    better = registry(**{**OLD, "attention_iou": 0.5})
    decision = promote(NAME, RULES, dry_run=True)
    assert decision.accepted
    assert not decision.promoted
    assert "nothing changed" in decision.markdown()
    assert champion(registry) == first
    after = registry.client.get_registered_model(NAME)
    assert after.tags == before.tags
    assert promote(NAME, RULES).promoted
    assert champion(registry) == better


def test_roll_back_goes_to_the_champion_before_each_time(registry):
    versions = []
    for attention in (0.4, 0.5, 0.6):
        versions.append(registry(**{**OLD, "attention_iou": attention}))
        assert promote(NAME, RULES).promoted
    assert roll_back(NAME, dry_run=True).version == versions[1]
    assert champion(registry) == versions[2]
    assert roll_back(NAME, reason="worse in the field").promoted
    assert champion(registry) == versions[1]
    assert roll_back(NAME).promoted
    assert champion(registry) == versions[0]
    with pytest.raises(PipelineError, match="no earlier champion"):
        roll_back(NAME)
    trail = registry.client.get_registered_model(NAME).tags
    assert sorted(trail) == [f"promotion.{number}" for number in range(1, 6)]


def test_nothing_to_promote_is_said(registry, refused):
    assert "no version with the alias challenger" in refused(promote, NAME, RULES)
    for refuse in (lambda: refused(promote, "unknown", RULES), lambda: refused(roll_back, "unknown")):
        assert "the model registry has no unknown; `gain register` registers the last one" in refuse()
    assert "no earlier champion" in refused(roll_back, NAME)
    registry(**OLD)
    promote(NAME, RULES)
    registry.client.set_registered_model_alias(NAME, "challenger", champion(registry))
    assert "is the champion already" in refused(promote, NAME, RULES)


@pytest.mark.system
def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(registry, tmp_path):
    version = registry(**OLD)
    winner, loser = promote_in_two_processes(tmp_path, NAME, f"sqlite:///{tmp_path}/mlflow.db")
    assert winner == f"version {version} of net is the champion now (there was none)\n"
    assert "refused: net: another promotion came first" in loser
    assert "yours changed nothing, compare again" in loser
    assert champion(registry) == version
    trail = registry.client.get_registered_model(NAME).tags
    assert list(trail) == ["promotion.1"]
    reason = registry.client.get_model_version(NAME, version).tags["promotion_reason"]
    assert trail["promotion.1"].endswith(f": {reason}")
    assert f": {reason})" in loser


def test_finished_changes_are_hidden_and_leave_no_folder(registry, tmp_path):
    registry(**OLD)
    promote(NAME, RULES)
    hidden = registry.client.search_experiments(view_type=ViewType.DELETED_ONLY)
    assert [experiment.name.startswith("champion 1 of net") for experiment in hidden] == [True]
    assert not [e for e in registry.client.search_experiments() if e.name.startswith("champion")]
    assert not (tmp_path / "mlruns" / hidden[0].experiment_id).exists()


def test_what_a_promotion_that_died_had_decided_is_carried_out_by_the_next(registry, monkeypatch, refused):
    first, died = registry(**OLD), MlflowClient.set_registered_model_alias

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", die)
    with pytest.raises(KeyboardInterrupt):
        promote(NAME, RULES, reason="by one that dies")
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", died)
    assert "champion" not in registry.client.get_registered_model(NAME).aliases
    better = registry(**{**OLD, "attention_iou": 0.5})
    assert "by one that dies); yours changed nothing" in refused(promote, NAME, RULES)
    assert champion(registry) == first
    assert registry.client.get_model_version(NAME, first).tags["promotion_reason"] == "by one that dies"
    assert promote(NAME, RULES).version == better
    assert champion(registry) == better


def test_a_slow_promotion_does_not_undo_a_later_one(registry, monkeypatch):
    """It has decided and is about to move the alias, while another process does that for it and goes on to the next."""
    first = registry(**OLD)
    real, versions = MlflowClient.set_registered_model_alias, [first]

    def be_overtaken(client, name, alias, version):
        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
        with pytest.raises(PipelineError, match="came first"):
            promote(NAME, RULES)
        versions.append(registry(**{**OLD, "attention_iou": 0.5}))
        assert promote(NAME, RULES, reason="the later one").promoted
        real(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", be_overtaken)
    assert promote(NAME, RULES, reason="the slow one").promoted
    assert champion(registry) == versions[1]
    trail = registry.client.get_registered_model(NAME).tags
    assert [value.rsplit(": ", 1)[1] for _, value in sorted(trail.items())] == ["the slow one", "the later one"]


def test_change_to_a_version_that_was_deleted_holds_nothing_up(registry, monkeypatch):
    first = registry(**OLD)
    promote(NAME, RULES)
    gone = registry(**{**OLD, "attention_iou": 0.5})
    succession = Succession(registry.client, NAME)
    registry.client.delete_model_version(NAME, gone)
    succession.take(new_change(gone, first, "promotion", "too late"))
    assert champion(registry) == first
    assert "without effect" in registry.client.get_registered_model(NAME).tags["promotion.2"]
    registry(**{**OLD, "attention_iou": 0.6})
    assert promote(NAME, RULES).promoted


def test_model_that_is_made_again_begins_again(registry):
    registry(**OLD)
    promote(NAME, RULES)
    registry.client.delete_registered_model(NAME)
    registry.client.create_registered_model(NAME)
    version = registry(**OLD)
    assert promote(NAME, RULES).promoted
    assert champion(registry) == version


def test_challenger_that_came_in_the_meantime_stays_challenger(registry, monkeypatch):
    first, real = registry(**OLD), promotion.judge

    def judge_and_register(*args):
        registry(**{**OLD, "attention_iou": 0.5})
        return real(*args)

    monkeypatch.setattr(promotion, "judge", judge_and_register)
    assert promote(NAME, RULES).version == first
    assert registry.client.get_model_version_by_alias(NAME, "challenger").version != first


def test_a_champion_that_came_in_the_meantime_is_not_replaced(registry, monkeypatch):
    registry(**OLD)
    promote(NAME, RULES)
    newer = registry(**{**OLD, "attention_iou": 0.5})
    real = promotion.judge

    def judge_and_be_overtaken(*args):
        result = real(*args)
        registry.client.set_registered_model_alias(NAME, "champion", newer)
        return result

    monkeypatch.setattr(promotion, "judge", judge_and_be_overtaken)
    with pytest.raises(PipelineError, match="became champion in the meantime"):
        promote(NAME, RULES)


def test_unreachable_registry_is_one_line(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "check MLFLOW_TRACKING_URI" in refused(promote, NAME, RULES)
