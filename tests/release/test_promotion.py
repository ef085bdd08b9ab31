"""The rules of promotion, and the registry before and after: what is promoted, refused, rolled back, and by whom."""

import threading

import pytest
from checkouts import PATIENCE

from pipeline.base.errors import PipelineError
from pipeline.release import promotion
from pipeline.release.promotion import judge, promote, roll_back
from pipeline.tracking.server import connect

NAME = "net"
RULES = {"not_below": {"mean_iou": 0.003}, "better": ["attention_iou", "worst_group"]}
OLD = {"mean_iou": 0.8, "attention_iou": 0.4, "worst_group": 0.1}


def verdicts(new: dict[str, float], digests: tuple[str, str] = ("a", "a")) -> dict[str, bool]:
    return {verdict.rule.split(" ")[0]: verdict.holds for verdict in judge(OLD, new, **RULES, digests=digests)}


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


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of its own; a function that adds a version as challenger."""
    from mlflow.entities import Metric

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client, experiment = connect()
    client.create_registered_model(NAME)

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


def test_first_challenger_needs_scores_only_and_leaves_a_trail(registry):
    version = registry(**OLD)
    decision = promote(NAME, **RULES, reason="the first")
    assert decision.promoted
    assert champion(registry) == version
    tags = registry.client.get_model_version(NAME, version).tags
    assert tags["promotion_reason"] == "the first"
    assert tags["promoted_from"] == ""
    assert "@" in tags["promoted_by"]
    trail = registry.client.get_registered_model(NAME).tags
    assert [f"none -> {version} by " in value for key, value in trail.items() if key.startswith("promotion.")] == [True]
    assert "promotion_lease" not in trail


def test_refusal_and_dry_run_change_nothing(registry):
    first = registry(**OLD)
    promote(NAME, **RULES)
    registry(**OLD)
    before = registry.client.get_registered_model(NAME)
    assert not promote(NAME, **RULES).accepted
    better = registry(**{**OLD, "attention_iou": 0.5})
    decision = promote(NAME, **RULES, dry_run=True)
    assert decision.accepted
    assert not decision.promoted
    assert "nothing changed" in decision.markdown()
    assert champion(registry) == first
    after = registry.client.get_registered_model(NAME)
    assert after.tags == before.tags
    assert promote(NAME, **RULES).promoted
    assert champion(registry) == better


def test_roll_back_goes_to_the_champion_before_each_time(registry):
    versions = []
    for attention in (0.4, 0.5, 0.6):
        versions.append(registry(**{**OLD, "attention_iou": attention}))
        assert promote(NAME, **RULES).promoted
    assert roll_back(NAME, dry_run=True).version == versions[1]
    assert champion(registry) == versions[2]
    assert roll_back(NAME, reason="worse in the field").promoted
    assert champion(registry) == versions[1]
    assert roll_back(NAME).promoted
    assert champion(registry) == versions[0]
    with pytest.raises(PipelineError, match="no earlier champion"):
        roll_back(NAME)
    trail = registry.client.get_registered_model(NAME).tags
    assert sum(key.startswith("promotion.2") for key in trail) == 5


def test_nothing_to_promote_is_said(registry, refused):
    assert "no version with the alias challenger" in refused(promote, NAME, **RULES)
    assert "no version with the alias challenger" in refused(promote, "unknown", **RULES)
    registry(**OLD)
    promote(NAME, **RULES)
    registry.client.set_registered_model_alias(NAME, "challenger", champion(registry))
    assert "is the champion already" in refused(promote, NAME, **RULES)


def test_of_two_promotions_at_once_one_wins_and_the_other_says_so(registry, monkeypatch):
    monkeypatch.setattr(promotion, "SETTLE_SECONDS", 1.0)
    version = registry(**OLD)
    outcomes: list[object] = []
    both, judge = threading.Barrier(2, timeout=PATIENCE), promotion.judge

    def judge_together(*args, **kwargs):
        result = judge(*args, **kwargs)
        both.wait()
        return result

    monkeypatch.setattr(promotion, "judge", judge_together)

    def attempt() -> None:
        try:
            outcomes.append(promote(NAME, **RULES).promoted)
        except PipelineError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1
    (loser,) = (outcome for outcome in outcomes if outcome is not True)
    assert "nothing was changed" in str(loser)
    assert champion(registry) == version


def test_a_champion_that_came_meanwhile_is_not_replaced(registry, monkeypatch):
    registry(**OLD)
    promote(NAME, **RULES)
    newer = registry(**{**OLD, "attention_iou": 0.5})
    real = promotion.judge

    def judge_and_be_overtaken(*args, **kwargs):
        result = real(*args, **kwargs)
        registry.client.set_registered_model_alias(NAME, "champion", newer)
        return result

    monkeypatch.setattr(promotion, "judge", judge_and_be_overtaken)
    with pytest.raises(PipelineError, match="became champion meanwhile"):
        promote(NAME, **RULES)


def test_the_lease_of_a_promotion_that_died_runs_out(registry, refused):
    import time

    version = registry(**OLD)
    registry.client.set_registered_model_tag(NAME, promotion.LEASE_TAG, f"dead {time.time() + 60}")
    assert "another promotion is under way" in refused(promote, NAME, **RULES)
    registry.client.set_registered_model_tag(NAME, promotion.LEASE_TAG, f"dead {time.time() - 1}")
    promote(NAME, **RULES)
    assert champion(registry) == version


def test_unreachable_registry_is_one_line(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "check MLFLOW_TRACKING_URI" in refused(promote, NAME, **RULES)
