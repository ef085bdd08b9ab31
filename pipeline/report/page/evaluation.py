"""The page of one evaluation: what guidance did, the scores with their intervals, and what models see by image."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.base.profile import Params
from pipeline.base.scores import LOWER_IS_BETTER
from pipeline.base.workspace import PRETRAINED
from pipeline.data.voc import IGNORE_INDEX
from pipeline.report.bootstrap import interval
from pipeline.report.comparison import Comparison
from pipeline.report.figures import model_colours
from pipeline.report.findings import differences, movement
from pipeline.report.gallery import Exhibit, exhibits
from pipeline.report.model_scores import ModelScores
from pipeline.report.overlays import OUTLINE, class_colours, hex_colour
from pipeline.report.page.document import render
from pipeline.report.page.thumbnails import data_uri
from pipeline.report.tables import COLUMNS

HERE = "pipeline.report.page"
CHART_WIDTH, ROW_HEIGHT = 300, 22  # of a chart of scores, in units of its drawing
MEANINGS = {
    "mean IoU": "Of predicted and true pixels of a class, the share that is in both; mean over classes.",
    "class acc.": "Right answers to: is this class in this image?",
    "macro F1": "The same answers judged class by class at a probability of one half, as F1; mean over classes.",
    "mAP": "The same answers judged by their ranking: average precision; mean over classes.",
    "attention IoU": "Overlap of the attended region (attention above a share of its maximum) and the true mask.",
    "energy PG": "Energy pointing game: the share of all attention that lies inside the mask.",
    "pointing game": "How often the strongest pixel of attention lies inside the mask.",
    "object w/o context": "How often a class is found on the ground of another class.",
    "context w/o object": "How often a class is not claimed where only its ground is in the picture.",
    "overall": "The mean of the two before.",
    "worst group": "The worst class in either of the two.",
    "background gap": "How much rarer objects are found on the ground of another class than on one of their own.",
    "worst cut-out group": "The worst class on foreign ground, or with its object taken out.",
}
SETS = {
    "test": "test images",
    "object_without_context": "objects on another class's ground",
    "context_without_object": "grounds without their object",
    "only_object": "cut out: the object alone",
    "mixed_same": "cut out: on ground of its own class",
    "mixed_rand": "cut out: on ground of another class",
    "no_object_filled": "object taken out, ground filled in",
    "no_object_mean": "object taken out, grey",
}


@dataclass(frozen=True)
class _Cell:
    text: str
    low: str
    high: str


def evaluation_page(comparison: Comparison, params: Params) -> str:
    """HTML text, complete in itself."""
    scores = comparison.scores
    reference, guided = comparison.reference, comparison.best_guided
    shown = [
        (group, score)
        for group, score in COLUMNS
        if all(score in of.estimates.get(group, {}) for of in scores.values())
    ]
    names = list(scores)
    return render(
        (HERE, "evaluation.html.j2"),
        [(HERE, "evaluation.css")],
        [(HERE, "evaluation.js")],
        profile=params.profile,
        seed=params.seed,
        doubts=params.doubts,
        models=model_colours(names),
        kinds={name: _kind(name, params) for name in names},
        reference=reference,
        guided=guided,
        compared=guided != reference,
        num_test=len(comparison.sets["test"]),
        findings={
            name: (differences(scores[name], scores[reference]), movement(scores[name], scores[reference]))
            for name in names
            if name not in (PRETRAINED, reference)
        },
        titles=[COLUMNS[key] for key in shown],
        meanings=MEANINGS,
        lower={COLUMNS[key] for key in shown if key[1] in LOWER_IS_BETTER},
        table={name: [_cell(of, group, score) for group, score in shown] for name, of in scores.items()},
        charts=[_chart(scores, group, score) for group, score in shown],
        classes=_class_table(scores),
        class_names=comparison.class_names,
        sets={split: SETS.get(split, split) for split in comparison.sets},
        cards=_cards(exhibits(comparison, params.evaluate), reference, guided),
        outline=hex_colour(OUTLINE),
        class_colours=[
            ("background", hex_colour(class_colours()[0])),
            *((name, hex_colour(class_colours()[value])) for value, name in enumerate(comparison.class_names, start=1)),
            ("void, not scored", hex_colour(class_colours()[IGNORE_INDEX])),
        ],
        layer=comparison.models[guided].attention_layer,
        threshold=params.evaluate.attention_threshold,
        data_digest=comparison.data_digest[:12],
    )


def _kind(name: str, params: Params) -> str:
    """What a reader who has not seen params.yaml must know of a model."""
    if name == PRETRAINED:
        return "before fine-tuning"
    weights = params.variants[name].loss_weights
    parts = []
    if weights.get("attention_mining"):
        parts.append("attention mining: erasing what is attended must lower the class's score")
    if weights.get("external_supervision"):
        attention = params.attention_of(name)
        share = attention.pixel_labels.fraction
        of = f"{share:.0%} of the training images" if share is not None else f"{attention.pixel_labels.count} images"
        parts.append(f"external supervision: attention must match the {attention.guidance.replace('_', ' ')} of {of}")
    return "fine-tuned with " + "; ".join(parts) if parts else "fine-tuned without guidance, otherwise alike"


def _cell(scores: ModelScores, group: str, score: str) -> _Cell:
    values = scores.replicates[group][score]
    low, high = interval(values)
    return _Cell(*(_percent(value) for value in (float(values[0]), low, high)))


def _percent(value: float) -> str:
    return "\u2013" if math.isnan(value) else f"{100 * value:.1f}"


def _chart(scores: Mapping[str, ModelScores], group: str, score: str) -> dict[str, Any]:
    """A dot and a whisker per model on one axis; places in units of the drawing."""
    ends = {
        name: (float(of.replicates[group][score][0]), *interval(of.replicates[group][score]))
        for name, of in scores.items()
    }
    finite = [value for triple in ends.values() for value in triple if math.isfinite(value)]
    low, high = (min(0.0, *finite), max(*finite)) if finite else (0.0, 1.0)
    step = _step(high - low)
    low, high = step * math.floor(low / step), step * max(math.ceil(high / step), math.floor(low / step) + 1)

    def place(value: float) -> float:
        return round(CHART_WIDTH * (value - low) / (high - low), 1)

    rows = [
        {
            "model": name,
            "y": ROW_HEIGHT * number + ROW_HEIGHT // 2,
            "text": _percent(triple[0]),
            "places": [place(value) for value in triple] if all(map(math.isfinite, triple)) else None,
        }
        for number, (name, triple) in enumerate(ends.items())
    ]
    ticks = [
        (place(low + step * number), f"{100 * (low + step * number):.0f}")
        for number in range(round((high - low) / step) + 1)
    ]
    return {
        "title": COLUMNS[group, score],
        "rows": rows,
        "ticks": ticks,
        "width": CHART_WIDTH,
        "height": ROW_HEIGHT * len(rows),
    }


def _step(span: float) -> float:
    """A round distance of ticks, of which two to five fit the span."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if span <= 5 * step:
            return step
    return 0.5


def _class_table(scores: Mapping[str, ModelScores]) -> dict[str, dict[str, Sequence[str]]]:
    """Class to model to attention IoU and segmentation IoU, percent."""
    table: dict[str, dict[str, Sequence[str]]] = {}
    for name, of in scores.items():
        for row in of.class_rows:
            cells = [_percent(float(str(row[key]))) for key in ("attention_iou", "iou")]
            table.setdefault(str(row["class"]), {})[name] = cells
    return table


def _cards(chosen: Iterable[Exhibit], reference: str, guided: str) -> list[dict[str, Any]]:
    cards: list[dict[str, Any]] = []
    for _, of_image in groupby(chosen, key=lambda exhibit: (exhibit.split, exhibit.image_id)):
        pairs = list(of_image)
        # The same for every class of an image.
        truth = data_uri(pairs[0].truth)
        predictions = {name: data_uri(answer.prediction) for name, answer in pairs[0].answers.items()}
        for exhibit in pairs:
            answers = exhibit.answers
            before, after = answers[reference].iou, answers[guided].iou
            cards.append(
                {
                    "number": len(cards),
                    "exhibit": exhibit,
                    "image": data_uri(exhibit.image),
                    "truth": truth,
                    "change": None if before is None or after is None else after - before,
                    "numbers": {
                        name: {"iou": answer.iou, "probability": round(answer.probability, 4), "right": answer.right}
                        for name, answer in answers.items()
                    },
                    "attention": {name: data_uri(answer.attention) for name, answer in answers.items()},
                    "prediction": predictions,
                }
            )
    return cards
