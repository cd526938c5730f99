"""The model card: metadata that the hub reads, and a page with the same numbers."""

import re

import pytest
import yaml
from synthetic_runs import run_data

from keras_committee.evaluation.report.model_card import render_model_card
from keras_committee.evaluation.report.run_data import load_report_data


@pytest.fixture(scope="module")
def data():
    return load_report_data(
        [run_data("first: one", ["small"] * 3, [10.0] * 3), run_data("b", ["large"], [25])], "test", []
    )


@pytest.fixture(scope="module")
def card(data):
    return render_model_card(data)


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_metadata_have_the_scores_of_the_evaluation(card, data):
    content = metadata(card)
    assert (content["library_name"], content["pipeline_tag"]) == ("keras", "image-classification")
    [model] = content["model-index"]
    found = {metric["name"]: metric["value"] for result in model["results"] for metric in result["metrics"]}
    [small, large] = data.series
    for name, row in (
        ("small", small.committees[0]),
        ("3 x small", small.committees[2]),
        ("large", large.committees[0]),
    ):
        assert found[f"{name}, accuracy"] == row["accuracy"]["mean"]
        assert found[f"{name}, negative log-likelihood"] == row["nll"]["mean"]
    assert len(found) == 9
    assert {result["dataset"]["split"] for result in model["results"]} == {"test"}


def test_the_hub_library_reads_them(card):
    hub = pytest.importorskip("huggingface_hub")
    [first, *_] = hub.ModelCard(card).data.eval_results
    assert (first.task_type, first.dataset_name, first.metric_type) == ("image-classification", "synthetic", "accuracy")


def test_the_table_has_the_same_numbers(card):
    rows = re.findall(r"^\| (.+?) \| (.+?) \| ([\d.]+) \[", card, re.M)
    found = {
        metric["name"]: metric["value"]
        for result in metadata(card)["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    assert [name for name, _, _ in rows] == ["small", "3 x small", "large"]
    assert [cost for _, cost, _ in rows] == ["10.0", "30.0", "25.0"]
    assert [float(accuracy) for _, _, accuracy in rows] == [round(found[f"{name}, accuracy"], 4) for name, _, _ in rows]


def test_the_page_names_data_training_and_what_the_author_has_to_add(card):
    for text in ("5,000 train", "keras-committee train synthetic.py", "keras 3.15.1", "## Intended use", "## Limits"):
        assert text in card
    assert "None" not in card
    assert card.count("TODO") == 3
