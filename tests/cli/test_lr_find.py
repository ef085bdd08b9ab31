"""What `gain lr-find` says; its run over a stage is in tests/flows/test_dag.py."""

import time

import pytest

from pipeline.cli.lr_find import TIMED_STEPS, _answer, _Pace
from pipeline.training.range_test import RangeTest


def test_a_clear_answer_names_the_rate_and_where_the_loss_diverges():
    rates = [10.0 ** (-4 + 0.1 * step) for step in range(30)]
    losses = [4.0 - 0.1 * step for step in range(30)]
    answer = _answer(RangeTest(rates, losses, losses, diverged=0.1))
    assert answer.startswith("try learning_rate: ")
    assert answer.endswith("; the loss diverges at 1.0e-01")


def test_no_clear_answer_is_said():
    flat = RangeTest([1e-4, 1e-3, 1e-2], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert _answer(flat).startswith("no clear answer: at no rate does the loss fall")
    assert "diverges" not in _answer(flat)


def test_time_of_all_steps_is_said_once_after_the_first_few(monkeypatch, capsys):
    """A step takes 2 s, the first one 30 s."""
    clock, advanced = iter([30.0, 30.0 + 2.0 * TIMED_STEPS]), []
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    pace = _Pace(100, lambda: advanced.append(1))
    for _ in range(100):
        pace()
    assert len(advanced) == 100
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"lr-find: about {2 * (100 - TIMED_STEPS - 1)} s for 100 steps, less if the loss diverges"


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_few_steps_need_no_estimate(num_steps, capsys):
    pace = _Pace(num_steps, lambda: None)
    for _ in range(num_steps):
        pace()
    assert capsys.readouterr().out == ""
