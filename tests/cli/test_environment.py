"""The environment of a command: Keras' settings, home folders, and a recipe's modules in every process of a run."""

import codecs
import json
import os
import shutil
from pathlib import Path

import keras
import pytest

from keras_committee import data, models, training
from keras_committee.api.imports import _read_names
from keras_committee.cli import main
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, open_run

TINY = Path(__file__).parents[1] / "recipes" / "tiny.py"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, beside the current one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(TINY.parent, tmp_path / "home", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "home"


@pytest.fixture
def foreign_settings(monkeypatch):
    """Keras as a `keras.json` of another project configures it."""
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float64")
    keras.config.set_epsilon(1e-3)
    yield
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)


def test_a_recipe_is_built_under_the_default_settings_of_keras(foreign_settings):
    recipe = RecipeFile.read(TINY).build({})
    assert recipe.member(0).output_shape == (None, 10)
    assert (keras.config.image_data_format(), keras.config.floatx()) == ("channels_last", "float32")
    assert keras.config.epsilon() == 1e-7


@pytest.mark.parametrize(
    "build",
    [lambda: models.wide_resnet(10, 1, classes=10), lambda: models.resnet(8, classes=10)],
    ids=["wrn", "resnet"],
)
def test_a_network_is_not_built_with_its_height_taken_for_channels(foreign_settings, build):
    with pytest.raises(ValueError, match=r"set_image_data_format\('channels_last'\) first. Received: 'channels_first'"):
        build()


def test_keras_on_another_backend_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "torch")
    with pytest.raises(RecipeError, match=r"Keras runs on 'torch', .* needs 'tensorflow'\.\n .* KERAS_BACKEND=tensorf"):
        RecipeFile.read(TINY).build({})


def test_a_backend_of_another_project_is_ignored_with_a_note(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert main(["describe", str(TINY), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["recipe"] == "tiny"
    assert err.startswith("note: KERAS_BACKEND=torch is ignored; keras-committee runs on TensorFlow.\n")
    assert os.environ["KERAS_BACKEND"] == "tensorflow"  # worker processes inherit it
    assert main(["describe", str(TINY), "--json"]) == 0
    assert "note" not in capsys.readouterr().err


def test_a_tilde_in_every_kind_of_path_option_is_the_home_folder(home, monkeypatch, capsys):
    monkeypatch.setattr(training, "train_committee", lambda *_, **__: None)
    assert main(["train", "~/tiny.py", "--run=~/runs/a"]) == 0
    assert Run.open(home / "runs/a").recipe_file().name == "tiny"
    assert main(["evaluate", "~/runs/b"]) == 4
    assert f"{home}/runs/b is not a run folder: there is no such folder." in capsys.readouterr().err
    assert main(["predict", "~/runs/a", "~/a.png", "--selection=~/s.json"]) != 0
    assert f"{home}/s.json" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_tilde_in_every_kind_of_path_parameter_is_the_home_folder(home):
    with open_run("~/tiny.py", path="~/runs/a", command="train") as (run, _):
        assert run.path == home / "runs/a"
    assert Run.open("~/runs/a").path == home / "runs/a"
    readers = [
        data.image_folder("~/images", 4, size=(8, 8)).reader,
        data.imagenet_records("~/images", 4, size=(8, 8)).reader,
        data.cifar10(4, directory="~/images").reader,
    ]
    assert [reader.directory for reader in readers] == [home / "images"] * 3
    assert data.cifar10(4, directory="~/c.npz").reader.path == home / "c.npz"
    for read in (models.from_keras_file, models.from_saved_model):
        with pytest.raises(Exception, match=str(home / "absent")):
            read("~/absent.keras")


def test_class_names_may_begin_with_a_byte_order_mark(home):
    (home / "names.txt").write_bytes(codecs.BOM_UTF8 + "Café\r\nbee\r\n".encode())
    assert _read_names("~/names.txt") == ("Café", "bee")


def test_a_home_folder_that_does_not_exist_is_no_traceback(home, capsys):
    assert main(["describe", "~nobody_of_this_name/tiny.py"]) == 2
    assert "no such recipe: ~nobody_of_this_name/tiny.py." in capsys.readouterr().err
