"""Streams contain every example once per epoch, and the same ones after a resume."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.data.images import InMemoryImages
from keras_committee.data.splits import MIX_TABLE_ROWS
from keras_committee.data.tfrecords import TFRecordImages
from keras_committee.errors import DataError

SHAPE = (5, 4, 3)


def split(examples, first=0):
    """Images and labels that are both the number of the example."""
    numbers = np.arange(first, first + examples)
    images = np.broadcast_to(numbers[:, None, None, None], (examples, *SHAPE)).astype(np.uint8)
    return data.Split(images=InMemoryImages(images), labels=numbers.astype(np.int32))


def splits(examples, batch_size, augment=None):
    part = split(examples)
    return data.Splits(classes=("all",), train=part, validation=part, test=part, batch_size=batch_size, augment=augment)


def textured(examples, batch_size):
    """Splits of noise, so that every augmentation changes them."""
    images = np.random.default_rng(0).integers(0, 256, (examples, *SHAPE), dtype=np.uint8)
    part = data.Split(images=InMemoryImages(images), labels=np.arange(examples, dtype=np.int32))
    loaded = splits(examples, batch_size, data.pad_crop_flip(2))
    return dataclasses.replace(loaded, train=part)


def labelled(examples, batch_size):
    """As `textured`, with five classes."""
    loaded = textured(examples, batch_size)
    train = dataclasses.replace(loaded.train, labels=np.arange(examples, dtype=np.int32) % 5)
    return dataclasses.replace(loaded, classes=tuple("abcde"), train=train)


def read(dataset):
    """All images and all labels of a dataset, in order."""
    batches = list(dataset.as_numpy_iterator())
    return np.concatenate([images for images, _ in batches]), np.concatenate([labels for _, labels in batches])


@pytest.mark.parametrize("examples", [1, 6, 7, 8, 15])
def test_B10_batches_show_every_example_once_in_order(examples):
    part = split(examples)
    images, labels = read(part.batches(7))
    np.testing.assert_array_equal(labels, np.arange(examples))
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.arange(examples))
    sizes = [len(batch) for _, batch in part.batches(7)]
    assert sizes == [7] * (examples // 7) + [examples % 7] * (examples % 7 > 0)


def test_an_empty_split_has_no_batches():
    assert list(split(0).batches(7)) == []


def test_batches_have_the_documented_types():
    images, labels = split(3).batches(2).element_spec
    assert (images.dtype.name, images.shape.as_list()) == ("uint8", [None, *SHAPE])
    assert (labels.dtype.name, labels.shape.as_list()) == ("int32", [None])


def test_the_stream_has_full_batches_of_known_shape():
    dataset = splits(20, 6, data.pad_crop_flip(1)).stream(0, 0, 5)
    images, labels = dataset.element_spec
    assert (images.dtype.name, images.shape.as_list()) == ("uint8", [6, *SHAPE])
    assert (labels.dtype.name, labels.shape.as_list()) == ("int32", [6])
    assert [len(batch) for _, batch in dataset] == [6] * 5
    assert dataset.cardinality() == 5


def test_images_and_labels_stay_together():
    images, labels = read(splits(20, 6).stream(0, 0, 5))
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


@pytest.mark.parametrize("examples", [7, 20, 21])
def test_B10_every_example_appears_exactly_once_in_each_epoch(examples):
    _, labels = read(splits(examples, 7).stream(3, 0, 3 * examples))  # 21 passes
    for number in range(21):
        one_pass = labels[number * examples : (number + 1) * examples]
        assert sorted(one_pass) == list(range(examples))


def test_two_epochs_and_two_seeds_differ():
    loaded = splits(30, 30)
    _, labels = read(loaded.stream(0, 0, 2))
    _, other = read(loaded.stream(1, 0, 1))
    assert labels[:30].tolist() != list(range(30))
    assert labels[:30].tolist() != labels[30:].tolist()
    assert labels[:30].tolist() != other.tolist()


def test_the_indices_of_batches_are_those_of_the_stream():
    loaded = splits(20, 6, data.pad_crop_flip(1, flip="alternate"))
    indices, draws = loaded.batch_indices(5, 2, 9)  # across two ends of an epoch
    images, labels = read(loaded.stream(5, 2, 9))
    np.testing.assert_array_equal(loaded.train.labels[indices.ravel()], labels)
    pixels = loaded.train.images.numpy()[indices.ravel()]
    np.testing.assert_array_equal(loaded.augment.apply(tf.constant(pixels), draws.reshape(54, 3)), images)


def test_a_resumed_stream_equals_the_tail_bit_for_bit():
    loaded = textured(20, 6)  # a pass ends inside a batch
    images, labels = read(loaded.stream(5, 0, 12))
    for first in (1, 2, 3, 4, 10):
        tail_images, tail_labels = read(loaded.stream(5, first, 12 - first))
        np.testing.assert_array_equal(tail_images, images[6 * first :])
        np.testing.assert_array_equal(tail_labels, labels[6 * first :])


@pytest.mark.slow  # the graphs of the policies are large; test_policies.py checks that draws alone decide
@pytest.mark.filterwarnings("ignore")  # of the import of Model Garden
@pytest.mark.parametrize(
    "policy", [data.autoaugment("simple"), data.randaugment(source="keras")], ids=["auto", "keras"]
)
def test_a_resumed_stream_of_a_policy_equals_the_tail_bit_for_bit(policy):
    loaded = dataclasses.replace(textured(20, 6), augment=data.compose(data.pad_crop_flip(2), policy))
    images, labels = read(loaded.stream(5, 0, 6))
    tail_images, tail_labels = read(loaded.stream(5, 4, 2))  # from the second pass on
    np.testing.assert_array_equal(tail_images, images[6 * 4 :])
    np.testing.assert_array_equal(tail_labels, labels[6 * 4 :])


def test_the_stream_equals_its_written_definition():
    loaded = textured(20, 6)
    source, _ = read(loaded.train.batches(20))
    expected = []
    for position in range(6 * 3, 6 * 8):
        epoch, index_in_epoch = divmod(position, 20)
        index = np.random.default_rng((9, epoch, 0)).permutation(20)[index_in_epoch]
        draws = loaded.augment.draw(np.random.default_rng((9, epoch, 1)), 20)[index]
        expected.append(loaded.augment.apply(source[index][None], draws[None])[0])
    images, _ = read(loaded.stream(9, 3, 5))
    np.testing.assert_array_equal(images, np.stack(expected))


def test_the_draws_of_an_example_change_from_epoch_to_epoch():
    loaded = textured(6, 6)
    images, labels = read(loaded.stream(0, 0, 8))
    versions = {images[index].tobytes() for index in np.flatnonzero(labels == 4)}
    assert len(versions) > 4


def test_reading_a_stream_twice_gives_the_same():
    dataset = textured(20, 6).stream(2, 1, 4)
    np.testing.assert_array_equal(read(dataset)[0], read(dataset)[0])


MIXES = [data.mixup(0.7), data.cutmix(0.7)]


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixed_stream_has_full_batches_of_known_shape(mix):
    dataset = labelled(20, 6).stream(0, 0, 5, mix)
    images, targets = dataset.element_spec
    assert (images.dtype.name, images.shape.as_list()) == ("uint8", [6, *SHAPE])
    assert (targets.dtype.name, targets.shape.as_list()) == ("float32", [6, 5])
    assert [len(batch) for _, batch in dataset] == [6] * 5
    assert dataset.cardinality() == 5
    assert (dataset.options().autotune.enabled, dataset.options().deterministic) == (False, True)


@pytest.mark.parametrize("mix", MIXES)
def test_a_resumed_mixed_stream_equals_the_tail_bit_for_bit(mix):
    loaded = labelled(20, 6)  # a pass ends inside a batch
    images, targets = read(loaded.stream(5, 0, 12, mix))
    for first in (1, 4, 10):
        tail_images, tail_targets = read(loaded.stream(5, first, 12 - first, mix))
        np.testing.assert_array_equal(tail_images, images[6 * first :])
        np.testing.assert_array_equal(tail_targets, targets[6 * first :])


def test_a_mixed_stream_crosses_the_tables_of_draws_without_a_seam():
    loaded = labelled(20, 6)
    images, targets = read(loaded.stream(5, MIX_TABLE_ROWS - 3, 7, data.mixup()))
    for skipped in (2, 3, 4):  # to the last row of a table, and to the first two of the next one
        tail_images, tail_targets = read(loaded.stream(5, MIX_TABLE_ROWS - 3 + skipped, 7 - skipped, data.mixup()))
        np.testing.assert_array_equal(tail_images, images[6 * skipped :])
        np.testing.assert_array_equal(tail_targets, targets[6 * skipped :])


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("first", [3, MIX_TABLE_ROWS - 2])
def test_the_mixed_stream_equals_its_written_definition(mix, first):
    loaded = labelled(20, 6)
    images, targets = read(loaded.stream(9, first, 4, mix))
    plain = list(loaded.stream(9, first, 4))  # cropped and flipped before it is mixed
    for step, (own, labels) in enumerate(plain):
        number, row = divmod(first + step, MIX_TABLE_ROWS)
        draws = mix.draw(np.random.default_rng((9, number, 2)), MIX_TABLE_ROWS, SHAPE)[row]
        mixed, share = mix.apply(own, draws)
        one_hot = np.eye(5)[labels.numpy()]
        wanted = float(share) * one_hot + (1 - float(share)) * np.roll(one_hot, -1, axis=0)
        np.testing.assert_array_equal(images[6 * step : 6 * step + 6], mixed)
        np.testing.assert_allclose(targets[6 * step : 6 * step + 6], wanted, atol=1e-6)


@pytest.mark.parametrize("mix", MIXES)
def test_the_targets_of_an_example_sum_to_one_and_vary_with_step_and_seed(mix):
    loaded = labelled(20, 6)
    _, targets = read(loaded.stream(0, 0, 40, mix))
    _, other = read(loaded.stream(1, 0, 40, mix))
    np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-6)
    assert len({round(float(share), 6) for share in targets.max(axis=1)}) > 4
    assert not np.array_equal(targets, other)


@pytest.mark.parametrize("mix", MIXES)
def test_batches_of_one_are_not_mixed(mix):
    images, targets = read(labelled(7, 1).stream(2, 0, 9, mix))
    plain, labels = read(labelled(7, 1).stream(2, 0, 9))
    np.testing.assert_array_equal(images, plain)
    np.testing.assert_array_equal(targets, np.eye(5, dtype=np.float32)[labels])


def test_replicas_share_a_mixed_batch_in_order(mirrored):
    loaded = labelled(20, 6)
    full, targets = read(loaded.stream(3, 1, 4, data.cutmix()))
    parts = []
    for batch in mirrored.experimental_distribute_dataset(loaded.stream(3, 1, 4, data.cutmix())):
        parts += zip(*(mirrored.experimental_local_results(value) for value in batch), strict=True)
    assert [len(images) for images, _ in parts] == [3] * 8
    np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), full)
    np.testing.assert_array_equal(np.concatenate([shares for _, shares in parts]), targets)


def test_no_mixed_steps_are_an_empty_stream():
    assert list(labelled(20, 6).stream(0, 4, 0, data.mixup())) == []


def test_zero_steps_are_an_empty_stream():
    assert list(splits(20, 6).stream(0, 4, 0)) == []


@pytest.mark.parametrize(("examples", "steps"), [(7, 1), (8, 1), (13, 1), (14, 2)])
def test_B10_an_epoch_has_as_many_full_batches_as_possible(examples, steps):
    assert splits(examples, 7).steps_per_epoch == steps


@pytest.mark.parametrize("examples", [0, 1, 6])
def test_B10_fewer_examples_than_a_batch_are_refused(examples):
    with pytest.raises(DataError, match=f"{examples} training examples do not fill one batch of 7"):
        _ = splits(examples, 7).steps_per_epoch


def test_an_empty_training_split_cannot_be_streamed():
    with pytest.raises(DataError, match="no training examples"):
        splits(0, 7).stream(0, 0, 1)


@pytest.mark.parametrize("arguments", [(-1, 0, 1), (0, -1, 1), (0, 0, -1)])
def test_negative_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must be 0 or more"):
        splits(20, 6).stream(*arguments)


def test_the_autotuner_is_off_and_the_order_fixed():
    options = [splits(20, 6).stream(0, 0, 1).options(), split(3).batches(2).options()]
    assert [option.autotune.enabled for option in options] == [False, False]
    assert [option.deterministic for option in options] == [True, True]


def test_the_fingerprint_depends_on_the_content_only():
    same, again = split(9), split(9)
    labels = same.labels.copy()
    labels[3] = 0
    relabelled = dataclasses.replace(same, labels=labels)
    repainted = dataclasses.replace(same, images=split(9, first=1).images)
    reordered = same.subset(np.arange(9)[::-1])
    assert same.fingerprint() == again.fingerprint()
    assert len(same.fingerprint()) == 64
    assert len({part.fingerprint() for part in (same, relabelled, repainted, reordered)}) == 4


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
    full = list(splits.stream(7, 1, 2, mix).as_numpy_iterator())
    counts, read_all = [], TFRecordImages.read_batch
    monkeypatch.setattr(
        TFRecordImages, "read_batch", lambda self, rows: counts.append(len(rows)) or read_all(self, rows)
    )
    parts = [list(splits.stream(7, 1, 2, mix, shard=(part, 2)).as_numpy_iterator()) for part in (0, 1)]
    assert counts == [read] * 4
    for batch, first, second in zip(full, *parts, strict=True):
        assert len(first[0]) == len(second[0]) == 4
        np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), batch[0])
        np.testing.assert_array_equal(np.concatenate([first[1], second[1]]), batch[1])
