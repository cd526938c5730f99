"""A data set prepared by TensorFlow Datasets is read as TensorFlow Datasets reads it."""

import dataclasses
import importlib.resources
import importlib.resources.abc
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets

from keras_committee import data
from keras_committee.errors import DataError

NAMES = ["wasp", "ant", "bee"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the data set `insects`, of PNGs, prepared offline; and its pixels and labels by split."""
    # What TFDS 4.9.10 needs to write, and no longer gets by its dependencies; Python has it.
    sys.modules.setdefault("importlib_resources", importlib.resources)
    folder, random = tmp_path_factory.mktemp("tfds"), np.random.default_rng(5)
    splits = {
        split: [{"image": random.integers(0, 256, (6, 5, 3), dtype=np.uint8), "label": n % 3} for n in range(count)]
        for split, count in (("train", 14), ("validation", 5))
    }
    tensorflow_datasets.dataset_builders.store_as_tfds_dataset(
        name="insects",
        version="1.0.0",
        features=tensorflow_datasets.features.FeaturesDict(
            {
                "image": tensorflow_datasets.features.Image(shape=(None, None, 3)),
                "label": tensorflow_datasets.features.ClassLabel(names=NAMES),
            }
        ),
        split_datasets={split: list(enumerate(examples)) for split, examples in splits.items()},
        data_dir=folder,
        disable_shuffling=True,
    )
    return folder, splits


def insects(folder, **options):
    chosen = {"size": (6, 5), "data_dir": folder, "validation": 3, "test": "validation", **options}
    return data.tfds("insects", 4, **chosen)


def test_the_examples_are_those_that_were_prepared(prepared):
    folder, splits = prepared
    loaded = dataclasses.replace(insects(folder, validation=0), memory_limit=0).load()
    assert loaded.classes == tuple(NAMES)
    for split, wanted in ((loaded.train, splits["train"]), (loaded.test, splits["validation"])):
        images, labels = zip(*split.batches(8).as_numpy_iterator(), strict=True)
        np.testing.assert_array_equal(np.concatenate(images), [example["image"] for example in wanted])
        assert np.concatenate(labels).tolist() == [example["label"] for example in wanted]


def test_a_data_set_that_is_not_prepared_names_the_command_that_prepares_it(prepared):
    with pytest.raises(DataError, match=r"tfds build imagenet2012 --data_dir="):
        data.tfds("imagenet2012", 4, size=(6, 5), data_dir=prepared[0]).load()
    with pytest.raises(DataError, match="insects has no split 'test'\\. Its splits are: train, validation"):
        insects(prepared[0], test="test").load()


def test_other_formats_and_features_are_refused(prepared, tmp_path):
    source = prepared[0] / "insects" / "1.0.0"
    copy = tmp_path / "insects" / "1.0.0"
    copy.mkdir(parents=True)
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "array_record"}))
    with pytest.raises(DataError, match="is prepared as array_record"):
        insects(tmp_path).load()
    (copy / "dataset_info.json").write_text(json.dumps({**info, "supervisedKeys": None}))
    features = (copy / "features.json").read_text().replace('"image": {', '"photo": {', 1)
    (copy / "features.json").write_text(features)
    with pytest.raises(DataError, match=r"Its features: .*photo: Image"):
        insects(tmp_path).load()


def test_B02_missing_records_are_reported(prepared, tmp_path):
    copy = tmp_path / "insects" / "1.0.0"
    copy.mkdir(parents=True)
    for path in (prepared[0] / "insects" / "1.0.0").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["15"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="train: 14 records, expected 15"):
        insects(tmp_path).load()
    next(copy.glob("*train*")).unlink()
    with pytest.raises(DataError, match=r"insects-train.*: the shard is missing"):
        insects(tmp_path).load()
