"""What a flow reads off the lines of DVC and of the stages; the lines are those that their own code prints."""

from types import SimpleNamespace

import pytest

from pipeline.flows.output import StageOutput
from pipeline.tracking.progress import Progress
from pipeline.training.devices import choose_device

DVC_FAILURE = "ERROR: failed to reproduce 'pretrain': failed to run: python -m stages.pretrain, exited with {}"


class Heard:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.devices: list[str] = []

    def advance(self, fraction: float) -> None:
        self.fractions.append(fraction)

    def see_device(self, device: str) -> None:
        self.devices.append(device)


def after(*lines: str) -> StageOutput:
    output = StageOutput(Heard())
    for line in lines:
        output.see(line)
    return output


def test_epochs_are_progress(capsys):
    progress, rows = Progress(), [{"loss/total": 0.5}]
    progress.begins(SimpleNamespace(name="finetune/gain", options=SimpleNamespace(num_epochs=4), steps_per_epoch=2), 0)
    for epoch in (1, 3):
        progress.epoch(epoch, SimpleNamespace(rows=rows), None)
    heard = Heard()
    for line in capsys.readouterr().out.splitlines():
        StageOutput(heard).see(line)
    assert heard.fractions == [0.25, 0.75]


def test_device_is_heard():
    heard, device = Heard(), choose_device("cpu", "32-true")
    StageOutput(heard).see(f"evaluate: on {device.reason}")
    (text,) = heard.devices
    assert text.startswith("cpu, ")
    assert text.endswith(", 32-true")


def test_a_stage_that_dvc_skips_or_restores_has_not_run():
    assert not after("Stage 'prepare' didn't change, skipping").ran
    assert not after("Stage 'prepare' is cached - skipping run, checking out outputs").ran
    assert after("Running stage 'prepare':", "> python -m stages.prepare").ran


def test_the_stage_itself_says_why_it_failed():
    output = after("warning: slow", "pretrain: error: params.yaml: seed: too small", DVC_FAILURE.format(1))
    assert not output.killed(255)
    assert output.failure(255) == "pretrain: error: params.yaml: seed: too small"


def test_without_a_word_of_the_stage_dvc_says_why():
    assert after(DVC_FAILURE.format(1)).failure(255) == DVC_FAILURE.format(1)
    assert after().failure(253) == "dvc ended with exit status 253"


@pytest.mark.parametrize("status", [-9, 137, 143])
def test_a_signal_to_the_stage_is_no_failure_of_its_own(status):
    output = after(DVC_FAILURE.format(status))
    assert output.killed(255)
    assert output.failure(255).endswith(f"exited with {status}: killed, perhaps out of memory; a retry resumes")


def test_a_signal_to_dvc_counts_too():
    assert after().killed(-9)
    assert after().killed(137)
    assert not any(after().killed(status) for status in (0, 1, 251, 252, 253, 254, 255))
