"""Does Model Garden read what we write, and do we read what it reads?"""

import numpy as np
import pytest
import tensorflow as tf
from shard_files import payloads

from keras_committee import data
from keras_committee.data.record_index import Fields, load_or_build_index
from keras_committee.data.record_writer import write_tfrecords
from keras_committee.data.tfrecords import TFRecordImages

PARTS = {"train/n01440764_tench": 4, "train/n02102040_english_springer": 3, "val/n01440764_tench": 2}


@pytest.fixture
def jpegs(tmp_path, noise, encoded):
    """Shards of JPEGs of several sizes."""
    for order, (folder, count) in enumerate({**PARTS, "val/n02102040_english_springer": 1}.items()):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            pixels = noise(40 + number, 60 - 3 * number, seed=10 * order + number)
            (tmp_path / folder / f"{number}.JPEG").write_bytes(encoded(pixels, "JPEG", quality=90))
    write_tfrecords(tmp_path, tmp_path / "records", shards=2)
    return tmp_path / "records"


@pytest.mark.slow  # the import alone takes ten seconds
@pytest.mark.filterwarnings("default")  # those of its imports
def test_model_gardens_decoder_and_our_reader_see_the_same_bytes_and_labels(jpegs):
    from official.vision.dataloaders import classification_input

    decoder, shards = classification_input.Decoder(), sorted(jpegs.glob("train-*"))
    decoded = [decoder.decode(payload) for path in shards for payload in payloads(path)]
    index, problems = load_or_build_index(shards, Fields())
    images = TFRecordImages(index=index, rows=np.arange(len(decoded)), transform=data.resize(32))
    read = tf.function(images.make_read_fn())(tf.range(len(decoded), dtype=tf.int64)).numpy().tolist()
    assert problems == []
    assert read == [example["image/encoded"].numpy() for example in decoded]
    assert index.rows["label"].tolist() == [int(example["image/class/label"]) for example in decoded]
    assert set(index.rows["label"].tolist()) == {1, 2}
