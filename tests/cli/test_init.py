"""`keras-committee init` on class folders: the choices, the written recipe and the mistakes."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from keras_committee.cli import main
from keras_committee.cli.init.defaults import Machine, choose_defaults
from keras_committee.cli.init.image_stats import ImageStats
from keras_committee.cli.init.pretrained_weights import PretrainedWeights, find_weights
from keras_committee.cli.init.template import render_recipe
from keras_committee.data.dataset import check_hold_out, hold_out
from keras_committee.errors import DataError, RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.split_sizes import resolve_count

GIB = 1024**3
CPU, GPU = (Machine(free_memory=64 * GIB, has_gpu=has_gpu) for has_gpu in (False, True))
WEIGHTS = PretrainedWeights("b0", "imagenet", "read from Keras' cache")
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


def two_classes(images):
    return {"a": images // 2, "b": images - images // 2}


@pytest.mark.parametrize(
    ("images", "side", "machine", "kind", "size"),
    [
        (240, 224, CPU, "small", 96),  # few photographs: the case that everybody tries first
        (240, 224, GPU, "small", 96),
        (240, 60, CPU, "small", 64),
        (240, 28, CPU, "small", 32),
        (20_000, 224, CPU, "small", 96),  # a half of them would take hours at 224 pixels
        (20_000, 224, GPU, "efficientnet", 224),
        (40_000, 224, CPU, "efficientnet", 224),
        (40_000, 87, CPU, "wide_resnet", 64),
        (40_000, 88, CPU, "efficientnet", 96),
        (40_000, 3000, GPU, "efficientnet", 224),
        (240, 224, dataclasses.replace(CPU, weights=WEIGHTS), "pretrained", 160),
        (240, 224, dataclasses.replace(GPU, weights=WEIGHTS), "pretrained", 224),
        (40_000, 32, dataclasses.replace(GPU, weights=WEIGHTS), "wide_resnet", 32),  # too small for EfficientNet's
    ],
)
def test_the_network_follows_from_the_images_the_machine_and_the_weights(images, side, machine, kind, size):
    chosen = choose_defaults(image_stats(two_classes(images), side), machine)
    assert (chosen.kind, chosen.size) == (kind, size)
    assert chosen.frozen_epochs < chosen.epochs
    assert bool(chosen.frozen_epochs) == (kind == "pretrained")


@pytest.mark.parametrize(
    ("images", "side", "machine", "offers"),
    [
        (240, 224, CPU, True),
        (240, 60, CPU, False),  # too small for an EfficientNet
        (5_000, 224, CPU, False),
        (240, 224, dataclasses.replace(CPU, weights=WEIGHTS), False),
    ],
)
def test_few_photographs_are_offered_a_pretrained_network_with_the_reason(images, side, machine, offers):
    note = choose_defaults(image_stats(two_classes(images), side), machine).weights_note
    assert ("training images are few to start from random weights. --weights imagenet" in note) == offers
    assert bool(note) == offers


@pytest.mark.parametrize("images", [25, 60, 240, 1_000, 5_000, 30_000])
@pytest.mark.parametrize("machine", [CPU, GPU, dataclasses.replace(CPU, weights=WEIGHTS)])
def test_every_epoch_has_steps_for_batch_normalization_and_training_ends(images, machine):
    chosen = choose_defaults(image_stats(two_classes(images), 224), machine)
    assert chosen.steps_per_epoch >= 8
    if chosen.kind in ("small", "pretrained"):
        assert chosen.num_images_seen <= 300_000  # some minutes
        assert chosen.members in (2, 3)


@pytest.mark.parametrize(
    ("images", "validation", "test"),
    [
        (240, 38, 48),  # a fifth each; with 100 each only 40 images would remain for training
        (500, 80, 100),
        (640, 102, 128),
        (1_000, 104, 200),
        (10_000, 800, 2_000),
    ],
)
def test_about_100_images_are_held_out_where_a_fifth_suffices(images, validation, test):
    splits = choose_defaults(image_stats(two_classes(images)), CPU).splits
    assert (splits.num_validation, splits.num_test) == (validation, test)
    assert splits.num_training == images - validation - test


@pytest.mark.parametrize(
    ("images", "memory", "batch", "why"),
    [
        (100_000, 64 * GIB, 128, "as in the papers"),
        (240, 64 * GIB, 16, "gives 9 batches per epoch"),
        (50_000, GIB, 32, "fits into half of the free memory, as estimated"),  # 512 MiB / (12,000 * 32 * 32) = 43.7
        (9, GIB, 1, "gives 5 batches per epoch"),
    ],
)
def test_the_batch_is_what_images_and_memory_allow(images, memory, batch, why):
    chosen = choose_defaults(image_stats(two_classes(images)), Machine(free_memory=memory, has_gpu=False))
    assert (chosen.batch_size, chosen.batch_why) == (batch, why)
    base = {"small": 0.4, "wide_resnet": 0.1}[chosen.kind]
    assert chosen.learning_rate == pytest.approx(base * batch / 128, rel=0.05)


@pytest.mark.parametrize(
    ("images", "machine", "epochs"), [(69_444, CPU, 40), (10**7, CPU, 10), (240, CPU, 200), (10_000, CPU, 15)]
)
def test_epochs_follow_from_the_number_of_images(images, machine, epochs):
    assert choose_defaults(image_stats(two_classes(images)), machine).epochs == epochs


def test_a_split_with_a_folder_is_not_held_out_and_many_classes_get_larger_splits():
    both = choose_defaults(image_stats({"a": 7000, "b": 8000}, held_out=("test", "validation")), CPU).splits
    one = choose_defaults(image_stats({"a": 7000, "b": 8000}, held_out=("test",)), CPU).splits
    many = choose_defaults(image_stats({f"{index:03d}": 7 for index in range(100)}), CPU).splits
    assert (both.validation, both.test, both.num_training) == (0.0, 0.0, 15_000)
    assert (one.validation, one.test) == (0.1, 0.0)
    assert (many.validation, many.test) == (0.2, 0.2)  # 110 of 700 - 140 images


@pytest.mark.parametrize(
    ("training", "held_out", "words"),
    [
        ({"cat": 1, "dog": 1}, (), "2 images of 2 classes are too few: 'cat', 'dog' have one image"),
        (
            {"cat": 9, "dog": 1},
            (),
            "'dog' has one image, which cannot be divided between training, validation and test",
        ),
        ({"cat": 2, "dog": 2}, (), "no class has more than 2 images, too few for training, validation and test"),
        (
            {"cat": 2, "dog": 1},
            ("test",),
            "'dog' has one image, which cannot be divided between training and validation",
        ),
    ],
)
def test_images_that_training_would_refuse_are_refused(training, held_out, words):
    with pytest.raises(DataError, match=rf"{words}(?s:.)*Each class needs {3 - len(held_out)} images") as caught:
        choose_defaults(image_stats(training, held_out=held_out), CPU)
    assert "No recipe was written." in str(caught.value)


def test_two_images_with_splits_of_their_own_suffice():
    assert choose_defaults(image_stats({"a": 1, "b": 1}, held_out=("test", "validation")), CPU).batch_size == 1


def test_weights_come_from_a_file_or_from_the_cache_of_keras(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert find_weights(None) is None
    (tmp_path / "models").mkdir()
    for name in ("efficientnetb3.h5", "efficientnetb1.h5", "efficientnetb0_notop.h5"):
        (tmp_path / "models" / name).touch()
    found = find_weights(None)
    assert (found.variant, found.source) == ("b1", "imagenet")  # the smallest network with its top
    file = tmp_path / "models/efficientnetb3.h5"
    assert find_weights(file) == PretrainedWeights("b3", str(file), "a file that Keras publishes")
    downloaded = find_weights(pathlib.Path("imagenet"))
    assert downloaded == PretrainedWeights("b0", "imagenet", "downloaded by Keras")
    assert downloaded.is_given


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.h5", "there is no weights file"),
        ("mine.h5", "is not that of weights of an EfficientNet"),
        ("b0.zip", "is not that of weights of an EfficientNet"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path, name, words):
    for existing in ("mine.h5", "b0.zip"):
        (tmp_path / existing).touch()
    with pytest.raises(RecipeError, match=rf"{words}.*(?s:.)*No file was written"):
        find_weights(tmp_path / name)


@pytest.mark.parametrize("sizes", [[3] * 10, [4] * 10, [3] * 100, [30, 2, 3], [20, 30, 2], [2, 3]])
def test_the_splits_of_small_classes_can_be_held_out(sizes):
    chosen = choose_defaults(image_stats({f"{index:03d}": size for index, size in enumerate(sizes)}), CPU).splits
    labels = np.repeat(np.arange(len(sizes)), sizes)
    counts = []
    for part in (chosen.test, chosen.validation):
        classes = [str(label) for label in range(len(sizes))]
        divisible = labels[np.bincount(labels)[labels] > 1]
        counts.append(resolve_count(part, len(labels)))
        assert check_hold_out(divisible, counts[-1], classes, "it") == []
        labels = labels[hold_out(labels, counts[-1])[0]]
    assert set(labels) == set(range(len(sizes)))


def test_a_class_without_a_validation_image_is_named(write_images, capsys):
    write_images({"pets/cat": 12, "pets/dog": 2})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 0
    assert "1 class has two images, so none for validation: 'dog'. Add images, or" in capsys.readouterr().err
    assert choose_defaults(image_stats({"a": 9, "b": 2}, held_out=("test",)), CPU).rare_warning == ""


def test_a_rare_class_is_a_warning(write_images, capsys):
    assert choose_defaults(image_stats({"a": 29, "b": 10}), CPU).imbalance_warning == ""
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
    assert {"members", "epochs", "batch_size", "learning_rate", "data_dir", "precision", "seed"} < set(parameters)
    assert (parameters["data_dir"], parameters["members"]) == (str(pathlib.Path(folder)), 2)
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,N,B,RUF100,W", *RUFF, file]
    assert subprocess.run(check, capture_output=True).stdout == b"All checks passed!\n"
    shape = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", *RUFF[:2], file]
    assert subprocess.run(shape, capture_output=True).returncode == 0


def test_the_recipe_of_every_kind_of_network_is_formatted(tmp_path):
    cases = {
        "small": (240, 224, CPU),
        "wide": (50_000, 32, GPU),
        "efficientnet": (50_000, 224, GPU),
        "pretrained": (240, 224, dataclasses.replace(CPU, weights=WEIGHTS)),
    }
    for name, (images, side, machine) in cases.items():
        stats = image_stats(two_classes(images), side)
        text = render_recipe(stats, choose_defaults(stats, machine), machine.weights, pathlib.Path("pets"), "train")
        (tmp_path / f"{name}.py").write_text(text)
        assert RecipeFile.read(str(tmp_path / f"{name}.py")).defaults["precision"] == "auto"
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,N,B,RUF100,W", *RUFF, tmp_path]
    assert subprocess.run(check, capture_output=True).stdout == b"All checks passed!\n"
    shape = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", *RUFF[:2], tmp_path]
    assert subprocess.run(shape, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_recipe_starts_from_given_weights_with_a_frozen_backbone(write_images, tmp_path):
    import keras

    write_images({"pets/cat": 12, "pets/dog": 13}, (100, 100))
    source = keras.applications.EfficientNetB0(weights=None)
    source.save_weights(tmp_path / "efficientnetb0.weights.h5")
    assert main(["init", "mine.py", "--from", "image-folder", "pets", "--weights", "efficientnetb0.weights.h5"]) == 0
    file = RecipeFile.read("mine.py")
    recipe = file.build(file.resolve([]))
    member = recipe.member(0)
    for layer in ("stem_conv", "top_conv"):
        np.testing.assert_array_equal(member.get_layer(layer).kernel, source.get_layer(layer).kernel)
    assert (member.input_shape, member.output_shape) == ((None, 96, 96, 3), (None, 2))
    assert [recipe.trainable_layers(epoch) for epoch in (4, 5)] == [["logits"], ["*"]]
    rates = [float(recipe.optimizer(100)._learning_rate(step)) for step in (0, 24, 25, 99)]
    assert rates[0] == rates[1] == pytest.approx(10 * rates[2])
    assert rates[3] < 0.01 * rates[2]


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
    pathlib.Path("pets/train/cat/002.png").write_bytes(b"no image")
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 3
    err = capsys.readouterr().err
    assert "error: image_folder('pets'): 5 problems in the data\n" in err
    assert "  train/fox: there is no such folder, but another split has the class\n" in err
    assert "  train/emu/: the class has no images\n" in err
    assert "  train/cat/001.png: the file is empty\n" in err
    assert "  train/cat/002.png: not a JPEG, PNG, WebP, BMP, GIF or AVIF file\n" in err


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
    assert (document["training_images"], document["steps_per_epoch"], document["minutes"]) == (16, 8, None)
    assert document["imbalance_warning"] == ""
    assert document["next"] == "keras-committee train mine.py --smoke"


@pytest.mark.parametrize("side", [100, 33])
def test_a_written_recipe_builds_what_its_comments_state(write_images, side):
    write_images({"pets/cat": 41, "pets/dog": 29}, (side, side + 1))
    assert main(["init", "pets.py", "--from", "image-folder", "pets"]) == 0
    file = RecipeFile.read("pets.py")
    recipe = file.build(file.resolve([]))
    size = file.defaults["size"]
    member = recipe.member(0)
    assert (member.input_shape, member.output_shape) == ((None, size, size, 3), (None, 2))
    peak = file.defaults["learning_rate"]
    assert float(recipe.optimizer(100).learning_rate) == pytest.approx(0.2 * peak)  # it rises from there
    assert recipe.precision == "auto"
    splits = recipe.data.load()
    assert (splits.classes, tuple(splits.train.image_shape)) == (("cat", "dog"), (size, size, 3))
    text, steps = pathlib.Path("pets.py").read_text(), splits.steps_per_epoch
    seen = recipe.epochs * steps * splits.batch_size
    assert f"# {len(splits.train)} training images in {steps} batches, {seen:,} images seen in total\n" in text
    assert f"# gives {steps} batches per epoch;" in text
    few = "; more would leave few to train on"
    assert f"# {len(splits.validation)} of {len(splits.train) + len(splits.validation)} images{few}\n" in text
    assert f"# {len(splits.test)} of 70 images{few}\n" in text


@pytest.mark.slow
def test_a_written_recipe_trains(write_images):
    write_images({"pets/cat": 24, "pets/dog": 20})
    assert main(["init", "mine.py", "--from", "image-folder", "pets"]) == 0
    assert RecipeFile.read("mine.py").docstring.startswith("A committee of two for 44 images of 2 classes.")
    assert main(["train", "mine.py", "--smoke", "--workers", "1"]) == 0
    assert pathlib.Path("runs/mine-smoke/members/01/model.keras").exists()
