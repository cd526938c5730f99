"""The wheel, the source distribution, the installed package, its public names, and the setup of an environment."""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import install_packages
import pytest

import keras_committee

ROOT = Path(__file__).parents[1]
PUBLIC_MODULES = ("", "data", "flops", "layers", "metrics", "models", "schedules", "tfserving")
CONSUMER = """
from pathlib import Path
from keras_committee import CommitteeError, Recipe, data, flops, layers, metrics, models, schedules
from keras_committee.tfserving import Client

config: data.DataConfig = data.cifar10(128, directory="x", validation=5_000, augment=data.pad_crop_flip(4))
folder: data.DataConfig = data.image_folder(Path("x"), 4, size=(8, 8), skip_bad=2)
batch: int = config.batch_size
survival: layers.StochasticDepth
code: int = CommitteeError("x").exit_code
answer = Client("grpc://127.0.0.1:8500", model="x").predict([b"jpeg"])


def seeds(recipe: Recipe) -> int:
    return recipe.seed + "1"
"""


def run(*command, folder):
    """Return what a successful program prints."""
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [str(word) for word in command]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the source distribution, built from a copy of this tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("keras_committee", "recipes", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.suffix in (".md", ".toml", ".in", ".lock") or path.name in ("LICENSE", "Makefile"):
            shutil.copy(path, source)
    options = ("--no-isolation", "--skip-dependency-check", "--outdir", source / "dist")
    run(sys.executable, "-m", "build", *options, source, folder=source)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The `bin` folder of an environment with the wheel, which also sees the packages of this environment."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    wheel = next(built.glob("*.whl"))
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel, folder=environment)
    packages = environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    # .pth files of that folder are not read.
    (packages / "this_environment.pth").write_text(sysconfig.get_paths()["purelib"])
    return environment / "bin"


@pytest.mark.slow
def test_the_wheel_contains_the_package_and_nothing_else(built):
    wheel = next(built.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "keras_committee").rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == files
    assert {"keras_committee/py.typed", "keras_committee/evaluation/report/template.html.j2"} < files
    assert {Path(name).name for name in names if ".dist-info/" in name} >= {"LICENSE", "METADATA", "entry_points.txt"}


@pytest.mark.slow
def test_the_source_distribution_has_the_recipes_and_no_tests_runs_or_data(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"recipes/cifar_wrn.py", "LICENSE", "README.md", "CHANGELOG.md", "keras_committee/py.typed"} < names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"keras_committee", "keras_committee.egg-info", "recipes", "tools"}


@pytest.mark.slow
def test_the_installed_command_runs(installed, tmp_path):
    shutil.copy(ROOT / "recipes" / "digits_wrn.py", tmp_path)
    assert "Usage: keras-committee" in run(installed / "keras-committee", "--help", folder=tmp_path)
    output = run(installed / "keras-committee", "describe", "digits_wrn.py", "--json", folder=tmp_path)
    assert json.loads(output)["recipe"] == "digits_wrn"
    path = run(installed / "python", "-c", "import keras_committee; print(keras_committee.__file__)", folder=tmp_path)
    assert Path(path.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
def test_code_that_uses_the_installed_package_is_type_checked(installed, tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    settings = {"typeCheckingMode": "basic", "useLibraryCodeForTypes": False, "reportMissingTypeStubs": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [Path(sys.executable).parent / "basedpyright", "--outputjson", "--pythonpath", installed / "python"]
    result = subprocess.run([*command, "consumer.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    errors = [item for item in json.loads(result.stdout)["generalDiagnostics"] if item["severity"] == "error"]
    assert [error["rule"] for error in errors] == ["reportOperatorIssue"], errors  # int + str, on purpose
    assert errors[0]["range"]["start"]["line"] == len(CONSUMER.splitlines()) - 1


def test_the_public_names_are_those_of_the_snapshot():
    """docs/development/packaging.md describes how a public name may be removed."""
    names = []
    for path in PUBLIC_MODULES:
        module = importlib.import_module(f"keras_committee.{path}".removesuffix("."))
        assert len(module.__all__) == len(set(module.__all__))
        names += [f"{path}.{name}".removeprefix(".") for name in module.__all__]
        assert all(hasattr(module, name) for name in module.__all__)
    assert (ROOT / "tests" / "public_api.txt").read_text().split() == sorted(names)


def test_the_classifiers_list_the_python_versions_of_requires_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    ((low, high),) = re.findall(r"^>=3\.(\d+),<3\.(\d+)$", project["requires-python"])
    assert versions == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert keras_committee.__version__ == project["version"]


def lock_entries(name):
    """Each entry of a lock file by its package, without the comments."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    assert "://" not in text  # no index address
    return {
        found[1]: found[0] for found in re.finditer(r"^([\w.-]+)==\S.*\n(?: +--hash=sha256:.*\n)+", text, re.MULTILINE)
    }


def names(requirements):
    return {re.match(r"[\w.-]+", text)[0].lower().replace("_", "-") for text in requirements}


def test_the_small_lock_file_is_a_part_of_the_other_one_and_has_what_the_demo_runs():
    demo, everything = lock_entries("requirements-demo.lock"), lock_entries("requirements.lock")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    needed = names(settings["project"]["dependencies"] + extras["serving"] + settings["dependency-groups"]["setup"])
    assert demo.items() <= everything.items()
    assert set(demo) >= needed
    assert set(everything) >= names(itertools.chain(*extras.values())) - {"keras-committee"}
    assert not set(demo) & {"ray", "tf-models-official", "jax", "optuna", "mkdocs", "pytest", "ruff"}


def test_the_lock_file_without_uv_has_every_other_entry():
    text = (ROOT / "requirements-demo.lock").read_text()
    uv, others = install_packages.split_lock(text)
    assert uv == re.search(r"^uv==.*?(?=^\w)", text, re.MULTILINE | re.DOTALL)[0]
    assert set(re.findall(r"^([\w.-]+)==", others, re.MULTILINE)) == set(lock_entries("requirements-demo.lock")) - {
        "uv"
    }
    assert install_packages.split_lock(others) == ("", others)


def fake_python(folder, name, before):
    """A program that runs this Python after the given statements."""
    program = folder / name
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c \"import sys; {before}\n$2\"\n")
    program.chmod(0o755)


def find_python(folder, name=""):
    command = ["/bin/sh", ROOT / "tools" / "find_python.sh", name]
    return subprocess.run(command, cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True)


def test_the_newest_python_that_runs_and_can_create_environments_is_found(tmp_path):
    (tmp_path / "python3.13").write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    (tmp_path / "python3.13").chmod(0o755)
    fake_python(tmp_path, "python3.12", "sys.modules['ensurepip'] = None")
    fake_python(tmp_path, "python3.10", "sys.version_info = (3, 10, 13)")
    result = find_python(tmp_path)
    assert result.returncode == 1
    assert "python3.13: command not found\n" in result.stderr
    assert re.search(r"python3.12: cannot create environments; .*: apt install python3\.\d\d-venv\n", result.stderr)
    assert "python3.11: not found\n" in result.stderr
    assert "python3.10: Python 3.10 is not supported\n" in find_python(tmp_path, "python3.10").stderr
    fake_python(tmp_path, "python3.11", "sys.executable = '/of/3.11'")
    assert find_python(tmp_path).stdout == "/of/3.11\n"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fake_python(tmp_path / ".venv" / "bin", "python", "sys.executable = '/of/venv'")
    assert find_python(tmp_path).stdout == "/of/venv\n"


UV_OUTPUT = """\
Resolved 61 packages in 1.40s | downloading 61 packages
Downloading scipy (33.7MiB) | downloading scipy (33.7MiB)
Downloading tensorflow (591.8MiB) | downloading tensorflow (591.8MiB), scipy (33.7MiB)
 Downloaded scipy | downloading tensorflow (591.8MiB)
   Building promise==2.3 | downloading tensorflow (591.8MiB), building promise==2.3
      Built promise==2.3 | downloading tensorflow (591.8MiB)
 Downloaded tensorflow | downloading 61 packages
Prepared 61 packages in 27.63s | copying packages into .venv"""
PIP_OUTPUT = """\
Collecting absl-py==1.4.0 | collecting absl-py
  Downloading absl_py-1.4.0-py3-none-any.whl.metadata (2.5 kB) | collecting absl-py
  Downloading absl_py-1.4.0-py3-none-any.whl (126 kB) | downloading absl_py (126 kB)
Building wheels for collected packages: promise, seqeval | building promise, seqeval
Installing collected packages: absl-py, promise, seqeval | copying packages into .venv"""


@pytest.mark.parametrize("output", [UV_OUTPUT, PIP_OUTPUT], ids=["uv", "pip"])
def test_the_setup_states_what_is_being_installed(output):
    progress = install_packages.Progress("resolving")
    assert str(progress) == "resolving"
    for line, expected in (text.split(" | ") for text in output.splitlines()):
        progress.read(line)
        assert str(progress) == expected, line
