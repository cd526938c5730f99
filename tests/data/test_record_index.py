"""Every invalid record is reported, with its shard and number, before training starts."""

import numpy as np
import pytest
import tensorflow as tf
from shard_files import flip, payloads, record_offset, rewrite

from keras_committee import data
from keras_committee.data.record_index import Fields, scan_shard
from keras_committee.errors import DataError


def find(folder, **options):
    return data.imagenet_records(folder, 4, size=(6, 5), **options).reader.find()


def problems(path):
    return scan_shard(path, Fields()).problems


def test_B06_a_wrong_checksum_is_named_and_the_records_after_it_are_read(records):
    path = records / "train-00001-of-00003"
    count = len(payloads(path))
    offsets = [record_offset(path, number) + 40 for number in (1, 3)]
    for offset in offsets:
        flip(path, offset)
    scan = scan_shard(path, Fields())
    assert scan.problems == [f"{path.name}, record {number}: damaged: its checksum is wrong" for number in (1, 3)]
    assert len(scan.rows) == count - 2
    with pytest.raises(DataError, match="2 problems in the data\n  train-00001-of-00003, record 1: damaged"):
        find(records)


def test_B06_after_a_damaged_length_nothing_is_read(records):
    path = records / "train-00001-of-00003"
    flip(path, record_offset(path, 2) + 1)
    [problem] = problems(path)
    assert problem.startswith("train-00001-of-00003, record 2: not a TFRecord")
    assert "this record and those after it cannot be read" in problem


@pytest.mark.parametrize(("cut", "record"), [(2, 4), (11, 4), (60, 4)])
def test_B02_a_shard_that_is_cut_off_is_named(records, cut, record):
    path = records / "train-00000-of-00003"
    path.write_bytes(path.read_bytes()[: record_offset(path, 4) + cut])
    assert problems(path) == [f"{path.name}, record {record}: cut off: the shard ends before the record does"]


def test_B02_missing_records_are_reported(records):
    path = records / "train-00000-of-00003"
    path.write_bytes(path.read_bytes()[: record_offset(path, 4)])
    with pytest.raises(DataError, match="train: 14 records, expected 16"):
        find(records)


def test_B02_an_image_that_cannot_be_decoded_is_named(records):
    def damage(number, fields):
        images = fields["image/encoded"].bytes_list
        images.value[:] = [{1: images.value[0][:50], 2: b"GIF89a"}.get(number, images.value[0])]

    rewrite(records / "train-00002-of-00003", damage)
    with pytest.raises(DataError) as raised:
        data.imagenet_records(records, 4, size=(6, 5), validation=0).load()
    assert "train-00002-of-00003, record 1: damaged or cut off, it cannot be decoded" in str(raised.value)
    assert "train-00002-of-00003, record 2: a GIF file; only JPEG and PNG are supported" in str(raised.value)
    assert "2 problems" in str(raised.value)


def test_B01_a_missing_folder_and_one_without_shards_are_reported(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(DataError, match="named like train-00000-of-01024"):
        find(tmp_path)
    with pytest.raises(DataError, match="no file matches the pattern"):
        data.tfrecords(tmp_path / "x*", 4, first_label=0, size=(6, 5)).load()


def test_B05_an_empty_shard_and_a_missing_one_are_named(records):
    (records / "train-00000-of-00003").unlink()
    (records / "train-00002-of-00003").write_bytes(b"")
    with pytest.raises(DataError, match="2 problems") as raised:
        find(records)
    assert "train-00000-of-00003: the shard is missing" in str(raised.value)
    assert "train-00002-of-00003: the shard is empty" in str(raised.value)


def test_a_shard_that_cannot_be_opened_is_named(records):
    (records / "train-00002-of-00003").unlink()
    (records / "train-00002-of-00003").mkdir()
    assert problems(records / "train-00002-of-00003") == [
        "train-00002-of-00003: the shard cannot be read (Is a directory)"
    ]


def test_B04_a_label_out_of_range_is_named(records):
    def relabel(number, fields):
        label = fields["image/class/label"].int64_list
        label.value[:] = [{1: 0, 3: 3}.get(number, label.value[0])]

    rewrite(records / "train-00001-of-00003", relabel)
    with pytest.raises(DataError, match="2 problems") as raised:
        find(records)
    assert "train-00001-of-00003, record 1: label 0 is out of range 1..2" in str(raised.value)
    assert "train-00001-of-00003, record 3: label 3 is out of range 1..2" in str(raised.value)


def test_B05_a_class_without_examples_is_named(records):
    (records / "labels.txt").write_text("bee\nant\nwasp\n")
    with pytest.raises(DataError, match="2 problems") as raised:
        find(records)
    assert "train: no example has label 3 ('wasp')" in str(raised.value)
    assert "validation: no example has label 3 ('wasp')" in str(raised.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda fields: fields.pop("image/encoded"),
            "field 'image/encoded' is missing; the fields are image/channels, image",
        ),
        (lambda fields: fields["image/class/label"].int64_list.value.append(2), "must be one integer. Received: 2"),
        (lambda fields: fields["image/class/label"].bytes_list.value.append(b"2"), "must be one integer. Received: 0"),
    ],
)
def test_an_example_with_other_fields_is_reported(records, change, words):
    path = records / "train-00001-of-00003"
    rewrite(path, lambda number, fields: change(fields))
    assert words in problems(path)[0]


def test_a_record_that_is_not_an_example_and_a_file_without_records_are_reported(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(b"\xff\xff\xff")
    assert problems(tmp_path / "a.tfrecord") == ["a.tfrecord, record 0: not a tf.train.Example"]
    with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecord"), "GZIP") as writer:
        writer.write(np.random.default_rng(0).bytes(100))
    assert "not a TFRecord (a compressed file?)" in problems(tmp_path / "b.tfrecord")[0]
