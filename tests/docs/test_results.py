"""The tables of README and docs/results.md have the numbers of the recorded results."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
import scipy.stats

ROOT = pathlib.Path(__file__).parents[2]
README, RESULTS = (ROOT / name for name in ("README.md", "docs/results.md"))
FIGURE = json.loads((ROOT / "docs/results/figure1.json").read_text())
STACKED = json.loads((ROOT / "docs/results/stacked.json").read_text())
TRAINING = json.loads((ROOT / "docs/results/training.json").read_text())["runs"]
PRECISION = json.loads((ROOT / "docs/results/precision.json").read_text())["accuracy"]
BFLOAT16 = json.loads((ROOT / "docs/results/serving_bfloat16.json").read_text())
DEPTH = json.loads((ROOT / "docs/results/stochastic_depth.json").read_text())["runs"]
specification = importlib.util.spec_from_file_location("tables", ROOT / "docs/results/tables.py")
tables = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tables)


def cells(file, *first_words):
    """Return the cells of the first table row of a page whose first cell begins with one of the words."""
    for line in file.read_text().splitlines():
        row = [cell.strip(" *") for cell in line.strip("|").split("|")]
        if line.startswith("|") and row[0].startswith(first_words):
            return row
    raise AssertionError(f"{file.name} has no row {first_words[0]}")


@pytest.mark.parametrize(("width", "size"), [("1", 1), ("1", 3), ("2", 1), ("2", 3), ("4", 1), ("4", 3), ("8", 1)])
def test_the_committees_of_the_front_page(width, size):
    row = FIGURE["widths"][width]["rows"][size - 1]
    text = cells(README, f"one WRN-16-{width}" if size == 1 else f"{size} x WRN-16-{width}")
    accuracy = f"{100 * row['accuracy']:.2f} ± {100 * row['std']:.2f} %"
    assert text[1:4] == [f"{row['mflops']:.0f}", accuracy, f"{row['nll']:.3f}"]


def test_the_speed_of_a_stack():
    first, second = ({row["name"]: row for row in run["rows"] if "median" in row} for run in STACKED["runs"])
    stack = cells(RESULTS, "8 members, up to 128 channels")
    narrow, wide = first["8 members, packed:128"], second["8 members, packed"]
    assert stack[1:] == [
        f"{narrow['median']:,.0f}",
        f"{narrow['ratio']:.2f}",
        f"{wide['median']:,.0f}",
        f"{wide['ratio']:.2f}",
    ]
    torch = cells(RESULTS, "one member after another, PyTorch")
    assert torch[1:3] == [f"{first['PyTorch']['median']:,.0f}", f"{first['PyTorch']['ratio']:.2f}"]


@pytest.mark.parametrize("row", BFLOAT16["rows"], ids=lambda row: f"{row['members']} {row['batch']}")
def test_the_exports_in_bfloat16_of_the_results(row):
    sizes = " / ".join(f"{row[f'{name}_bytes'] / 1e6:.2f}" for name in ("float32", "bfloat16"))
    numbers = [f"{row[name]:.1f}" for name in ("float32_ms", "bfloat16_ms")]
    numbers += [f"{row[name]:.2f}" for name in ("ratio", "cpu_ratio")]
    assert cells(RESULTS, f"{row['members']}, batch {row['batch']}")[1:] == [*numbers, sizes]


@pytest.mark.parametrize("name", [row["name"] for row in TRAINING[0]["rows"] if "cached batch" not in row["name"]])
def test_the_training_speed_of_the_results(name):
    rows = [next(row for row in run["rows"] if row["name"] == name) for run in TRAINING]
    text = [cell.strip("*") for cell in cells(RESULTS, f"{name} ", f"**{name}*", name)[1:]]
    assert text == [number for row in rows for number in (f"{row['median']:,.0f}", f"{row['ratio']:.2f}")]


def test_the_goals_of_the_training_speed():
    for first_words, word in (
        ("Keras at its defaults", "Keras' defaults"),
        ("the fastest of all rows", "PyTorch"),
        ("the convolutions alone in bfloat16", "convolutions alone"),
    ):
        goals = [
            [goal for goal in run["goals"] if "bfloat16" in goal["name"] and word in goal["name"]] for run in TRAINING
        ]
        assert cells(RESULTS, first_words)[1:3] == [f"{goal['value']:.2f}" for [goal] in goals]


@pytest.mark.parametrize(
    ("first_words", "name", "with_huge_pages"),
    [
        ('`mode="batch"`, a dropped block', "ours, batch", True),
        ('`mode="batch"`, before', "ours, batch", False),
        ("with gradients and gates per block in TensorBoard, before", "ours, batch, with block statistics", False),
        ('`mode="subset"`, before', "ours, subset", False),
        ('`mode="sample"`, before', "ours, sample", False),
    ],
)
def test_the_step_times_of_stochastic_depth_with_the_kernels(first_words, name, with_huge_pages):
    runs = [run for run in DEPTH if run["huge_pages"] == with_huge_pages]
    rows = [row for run in runs for row in run["rows"] if row["name"] == name]
    numbers = [f"{row['ratio_at_expected_depth']:.2f}" for row in rows]
    assert cells(RESULTS, first_words)[1:] == [*numbers, "", ""][:4]


@pytest.mark.parametrize("name", PRECISION)
def test_the_accuracy_of_the_precisions(name):
    scores = PRECISION[name]
    assert cells(RESULTS, f"`{name}`")[1:] == [f"{100 * score:.2f} %" for score in (*scores, np.mean(scores))]


def test_the_interval_of_their_difference():
    result = scipy.stats.ttest_ind(
        *([100 * score for score in scores] for scores in PRECISION.values()), equal_var=False
    )
    low, high = result.confidence_interval()
    difference = 100 * (np.mean(PRECISION["mixed_bfloat16"]) - np.mean(PRECISION["float32"]))
    text = " ".join(RESULTS.read_text().split())
    assert f"{difference:.2f} points above float32, with a 95 % interval of {low:.2f} to +{high:.2f}" in text


@pytest.mark.parametrize("table", tables.all_tables(), ids=lambda table: table.split("|")[1].strip())
def test_the_tables_of_recorded_results(table):
    assert table in RESULTS.read_text()


def test_the_speed_nets_of_the_front_page():
    folder = ROOT / "docs/results/cifar_fast"
    committee = json.loads((folder / "evaluation.json").read_text())["committees"][-1]
    cascade = json.loads((folder / "selection_with_views.json").read_text())["report"]
    scores = [(committee["mflops"], committee["accuracy"]["mean"], committee["nll"]["mean"])]
    scores.append((cascade["mflops"], *(cascade["test"][name]["value"] for name in ("accuracy", "nll"))))
    wide = json.loads((ROOT / "docs/results/cifar_fast_wide/evaluation.json").read_text())["committees"][-1]
    scores.append((wide["mflops"], wide["accuracy"]["mean"], wide["nll"]["mean"]))
    titles = "4 members of", "cascade of them and", "4 wider members"
    for (mflops, accuracy, nll), title in zip(scores, titles, strict=True):
        text = cells(README, title)
        assert [text[1].removesuffix(" (mean)"), *text[2:4]] == [
            f"{mflops:.0f}",
            f"{100 * accuracy:.2f} %",
            f"{nll:.3f}",
        ]
