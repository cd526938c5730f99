"""A model card in the format of the Hugging Face hub: YAML metadata with a model-index, and a page in Markdown."""

import importlib.resources
import json
import math
from typing import Any

import jinja2

import keras_committee
from keras_committee.evaluation.report.layout import format_significant
from keras_committee.evaluation.report.run_data import ReportData, committee_name
from keras_committee.metrics import accuracy_interval

_METRICS = {"accuracy": "accuracy", "nll": "negative log-likelihood", "ece": "expected calibration error"}


def render_model_card(report_data: ReportData) -> str:
    """Return the text of `README.md`.

    The metadata name a single member and the committee of all members of each architecture, and the selections, each
    with accuracy, negative log-likelihood and expected calibration error on the split. The page has a table of them
    with the 95 % interval of the accuracy over the images, and sections on use, data, training and limits; what only
    the author knows, such as the license, is marked `TODO`.

    Args:
        report_data: Data of a report.

    Source: Mitchell et al. 2019, arXiv:1810.03993; the metadata are those of `huggingface_hub.ModelCardData`.
    """
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["yaml"] = json.dumps  # a JSON string is a YAML string
    template = importlib.resources.files(__package__ or "").joinpath("model_card.md.j2").read_text("utf-8")
    first = report_data.runs[0]
    return environment.from_string(template).render(
        title=", ".join(dict.fromkeys(run.environment["recipe"] for run in report_data.runs)),
        docstring=first.docstring.strip(),
        head=first.evaluation["head"].replace("_", " "),
        rows=_rows(report_data),
        metrics=_METRICS,
        data_name=first.data_name,
        split_sizes=first.split_sizes,
        split=report_data.split,
        examples=len(report_data.labels),
        classes=report_data.classes,
        shape=first.examples.image_shape,
        runs=report_data.runs,
        versions=first.environment["versions"],
        version=keras_committee.__version__,
    )


def _rows(report_data: ReportData) -> list[dict[str, Any]]:
    """Return name, cost in MFLOPs and scores of a single member, of each whole committee, and of the selections."""
    rows = []
    for series in report_data.series:
        for committee in dict.fromkeys((0, len(series.committees) - 1)):
            document = series.committees[committee]
            name = committee_name(document["size"], series)
            rows.append(_row(name, document["mflops"], {key: document[key]["mean"] for key in _METRICS}, report_data))
    for selected in report_data.selected:
        rows.append(_row(selected.name, selected.mflops, {key: selected.scores[key] for key in _METRICS}, report_data))
    return rows


def _row(name: str, mflops: float, scores: dict[str, float], report_data: ReportData) -> dict[str, Any]:
    interval = accuracy_interval(scores["accuracy"], len(report_data.labels))
    cost = "unknown" if math.isinf(mflops) else format_significant(mflops)
    return {"name": name, "mflops": cost, "scores": scores, "interval": interval}
