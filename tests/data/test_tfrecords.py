"""TFRecord shards give the examples that were written, in any order."""

import dataclasses
import importlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from shard_files import field, payloads, remove_indices, rewrite

from keras_committee import data
from keras_committee.data import record_index
from keras_committee.data.record_index import Fields, load_or_build_index
from keras_committee.data.record_writer import write_tfrecords
from keras_committee.data.tfrecords import TFRecordImages
from keras_committee.errors import DataError, ResourceError
from keras_committee.shard_files import matching_shards, missing_shards, shards_by_prefix

module = importlib.import_module("keras_committee.data.tfrecords")  # `data.tfrecords` is the function


def described(folder, **options):
    return data.imagenet_records(folder, 4, **{"size": (6, 5), "validation": 4, **options})


def all_records(folder):
    """Return all training records, in the order of the shards."""
    index, problems = record_index.load_or_build_index(sorted(folder.glob("train-*")), Fields())
    assert problems == []
    return TFRecordImages(index=index, rows=np.arange(len(index.rows)), transform=data.resize((6, 5)))


def examples(dataset):
    """The pixels and label of each example, sorted."""
    images, labels = (np.concatenate(parts) for parts in zip(*dataset.as_numpy_iterator(), strict=True))
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_records_give_the_images_labels_and_classes_of_the_folders_they_were_written_from(records):
    loaded = dataclasses.replace(described(records, validation=0), memory_limit=0).load()
    folders = data.image_folder(records.parent, 4, size=(6, 5), validation=0)
    folders = dataclasses.replace(folders, memory_limit=0).load()
    assert loaded.classes == folders.classes == ("bee", "n00000001_ant")
    assert examples(loaded.train.batches(4)) == examples(folders.train.batches(3))
    assert examples(loaded.test.batches(4)) == examples(folders.test.batches(3))


def test_memory_and_shards_give_the_same_stream_which_may_start_anywhere(records):
    data_of = described(records, size=(5, 4), augment=data.pad_crop_flip(1))
    memory, kept = data_of.load(), dataclasses.replace(data_of, memory_limit=0).load()
    assert isinstance(kept.train.images, TFRecordImages)
    assert not isinstance(memory.train.images, TFRecordImages)
    full, tail = memory.stream(7, 0, 6).as_numpy_iterator(), kept.stream(7, 2, 4).as_numpy_iterator()
    for (images, labels), (other_images, other_labels) in zip(list(full)[2:], tail, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def test_any_record_is_read_as_it_was_written(records):
    shards = sorted(records.glob("train-*"))
    written = [payload for path in shards for payload in payloads(path)]
    images = all_records(records).subset(np.arange(len(written))[::-1])
    order = np.random.default_rng(3).integers(0, len(written), 40)
    read = tf.function(images.make_read_fn())(tf.constant(order)).numpy().tolist()
    assert read == [field(written[len(written) - 1 - number], "image/encoded") for number in order]
    assert images.index.rows["label"].tolist() == [field(payload, "image/class/label") for payload in written]
    assert images.name(0) == f"{shards[-1].name}, record {len(payloads(shards[-1])) - 1}"


def test_the_fingerprint_depends_on_the_bytes_not_on_the_folder(records, tmp_path):
    ignored = shutil.ignore_patterns(".*")
    shutil.copytree(records, tmp_path / "copy", ignore=ignored, copy_function=shutil.copyfile)
    copy = all_records(tmp_path / "copy")
    assert copy.index.sizes_and_mtimes != all_records(records).index.sizes_and_mtimes
    assert copy.source_id() == all_records(records).source_id()
    assert copy.subset(np.array([1, 0])).source_id() != copy.subset(np.array([0, 1])).source_id()


def test_B09_a_shard_that_has_changed_is_indexed_again(records):
    before, path = all_records(records), records / "train-00001-of-00003"
    rewrite(path, lambda number, fields: fields["image/encoded"].bytes_list.value.__setitem__(0, b"new"))
    after = all_records(records)
    first = int(after.index.row_offsets[1])
    assert after.read(first) == b"new"
    assert after.source_id() != before.source_id()
    with pytest.raises(DataError, match="train-00001-of-00003 has changed since it was indexed"):
        before.read(first)


def test_a_current_index_is_used_and_a_damaged_one_rebuilt(records, monkeypatch):
    wanted = all_records(records).index.rows
    index_path = next(records.glob(".train*.npz"))
    index_path.write_bytes(index_path.read_bytes()[:100])
    np.testing.assert_array_equal(all_records(records).index.rows, wanted)
    monkeypatch.setattr(record_index, "scan_shard", None)
    np.testing.assert_array_equal(all_records(records).index.rows, wanted)


def test_the_index_of_a_read_only_folder_is_stored_in_the_users_cache(records, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise ResourceError(f"cannot write {path}: Read-only file system.")

    owned, wanted = record_index.file_lock, all_records(records).index.rows
    remove_indices(records)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        record_index, "file_lock", lambda path, what, **k: {records: refuse}.get(path.parent, owned)(path, what, **k)
    )
    all_records(records)
    assert list(records.glob(".train*")) == []
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    monkeypatch.setattr(record_index, "scan_shard", None)
    np.testing.assert_array_equal(all_records(records).index.rows, wanted)


def test_E11_the_number_of_open_shards_is_bounded(records, monkeypatch):
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (12, 12))
    module._shard_cache.cache_clear()
    try:
        assert module._shard_cache().cache_info().maxsize == 8
    finally:
        module._shard_cache.cache_clear()


def test_a_shard_stays_open_while_it_is_read_even_without_the_cache(records, monkeypatch):
    """The second of two threads that open one shard at once: the cache keeps the other's."""
    monkeypatch.setattr(module, "_shard_cache", lambda: module._OpenShard)
    images = all_records(records)
    assert [images.head_and_tail(row) for row in range(3)] == [
        (contents[:16], contents[-16:]) for contents in map(images.read, range(3))
    ]


def test_shards_of_any_name_are_found_by_pattern_and_fields_by_name(records, tmp_path):
    def rename(_, fields):
        fields["photo"].CopyFrom(fields["image/encoded"])
        fields["kind"].int64_list.value[:] = [fields["image/class/label"].int64_list.value[0] - 1]
        del fields["image/encoded"], fields["image/class/label"]

    for number, path in enumerate(sorted(records.glob("train-*"))):
        rewrite(path, rename)
        path.rename(tmp_path / f"flowers{number}.bin")
    loaded = data.tfrecords(
        tmp_path / "flowers*.bin",
        4,
        first_label=0,
        size=(6, 5),
        image_field="photo",
        label_field="kind",
        test=3,
        validation=2,
    ).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (11, 2, 3)
    assert loaded.classes == ("bee", "ant")  # the names in the examples
    labels = np.concatenate([loaded.train.labels, loaded.validation.labels, loaded.test.labels])
    assert np.bincount(labels).tolist() == [7, 9]


def test_the_shards_of_a_split_are_found_by_their_names(tmp_path):
    names = ("train-00000-of-00002", "train.tfrecord", "train_2.tfrecords", "trains-00000-of-00001", "train-notes.txt")
    for name in (*names, ".train-00000-of-00002.tmp", "val-00000-of-00001", "validation-00000-of-00001"):
        (tmp_path / name).touch()
    by_prefix = {prefix: [path.name for path in paths] for prefix, paths in shards_by_prefix(tmp_path).items()}
    assert by_prefix == {
        "train": sorted(names[:3]),
        "trains": ["trains-00000-of-00001"],
        "val": ["val-00000-of-00001"],
        "validation": ["validation-00000-of-00001"],
    }
    (tmp_path / "._train-00001-of-00002").touch()  # what macOS leaves beside a file
    assert missing_shards(matching_shards(tmp_path)) == ["train-00001-of-00002"]


@pytest.mark.parametrize("spelling", ["val", "valid", "Validation", "DEV"])
def test_every_spelling_of_the_validation_shards_is_found(records, spelling, caplog):
    (records / "validation-00000-of-00001").rename(records / f"{spelling}-00000-of-00001")
    (records / "records.json").unlink()
    shutil.copy(records / f"{spelling}-00000-of-00001", records / "testing.tfrecord")
    loaded = described(records).load()
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [16, 5, 5]
    assert "test split" not in caplog.text


def test_validation_shards_in_place_of_test_shards_are_noted(records, caplog):
    described(records).load()
    assert "'validation' is used as the test split, since there is none named test; to choose" in caplog.text


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("val-00000-of-00001", "val, validation: 2 names of the validation split; keep one"),
        ("holdout.tfrecord", "holdout.tfrecord: named like none of the splits"),
    ],
)
def test_other_shards_are_not_ignored(records, name, problem):
    shutil.copy(records / "validation-00000-of-00001", records / name)
    with pytest.raises(DataError, match=problem):
        described(records).load()


def test_class_names_may_follow_a_byte_order_mark(records):
    (records / "labels.txt").write_text("bee\nant\n", encoding="utf-8-sig")
    assert described(records).load().classes == ("bee", "ant")


def test_a_pattern_of_validation_shards_stays_the_validation_split(records):
    loaded = data.tfrecords(
        records / "train-*", 4, first_label=1, size=(6, 5), validation=str(records / "validation-*"), test=3
    ).load()
    assert [len(part) for part in (loaded.train, loaded.validation, loaded.test)] == [13, 5, 3]


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
