"""`keras-committee init` on other formats: the same statistics as for the folders that they were made from."""

import csv
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from keras_committee.cli import main
from keras_committee.cli.init.image_stats import collect_image_stats
from keras_committee.cli.init.split_stats import collect_tfrecord_stats
from keras_committee.data.record_writer import write_tfrecords
from keras_committee.errors import DataError
from keras_committee.recipe_file import RecipeFile

COUNTS = {"train/cat": 9, "train/dog": 2, "val/cat": 3, "val/dog": 1}
RUFF = ["--config", "line-length = 120"]


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Folder `shards`: two training files and one test file, written from the folders in `pets`."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    for folder, count in COUNTS.items():
        pathlib.Path("pets", folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 33 + number, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(f"pets/{folder}/{number}.png")
    write_tfrecords(pathlib.Path("pets"), pathlib.Path("shards"), shards=2)
    return pathlib.Path("shards")


def relabel(folder, first):
    """Rewrite the shards as other programs do: with labels from `first`, without records.json and labels.txt."""
    for path in folder.glob("*-of-*"):
        examples = [tf.train.Example.FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in examples:
                example.features.feature["image/class/label"].int64_list.value[0] += first - 1
                writer.write(example.SerializeToString())
    for name in ("records.json", "labels.txt"):
        (folder / name).unlink()


def test_shards_have_the_statistics_of_their_folders(shards):
    stats, folders = collect_tfrecord_stats(shards), collect_image_stats(pathlib.Path("pets"))
    assert stats.class_counts == folders.class_counts == {"cat": 12, "dog": 3}
    assert stats.training_counts == folders.training_counts == {"cat": 9, "dog": 2}
    assert (stats.median_side, stats.held_out, stats.first_label) == (folders.median_side, ("test",), 1)
    assert [note.partition(",")[0] for note in stats.notes] == ["'validation' is used as the test split"]


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_label_is_found_without_records_json(shards, first):
    relabel(shards, first)
    stats = collect_tfrecord_stats(shards)
    assert (stats.first_label, stats.training_counts) == (first, {"cat": 9, "dog": 2})


@pytest.mark.slow
def test_a_written_recipe_reads_the_shards(shards, capsys):
    assert main(["init", "mine.py", "--from", "tfrecords", "shards"]) == 0
    assert "Next: keras-committee train mine.py --smoke" in capsys.readouterr().out
    text = pathlib.Path("mine.py").read_text()
    assert "test=0.0,  # test has its own shards\n" in text
    assert "    # class 'cat' has 9 training images, 'dog' has 2: 4.5 times fewer." in text
    shape = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", *RUFF, "mine.py"]
    assert subprocess.run(shape, capture_output=True).returncode == 0
    file = RecipeFile.read("mine.py")
    loaded = file.build(file.resolve([])).data.load()
    assert (loaded.classes, len(loaded.test), file.defaults["data_dir"]) == (("cat", "dog"), 4, "shards")


@pytest.fixture
def sources(shards):
    """A table, arrays and a Hugging Face data set of the images in `pets`, resized to 33 x 33 pixels for the arrays."""
    datasets, parts, arrays = pytest.importorskip("datasets"), {}, {}
    paths = sorted(pathlib.Path("pets").glob("*/*/*.png"))
    with open("pets.csv", "w", newline="") as file:
        rows = [[str(path), path.parent.name, path.parent.parent.name] for path in paths]
        csv.writer(file).writerows([["file_name", "label", "split"], *rows])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split in ("train", "val"):
        own = [path for path in paths if path.parent.parent.name == split]
        columns = {"image": list(map(str, own)), "label": [path.parent.name for path in own]}
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
        arrays[f"x_{split}"] = np.stack([PIL.Image.open(path).resize((33, 33)) for path in own])
        arrays[f"y_{split}"] = np.array(columns["label"])
    datasets.DatasetDict(parts).save_to_disk("saved")
    np.savez("pets.npz", **arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "path", "reader", "own"),
    [("table", "pets.csv", "table", "rows"), ("hf", "saved", "hf", "split"), ("arrays", "pets.npz", "npz", "arrays")],
)
def test_a_written_recipe_reads_the_source(sources, capsys, source, path, reader, own):
    assert main(["init", "mine.py", "--from", source, path]) == 0
    assert "Found 15 images of 2 classes" in capsys.readouterr().out
    text = pathlib.Path("mine.py").read_text()
    assert f"data=data.{reader}(\n" in text
    assert f"test=0.0,  # test has its own {own}\n" in text
    shape = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", *RUFF, "mine.py"]
    assert subprocess.run(shape, capture_output=True).returncode == 0
    file = RecipeFile.read("mine.py")
    assert (list(file.data_folders), file.defaults[file.data_folders[reader]]) == ([reader], path)
    loaded = file.build(file.resolve([])).data.load()
    folders = collect_image_stats(pathlib.Path("pets"))
    assert (loaded.classes, len(loaded.test)) == (tuple(folders.class_counts), 4)
    assert len(loaded.train) + len(loaded.validation) == 11


def test_a_missing_table_is_named_before_tensorflow_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.py", "--from", "table", "absent.csv"]) == 3
    assert "absent.csv: the table cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("records.json", b"{}", r"shards/records.json cannot be read: 'first_label'. Restore or remove it."),
        ("labels.txt", b"cat\ndog\nemu\n", r"train: no example has label 3 \('emu'\)"),
        ("train-00001-of-00002", b"no shard", "1 problem"),
    ],
)
def test_B02_problems_of_the_shards_are_listed(shards, file, content, words):
    (shards / file).write_bytes(content)
    with pytest.raises(DataError, match=words):
        collect_tfrecord_stats(shards)


def test_B01_a_folder_without_shards_is_named(shards, capsys):
    assert main(["init", "mine.py", "--from", "tfrecords", "."]) == 3
    assert "there are no training shards, named like train-00000-of-01024" in capsys.readouterr().err
    assert not pathlib.Path("mine.py").exists()
