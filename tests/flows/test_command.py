"""The command line `python -m pipeline.flows`, with a flow in place of the real ones."""

from types import SimpleNamespace

import pytest
from prefect.states import Completed, Failed

from pipeline.flows import __main__ as command


class Flow:
    """Ends in a state, or as if somebody had pressed Ctrl-C."""

    parameters = SimpleNamespace(properties=["targets"])

    def __init__(self, end: object) -> None:
        self.end = end

    def __call__(self, **_: object) -> object:
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


@pytest.mark.parametrize(
    ("end", "status", "printed", "warned"),
    [
        (Completed(message="2 of 2 stages ran"), 0, "train: Completed: 2 of 2 stages ran\n", ""),
        (Failed(message="no such stage"), 1, "train: Failed: no such stage\n", ""),
        (KeyboardInterrupt(), 130, "", "train: interrupted; the same command goes on where it stopped\n"),
    ],
)
def test_the_end_of_a_flow_is_a_line_and_a_status(monkeypatch, capsys, end, status, printed, warned):
    monkeypatch.setattr(command, "FLOWS", {"train": Flow(end)})
    monkeypatch.setattr(command, "check_prefect_server", lambda: None)
    assert command.main(["train"]) == status
    assert tuple(capsys.readouterr()) == (printed, warned)
