"""Small image folders and arrays for the data tests."""

import io

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def noise():
    """`noise(height, width, channels, seed)`: uint8 pixels that differ for every seed."""

    def pixels(height, width, channels=3, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)

    return pixels


@pytest.fixture
def encoded():
    """`encoded(pixels, format, mode)`: the bytes of an image file."""

    def encode(pixels, kind, mode=None, **options):
        buffer = io.BytesIO()
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def damaged(noise, encoded):
    """`damaged(format)`: an image file whose first and last bytes are sound, and which cannot be decoded."""

    def damage(kind):
        content = bytearray(encoded(noise(60, 60, seed=9), kind))
        middle = len(content) // 2
        content[middle : middle + 64] = b"\xff\x02" * 32  # a reserved marker
        return bytes(content)

    return damage


@pytest.fixture
def write_images(tmp_path, noise, encoded):
    """`write_images({"train/cat": 3}, size)`: that many different PNGs in each folder; returns the root."""

    def write(folders, size=(8, 8)):
        for order, (folder, count) in enumerate(folders.items()):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                content = encoded(noise(*size, seed=1000 * order + number), "PNG")
                (tmp_path / folder / f"{number:04d}.png").write_bytes(content)
        return tmp_path

    return write


@pytest.fixture
def records(tmp_path, write_images):
    """A folder of three training shards and one of validation, PNGs as they were; their source is around it."""
    from keras_committee.data.record_writer import write_tfrecords

    write_images({"train/n00000001_ant": 9, "train/bee": 7, "val/n00000001_ant": 3, "val/bee": 2}, size=(6, 5))
    write_tfrecords(tmp_path, tmp_path / "records", shards=3, keep_encoding=True)
    return tmp_path / "records"
