"""Do the tables of docs/scale.md come from their inputs, and does the simulation agree with the closed form?"""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "scale.md").read_text()


@pytest.fixture(scope="module")
def scale():
    spec = importlib.util.spec_from_file_location("scale_benchmark", ROOT / "benchmarks" / "scale.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def result(scale):
    return scale.run(scale.Inputs(), scale.RUNS)


@pytest.mark.parametrize("title", ["Inputs", "Cost", "Input", "Network", "Failures"])
def test_a_table_of_the_document_is_what_the_script_prints(result, title):
    assert f"\n{result['tables'][title]}\n" in DOCUMENT


def test_no_table_is_missing_here(result):
    assert list(result["tables"]) == ["Inputs", "Cost", "Input", "Network", "Failures"]


def test_every_input_is_said_to_be_measured_published_or_assumed(scale):
    words = (
        r"measured|published|assumption|`show|ImageNet|authors|A100|committee|slots|train --checkpoint-every|the same"
    )
    assert [f.name for f in dataclasses.fields(scale.Inputs) if not re.search(words, f.metadata["source"])] == []


def test_simulated_failures_agree_with_the_closed_form(result):
    for row in result["failures"]:
        assert row["simulated"] == pytest.approx(row["loss"], abs=4 * row["error"] + 1e-9)
    assert max(row["failures"] for row in result["failures"]) > 10


def test_without_failures_a_training_takes_its_work_and_its_checkpoints(scale):
    inputs = scale.Inputs(checkpoint_seconds=3.0)
    draw = np.random.default_rng(0)
    assert scale.expected_seconds(1_000.0, 300.0, inputs, 1e15) == pytest.approx(1_000 + 4 * 3, rel=1e-3)
    assert scale.simulated_seconds(1_000.0, 300.0, inputs, 1e15, draw) == 1_000 + 4 * 3


class Clock:
    """Failures at known times, each counted from the one before."""

    def __init__(self, *times):
        self._times = list(times)

    def exponential(self, mean):
        return self._times.pop(0)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        # 100 + 5 saved twice; lost 40; 20 until it goes on; the third part and the rest, 100 + 5 + 30 + 5.
        ([250.0, 1e9], 250 + 20 + 140),
        ([250.0, 10.0, 1e9], 250 + 10 + 20 + 140),  # it fails again before it goes on
        ([20.0, 1e9], 20 + 20 + 350),  # before the first checkpoint
        ([349.0, 1e9], 349 + 20 + 35),  # in the last save
    ],
)
def test_a_failure_costs_what_was_done_since_the_last_checkpoint(scale, times, seconds):
    inputs = scale.Inputs(checkpoint_seconds=5.0, restart=20.0)
    assert scale.simulated_seconds(330.0, 100.0, inputs, 1.0, Clock(*times)) == pytest.approx(seconds)


@pytest.mark.parametrize("mtbf", [5_000.0, 200_000.0])
def test_young_s_interval_is_near_the_best_of_all(scale, mtbf):
    inputs = scale.Inputs()
    losses = {s: scale.expected_seconds(1e6, float(s), inputs, mtbf) for s in np.geomspace(20, 5_000, 60)}
    assert scale.expected_seconds(1e6, scale.best_interval(inputs, mtbf), inputs, mtbf) < 1.002 * min(losses.values())


def test_a_ring_sends_what_its_definition_counts(scale):
    inputs = scale.Inputs(parameters=700)
    parts = [4 * 700 / 7] * 7
    sent = sum(parts[step % 7] for step in range(7 - 1)) + sum(parts[step % 7] for step in range(7 - 1))
    assert scale.ring_bytes(inputs, 7) == pytest.approx(sent)  # six parts to reduce, six to gather
    assert scale.ring_seconds(inputs, 7) == pytest.approx(sent / inputs.nvlink + 12 * inputs.hop)
    assert scale.ring_bytes(inputs, 1) == 0


def test_a_member_takes_its_epochs_of_whole_batches(scale):
    inputs = scale.Inputs(images=1_000, epochs=7)
    made = scale.Plan(8, 1, 8, 20, 0.5, 0.1)
    assert scale.member_seconds(inputs, made) == 7 * math.ceil(1_000 / 160) * 0.5


def test_the_batch_is_bounded_by_memory_and_by_the_global_one(scale):
    inputs = scale.Inputs(gpu_memory=10e9, memory_share=0.7, bytes_fixed=1e9, bytes_per_image=0.1e9, batch_limit=500)
    assert [scale.plan(inputs, gpus, 1).batch for gpus in (2, 8, 100)] == [60, 60, 5]


def shown(*knobs):
    words = [word for knob in knobs for word in ("--set", knob)]
    command = ["show", "recipes/imagenet_efficientnet.py", "--set", "members=1", *words, "--json"]
    out = subprocess.check_output([sys.executable, "-m", "keras_committee.cli", *command], cwd=ROOT)
    return json.loads(out)["members"][0]


@pytest.mark.slow
def test_what_the_inputs_say_of_b5_is_what_show_says(scale):
    inputs, b5 = scale.Inputs(), shown("variant=b5", "precision=mixed_bfloat16", "batch_size=1")
    memory = b5["memory"]
    assert inputs.parameters == b5["parameters"]
    assert inputs.multiply_adds == pytest.approx(b5["mflops"] * 1e6 / 2, rel=1e-3)
    assert inputs.bytes_per_image == pytest.approx(memory["activations"] + memory["passing"], rel=0.01)
    fixed = sum(memory[name] for name in ("weights", "gradients", "slots", "averages"))
    assert inputs.bytes_fixed == pytest.approx(fixed, rel=0.01)


@pytest.mark.slow
def test_the_table_of_networks_is_what_show_says_of_b0():
    member = shown("batch_size=32")
    parameters, millions = f"{member['parameters']:,}", f"{member['mflops']:,.0f}"
    row = next(line for line in DOCUMENT.splitlines() if line.startswith("| B0 |"))
    assert row == (
        f"| B0 | 224 | {parameters} | {millions} | {member['expected_saving']:.1%} | "
        f"{member['memory']['training'] / 1e9:.1f} | {member['memory']['inference'] / 1e6:.0f} |"
    )
