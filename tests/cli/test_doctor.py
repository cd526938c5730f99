"""Does `doctor` name what is amiss in a faked environment, with the command that mends it?"""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from keras_committee.cli import doctor, main
from keras_committee.cli.doctor import checks
from keras_committee.cli.doctor.checks import CheckResult

GPU = {"gpus": ["/physical_device:GPU:0", "/physical_device:GPU:1"]}


def found(**versions):
    """The findings, by their parts, where some packages have other versions, or None for none."""
    faked = {name.replace("_", "-"): version for name, version in versions.items()}
    version = lambda package: faked[package] if package in faked else checks.installed_version(package)  # noqa: E731
    return {finding.part: finding for finding in checks.check_packages(version)}


def test_every_extra_that_a_user_may_want_has_its_purpose():
    extras = importlib.metadata.metadata("keras-committee").get_all("Provides-Extra")
    assert set(checks.EXTRA_PURPOSES) == set(extras) - {"docs", "dev", "all"}


@pytest.mark.parametrize(
    ("part", "versions", "line"),
    [
        ("keras", {"keras": "3.14.0"}, "wrong    keras: 3.14.0; >=3.15.1 is needed"),
        (
            "setuptools",
            {"setuptools": "81.0.0"},
            "wrong    setuptools: 81.0.0; <81,>=77 is needed. TensorB",
        ),
        (
            "tensorflow",
            {"tensorflow": None},
            "missing  tensorflow: not installed\n         pip install 'tensorflow~=2.20'",
        ),
        ("protobuf", {"protobuf": "4.25.3"}, "wrong    protobuf: tensorflow needs >=5.28.0, 4.25.3 is installed"),
    ],
)
def test_a_package_that_does_not_fit_is_told_with_the_command_that_mends_it(part, versions, line):
    finding = found(**versions)[part]
    assert str(finding).startswith(line)
    assert finding.hint.startswith(f"pip install '{part}")
    assert finding.needed


def test_two_tensorflows_are_one_too_many():
    finding = found(tensorflow_cpu="2.20.0", tensorflow="2.20.0")["TensorFlow twice"]
    assert finding.text == "tensorflow and tensorflow-cpu write into the same folder"
    assert finding.hint == "pip uninstall -y tensorflow tensorflow-cpu && pip install tensorflow==2.20.0"


def test_tensorflow_of_another_name_will_do():
    everything = found(tensorflow=None, tensorflow_cpu="2.20.1")
    assert str(everything["tensorflow"]) == "ok       tensorflow: 2.20.1, as tensorflow-cpu"
    assert "TensorFlow twice" not in everything


def test_an_extra_that_is_absent_or_too_old_does_not_keep_from_training():
    absent, old = found(optuna=None)["extra search"], found(ray="2.50.1")["extra ray"]
    assert str(absent) == "missing  extra search: optuna; for `search`\n         pip install 'keras-committee[search]'"
    assert (old.state, old.text) == ("wrong", "ray 2.50.1 (>=2.60) is needed; for `train --ray-address`")
    assert not absent.needed | old.needed


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Makes a package tensorflow of this source, and a keras that imports it, come before the real ones."""

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


def test_a_tensorflow_that_cannot_be_imported_is_a_line_with_its_first_cause(stub):
    stub(BROKEN)
    [finding] = checks.check_tensorflow()
    assert str(finding) == (
        "wrong    TensorFlow: it does not start: ImportError: libcudart.so.12: cannot open shared object file: "
        "No such file or directory\n         pip install --force-reinstall 'tensorflow~=2.20'"
    )
    assert finding.needed


def test_a_tensorflow_that_kills_its_process_is_a_line_too():
    [finding] = checks.check_tensorflow([sys.executable, "-c", "import os; os.kill(os.getpid(), 4)"])
    assert finding.text.startswith("it does not start: it ended with SIGILL; this processor lacks instructions (AVX)")


def test_the_last_words_of_a_process_that_ends_badly_are_told():
    [finding] = checks.check_tensorflow([sys.executable, "-c", "raise SystemExit('Unknown flag in XLA_FLAGS')"])
    assert finding.text == "it does not start: Unknown flag in XLA_FLAGS"


@pytest.mark.parametrize(
    ("answer", "nvidia", "hidden", "line"),
    [
        (GPU, True, "0,1", "ok       GPUs: 2: /physical_device:GPU:0, /physical_device:GPU:1"),
        ({"gpus": []}, False, "", "ok       GPUs: none: members train on the cores"),
        (
            {"gpus": []},
            True,
            "-1",
            "wrong    GPUs: hidden by CUDA_VISIBLE_DEVICES\n         unset CUDA_VISIBLE_DEVICES",
        ),
        ({"gpus": []}, True, "0", "wrong    GPUs: this machine has NVIDIA GPUs, TensorFlow sees none of them"),
    ],
)
def test_gpus_that_tensorflow_does_not_see_are_wrong(monkeypatch, answer, nvidia, hidden, line):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert str(checks.check_gpus(answer, nvidia)).startswith(line)


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"KERAS_BACKEND": "jax"}, "wrong    Keras backend: jax, by KERAS_BACKEND; training and data are TensorFlow"),
        ({"TF_CONFIG": '{"cluster"'}, "wrong    TF_CONFIG: not the description of a cluster"),
        ({"TF_CONFIG": '{"task": {"type": "worker", "index": 1}}'}, "ok       TF_CONFIG: this host is worker 1"),
        ({"XLA_FLAGS": "--x=1"}, "ok       environment: XLA_FLAGS=--x=1"),
        ({}, "ok       environment: none of XLA_FLAGS"),
    ],
)
def test_the_environment_is_read(environment, line, tmp_path):
    lines = [str(each) for each in checks.check_environment({"KERAS_HOME": str(tmp_path), **environment})]
    assert [each for each in lines if each.startswith(line)]


def test_the_backend_of_the_settings_file_counts_where_the_environment_says_none(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    finding = next(iter(checks.check_environment({"KERAS_HOME": str(tmp_path)})))
    assert (finding.state, finding.needed) == ("wrong", True)
    assert finding.text.startswith(f"torch, by {tmp_path}/keras.json")


def test_a_folder_that_cannot_be_written_is_no_place_for_runs(tmp_path):
    finding = checks.check_disk(checks.Path("/proc/nowhere/runs"))
    assert (finding.state, finding.needed) == ("wrong", True)
    assert finding.text.startswith("/proc cannot be written and locked: ")
    assert checks.check_disk(tmp_path / "a" / "runs").text.endswith(f"GiB free for runs/ in {tmp_path}")


def test_little_of_anything_is_told_with_what_mends_it(tmp_path):
    assert checks._check_memory(3 * 2**29).text == "1.5 GiB free; a member takes 1 to 2 GiB"
    assert checks._check_open_files(256).hint == "ulimit -n 1024"
    assert checks._check_open_files(-1).state == "ok"
    assert checks.check_serving(None).hint == "docker pull tensorflow/serving"
    assert checks.check_serving("/usr/bin/tensorflow_model_server").state == "ok"


FAKED = [
    CheckResult("keras", "ok", "3.15.1", needed=True),
    CheckResult("extra ray", "missing", "ray; for `train --ray-address`", "pip install 'keras-committee[ray]'"),
    CheckResult("TensorFlow", "wrong", "it does not start: no", "pip install it", needed=True),
]


@pytest.mark.parametrize(("findings", "code"), [(FAKED, 7), (FAKED[:2], 0)])
def test_the_exit_code_says_whether_train_would_work(monkeypatch, capsys, findings, code):
    monkeypatch.setitem(doctor.callback.__globals__, "_findings", lambda: iter(findings))
    assert main(["doctor", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["works"] == (code == 0)
    assert [list(each) for each in document["findings"]] == [["part", "state", "text", "mend", "needed"]] * len(
        findings
    )


def test_what_would_not_work_ends_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(doctor.callback.__globals__, "_findings", lambda: iter(FAKED))
    assert main(["doctor"]) == 7
    out, err = capsys.readouterr()
    assert "missing  extra ray: ray; for `train --ray-address`\n         pip install 'keras-committee[ray]'\n" in out
    assert err == (
        "error: `train` would not work here: TensorFlow. Nothing was changed.\n"
        "  Run the commands above, then: keras-committee doctor\n"
    )


def test_the_quick_part_imports_nothing_heavy():
    code = (
        "import sys; from keras_committee.cli.doctor import machine, packages, tensorflow; "
        "list(packages.package_findings()), list(machine.machine_findings()); "
        "print([name for name in ('tensorflow', 'keras', 'numpy', 'rich') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.slow
def test_train_works_where_the_tests_run():
    answer = subprocess.run([sys.executable, "-m", "keras_committee.cli", "doctor", "--json"], capture_output=True)
    assert json.loads(answer.stdout)["works"]
    assert answer.returncode == 0
