"""The number of members at once: the choice from measured rates, its record in the journal, and one measurement."""

import dataclasses
import subprocess
import types

import pytest

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.training import TrainingOptions, num_workers, throughput
from keras_committee.training.num_workers import Machine, explain_choice, fastest
from keras_committee.training.throughput import Throughput, Workload, measure_throughput

TWO_CORES = Machine("a CPU", cores=2, gpus=(), max_workers=8)


@pytest.mark.parametrize(
    ("cores", "gpus", "max_workers", "members", "settings"),
    [
        (2, 0, 8, 4, [2, 1]),
        (2, 0, 8, 1, [1]),
        (1, 0, 8, 4, [1]),
        (8, 0, 64, 8, [8, 4, 1]),
        (8, 0, 3, 8, [3, 1]),  # free memory
        (64, 1, 64, 8, [1, 2, 4]),
        (64, 2, 64, 2, [2]),
        (64, 2, 64, 3, [2, 3]),
        (2, 1, 64, 8, [1, 2]),  # each process also needs a core
        (1, 4, 1, 8, [4]),
    ],
)
def test_the_numbers_to_measure_begin_with_one_member_for_each_core_or_gpu(cores, gpus, max_workers, members, settings):
    machine = Machine("", cores, ("a GPU",) * gpus, max_workers)
    assert machine.settings(members) == settings


@pytest.mark.parametrize(
    ("rates", "members", "chosen"),
    [
        ({2: 1610, 1: 1322}, 4, 2),  # WRN-16-1 in bfloat16 on two cores
        ({2: 231, 1: 290}, 4, 1),  # WRN-16-4
        ({2: 1610, 1: 1322}, 3, 1),  # the third member would have one core of two
        ({2: 1000, 1: 1040}, 4, 2),  # a tie
        ({8: 700, 4: 900, 1: 400}, 8, 4),
        ({1: 900}, 4, 1),  # the measurement of the default failed
        ({1: 100, 2: 180, 4: 185}, 4, 2),
    ],
)
def test_the_number_that_trains_all_members_first_is_chosen_and_a_tie_changes_nothing(rates, members, chosen):
    default = 2 if 2 in rates else max(rates)
    assert fastest(rates, members, default) == chosen


def test_the_choice_is_printed_with_all_rates():
    assert explain_choice({2: 231.4, 1: 1290.2}, 1, 4, "measured") == (
        "training 1 of 4 members at once; measured: one member at a time 1,290 images/s, 2 members side by side 231 "
        "images/s. Use --workers N to choose another number."
    )
    assert "side by side 1,610 images/s (the last of 3 members would" not in explain_choice({2: 1, 1: 1}, 1, 3, "")
    assert "(the last of 3 members would train on a part of the machine)" in explain_choice({2: 9, 1: 8}, 1, 3, "")
    assert "(about equally fast)" in explain_choice({2: 1000, 1: 1040}, 2, 4, "measured")


@pytest.fixture
def chosen(new_run, monkeypatch):
    """Function that chooses the number of workers of a long run on two cores; and the measurements so far."""
    run, train = new_run(["members=4"])
    recipe, measured = train.args[1], []
    splits = recipe.data.load()
    result = Throughput({2: 100.0, 1: 200.0})

    def measure(workload, settings, **options):
        measured.append((workload, settings))
        return result

    monkeypatch.setattr(num_workers, "measure_throughput", measure)
    monkeypatch.setattr(Machine, "current", staticmethod(lambda: TWO_CORES))
    monkeypatch.setattr(num_workers, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr("keras_committee.training.devices.usable_core_count", lambda: 2)

    def choose(members=(0, 1, 2, 3), **changes):
        changed = dataclasses.replace(recipe, **changes)
        return num_workers.choose_measured(run, changed, splits, list(members), "auto", TrainingOptions())

    return types.SimpleNamespace(choose=choose, run=run, measured=measured, result=result)


def test_a_run_is_measured_once_on_a_machine_and_resumes_with_what_was_measured(chosen, monkeypatch):
    assert chosen.choose()[0] == 1
    workload, settings = chosen.measured[0]
    assert settings == [2, 1]
    assert (workload.image_shape, workload.num_classes, workload.batch_size) == ((32, 32, 3), 10, 64)
    event = chosen.run.events()[-1]
    assert (event["event"], event["images_per_second"]) == ("throughput_measured", {"2": 100.0, "1": 200.0})
    number, reason = chosen.choose(members=(2, 3))
    assert (number, len(chosen.measured)) == (1, 1)
    assert "measured before: one member at a time 200 images/s" in reason
    chosen.choose(precision="mixed_bfloat16")
    assert len(chosen.measured) == 2
    monkeypatch.setattr(Machine, "current", staticmethod(lambda: dataclasses.replace(TWO_CORES, cpu="another")))
    chosen.choose()
    assert len(chosen.measured) == 3
    chosen.run.append_event("parameters_changed", members_changed=True)
    chosen.choose()
    assert len(chosen.measured) == 4


def test_a_short_run_a_last_member_and_a_smoke_run_are_not_measured(chosen, monkeypatch):
    assert chosen.choose(members=(3,))[0] == 1
    monkeypatch.setattr(num_workers, "_MIN_SECONDS", 180.0)
    number, reason = chosen.choose()
    assert (number, chosen.measured) == (2, [])
    assert reason.startswith("training 2 of 4 members at once, on 2 cores and ")


def test_a_failed_measurement_is_a_warning_and_the_other_one_counts(chosen, caplog):
    del chosen.result.images_per_second[2]
    chosen.result.failures[2] = "no memory"
    assert chosen.choose()[0] == 1
    assert caplog.messages == ["warning: the measurement of 2 members side by side failed: no memory"]
    chosen.run.append_event("parameters_changed", members_changed=True)
    chosen.result.images_per_second.clear()
    number, reason = chosen.choose()
    assert number == 2
    assert reason.startswith("training 2 of 4 members at once, on 2 cores and ")


# Measurements by other processes


@pytest.fixture
def workload(tmp_path):
    """Function of a line of code that the builder of a tiny member begins with; returns the workload to measure."""

    def make(line):
        (tmp_path / "r.py").write_text(
            "import keras\n"
            "from keras_committee import Recipe, data\n"
            "def recipe(batch_size=8, size=(6, 5)):\n"
            "    def member(index):\n"
            f"        {line}\n"
            "        image = keras.Input((*size, 3))\n"
            "        return keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(image)))\n"
            "    return Recipe(data=data.digits(batch_size), member=member, members=2, epochs=1,\n"
            "                  optimizer=lambda steps: keras.optimizers.SGD(1 / (steps - 11)),\n"
            "                  batch_augment=data.mixup(0.2), precision='float32',\n"
            "                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))\n"
        )
        file = RecipeFile.read(tmp_path / "r.py")
        parameters = file.resolve([])
        return Workload(
            recipe_file=file, parameters=parameters, precision="float32", batch_size=8, image_shape=(6, 5, 3),
            num_classes=4, num_images=100,
        )  # fmt: skip

    return make


@pytest.fixture
def short(forked_workers, monkeypatch):
    """Rounds of a few milliseconds."""
    monkeypatch.setattr(throughput, "_ROUND_SECONDS", 0.01)
    monkeypatch.setattr(throughput, "_ROUNDS", 2)


@pytest.fixture
def started(short, monkeypatch):
    """The processes that are started, each with its specification."""
    start, processes = throughput.supervisor.start_process, []

    def record(module, spec, environment, output):
        process = start(module, spec, environment, output)
        processes.append((process, spec, environment))
        return process

    monkeypatch.setattr(throughput.supervisor, "start_process", record)
    return processes


@pytest.mark.slow
def test_members_side_by_side_and_one_at_a_time_are_measured_and_nothing_remains(workload, started, tmp_path):
    result = measure_throughput(workload("pass"), [2, 1])
    assert result.failures == {}
    assert sorted(result.images_per_second) == [1, 2]
    assert all(rate > 0 for rate in result.images_per_second.values())
    assert [spec["threads"] for _, spec, _ in started][2] == 0
    assert all(spec["threads"] > 0 for _, spec, _ in started[:2])
    assert all(process.poll() is not None for process, _, _ in started)
    folders = {environment["TMPDIR"] for _, _, environment in started}
    assert [folder for folder in folders if subprocess.run(["test", "-e", folder]).returncode == 0] == []


def test_an_error_of_the_recipe_is_raised_and_a_dead_process_is_a_failure_of_its_setting(workload, started):
    with pytest.raises(RecipeError, match=r"r\.py:5: ZeroDivisionError: "):
        measure_throughput(workload("1 / 0"), [1])
    result = measure_throughput(workload("import os; os.kill(os.getpid(), 9)"), [1])
    assert result == Throughput({}, {1: "the process ended with exit code -9"})
    assert all(process.poll() is not None for process, _, _ in started)
