"""Which variant becomes the challenger, and which aliases there are to compare."""

from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST

from pipeline.base.errors import PipelineError
from pipeline.release import registry
from pipeline.release.registry import explain_choice, present_aliases, select_variant

VALIDATION = {"control": {"mean_iou": 0.9}, "gain": {"mean_iou": 0.5, "macro_f1": 0.8}, "gain_ext": {"mean_iou": 0.6}}


def test_challenger_is_the_candidate_with_the_highest_score():
    assert select_variant(VALIDATION, ["gain", "gain_ext"], "mean_iou") == "gain_ext"
    assert select_variant(VALIDATION, ["gain"], "mean_iou") == "gain"
    assert select_variant({"a": {"mean_iou": 0.5}, "b": {"mean_iou": 0.5}}, ["b", "a"], "mean_iou") == "b"
    assert explain_choice(VALIDATION, ["gain", "gain_ext"], "mean_iou") == (
        "mean_iou on validation images: gain 50.0, gain_ext 60.0"
    )


@pytest.mark.parametrize(
    ("validation", "problem"),
    [
        (VALIDATION, "'macro_f1' is unknown for gain_ext, which has mean_iou"),
        ({"gain": {"macro_f1": 0.8}}, "'macro_f1' is unknown for gain_ext, which has nothing; it was not evaluated"),
        ({"gain": {"macro_f1": float("nan")}}, "macro_f1 of gain is nan on the validation images"),
    ],
)
def test_without_a_score_of_every_candidate_nothing_is_chosen(validation, problem):
    with pytest.raises(PipelineError, match=problem):
        select_variant(validation, ["gain", "gain_ext"], "macro_f1")


class Registry:
    """A client that knows one model and has an answer to each alias: a version, or an error."""

    def __init__(self, **answers: object) -> None:
        self._answers = answers

    def get_model_version_by_alias(self, _: str, alias: str) -> object:
        if isinstance(answer := self._answers.get(alias, MlflowException("none", RESOURCE_DOES_NOT_EXIST)), Exception):
            raise answer
        return answer

    def search_registered_models(self, _: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(aliases={})]


@pytest.mark.parametrize("aliases", [("champion",), ("challenger",), ("champion", "challenger")])
def test_present_aliases_are_those_that_a_version_has(monkeypatch, aliases):
    monkeypatch.setattr(registry, "connect", lambda: (Registry(**dict.fromkeys(aliases, "1")), "0"))
    assert present_aliases("fcn8s") == list(aliases)


def test_alias_that_is_refused_is_not_taken_for_a_missing_one(monkeypatch):
    client = Registry(champion="1", challenger=MlflowException("not for you", PERMISSION_DENIED))
    monkeypatch.setattr(registry, "connect", lambda: (client, "0"))
    with pytest.raises(PipelineError, match="not for you"):
        present_aliases("fcn8s")


def test_without_an_alias_there_is_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(registry, "connect", lambda: (Registry(), "0"))
    with pytest.raises(PipelineError, match="run `gain register`, then `gain promote`"):
        present_aliases("fcn8s")
