"""In which folder do the shown commands find all that they name, small enough for a test?"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from shown import ROOT, blocks

from keras_committee.cli import main
from keras_committee.recipe_file import RecipeFile

# The knobs of the recipe that ships, so that commands are taken as they stand, and a member that trains in a second.
_STAND_IN = '''"""Linear models on a few digits, in place of {name}."""

import dataclasses

import keras

from keras_committee import Recipe, data


def recipe({knobs}):
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
RUNS = ("cifar_wrn", "wrn-16-1", "wrn-16-2")  # trained in the shop; others are made by the block that names them
CLASSES = ("ash", "beech", "cedar", "daisy", "elm")


def write_recipes(folder: Path) -> None:
    """A stand-in for each recipe that ships, and the recipes that the pages show with a command to train them."""
    folder.mkdir(parents=True)
    for file in sorted((ROOT / "recipes").glob("*.py")):
        knobs = ", ".join(f"{knob}={value!r}" for knob, value in RecipeFile.read(file).resolve([]).items())
        (folder / file.name).write_text(_STAND_IN.format(name=file.name, knobs=knobs))
    for block in blocks("python"):
        if "keras-committee train recipes/" in block.text:
            name = block.text.split("keras-committee train recipes/")[1].split()[0]
            (folder / name).write_text(block.text)


def write_pictures(folder: Path) -> None:
    """`cat.jpg`, `frog.png` and two folders of images for each of five classes."""
    draw = np.random.default_rng(4)
    names = ["cat.jpg", "frog.png"] + [
        f"{images}/{name}/{i}.png" for images in ("my_images", "imagenette") for name in CLASSES for i in range(20)
    ]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(draw.integers(0, 256, (40, 52, 3), np.uint8)).save(folder / name)


def stock(folder: Path) -> list[list[str]]:
    """Fills the current folder: recipes, pictures, runs, a selection, exports. Returns the commands that it took."""
    write_recipes(folder / "recipes")
    write_pictures(folder)
    commands = [
        f"train recipes/cifar_wrn.py --run runs/{name} --workers 1 --set seed={10 * seed} --set members=2".split()
        for seed, name in enumerate(RUNS)
    ]
    commands += [["select", "runs/cifar_wrn", "--cascade"], ["export", "runs/cifar_wrn"]]
    assert [main(command) for command in commands] == [0] * len(commands)
    for index, name in enumerate(("a", "b")):
        (folder / "theirs").mkdir(exist_ok=True)
        shutil.copy(folder / f"runs/wrn-16-1/members/0{index}/model.keras", folder / f"theirs/{name}.keras")
    for version in ("3", "4"):
        shutil.copytree(folder / "saved_models/cifar_wrn/1", folder / "saved_models/committee" / version)
    return [["keras-committee", *command] for command in commands]


def tool(name: str, *arguments: str, folder: Path, **options) -> subprocess.Popen:
    """A command of this environment, started in the folder."""
    module = {"keras-committee": "keras_committee.cli", "tensorboard": "tensorboard.main"}[name]
    return subprocess.Popen([sys.executable, "-m", module, *arguments], cwd=folder, text=True, **options)
