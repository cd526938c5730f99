"""Strategies, shards of hosts, and the machine's shares of workers."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.data.images import InMemoryImages
from keras_committee.errors import RecipeError
from keras_committee.training import devices
from keras_committee.training.devices import host_shard, make_strategy


def test_a_batch_that_replicas_cannot_share_equally_is_refused():
    with pytest.raises(RecipeError, match="global batch of 7 cannot be divided equally among 2 devices"):
        make_strategy("mirrored", 7)


def test_an_unknown_strategy_names_the_known_ones():
    with pytest.raises(RecipeError, match=r"unknown strategy 'miror'\. Use one of: auto, single, mirrored"):
        make_strategy("miror", 8)


def test_without_gpus_auto_is_one_device():
    assert make_strategy("auto", 8).num_replicas_in_sync == 1


def test_E10_too_few_devices_are_an_error_and_no_silent_fallback(monkeypatch):
    one = tf.config.list_logical_devices("CPU")[:1]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: {"CPU": one, "GPU": []}[kind])
    with pytest.raises(RecipeError, match=r"needs at least two devices; TensorFlow sees only: .*CPU:0"):
        make_strategy("mirrored", 8)


@pytest.mark.parametrize(("hosts", "replicas"), [(2, 1), (2, 2), (3, 1)])
def test_the_shards_of_the_hosts_are_the_global_batch_with_each_row_once(hosts, replicas):
    images = np.arange(24 * 6, dtype=np.uint8).reshape(24, 2, 1, 3)
    split = data.Split(images=InMemoryImages(images), labels=np.arange(24, dtype=np.int32))
    splits = data.Splits(classes=("a",) * 24, train=split, validation=split, test=split, batch_size=12)
    stream = functools.partial(splits.stream, 3, 1, 3)
    contexts = [tf.distribute.InputContext(hosts, index, hosts * replicas) for index in range(hosts)]
    shards = [list(host_shard(stream, context).as_numpy_iterator()) for context in contexts]
    for step, batch in enumerate(stream().as_numpy_iterator()):
        rows = [row for shard in shards for row in shard[step * replicas : (step + 1) * replicas]]
        assert [len(labels) for _, labels in rows] == [12 // (hosts * replicas)] * (hosts * replicas)
        np.testing.assert_array_equal(np.concatenate([images for images, _ in rows]), batch[0])
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in rows]), batch[1])


def test_cores_and_gpus_are_divided_among_the_workers():
    shares = devices.partition_devices(2, cores=[0, 1, 4, 5, 6], gpus=[])
    assert [share.cores for share in shares] == [(0, 1), (4, 5, 6)]
    shares = devices.partition_devices(3, cores=[0, 1, 2], gpus=[0, 1])
    assert [share.gpus for share in shares] == [(0,), (1,), (0,)]
    shares = devices.partition_devices(2, cores=[0, 1], gpus=[0, 1, 2, 3])
    assert [share.gpus for share in shares] == [(0, 1), (2, 3)]


def test_auto_trains_a_member_per_core_that_has_memory_and_prints_why(monkeypatch):
    monkeypatch.setattr(devices, "usable_core_count", lambda: 4)
    monkeypatch.setattr(devices, "free_memory", lambda: 7 * 1024**3)
    num_workers, reason = devices.choose_num_workers("auto", 8)
    assert num_workers == 3
    assert reason == (
        "training 3 of 8 members at once, on 4 cores and 7 GiB of free memory; "
        "use --workers N to choose another number."
    )
    assert devices.choose_num_workers("auto", 2)[0] == 2
    assert devices.choose_num_workers(6, 4) == (4, "")


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "many"])
def test_an_invalid_number_of_workers_is_refused(workers):
    with pytest.raises(RecipeError, match=r"workers must be 'auto' or an integer of 1 or more\. Received: "):
        devices.choose_num_workers(workers, 4)
