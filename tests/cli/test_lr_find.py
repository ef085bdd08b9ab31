"""What `gain lr-find` says; its run over a stage is in tests/flows/test_dag.py."""

from pipeline.cli.lr_find import _answer
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
