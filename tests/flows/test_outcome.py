"""How flows end, and what `python -m pipeline.flows` refuses."""

import inspect
from pathlib import Path
from typing import get_args

import pytest
import yaml
from prefect.logging import disable_run_logger
from prefect.states import Completed, Failed

from pipeline.base.errors import PipelineError
from pipeline.flows.__main__ import FLOWS, main
from pipeline.flows.outcome import Failure, RunFailedError, Success, one_line_failures, require_completed

REPOSITORY = Path(__file__).parents[2]


def ended(error: Exception) -> tuple[str | None, str | None]:
    """Name and message of the state of a flow that raises `error`."""

    @one_line_failures
    def flow():
        raise error

    with disable_run_logger():
        state = flow()
    assert state.is_failed()
    return state.name, state.message


def test_a_failure_that_a_user_can_act_on_is_the_message_of_the_state():
    assert ended(PipelineError("params.yaml: seed: too small")) == ("Failed", "params.yaml: seed: too small")
    assert ended(RunFailedError("pretrain: killed", "Killed")) == ("Killed", "pretrain: killed")


def test_any_other_exception_is_the_message_of_the_state_without_its_secrets():
    error = ValueError("no answer of http://ann:hid/d@en@127.0.0.1:9/x?token=planted")
    assert ended(error) == ("Failed", "ValueError: no answer of http://127.0.0.1:9/x?token=***")


def test_a_state_that_is_not_completed_is_raised_with_its_name():
    assert require_completed(Completed(name="Unchanged")).name == "Unchanged"
    with pytest.raises(RunFailedError, match="out of memory") as failure:
        require_completed(Failed(name="Killed", message="out of memory"))
    assert failure.value.name == "Killed"


def test_every_name_of_a_final_state_ends_the_wait_for_heartbeats():
    expected = yaml.safe_load((REPOSITORY / "deploy/heartbeat.yaml").read_text())["trigger"]["expect"]
    for name in (*get_args(Success), *get_args(Failure), "Cancelled", "Crashed"):
        assert f"prefect.flow-run.{name}" in expected


def test_every_flow_has_its_deployments_file_and_parameters():
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    entrypoints = {f"pipeline/flows/{name}.py:{name}" for name in FLOWS}
    for name in ("local", "cluster"):
        assert {found["entrypoint"] for found in deployments if found["name"] == name} == entrypoints
    for name, flow in FLOWS.items():
        assert flow.name == name
        described = flow.parameters.properties
        assert list(described) == list(inspect.signature(flow.fn).parameters)
        assert all("description" in value for value in described.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "usage: python -m pipeline.flows {train,sweep,promote,retrain}"),
        (["train", "profil=smoke"], "train takes no 'profil'; known: profile, overrides"),
        (["train", "profile"], "'profile' is no NAME=VALUE"),
    ],
)
def test_wrong_command_lines_are_one_line(capsys, arguments, message):
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"flows: error: {message}")
