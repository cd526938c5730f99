"""Single image files get the pixels of training, and bad files are reported."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from keras_committee.data import image_folder, resize
from keras_committee.data.image_files import read_image, read_image_folder
from keras_committee.errors import DataError
from keras_committee.image_header import read_image_bytes


def draw(seed, shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_an_image_has_the_pixels_of_the_same_file_in_an_image_folder(tmp_path):
    for index in range(4):
        (tmp_path / f"{index % 2}").mkdir(exist_ok=True)
        Image.fromarray(draw(index, (20 + index, 31))).save(tmp_path / f"{index % 2}/{index}.jpg")
    splits = image_folder(tmp_path, 2, size=(8, 9), validation=0, test=0).load()
    [(images, _)] = splits.train.batches(4)
    alone = [read_image(tmp_path / name, resize((8, 9))) for name in ("0/0.jpg", "0/2.jpg", "1/1.jpg", "1/3.jpg")]
    np.testing.assert_array_equal(np.asarray(images), np.stack(alone))


def huge_png(width, height):
    """A PNG with only the header and the start of its pixels."""
    chunk = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4, "big") + b"\0\0\0\x09IDATx"


def cut(shape):
    content = io.BytesIO()
    Image.fromarray(draw(1, shape)).save(content, "JPEG")
    return content.getvalue()[: len(content.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither a JPEG nor a PNG"),
        (b"GIF89a" + bytes(50), "neither a JPEG nor a PNG"),
        (huge_png(5001, 5000), "the image exceeds 25,000,000 pixels\\. Received: 5001x5000"),
        (huge_png(12_000, 12_000), "the image exceeds 25,000,000 pixels\\. Received: 12000x12000"),
        (huge_png(60_000, 60_000), "the image exceeds 25,000,000 pixels"),
        (cut((40, 40)), "damaged or cut off, it cannot be decoded"),
    ],
    ids=["empty", "gif", "large", "larger", "bomb", "cut"],
)
def test_a_bad_image_is_named(tmp_path, content, words):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.png: {words}") as caught:
        read_image(tmp_path / "bad.png", resize(8))
    assert caught.value.exit_code == 3


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.png: cannot be read \(No such file or directory\)"):
        read_image_bytes(tmp_path / "none.png")


def test_a_folder_gives_its_images_and_those_of_subfolders(tmp_path):
    (tmp_path / "deep").mkdir()
    for index, name in enumerate(("a.png", "deep/b.PNG", "deep/c.jpeg", ".hidden.png", "notes.txt")):
        Image.fromarray(draw(index, (8, 8))).save(tmp_path / name, "PNG")
    assert read_image_folder(tmp_path, 10, resize(8)).shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(read_image_folder(tmp_path, 1, resize(8))[0], draw(0, (8, 8)))


def test_a_folder_without_images_or_with_bad_ones_is_refused(tmp_path):
    with pytest.raises(DataError, match="the folder contains no JPEG or PNG images"):
        read_image_folder(tmp_path, 10, resize(8))
    with pytest.raises(DataError, match="no such folder"):
        read_image_folder(tmp_path / "none", 10, resize(8))
    (tmp_path / "bad.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"1 problem in the data\n .*bad\.png: neither a JPEG nor a PNG"):
        read_image_folder(tmp_path, 10, resize(8))
