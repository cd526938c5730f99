"""Workspace for the documented commands: small recipes, images, runs and exports under the documented names."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from pages import ROOT, blocks

from keras_committee.cli import main
from keras_committee.recipe_file import RecipeFile

# The parameters of the shipped recipe, so that commands are accepted unchanged, with a member that trains in a second.
_SMALL_RECIPE = '''"""Linear models on a few digits instead of {name}."""

import dataclasses

import keras

from keras_committee import Recipe, data


def recipe({parameters}):
    def member(index):
        image = keras.Input((32, 32, 3), name="image")
        x = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image))
        x = keras.layers.Dense(10, dtype="float32")(keras.layers.Flatten()(x))
        return keras.Model(image, x, name=f"linear_{{index}}")

    return Recipe(
        data=dataclasses.replace(data.digits(32), limit=96),
        member=member,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(0.1),
        epochs=1,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=seed,
    )
'''
RUNS = ("cifar_wrn", "wrn-16-1", "wrn-16-2")  # trained here; other runs are trained by the block that names them
CLASSES = ("ash", "beech", "cedar", "daisy", "elm")


def write_recipes(folder: Path) -> None:
    """Write a small version of each shipped recipe, and the recipes that pages show with a command to train them."""
    folder.mkdir(parents=True)
    for file in sorted((ROOT / "recipes").glob("*.py")):
        parameters = ", ".join(f"{name}={value!r}" for name, value in RecipeFile.read(file).resolve([]).items())
        (folder / file.name).write_text(_SMALL_RECIPE.format(name=file.name, parameters=parameters))
    for block in blocks("python"):
        if "keras-committee train recipes/" in block.text:
            name = block.text.split("keras-committee train recipes/")[1].split()[0]
            (folder / name).write_text(block.text)


def write_images(folder: Path) -> None:
    """Write `cat.jpg`, `frog.png` and two folders with images of five classes."""
    rng = np.random.default_rng(4)
    names = ["cat.jpg", "frog.png"]
    names += [f"{root}/{name}/{i}.png" for root in ("my_images", "imagenette") for name in CLASSES for i in range(20)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (40, 52, 3), np.uint8)).save(folder / name)


def fill_workspace(folder: Path) -> list[list[str]]:
    """Fill the current folder with recipes, images, runs, a selection and exports; returns the commands that ran."""
    write_recipes(folder / "recipes")
    write_images(folder)
    commands = [
        f"train recipes/cifar_wrn.py --run runs/{name} --workers 1 --set seed={10 * seed} --set members=2".split()
        for seed, name in enumerate(RUNS)
    ]
    commands += [["select", "runs/cifar_wrn", "--cascade"]]
    commands += [["export", "runs/cifar_wrn", "--selection", "runs/cifar_wrn/selection.json"]]
    assert [main(command) for command in commands] == [0] * len(commands)
    for index, name in enumerate(("a", "b")):
        (folder / "theirs").mkdir(exist_ok=True)
        shutil.copy(folder / f"runs/wrn-16-1/members/0{index}/model.keras", folder / f"theirs/{name}.keras")
    for shipped in ("saved_models/cifar10_small", "docs/examples"):
        shutil.copytree(ROOT / shipped, folder / shipped)
    for version in ("3", "4"):
        shutil.copytree(folder / "saved_models/cifar_wrn/1", folder / "saved_models/committee" / version)
    return [["keras-committee", *command] for command in commands]


def start_tool(name: str, *arguments: str, folder: Path, **options) -> subprocess.Popen:
    """Start a command-line tool of this environment in the folder."""
    module = {"keras-committee": "keras_committee.cli", "tensorboard": "tensorboard.main"}[name]
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=folder, text=True, **options)
