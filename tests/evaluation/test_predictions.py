"""Cached arrays are memory-mapped, and absent if the source differs or the file is damaged."""

import logging

import numpy as np
import pytest

from keras_committee.evaluation.predictions import load_if_current, store

ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def cached(tmp_path):
    store(tmp_path, "03", "weights and data", ARRAY)
    return tmp_path


def only_file(folder):
    (file,) = folder.iterdir()
    return file


def test_an_array_is_memory_mapped(cached):
    again = load_if_current(cached, "03", "weights and data")
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(again, ARRAY)


def test_numpy_alone_reads_the_file(cached):
    np.testing.assert_array_equal(np.load(only_file(cached), allow_pickle=False), ARRAY)


def test_an_array_of_another_source_is_absent_and_is_replaced(cached):
    store(cached, "04", "weights and data", ARRAY)
    (cached / "03.npz").write_bytes(b"of an earlier version")
    assert load_if_current(cached, "03", "other weights") is None
    store(cached, "03", "other weights", ARRAY + 1)
    assert [name[:3] for name in sorted(file.name for file in cached.iterdir())] == ["03-", "04-"]
    np.testing.assert_array_equal(load_if_current(cached, "03", "other weights"), ARRAY + 1)


@pytest.mark.parametrize("position", [0, 7, 130, 150, -40, -1])
def test_a_flipped_bit_is_reported_and_the_array_is_absent(cached, position, caplog):
    content = bytearray(only_file(cached).read_bytes())
    content[position] ^= 4
    only_file(cached).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_if_current(cached, "03", "weights and data") is None
    assert "is damaged: the checksum does not match. It is computed again." in caplog.text


@pytest.mark.parametrize("length", [0, 20, 150])
def test_a_truncated_file_is_reported_and_the_array_is_absent(cached, length, caplog):
    only_file(cached).write_bytes(only_file(cached).read_bytes()[:length])
    with caplog.at_level(logging.WARNING):
        assert load_if_current(cached, "03", "weights and data") is None
    assert "is damaged" in caplog.text
