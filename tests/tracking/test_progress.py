"""What a person watching a training run is told."""

import pytest

from pipeline.tracking.progress import TrainingProgress, progress_bar, warn_of_losses_that_do_not_fall


def rows(**losses):
    """One row per epoch from the values of each loss."""
    return [
        {"epoch": float(epoch), **{f"loss/{name}": values[epoch - 1] for name, values in losses.items()}}
        for epoch in range(1, len(next(iter(losses.values()))) + 1)
    ]


def warnings(capsys, title, record):
    warn_of_losses_that_do_not_fall(title, record)
    captured = capsys.readouterr()
    assert captured.out == ""
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
    with TrainingProgress("pretrain", num_epochs=4, steps_per_epoch=2, first_epoch=1) as progress:
        progress.epoch(2, {"epoch": 2.0, "loss/total": 0.5, "train/learning_rate": 0.1, "val/mean_iou": 0.25})
    line, end = capsys.readouterr().out.splitlines()
    assert line.startswith("pretrain: epoch 2/4  total 0.5000  mean_iou 0.2500  ")
    assert line.endswith(" s left")
    assert end.startswith("pretrain: trained for ")


def test_bar_counts_what_it_was_not_told_before(capsys):
    with progress_bar("images", None) as advance:
        advance()
        advance()
    assert capsys.readouterr().out.startswith("images: 2 in ")
