"""A Hugging Face data set on disk gives the examples of the class folders that it was made from."""

import dataclasses
import sys

import numpy as np
import pytest

from keras_committee import data
from keras_committee.data.huggingface import ArrowImages
from keras_committee.errors import DataError, RecipeError

datasets = pytest.importorskip("datasets")


@pytest.fixture
def save(tmp_path_factory):
    """`save(paths, name)`: a data set of these image files, whose folders are the classes."""

    def save(paths, name="saved", label=None, **more):
        names = sorted({path.parent.name for path in paths})
        columns = {"image": list(map(str, paths)), "kind": label or [path.parent.name for path in paths], **more}
        features = {"image": datasets.Image(), "kind": datasets.ClassLabel(names=names)}
        features |= {name: datasets.Value("int64") for name in more}
        saved = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        if name is None:
            return saved
        folder = tmp_path_factory.mktemp("saved") / name
        saved.save_to_disk(folder)
        return folder

    return save


def paths_of(root, folder="."):
    return sorted((root / folder).glob("*/*.png"))


def test_a_data_set_and_the_folders_that_it_was_made_from_give_the_same_examples(write_images, save):
    root = write_images({"ant": 12, "bee": 8, "cat": 9}, size=(6, 5))
    options = {"size": (6, 5), "validation": 4, "test": 0.2, "augment": data.pad_crop_flip(1)}
    described = data.hf(save(paths_of(root)), 4, **options)
    memory, files = described.load(), dataclasses.replace(described, memory_limit=0).load()
    expected = data.image_folder(root, 4, **options).load()
    assert isinstance(files.train.images, ArrowImages)
    assert memory.classes == expected.classes == ("ant", "bee", "cat")
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(memory, name).labels, getattr(expected, name).labels)
        np.testing.assert_array_equal(getattr(memory, name).images.numpy(), getattr(expected, name).images.numpy())
    for batches in zip(expected.stream(3, 0, 5), memory.stream(3, 0, 5), files.stream(3, 0, 5), strict=True):
        np.testing.assert_array_equal(batches[0][0], batches[1][0])
        np.testing.assert_array_equal(batches[0][0], batches[2][0])
    assert files.train.source_id() == memory.train.source_id() == described.load().train.source_id()
    assert len({files.train.source_id(), files.test.source_id(), files.validation.source_id()}) == 3


def test_splits_are_recognized_by_name_or_given(write_images, save, tmp_path, caplog):
    root = write_images({"a/ant": 6, "a/bee": 6, "b/ant": 3, "b/bee": 2, "c/ant": 1, "c/bee": 1}, size=(6, 5))
    parts = {
        name: save(paths_of(root, folder), None) for name, folder in zip(("train", "dev", "extra"), "abc", strict=True)
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    loaded = data.hf(tmp_path / "splits", 2, size=(6, 5), validation=2).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (10, 2, 5)
    assert "'dev' is used as the test split" in caplog.text
    assert "the split 'extra' is not used" in caplog.text
    splits = {"train": "train", "validation": "dev", "test": "extra"}
    loaded = data.hf(tmp_path / "splits", 2, size=(6, 5), splits=splits).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (12, 5, 2)
    with pytest.raises(DataError, match=r"there is no split 'test'(.|\n)*Its splits are: train, dev, extra"):
        data.hf(tmp_path / "splits", 2, size=(6, 5), splits={"train": "train", "test": "test"}).load()
    with pytest.raises(RecipeError, match=r"hf: splits must name the split of .train."):
        data.hf(tmp_path / "splits", 2, size=(6, 5), splits={"test": "dev"})


def test_damaged_images_and_missing_labels_are_named(write_images, save):
    root = write_images({"ant": 4, "bee": 4}, size=(6, 5))
    (root / "bee" / "0002.png").write_bytes(b"no image")
    options = {"size": (6, 5), "validation": 0, "test": 0}
    path = save(paths_of(root))
    with pytest.raises(DataError, match=r"train, row 6 \(0002\.png\): not a JPEG, PNG"):
        data.hf(path, 2, **options).load()
    assert len(data.hf(path, 2, skip_bad=1, **options).load().train) == 7
    path = save(paths_of(root), "unlabeled", label=["ant"] * 7 + [None])
    with pytest.raises(DataError, match=r"train: kind: label -1 at row 7(.|\n)*without a label"):
        data.hf(path, 2, **options).load()


def test_a_column_of_each_type_is_required(write_images, save):
    path = save(paths_of(write_images({"ant": 2, "bee": 2}, size=(6, 5))), number=[1, 2, 3, 4])
    with pytest.raises(
        DataError, match=r"no column 'number' of type ClassLabel; expected one, for the label. Its columns"
    ):
        data.hf(path, 2, size=(6, 5), label_column="number").load()


def test_other_folders_and_a_missing_package_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"it is not a data set that `save_to_disk` wrote(.|\n)*load_dataset"):
        data.hf(tmp_path, 2, size=(6, 5)).load()
    with pytest.raises(DataError, match="there is no such folder"):
        data.hf(tmp_path / "absent", 2, size=(6, 5)).load()
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"the data set cannot be read \(.*\)\. Save it again"):
        data.hf(tmp_path, 2, size=(6, 5)).load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=r"requires pip install .keras-committee\[hf\]."):
        data.hf(tmp_path, 2, size=(6, 5)).load()
