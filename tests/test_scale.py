"""docs/scale.md against benchmarks/scale.py, and its simulation against the closed form."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from keras_committee.cli import main

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "scale.md").read_text()


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale_benchmark", ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_tables_of_the_document_are_the_output_of_the_script(scale):
    result = scale.run(scale.Inputs(), scale.RUNS)
    assert list(result["tables"]) == ["Inputs", "Cost", "Input", "Network", "Failures"]
    assert [title for title, table in result["tables"].items() if f"\n{table}\n" not in DOCUMENT] == []
    for row in result["failures"]:
        assert row["simulated"] == pytest.approx(row["loss"], abs=4 * row["error"] + 1e-9)


@pytest.mark.parametrize("mtbf", [5_000.0, 200_000.0])
def test_youngs_interval_is_close_to_the_best(scale, mtbf):
    inputs = scale.Inputs()
    losses = [scale.expected_seconds(1e6, float(seconds), inputs, mtbf) for seconds in np.geomspace(20, 5_000, 60)]
    assert scale.expected_seconds(1e6, scale.best_interval(inputs, mtbf), inputs, mtbf) < 1.002 * min(losses)


@pytest.mark.slow
def test_the_inputs_for_b5_are_those_of_describe(scale, capsys):
    parameters = ["members=1", "variant=b5", "precision=mixed_bfloat16", "batch_size=1"]
    words = [word for parameter in parameters for word in ("--set", parameter)]
    assert main(["describe", str(ROOT / "recipes" / "imagenet_efficientnet.py"), *words, "--json"]) == 0
    inputs, b5 = scale.Inputs(), json.loads(capsys.readouterr().out)["members"][0]
    memory = b5["memory"]
    assert inputs.parameters == b5["parameters"]
    assert inputs.multiply_adds == pytest.approx(b5["mflops"] * 1e6 / 2, rel=1e-3)
    assert inputs.bytes_per_image == pytest.approx(memory["activations"] + memory["passing"], rel=0.01)
    fixed = sum(memory[name] for name in ("weights", "gradients", "slots", "averages"))
    assert inputs.bytes_fixed == pytest.approx(fixed, rel=0.01)
