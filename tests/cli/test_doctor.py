"""`keras-committee doctor`: every problem of a fake environment is reported with a command that fixes it."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys

import pytest

from keras_committee.cli import main
from keras_committee.cli.doctor import checks
from keras_committee.cli.doctor.checks import CheckResult

GPUS = ["/physical_device:GPU:0", "/physical_device:GPU:1"]


def check_packages(**versions):
    """Return the results by part if some packages had other versions, or None for packages that are not installed."""
    fake = {name.replace("_", "-"): version for name, version in versions.items()}
    get_version = lambda package: fake[package] if package in fake else checks.installed_version(package)  # noqa: E731
    return {result.part: result for result in checks.check_packages(get_version)}


def test_every_extra_for_users_has_a_purpose():
    extras = importlib.metadata.metadata("keras-committee").get_all("Provides-Extra")
    assert set(checks.EXTRA_PURPOSES) == set(extras) - {"docs", "dev", "all"}


@pytest.mark.parametrize(
    ("part", "versions", "line"),
    [
        ("keras", {"keras": "3.14.0"}, "wrong    keras: 3.14.0; >=3.15.1 is required. older versions load"),
        (
            "setuptools",
            {"setuptools": "81.0.0"},
            "wrong    setuptools: 81.0.0; <81,>=77 is required. TensorB",
        ),
        (
            "tensorflow",
            {"tensorflow": None},
            "missing  tensorflow: not installed\n         pip install 'tensorflow~=2.20'",
        ),
        ("protobuf", {"protobuf": "4.25.3"}, "wrong    protobuf: tensorflow requires >=5.28.0, 4.25.3 is installed"),
    ],
)
def test_an_unsuitable_package_is_reported_with_the_command_that_installs_another(part, versions, line):
    result = check_packages(**versions)[part]
    assert str(result).startswith(line)
    assert result.hint.startswith(f"pip install '{part}")
    assert result.needed


def test_two_tensorflow_distributions_conflict():
    result = check_packages(tensorflow_cpu="2.20.0", tensorflow="2.20.0")["TensorFlow twice"]
    assert result.text == "tensorflow and tensorflow-cpu install into the same folder"
    assert result.hint == "pip uninstall -y tensorflow tensorflow-cpu && pip install tensorflow==2.20.0"
    assert result.needed


def test_tensorflow_of_another_distribution_is_accepted():
    results = check_packages(tensorflow=None, tensorflow_cpu="2.20.1")
    assert str(results["tensorflow"]) == "ok       tensorflow: 2.20.1, as tensorflow-cpu"
    assert "TensorFlow twice" not in results


def test_training_works_without_an_extra_or_with_an_old_one():
    absent, old = check_packages(optuna=None)["extra search"], check_packages(ray="2.50.1")["extra ray"]
    assert str(absent) == "missing  extra search: optuna; for `search`\n         pip install 'keras-committee[search]'"
    assert (old.state, old.text) == ("wrong", "ray 2.50.1 (requires >=2.60); for `train --ray-address`")
    assert not absent.needed | old.needed


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Function that puts a package tensorflow of this source, and a keras that imports it, before the real ones."""

    def stub(source):
        for name, text in (("tensorflow", source), ("keras", "import tensorflow")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return stub


BROKEN = """
try:
    raise ImportError("libcudart.so.12: cannot open shared object file: No such file or directory")
except ImportError:
    raise ImportError("Traceback (most recent call last): ... Failed to load the native TensorFlow runtime.")
"""


def test_a_tensorflow_that_cannot_be_imported_is_reported_with_the_first_cause(stub):
    stub(BROKEN)
    [result] = checks.check_tensorflow()
    assert str(result) == (
        "wrong    TensorFlow: it does not start: ImportError: libcudart.so.12: cannot open shared object file: "
        "No such file or directory\n         pip install --force-reinstall 'tensorflow~=2.20'"
    )
    assert result.needed


def test_a_crash_of_tensorflow_is_reported_with_its_signal():
    [result] = checks.check_tensorflow([sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"])
    assert result.text.startswith("it does not start: the process ended with SIGILL; this processor lacks instruc")


def test_a_failed_start_of_tensorflow_is_reported_with_the_last_line_of_stderr():
    [result] = checks.check_tensorflow([sys.executable, "-c", "raise SystemExit('Unknown flag in XLA_FLAGS')"])
    assert result.text == "it does not start: Unknown flag in XLA_FLAGS"


def test_a_start_of_tensorflow_that_takes_too_long_has_a_hint(monkeypatch):
    monkeypatch.setattr(checks, "_PROBE_TIMEOUT_SECONDS", 0.2)
    [result] = checks.check_tensorflow([sys.executable, "-c", "import time; time.sleep(60)"])
    assert result.text == "it does not start: no result after 0.2 s"
    assert result.hint.startswith("reduce the load of the machine")


@pytest.mark.parametrize(
    ("gpus", "nvidia", "visible", "line"),
    [
        (GPUS, True, "0,1", "ok       GPUs: 2: /physical_device:GPU:0, /physical_device:GPU:1"),
        ([], False, "", "ok       GPUs: none; members train on the CPU"),
        (
            [],
            True,
            "-1",
            "wrong    GPUs: hidden by CUDA_VISIBLE_DEVICES\n         unset CUDA_VISIBLE_DEVICES",
        ),
        ([], True, "0", "wrong    GPUs: this machine has NVIDIA GPUs, but TensorFlow finds none"),
    ],
)
def test_gpus_that_tensorflow_does_not_find_are_wrong(monkeypatch, gpus, nvidia, visible, line):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert str(checks.check_gpus(gpus, nvidia)).startswith(line)


@pytest.mark.parametrize(
    ("capabilities", "line"),
    [
        ([], "ok       precision: new runs train in float32, as the CPU has neither AMX nor AVX512_BF16"),
        ([[9, 0]], "ok       precision: new runs train in mixed_bfloat16, as the compute capability of the GPU is 9.0"),
    ],
)
def test_the_precision_of_new_runs_is_printed(capabilities, line):
    assert str(checks.check_precision(capabilities)) == line


def test_the_compiled_kernels_are_optional():
    assert str(checks.check_kernels("")).startswith("ok       kernels: batch normalization in training is compiled")
    missing = checks.check_kernels("there is no C compiler gcc")
    assert (missing.state, missing.needed, missing.hint) == ("missing", False, "apt install gcc")
    assert missing.text.endswith("slower: there is no C compiler gcc")


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"KERAS_BACKEND": "jax"}, "wrong    Keras backend: jax, set by KERAS_BACKEND; commands run on TensorFlow"),
        ({"TF_CONFIG": '{"cluster"'}, 'wrong    TF_CONFIG: not a valid cluster configuration. Received: {"cluster"'),
        ({"TF_CONFIG": '{"task": {"type": "worker", "index": 1}}'}, "ok       TF_CONFIG: this host is worker 1"),
        ({"XLA_FLAGS": "--x=1"}, "ok       environment: XLA_FLAGS=--x=1"),
        ({}, "ok       environment: none of XLA_FLAGS"),
    ],
)
def test_the_environment_is_checked(environment, line, tmp_path):
    results = checks.check_environment({"KERAS_HOME": str(tmp_path), **environment})
    assert any(str(result).startswith(line) for result in results)


def test_the_backend_of_the_settings_file_is_checked_without_a_variable(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    result = next(iter(checks.check_environment({"KERAS_HOME": str(tmp_path)})))
    assert (result.state, result.needed) == ("wrong", False)
    assert result.text.startswith(f"torch, set by {tmp_path}/keras.json")


def test_a_user_without_a_home_folder_has_no_settings_file(tmp_path, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31)
    assert str(next(iter(checks.check_environment({})))) == "ok       Keras backend: tensorflow"


def test_a_folder_that_cannot_be_written_is_wrong(tmp_path):
    result = checks.check_disk(checks.Path("/proc/nowhere/runs"))
    assert (result.state, result.needed) == ("wrong", True)
    assert result.text.startswith("cannot write and lock files in /proc: ")
    assert checks.check_disk(tmp_path / "a" / "runs").text.endswith(f"GiB free for runs/ in {tmp_path}")


def test_low_limits_are_reported_with_a_hint(tmp_path, monkeypatch):
    low = checks._check_memory(3 * 2**29)
    assert (low.state, low.text) == ("wrong", "1.5 GiB free; a member needs 1 to 2 GiB")
    assert "--workers 1" in low.hint
    assert checks._check_memory(2**31).state == "ok"
    assert checks._check_open_files(256).hint == "ulimit -n 1024"
    assert checks._check_open_files(1024).state == "ok"
    assert checks._check_shared_memory(tmp_path / "none").state == "ok"
    usage = type("Usage", (), {"total": 2**26, "free": 2**29})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    assert checks._check_shared_memory(tmp_path).text == f"0.06 GiB in {tmp_path}"
    assert checks.check_disk(tmp_path).text.startswith("0.5 GiB free")
    assert checks.check_disk(tmp_path).needed
    assert checks._check_open_files(-1).state == "ok"
    assert checks.check_serving(None).hint == "docker pull tensorflow/serving"
    assert checks.check_serving("/usr/bin/tensorflow_model_server").state == "ok"


RESULTS = [
    CheckResult("keras", "ok", "3.15.1", needed=True),
    CheckResult("extra ray", "missing", "ray; for `train --ray-address`", "pip install 'keras-committee[ray]'"),
    CheckResult("TensorFlow", "wrong", "it does not start: no", "pip install it", needed=True),
]


@pytest.mark.parametrize(("results", "code"), [(RESULTS, 7), (RESULTS[:2], 0)])
def test_the_exit_code_is_7_if_train_cannot_run(monkeypatch, capsys, results, code):
    monkeypatch.setattr(checks, "run_checks", lambda: iter(results))
    assert main(["doctor", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["works"] == (code == 0)
    assert document["checks"] == [dataclasses.asdict(result) for result in results]
    assert list(document["checks"][0]) == ["part", "state", "text", "hint", "needed"]


def test_failed_checks_end_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(checks, "run_checks", lambda: iter(RESULTS))
    assert main(["doctor"]) == 7
    out, err = capsys.readouterr()
    assert "missing  extra ray: ray; for `train --ray-address`\n         pip install 'keras-committee[ray]'\n" in out
    assert err == (
        "error: `train` cannot run on this machine: TensorFlow. Nothing was changed.\n"
        "  Run the commands above, then: keras-committee doctor\n"
    )


def test_without_the_package_packaging_the_other_checks_run(monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(checks, "check_tensorflow", lambda: iter(RESULTS))
    results = list(checks.run_checks())
    assert (results[0].part, results[0].state, results[0].needed) == ("packaging", "missing", True)
    assert results[-3:] == RESULTS
    assert "cores" in [result.part for result in results]


@pytest.mark.slow
def test_train_can_run_on_the_machine_of_the_tests():
    result = subprocess.run([sys.executable, "-m", "keras_committee.cli", "doctor", "--json"], capture_output=True)
    assert json.loads(result.stdout)["works"]
    assert result.returncode == 0
