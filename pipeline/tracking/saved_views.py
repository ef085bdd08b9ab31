"""Saved views of the experiment in MLflow's UI: the columns and charts with which `gain ui` opens a comparison.

The UI keeps a saved view as a tag of the experiment: JSON with a name, two times, and the compressed state of the page.
MLflow does not document this format. Views that a user saves have names of their own and are left alone.
"""

import base64
import json
import zlib
from typing import Any

SCORES = ("mean IoU", "macro F1", "attention IoU", "energy PG", "pointing game", "overall", "worst group")
LOSS_WEIGHTS = ("attention_mining", "external_supervision")
VIEWS = ("scores", "attention")
KIND = {"mlflow.experimentKind": "custom_model_development"}  # so that the page shows runs, not traces of LLMs


def experiment_tags() -> dict[str, str]:
    """Tags of the experiment, name to value: its kind, and one for each of `VIEWS`."""
    states = {"scores": {"selectedColumns": _columns()}, "attention": {"selectedColumns": _columns(), **_charts()}}
    return KIND | {f"mlflow.sharedViewState.{name}": _saved(name, states[name]) for name in VIEWS}


def view_page(name: str, experiment_id: str) -> str:
    """Path of a view's page below the server's address.

    Args:
        name: one of `VIEWS`.
    """
    mode = "&compareRunsMode=CHART" if name == "attention" else ""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={name}{mode}"


def _columns() -> list[str]:
    return ["attributes.`Models`", *(f"metrics.`{name}`" for name in SCORES)]


def _charts() -> dict[str, Any]:
    """Charts: attention of every run with a slider over epochs, scores by loss weight, losses and scores by epoch."""
    lines = ["loss/total", "val/mean_iou", "val/attention_iou"]
    charts = [
        _chart("attention", "IMAGE", imageKeys=["attention"], step=1, showRunParams=False),
        _chart(
            "scores",
            "PARALLEL",
            selectedParams=[f"finetune.loss_weights.{name}" for name in LOSS_WEIGHTS],
            selectedMetrics=list(SCORES[:3]),
            showAllRuns=False,
        ),
        *(_line_chart("epochs", metric) for metric in lines),
    ]
    sizes = {"attention": (1, 720), "scores": (1, 360), "epochs": (3, 360)}  # charts in a row, pixels high
    state = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    sections = [
        {"uuid": name, "name": name, "columns": columns, "cardHeight": height, **state}
        for name, (columns, height) in sizes.items()
    ]
    return {"compareRunCharts": charts, "compareRunSections": sections}


def _chart(section: str, kind: str, **settings: Any) -> dict[str, Any]:
    identity = "-".join([section, kind.lower(), *map(str, settings.get("imageKeys", [settings.get("metricKey", "")]))])
    common = {"uuid": identity, "type": kind, "runsCountToCompare": 10, "metricSectionId": section}
    return {**common, "deleted": False, "isGenerated": False, **settings}


def _line_chart(section: str, metric: str) -> dict[str, Any]:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "yAxisKey": "metric", "range": {}}
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "lineSmoothness": 0, "ignoreOutliers": False}
    names = {"metricKey": metric, "displayName": metric, "selectedXAxisMetricKey": "", "yAxisExpressions": []}
    return _chart(section, "LINE", **names, **axes, **shared)


def _saved(name: str, state: dict[str, Any]) -> str:
    common = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
    }
    packed = zlib.compress(json.dumps(common | state).encode())
    text = f"deflate;{base64.b64encode(packed).decode()}"
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": text})
