"""Means, spreads and paired intervals over seeds."""

import pytest
import torch

from pipeline.base.errors import PipelineError
from pipeline.base.params import load_params
from pipeline.report.study import (
    label_counts,
    label_fractions,
    per_seed_rows,
    read_seeds,
    study_means,
    study_rows,
    study_table,
)
from pipeline.report.tables import CONTROL, HEADLINES


def seeds_of(control: list[float], guided: list[float]) -> dict:
    """Replicates in which every resample shifts both models alike."""
    shifts = torch.cat([torch.zeros(1), torch.linspace(-0.1, 0.1, 201)]).double()
    return {
        seed: {CONTROL: dict.fromkeys(HEADLINES, c + shifts), "guided": dict.fromkeys(HEADLINES, g + shifts)}
        for seed, (c, g) in enumerate(zip(control, guided, strict=True))
    }


def test_rows_are_means_and_spreads_over_seeds():
    rows = study_rows(seeds_of([0.1, 0.2, 0.3], [0.4, 0.4, 0.7]))
    row = next(r for r in rows if r["model"] == "guided" and r["score"] == "mean_iou")
    assert row["mean"] == pytest.approx(0.5)
    assert row["std"] == pytest.approx(0.1732, abs=1e-4)
    assert row["difference"] == pytest.approx(0.3)
    assert row["ratio"] == pytest.approx(2.5)
    assert row["low_95"] == pytest.approx(0.405, abs=1e-3)
    assert row["high_95"] == pytest.approx(0.595, abs=1e-3)


def test_difference_is_resampled_together_with_the_control():
    row = next(r for r in study_rows(seeds_of([0.1], [0.4])) if r["model"] == "guided")
    assert row["difference_low_95"] == pytest.approx(0.3)
    assert row["difference_high_95"] == pytest.approx(0.3)
    assert row["std"] == 0.0


def test_table_shows_percent_and_spread():
    table = study_table(study_rows(seeds_of([0.1, 0.3], [0.5, 0.5])))
    header, _, control, guided, _, differences, _, difference = table.splitlines()
    assert header.count("|") == len(HEADLINES) + 2
    assert control.startswith("| control | 20.0 ± 14.1 |")
    assert guided.startswith("| guided | 50.0 ± 0.0 |")
    assert differences.startswith("| minus control | mean IoU |")
    assert difference.startswith("| guided | +30.0 |")


def test_label_counts_span_the_seeds():
    points = label_counts(seeds_of([0.1, 0.3], [0.5, 0.7]), {"guided": 0.1}, ["mean_iou"])
    assert points == {"mean_iou": [(0.1, pytest.approx(0.6), 0.5, 0.7)]}


def test_per_seed_rows_hold_the_estimates():
    row = per_seed_rows(seeds_of([0.1, 0.3], [0.5, 0.7]))[-1]
    assert row == {"model": "guided", "seed": 1, **dict.fromkeys(HEADLINES, pytest.approx(0.7))}


def test_means_are_those_of_the_rows():
    means = study_means(study_rows(seeds_of([0.1], [0.4])), ["mean_iou"])
    assert list(means) == ["mean_iou"]
    assert list(means["mean_iou"]) == [CONTROL, "guided"]
    assert means["mean_iou"]["guided"] == pytest.approx((0.4, 0.305, 0.495), abs=1e-3)


def test_fractions_are_of_the_variants_that_differ_in_their_labels_alone():
    assert label_fractions(load_params(profile="study")) == {
        "gain_ext_02": 0.02,
        "gain_ext_10": 0.1,
        "gain_ext_100": 1.0,
    }


def test_a_study_without_a_report_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="make study"):
        read_seeds(tmp_path)
