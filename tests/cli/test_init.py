"""`keras-committee init` on class folders: the choices, the written recipe and the mistakes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from keras_committee.cli import main
from keras_committee.cli.init.image_stats import ImageStats
from keras_committee.cli.init.template import choose_defaults
from keras_committee.data.dataset import check_hold_out, hold_out, resolve_count
from keras_committee.recipe_file import RecipeFile

GIB = 1024**3
RUFF = ["--config", "line-length = 120", "--config", 'lint.isort.known-first-party = ["keras_committee"]']


@pytest.fixture
def write_images(tmp_path, monkeypatch):
    """Function that writes noise images into class folders of the current folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)

    def write_images(counts, size=(40, 33)):
        for name, count in counts.items():
            pathlib.Path(name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(pathlib.Path(name, f"{number:03d}.png"))

    return write_images


def image_stats(training, side=32, held_out=()):
    return ImageStats(class_counts=training, training_counts=training, held_out=held_out, median_side=side)


@pytest.mark.parametrize(
    ("side", "size", "network"),
    [
        (8, 32, "wide_resnet"),
        (28, 32, "wide_resnet"),
        (60, 64, "wide_resnet"),
        (87, 64, "wide_resnet"),
        (88, 96, "efficientnet"),
        (240, 224, "efficientnet"),
        (3000, 224, "efficientnet"),
    ],
)
def test_the_size_and_the_network_follow_from_the_median(side, size, network):
    chosen = choose_defaults(image_stats({"a": 700, "b": 800}, side), 64 * GIB)
    assert (chosen.size, chosen.network) == (size, network)


@pytest.mark.parametrize(
    ("images", "memory", "batch", "why"),
    [
        (50_000, 64 * GIB, 128, "as in the papers"),
        (300, 64 * GIB, 16, "gives 8 batches per epoch"),  # 300 less a fifth, less a tenth of the rest: 216 are left
        (50_000, GIB, 32, "fits into half of the free memory, as estimated"),  # 512 MiB / (12,000 * 32 * 32) = 43.7
        (9, GIB, 1, "gives 8 batches per epoch"),
    ],
)
def test_the_batch_is_what_images_and_memory_allow(images, memory, batch, why):
    chosen = choose_defaults(image_stats({"a": images // 3, "b": images - images // 3}), memory)
    assert (chosen.batch_size, chosen.batch_why) == (batch, why)
    assert chosen.learning_rate == pytest.approx(0.1 * batch / 128, rel=0.05)


@pytest.mark.parametrize(("images", "epochs"), [(69_444, 40), (500, 200), (10**7, 10)])
def test_epochs_follow_from_the_number_of_images(images, epochs):
    assert choose_defaults(image_stats({"a": images // 2, "b": images - images // 2}), 64 * GIB).epochs == epochs


def test_a_split_with_a_folder_is_not_held_out_and_many_classes_get_larger_splits():
    both = choose_defaults(image_stats({"a": 70, "b": 80}, held_out=("test", "validation")), GIB)
    one = choose_defaults(image_stats({"a": 70, "b": 80}, held_out=("test",)), GIB)
    many = choose_defaults(image_stats({f"{index:03d}": 7 for index in range(100)}), GIB)
    assert (both.validation, both.test) == (0.0, 0.0)
    assert (one.validation, one.test) == (0.1, 0.0)
    assert (many.validation, many.test) == (0.2, 0.2)  # 110 of 700 - 140 images


@pytest.mark.parametrize("sizes", [[3] * 10, [4] * 10, [3] * 100, [30, 2, 3], [20, 30, 2]])
def test_the_splits_of_small_classes_can_be_held_out(sizes):
    chosen = choose_defaults(image_stats({f"{index:03d}": size for index, size in enumerate(sizes)}), GIB)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    counts = []
    for part in (chosen.test, chosen.validation):
        classes = [str(label) for label in range(len(sizes))]
        divisible = labels[np.bincount(labels)[labels] > 1]
        counts.append(resolve_count(part, len(labels)))
        assert check_hold_out(divisible, counts[-1], classes, "it") == []
        labels = labels[hold_out(labels, counts[-1])[0]]
    assert set(labels) == set(range(len(sizes)))


def test_classes_with_too_few_images_for_the_splits_are_named(write_images, capsys):
    write_images({"pets/cat": 12, "pets/dog": 2, "pets/eel": 1})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 0
    err = capsys.readouterr().err
    assert "1 class has one image, so training refuses to divide them: 'eel'. Add images, or remove the folder." in err
    assert "1 class has two images, so none for validation: 'dog'." in err
    assert choose_defaults(image_stats({"a": 9, "b": 1}, held_out=("test", "validation")), GIB).rare_warning == ""


def test_a_rare_class_is_a_warning(write_images, capsys):
    assert choose_defaults(image_stats({"a": 29, "b": 10}), GIB).imbalance_warning == ""
    write_images({"pets/cat": 35, "pets/dog": 10})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 0
    warning = "class 'cat' has 35 training images, 'dog' has 10: 3.5 times fewer."
    assert f"warning: {warning}" in capsys.readouterr().err
    assert f"    # {warning}" in pathlib.Path("mine.py").read_text()


AWKWARD = "my \"pets\" \\ and 'é'"


@pytest.mark.parametrize(
    ("folder", "size"),
    [("pets", (40, 33)), (AWKWARD, (130, 150)), ("long/" * 30 + "pets", (40, 33)), ("a long/" * 20, (130, 150))],
)
def test_a_written_recipe_is_formatted_and_has_its_parameters(write_images, folder, size, capsys):
    write_images(
        {f"{folder}/train/cat": 9, f"{folder}/train/dog": 8, f"{folder}/val/cat": 3, f"{folder}/val/dog": 3}, size
    )
    file = f"recipes/{AWKWARD}.py"
    assert main(["init", file, "--from", "image-folder", folder]) == 0
    assert (
        f"Wrote {file}; its comments explain the choices.\nNext: keras-committee train 'recipes/my"
        in capsys.readouterr().out
    )
    parameters = RecipeFile.read(file).defaults
    assert {"members", "epochs", "batch_size", "learning_rate", "data_dir", "seed"} < set(parameters)
    assert (parameters["data_dir"], parameters["members"]) == (str(pathlib.Path(folder)), 4)
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,N,B,RUF100,W", *RUFF, file]
    assert subprocess.run(check, capture_output=True).stdout == b"All checks passed!\n"
    shape = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", *RUFF[:2], file]
    assert subprocess.run(shape, capture_output=True).returncode == 0


def test_nothing_is_overwritten(write_images, capsys):
    write_images({"pets/cat": 2, "pets/dog": 2})
    pathlib.Path("mine.py").write_text("# mine\n")
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: mine.py already exists. No file was written.\n  Choose another name"
    )
    assert pathlib.Path("mine.py").read_text() == "# mine\n"


def test_B01_a_missing_folder_is_named(write_images, capsys):
    assert main(["init", "mine.py", "--from", "image-folder", "none"]) == 3
    assert "error: none: 1 problem in the data\n" in capsys.readouterr().err
    assert not pathlib.Path("mine.py").exists()


def test_B05_all_problems_of_the_folders_are_listed(write_images, capsys):
    write_images({"pets/train/cat": 3, "pets/train/emu": 0, "pets/test/cat": 2, "pets/test/fox": 1})
    pathlib.Path("pets/train/cat/001.png").write_bytes(b"")
    pathlib.Path("pets/train/cat/002.png").write_bytes(b"GIF89a")
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 3
    err = capsys.readouterr().err
    assert "error: image_folder('pets'): 5 problems in the data\n" in err
    assert "  train/fox: there is no such folder, but another split has the class\n" in err
    assert "  train/emu/: the class has no images\n" in err
    assert "  train/cat/001.png: the file is empty\n" in err
    assert "  train/cat/002.png: neither a JPEG nor a PNG file\n" in err


@pytest.mark.parametrize(
    ("folders", "options", "line", "note"),
    [
        (("train/cat", "train/dog", "Valid/cat", "Valid/dog", "test/cat", "test/dog"), [], None, ""),
        (
            ("train/cat", "train/dog", "valid/cat", "valid/dog"),
            [],
            'split_folders={"train": "train", "test": "valid"},  # the folder of each split\n',
            "warning: 'valid' is used as the test split, since there is none named test",
        ),
        (("bus", "train"), [], "split_folders={},  # every folder is a class\n", "warning: train/ is a class"),
        (("bus", "train", "test"), ["--split-folders", "none"], "split_folders={},  # every folder", ""),
        (
            ("a/cat", "a/dog", "b/cat", "b/dog"),
            ["--split-folders", "train=a,validation=b"],
            'split_folders={"train": "a", "validation": "b"},',
            "",
        ),
    ],
)
def test_the_layout_is_detected_or_stated_in_the_recipe(write_images, folders, options, line, note, capsys):
    write_images({f"pets/{folder}": 9 for folder in folders})
    assert main(["init", "mine.py", "--from", "image-folder", "pets", *options]) == 0
    text, err = pathlib.Path("mine.py").read_text(), capsys.readouterr().err
    assert ("split_folders" in text) == (line is not None)
    assert (line or "") in text
    assert err.startswith(note)
    assert bool(err) == bool(note)
    file = RecipeFile.read("mine.py")
    assert file.build(file.resolve([])).data.load().train.labels.max() >= 1


def test_an_ambiguous_layout_names_the_option(write_images, capsys):
    write_images({"pets/bus": 3, "pets/train": 3, "pets/test": 3})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 3
    err = capsys.readouterr().err
    assert "  train/: named like a split, but has images and no class folders\n" in err
    assert "--split-folders train=FOLDER,test=FOLDER, or --split-folders none." in err
    assert main(["init", "mine.py", "--from", "image-folder", "pets", "--split-folders", "test=a"]) == 2
    assert "must be train=FOLDER, with validation=FOLDER and test=FOLDER, or none" in capsys.readouterr().err


def test_one_class_is_not_enough(write_images, capsys):
    write_images({"pets/cat": 3})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 3
    assert "only one class; a classifier needs at least two" in capsys.readouterr().err


def test_json_has_the_choices_and_the_next_command(write_images, capsys):
    write_images({"pets/cat": 12, "pets/dog": 13})
    assert main(["init", "mine.py", "--from", "image-folder", "pets", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["classes"] == {"cat": 12, "dog": 13}
    assert (document["size"], document["batch_size"], document["epochs"]) == (32, 2, 200)
    assert document["imbalance_warning"] == ""
    assert document["next"] == "keras-committee train mine.py --smoke"


@pytest.mark.parametrize("side", [100, 33])
def test_a_written_recipe_builds_its_members_optimizer_and_data(write_images, side):
    write_images({"pets/cat": 11, "pets/dog": 9}, (side, side + 1))
    assert main(["init", "pets.py", "--from", "image-folder", "pets"]) == 0
    file = RecipeFile.read("pets.py")
    recipe = file.build(file.resolve([]))
    size = file.defaults["size"]
    member = recipe.member(0)
    assert (member.input_shape, member.output_shape) == ((None, size, size, 3), (None, 2))
    assert float(recipe.optimizer(100).learning_rate) == 0  # the warm-up starts there
    splits = recipe.data.load()
    assert (splits.classes, tuple(splits.train.image_shape)) == (("cat", "dog"), (size, size, 3))


@pytest.mark.slow
def test_a_written_recipe_trains(write_images):
    write_images({"pets/cat": 24, "pets/dog": 20})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 0
    assert RecipeFile.read("mine.py").docstring.startswith("A committee of four for 44 images of 2 classes.")
    assert main(["train", "mine.py", "--smoke"]) == 0
    assert pathlib.Path("runs/mine-smoke/members/01/model.keras").exists()
