"""The command line: every command, and what becomes of a failure."""

import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from pipeline.base.errors import PipelineError
from pipeline.cli import main


def test_failure_of_a_command_is_one_line_with_its_name(monkeypatch):
    monkeypatch.setattr(main, "app", typer.Typer())

    @main.command("one")
    def one(number: int) -> None:
        raise PipelineError(f"{number} is too large")

    with pytest.raises(SystemExit, match=r"^one: error: 7 is too large$"):
        one(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor", "--folder", "missing"], "missing: no such folder"),
        (["doctor", "--profile", "unknown"], "'unknown' is not under profiles"),
        (["promote", "--profile", "unknown"], "'unknown' is not under profiles"),
        (["lr-find", "finetune"], "finetune takes a variant"),
        (["lr-find", "pretrain", "gain"], "the other stages take none"),
        (["lr-find", "pretrain", "--lowest", "1", "--highest", "0.1"], "must be 0 < lowest < highest"),
    ],
)
def test_commands_refuse_in_one_line(arguments, message, capsys):
    command = typer.main.get_command(main.app)
    with pytest.raises(SystemExit, match=f"^{arguments[0]}: error: [^\n]*$") as refusal:
        command.main(arguments, standalone_mode=False)
    assert message in str(refusal.value)


def test_version_is_that_of_the_project(capsys):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    typer.main.get_command(main.app).main(["--version"], standalone_mode=False)
    assert capsys.readouterr().out == f"gain {project['version']}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_commands(monkeypatch, shell):
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))  # of whoever runs the tests
    result = CliRunner().invoke(main.app, ["--show-completion"], prog_name="gain")
    assert result.exit_code == 0
    assert "_GAIN_COMPLETE=complete_" in result.output


def test_every_command_explains_itself():
    commands = typer.main.get_command(main.app).commands
    assert set(commands) == {
        "lr-find",
        "doctor",
        "import-masks",
        "flow",
        "down",
        "promote",
        "register",
        "sync",
        "ui",
        "predict",
        "demo",
        "serve",
        "export",
    }
    assert all(command.help for command in commands.values())
