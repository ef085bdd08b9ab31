"""What the terminal shows of a training, and which losses it warns of."""

import sys
from types import SimpleNamespace

import pytest
import torch

from pipeline.tracking.progress import Progress, progress_bar


def begun(name="pretrain", first_epoch=0):
    """Progress of a training of four epochs with two steps each."""
    progress = Progress()
    task = SimpleNamespace(name=name, options=SimpleNamespace(num_epochs=4), steps_per_epoch=2)
    progress.begins(task, first_epoch)
    return progress


def history(*rows):
    return SimpleNamespace(rows=list(rows))


def rows(**losses):
    """One row per epoch from the values of each loss."""
    return [
        {"epoch": float(epoch), **{f"loss/{name}": values[epoch - 1] for name, values in losses.items()}}
        for epoch in range(1, len(next(iter(losses.values()))) + 1)
    ]


def warnings(capsys, name, record):
    """Lines on standard error after the last epoch of the record."""
    begun(name).epoch(len(record), history(*record), None)
    captured = capsys.readouterr()
    assert "warning" not in captured.out
    return captured.err.splitlines()


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, 1.5], [1.0, 0.995], [1.0, 1.2, 1.0], [0.5, 0.5, 0.5, 0.5]])
def test_loss_that_stays_or_rises_is_one_line(capsys, values):
    lines = warnings(capsys, "pretrain", rows(segmentation=values))
    assert len(lines) == 1
    assert lines[0].startswith(
        f"warning: pretrain: loss/segmentation does not fall: {values[0]:.4g} in epoch 1, "
        f"{values[-1]:.4g} in epoch {len(values)}; try `gain lr-find pretrain`"
    )


@pytest.mark.parametrize("values", [[1.0, 0.9], [1.0, 0.985], [1.0, 1.5, 0.5], [1.0, 0.5, 1.5], [0.0, 0.0], [0.0, 0.1]])
def test_loss_that_has_fallen_or_began_at_0_is_no_line(capsys, values):
    assert warnings(capsys, "pretrain", rows(segmentation=values)) == []


@pytest.mark.parametrize("record", [[], rows(segmentation=[1.0])])
def test_one_epoch_shows_no_trend(capsys, record):
    assert warnings(capsys, "pretrain", record) == []


def test_every_loss_is_judged_by_itself_and_neither_total_nor_scores_are(capsys):
    record = rows(segmentation=[1.0, 1.0], classification=[1.0, 0.5], attention_mining=[0.5, 0.6])
    for row in record:
        row["val/mean_iou"] = row["train/gradient_norm"] = row["loss/total"] = 1.0
    lines = warnings(capsys, "finetune/gain", record)
    assert [line.split()[2] for line in lines] == ["loss/segmentation", "loss/attention_mining"]
    assert all("try `gain lr-find finetune gain`" in line for line in lines)


def test_epoch_is_one_line_with_losses_and_selected_scores(capsys):
    progress = begun(first_epoch=1)
    progress.step({"loss/total": torch.tensor(0.5)})
    row = {"epoch": 2.0, "loss/total": 0.5, "train/learning_rate": 0.1, "val/mean_iou": 0.25}
    progress.epoch(2, history({"epoch": 1.0, "loss/total": 1.0}, row), None)
    progress.ends()
    line, end = capsys.readouterr().out.splitlines()
    assert line.startswith("pretrain: epoch 2/4  total 0.5000  mean_iou 0.2500  ")
    assert line.endswith(" s left")
    assert end.startswith("pretrain: trained for ")


def test_training_without_epochs_shows_no_epoch(capsys):
    progress = begun()
    progress.epoch(0, history({"epoch": 0, "val/mean_iou": 0.25}), None)
    progress.ends()
    (end,) = capsys.readouterr().out.splitlines()
    assert end.startswith("pretrain: trained for ")


def test_bar_on_a_terminal_goes_on_after_the_epochs_already_done(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("pipeline.tracking.progress.REFRESH_SECONDS", 0.0)
    progress = begun(first_epoch=1)
    progress.step({"loss/total": torch.tensor(0.5), "pairs": torch.tensor(3.0)})
    progress.ends()
    out = capsys.readouterr().out
    assert "2/8" in out
    assert "3/8" in out
    assert "total 0.500" in out
    assert "pairs" not in out


def test_bar_counts_what_it_was_not_told_before(capsys):
    with progress_bar("images", None) as advance:
        advance()
        advance()
    assert capsys.readouterr().out.startswith("images: 2 in ")
