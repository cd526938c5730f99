"""Do several hosts together see the one-host batch, and each read no more than its own rows?"""

import numpy as np
import pytest

from keras_committee import data
from keras_committee.data.tfrecords import TFRecordImages


@pytest.mark.parametrize(
    ("augment", "mix", "read"),
    [(data.pad_crop_flip(1), None, 4), (None, data.cutmix(), 5)],
    ids=["augmented", "mixed"],
)
def test_the_parts_are_the_batch_and_each_reads_its_rows_and_their_partners(records, monkeypatch, augment, mix, read):
    described = data.imagenet_records(records, 8, size=(6, 5), validation=0)
    found = described.reader.find()
    splits = data.Splits(
        classes=found.classes,
        train=found.train,
        validation=found.train,
        test=found.train,
        batch_size=8,
        augment=augment,
    )
    whole = list(splits.stream(7, 1, 2, mix).as_numpy_iterator())
    counts, read_all = [], TFRecordImages.read_batch
    monkeypatch.setattr(
        TFRecordImages, "read_batch", lambda self, rows: counts.append(len(rows)) or read_all(self, rows)
    )
    parts = [list(splits.stream(7, 1, 2, mix, shard=(place, 2)).as_numpy_iterator()) for place in (0, 1)]
    assert counts == [read] * 4
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first[0]) == len(second[0]) == 4
        np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), batch[0])
        np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), batch[1])
