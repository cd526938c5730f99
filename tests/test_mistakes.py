"""Do ten mistakes get an exit code, and words that say what, where and what to do?"""

import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from keras_committee.cli import main

FOLDER = """
import keras
from keras_committee import Recipe, data


def recipe(members=2, learning_rate=0.1, images="images"):
    return Recipe(
        data=data.image_folder(images, 4, size=(8, 8), validation=2, test=2),
        member=lambda index: None,
        members=members,
        optimizer=lambda steps: keras.optimizers.SGD(learning_rate),
        epochs=1,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty current folder with one recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets.py").write_text(FOLDER)
    return tmp_path


@pytest.fixture
def fail(capsys):
    """Runs a command that fails: returns its exit code and what it says on stderr."""

    def fail(*arguments):
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        return code, err

    return fail


def test_an_unknown_knob(fail):
    assert fail("train", "pets.py", "--set", "member=3") == (
        2,
        "error: pets.py has no knob 'member'. Did you mean 'members'?\n"
        "  knobs: members=2, learning_rate=0.1, images='images'\n",
    )


def test_a_value_of_the_wrong_type(fail):
    assert fail("train", "pets.py", "--set", "learning_rate=fast") == (
        2,
        "error: pets.py: knob 'learning_rate' expects a finite number, like its default 0.1. Received: 'fast'\n",
    )


def test_a_missing_recipe(fail):
    assert fail("train", "pet.py") == (
        2,
        "error: no such recipe: pet.py. Did you mean 'pets.py'?\n  recipes in .: pets.py\n",
    )


def test_a_recipe_without_a_function_recipe(fail, folder):
    (folder / "plain.py").write_text("members = 3\n")
    assert fail("train", "plain.py") == (
        2,
        "error: plain.py has no function `recipe`. Its arguments are the knobs; it returns a Recipe.\n",
    )


def test_a_syntax_error_in_the_recipe(fail, folder):
    (folder / "typo.py").write_text("import keras\n\ndef recipe(members=2:\n    return 3\n")
    code, err = fail("train", "typo.py")
    assert code == 2
    assert err.startswith("error: typo.py:3: syntax error: ")
    assert err.endswith("\n  def recipe(members=2:\n")


def test_a_missing_recipe_is_not_fetched(fail):
    assert fail("train", "https://example.org/pets.py") == (
        2,
        "error: https://example.org/pets.py is an address. A recipe runs as code, so it is never fetched: download it, "
        "read it, and name the file.\n",
    )


def test_B01_a_missing_data_dir_is_told_before_tensorflow_is_imported(folder):
    (folder / "cats.py").write_text("def recipe(data_dir=None):\n    import tensorflow\n")
    program = (
        "import sys; from keras_committee.cli import main\n"
        "code = main(['train', 'cats.py', '--set', 'data_dir=gone'])\n"
        "sys.exit(code if not {'tensorflow', 'keras'} & set(sys.modules) else 99)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        3,
        "error: no such data directory: gone (knob data_dir). Nothing was begun.\n"
        "  Give the folder of the images: --set data_dir=PATH\n",
    )
    assert not (folder / "runs").exists()


def test_B01_a_missing_data_folder(fail):
    code, err = fail("train", "pets.py", "--set", "images=/nowhere/images")
    assert code == 3
    assert "/nowhere/images" in err


def test_truncated_images(fail, folder):
    generator = np.random.default_rng(0)
    for number in range(24):
        path = folder / "images" / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    for torn in ("cat/04.png", "dog/17.png"):
        path = folder / "images" / torn
        path.write_bytes(path.read_bytes()[:100])
    code, err = fail("train", "pets.py")
    assert code == 3
    assert "cat/04.png: damaged" in err
    assert "dog/17.png: damaged" in err
    assert "cat/06.png" not in err


def test_a_run_folder_that_cannot_be_written(fail, folder):
    (folder / "file").write_text("")
    code, err = fail("train", "pets.py", "--run", "file/run")
    assert code == 7
    assert err == (
        "error: cannot write file/run: File exists: file.\n  Make room, mend the permissions, or name another folder.\n"
    )


def test_a_run_folder_of_another_recipe(fail, folder):
    assert fail("train", "pets.py", "--run", "runs/a")[0] == 3  # there is no data; the run folder is made
    (folder / "others.py").write_text(FOLDER.replace("learning_rate=0.1", "learning_rate=0.05"))
    code, err = fail("train", "others.py", "--run", "runs/a")
    assert code == 4
    assert "error: runs/a was trained with something else:\n  learning_rate 0.1 -> 0.05\n" in err
    assert err.endswith(
        "Nothing was touched. Keep both: keras-committee train others.py --run runs/a-2 ...\n"
        "or train what is missing with the change, and keep what is finished: --allow-config-change.\n"
    )


def test_an_unknown_strategy(fail):
    assert fail("train", "pets.py", "--strategy", "mirrorred") == (
        2,
        "error: Invalid value for '--strategy': 'mirrorred' is not one of 'auto', 'single', 'mirrored', 'multiworker'.\n"
        "  see: keras-committee train --help\n",
    )
