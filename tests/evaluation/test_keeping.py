"""Kept arrays: mapped into memory, made anew where the source is another one or a bit has flipped."""

import logging

import numpy as np
import pytest

from keras_committee.evaluation.predictions import load_if_current, store

VOTES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def kept(tmp_path):
    store(tmp_path, "03", "weights and data", VOTES)
    return tmp_path


def only_file(folder):
    (file,) = folder.iterdir()
    return file


def test_an_array_is_mapped_and_not_read(kept):
    again = load_if_current(kept, "03", "weights and data")
    assert isinstance(again, np.memmap)
    assert not again.flags.writeable
    np.testing.assert_array_equal(again, VOTES)


def test_numpy_alone_reads_the_file(kept):
    np.testing.assert_array_equal(np.load(only_file(kept), allow_pickle=False), VOTES)


def test_an_array_of_another_source_is_not_there_and_its_file_goes_when_that_one_comes(kept):
    store(kept, "04", "weights and data", VOTES)
    (kept / "03.npz").write_bytes(b"as an earlier version kept it")
    assert load_if_current(kept, "03", "other weights") is None
    store(kept, "03", "other weights", VOTES + 1)
    assert [name[:3] for name in sorted(file.name for file in kept.iterdir())] == ["03-", "04-"]
    np.testing.assert_array_equal(load_if_current(kept, "03", "other weights"), VOTES + 1)


@pytest.mark.parametrize("place", [0, 7, 130, 150, -40, -1])
def test_a_flipped_bit_is_told_and_the_array_is_not_there(kept, place, caplog):
    content = bytearray(only_file(kept).read_bytes())
    content[place] ^= 4
    only_file(kept).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_if_current(kept, "03", "weights and data") is None
    assert "is damaged: its content does not have its checksum. It is made anew." in caplog.text


@pytest.mark.parametrize("length", [0, 20, 150])
def test_a_file_cut_short_is_told_and_the_array_is_not_there(kept, length, caplog):
    only_file(kept).write_bytes(only_file(kept).read_bytes()[:length])
    with caplog.at_level(logging.WARNING):
        assert load_if_current(kept, "03", "weights and data") is None
    assert "is damaged" in caplog.text
