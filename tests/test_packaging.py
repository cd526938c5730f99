"""Does what is installed hold what it must, load nothing unasked, and offer the names that it promises?"""

import importlib
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

import pytest

import keras_committee

ROOT = Path(__file__).parents[1]
PUBLIC = ("", "data", "flops", "layers", "metrics", "models", "schedules", "serving")
CONSUMER = """
from pathlib import Path
from keras_committee import CommitteeError, Recipe, data, flops, layers, metrics, models, schedules
from keras_committee.tfserving import Client

described: data.Data = data.cifar10(128, directory="x", validation=5_000, augment=data.pad_crop_flip(4))
folder: data.Data = data.image_folder(Path("x"), 4, size=(8, 8), skip_bad=2)
batch: int = described.batch_size
survival: layers.StochasticDepth
code: int = CommitteeError("x").exit_code
answer = Client("grpc://127.0.0.1:8500", model="x").predict([b"jpeg"])


def seeds(recipe: Recipe) -> int:
    return recipe.seed + "1"
"""


def run(*words, folder, **environment):
    """What a program prints; its errors are ours."""
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    words = [str(word) for word in words]
    ended = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source distribution of a copy of this tree."""
    source = tmp_path_factory.mktemp("source")
    for name in ("keras_committee", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.suffix in (".md", ".toml", ".in", ".lock") or path.name in ("LICENSE", "Makefile"):
            shutil.copy(path, source)
    words = (sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", source / "dist")
    run(*words, source, folder=source)
    return source / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The `bin` folder of an environment with the wheel alone, which sees the packages that we have."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    wheel = next(built.glob("*.whl"))
    python = place / "bin" / "python"
    words = ("-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--no-deps", "--no-index")
    run(sys.executable, *words, wheel, folder=place)
    packages = place / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (packages / "ours.pth").write_text(sysconfig.get_paths()["purelib"])  # no .pth of that folder is read
    return place / "bin"


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_files_and_nothing_else(built):
    wheel = next(built.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "keras_committee").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert {"keras_committee/py.typed", "keras_committee/evaluation/report/template.html.j2"} < ours
    assert {Path(name).name for name in names if ".dist-info/" in name} >= {"LICENSE", "METADATA", "entry_points.txt"}


@pytest.mark.slow
def test_the_source_distribution_has_the_recipes_and_no_tests_runs_or_data(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"recipes/cifar_wrn.py", "LICENSE", "README.md", "CHANGELOG.md", "keras_committee/py.typed"} < names
    rooms = {name.partition("/")[0] for name in names if "/" in name}
    assert rooms == {"keras_committee", "keras_committee.egg-info", "recipes"}


@pytest.mark.slow
def test_the_installed_command_answers(installed, tmp_path):
    shutil.copy(ROOT / "recipes" / "digits_wrn.py", tmp_path)
    assert "Usage: keras-committee" in run(installed / "keras-committee", "--help", folder=tmp_path)
    shown = run(installed / "keras-committee", "describe", "digits_wrn.py", "--json", folder=tmp_path)
    assert json.loads(shown)["recipe"] == "digits_wrn"
    where = run(installed / "python", "-c", "import keras_committee; print(keras_committee.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


@pytest.mark.slow
def test_a_consumer_of_the_installed_types_is_checked(installed, tmp_path):
    (tmp_path / "consumer.py").write_text(CONSUMER)
    settings = {"typeCheckingMode": "basic", "useLibraryCodeForTypes": False, "reportMissingTypeStubs": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    words = [Path(sys.executable).parent / "basedpyright", "--outputjson", "--pythonpath", installed / "python"]
    ended = subprocess.run([*words, "consumer.py"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    errors = [each for each in json.loads(ended.stdout)["generalDiagnostics"] if each["severity"] == "error"]
    assert [each["rule"] for each in errors] == ["reportOperatorIssue"], errors  # the planted one: int + str
    assert errors[0]["range"]["start"]["line"] == len(CONSUMER.splitlines()) - 1


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys; before = set(sys.modules); import keras_committee; print(*set(sys.modules) - before)"
    loaded = set(run(sys.executable, "-c", program, folder=ROOT).split())
    assert {name for name in loaded if name.startswith("keras_committee")} == {"keras_committee"}
    assert {name.partition(".")[0] for name in loaded} <= {"keras_committee", "importlib", "warnings", "typing"} | set(
        sys.stdlib_module_names
    )


def test_the_public_names_are_those_of_the_snapshot():
    """A name that comes or goes shows in the diff of tests/public_api.txt; docs/packaging.md says how one may go."""
    names = []
    for room in PUBLIC:
        module = importlib.import_module(".".join(filter(None, ("keras_committee", room))))
        names += [".".join(filter(None, (room, name))) for name in module.__all__]
        assert all(hasattr(module, name) for name in module.__all__)
    assert (ROOT / "tests" / "public_api.txt").read_text().split() == sorted(names)


def test_versions_of_python_are_claimed_only_where_they_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = [re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each) for each in project["classifiers"]]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", project["requires-python"]).groups()
    assert [found[1] for found in claimed if found] == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert keras_committee.__version__ == project["version"]
