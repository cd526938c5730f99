"""The recipes of the repository: each one runs, and its docstring is complete and correct."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf

from keras_committee import models
from keras_committee.cli import cli, main
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile

ROOT = pathlib.Path(__file__).parent.parent
# Parameters that make each recipe small enough for a test.
SMALL = {
    "cifar_fast": ("widths=4-4-4", "members=1", "batch_size=32", "data_dir={cifar}"),
    "cifar_snapshots": ("widths=4-4-4", "batch_size=32", "swa_epoch_start=0.5", "end_rate=0.1", "data_dir={cifar}"),
    "cifar_stochastic_depth": ("depth=8", "members=1", "batch_size=32", "data_dir={cifar}"),
    "cifar_student": ("teacher={teacher}", "widths=4-4-4", "batch_size=32", "data_dir={cifar}"),
    "cifar_wrn": ("width=1", "depth=10", "members=1", "batch_size=32", "data_dir={cifar}"),
    "digits_wrn": (),
    "finetune_efficientnet": ("weights=none", "members=1", "resolution=32", "batch_size=8", "data_dir={photos}"),
    "imagenet_efficientnet": (
        "members=1", "classes=3", "resolution=32", "batch_size=8", "input_format=folders", "data_dir={photos}",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Noise in the format of CIFAR-10, with enough images for the 5,000 validation images of the recipes."""
    rng = np.random.default_rng(5)
    file = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    np.savez(
        file,
        x_train=rng.integers(0, 256, size=(5_200, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(5_200) % 10,
        x_test=rng.integers(0, 256, size=(130, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(130) % 10,
    )
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise in class folders like those of ImageNet: `train` and `val`."""
    rng, root = np.random.default_rng(7), tmp_path_factory.mktemp("photos")
    for split, count in (("train", 60), ("val", 8)):
        for name in ("cat", "dog", "fox"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, size=(36, 44, 3), dtype=np.uint8)
                (root / split / name / f"{number}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A network of `models.speed_net`, untrained."""
    file = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    models.speed_net([4, 4, 4], classes=10).save(file)
    return file


def test_every_recipe_is_tested():
    assert {file.stem for file in (ROOT / "recipes").glob("*.py")} == set(SMALL)


def test_the_recipe_of_the_demo_builds_a_member_and_its_optimizer():
    file = RecipeFile.read(ROOT / "recipes" / "digits_wrn.py")
    recipe = file.build(file.resolve([]))
    member, optimizer = recipe.member(0), recipe.optimizer(100)
    assert member.output_shape == (None, len(recipe.data.load().classes))
    optimizer.build(member.trainable_variables)
    assert optimizer.built


@pytest.mark.slow
@pytest.mark.timeout(900)  # the large recipes take up to a minute
@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_trains_and_evaluates_a_committee(name, cifar, photos, teacher, tmp_path, capsys):
    run, paths = str(tmp_path / "run"), {"cifar": cifar, "photos": photos, "teacher": teacher}
    overrides = [word for value in SMALL[name] for word in ("--set", value.format(**paths))]
    options = ["--smoke", "--workers", "1", "--run", run]
    assert main(["train", str(ROOT / "recipes" / f"{name}.py"), *options, *overrides]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recipe"] == name
    assert result["committees"][-1]["size"] == len(result["members"])


@pytest.mark.parametrize("name", SMALL)
def test_the_docstring_has_a_command_a_result_and_a_source(name):
    docstring = RecipeFile.read(ROOT / "recipes" / f"{name}.py").docstring
    assert f"keras-committee train recipes/{name}.py" in docstring
    assert re.search(r"^Expected: .*\d", docstring, flags=re.MULTILINE)
    assert re.search(r"^Source: .*arXiv:\d{4}\.\d{5}", docstring, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("finetune_efficientnet", "data_dir=", "data_dir must be the folder of your class folders: --set data_dir="),
        ("finetune_efficientnet", "frozen_epochs=20", r"below epochs=20\. Received: 20"),
        ("imagenet_efficientnet", "input_format=zip", r"input_format must be records or folders\. Received: 'zip'"),
        ("imagenet_efficientnet", "augment=cutout", r"augment must be none, autoaugment .*\. Received: 'cutout'"),
    ],
)
def test_an_invalid_parameter_is_an_error(name, override, message):
    file = RecipeFile.read(ROOT / "recipes" / f"{name}.py")
    with pytest.raises(RecipeError, match=message):
        file.build(file.resolve(["data_dir=photos", override]))


def docstring_commands():
    """Return the keras-committee commands of the recipes' docstrings; tests/docs runs those of the pages."""
    texts = [RecipeFile.read(file).docstring for file in sorted((ROOT / "recipes").glob("*.py"))]
    joined = "\n".join(texts).replace("\\\n", " ")
    lines = re.findall(r"^ *(keras-committee .*)$", joined, flags=re.MULTILINE)
    return sorted({line.split("#")[0].strip() for line in lines})


@pytest.mark.parametrize("command", docstring_commands())
def test_a_command_of_a_docstring_is_valid(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)[1:]
    context = cli.get_command(None, name).make_context(name, arguments, obj={"debug": False})
    recipe = context.params.get("recipe", "recipes/digits_wrn.py")
    assert RecipeFile.read(recipe).resolve(context.params.get("overrides", ()))


def test_the_commands_are_found():
    assert len(docstring_commands()) >= 5
