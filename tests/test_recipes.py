"""Every recipe that ships, and every command that the documents show, runs."""

import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf

from keras_committee.cli import cli, main
from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile

ROOT = pathlib.Path(__file__).parent.parent
# What makes a recipe small enough for a test; its path through the toolkit stays the same.
SMALL = {
    "cifar_stochastic_depth": ("depth=8", "members=1", "batch_size=32", "data_dir={cifar}"),
    "cifar_wrn": ("width=1", "depth=10", "members=1", "batch_size=32", "data_dir={cifar}"),
    "digits_wrn": (),
    "finetune_efficientnet": ("weights=none", "members=1", "resolution=32", "batch_size=8", "data_dir={photos}"),
    "imagenet_efficientnet": (
        "members=1", "classes=3", "resolution=32", "batch_size=8", "form=folders", "data_dir={photos}",
    ),
}  # fmt: skip
# An EfficientNet takes its minute to trace.
SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]
TRIED = [pytest.param(name, marks=SLOW if name.endswith("efficientnet") else []) for name in SMALL]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Noise in the form of CIFAR-10, large enough for the 5,000 validation images that the recipes hold out."""
    draw = np.random.default_rng(5)
    file = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    np.savez(
        file,
        x_train=draw.integers(0, 256, size=(5_200, 32, 32, 3), dtype=np.uint8),
        y_train=np.arange(5_200) % 10,
        x_test=draw.integers(0, 256, size=(130, 32, 32, 3), dtype=np.uint8),
        y_test=np.arange(130) % 10,
    )
    return file


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise in class folders, as ImageNet is shared: `train` and `val`."""
    draw, root = np.random.default_rng(7), tmp_path_factory.mktemp("photos")
    for split, count in (("train", 60), ("val", 8)):
        for name in ("cat", "dog", "fox"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, size=(36, 44, 3), dtype=np.uint8)
                (root / split / name / f"{number}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return root


def test_every_recipe_is_tried_here():
    assert {file.stem for file in (ROOT / "recipes").glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", TRIED)
def test_a_recipe_becomes_an_evaluated_committee(name, cifar, photos, tmp_path, capsys):
    run = str(tmp_path / "run")
    knobs = [word for knob in SMALL[name] for word in ("--set", knob.format(cifar=cifar, photos=photos))]
    # One after another, here: that the members of workers are the same is held by tests/training/test_workers.py.
    options = ["--smoke", "--workers", "1", "--run", run]
    assert main(["train", str(ROOT / "recipes" / f"{name}.py"), *options, *knobs]) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["recipe"] == name
    assert result["committees"][-1]["size"] == len(result["members"])


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_says_its_command_its_result_and_its_source(name):
    doc = RecipeFile.read(ROOT / "recipes" / f"{name}.py").docstring
    assert f"keras-committee train recipes/{name}.py" in doc
    assert re.search(r"^Expected: .*\d", doc, flags=re.MULTILINE)
    assert re.search(r"^Source: .*arXiv:\d{4}\.\d{5}", doc, flags=re.MULTILINE | re.DOTALL)


def test_one_s_own_classes_need_a_folder():
    file = RecipeFile.read(ROOT / "recipes" / "finetune_efficientnet.py")
    with pytest.raises(RecipeError, match="name the folder with your class folders: --set data_dir="):
        file.build(file.resolve([]))


def shown_commands():
    """The keras-committee commands of the recipes' docstrings; tests/docs runs those of the pages."""
    texts = [RecipeFile.read(file).docstring for file in sorted((ROOT / "recipes").glob("*.py"))]
    joined = "\n".join(texts).replace("\\\n", " ")
    lines = re.findall(r"^ *(keras-committee .*)$", joined, flags=re.MULTILINE)
    return sorted({line.split("#")[0].strip() for line in lines})


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_that_is_shown_is_one_that_is_taken(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, *arguments = shlex.split(command)[1:]
    context = cli.get_command(None, name).make_context(name, arguments, obj={"debug": False})
    recipe = context.params.get("recipe", "recipes/digits_wrn.py")
    knobs = RecipeFile.read(recipe).resolve(list(context.params.get("overrides", ())))
    assert knobs


def test_there_are_commands_to_take():
    assert len(shown_commands()) >= 5
