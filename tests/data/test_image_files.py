"""Single image files get the pixels of training, and bad files are reported."""

import dataclasses
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from keras_committee.data import (
    decode_image,
    image_folder,
    imagenet_records,
    pad_crop_flip,
    random_resized_crop,
    resize,
    resize_image,
)
from keras_committee.data.image_files import read_image, read_image_folder
from keras_committee.data.record_writer import write_tfrecords
from keras_committee.errors import DataError
from keras_committee.image_header import read_image_bytes, to_jpeg_or_png


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
        (b"", "not a JPEG, PNG, WebP"),
        (b"II*\0" + bytes(50), "not a JPEG, PNG, WebP"),
        (huge_png(5001, 5000), "the image exceeds 25,000,000 pixels\\. Received: 5001x5000"),
        (huge_png(12_000, 12_000), "the image exceeds 25,000,000 pixels\\. Received: 12000x12000"),
        (huge_png(60_000, 60_000), "the image exceeds 25,000,000 pixels"),
        (cut((40, 40)), "damaged or cut off, it cannot be decoded"),
    ],
    ids=["empty", "tiff", "large", "larger", "bomb", "cut"],
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
    with pytest.raises(DataError, match="the folder contains no images"):
        read_image_folder(tmp_path, 10, resize(8))
    with pytest.raises(DataError, match="no such folder"):
        read_image_folder(tmp_path / "none", 10, resize(8))
    (tmp_path / "bad.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"1 problem in the data\n .*bad\.png: not a JPEG, PNG, WebP"):
        read_image_folder(tmp_path, 10, resize(8))


# Of the formats that TensorFlow does not decode: the options of Pillow's encoder.
OTHER_FORMATS = {
    "webp": {"lossless": True},
    "WEBP": {"quality": 60},
    "bmp": {},
    "gif": {},
    "avif": {"quality": 60},
}


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """Class folders with an image of each format, one under the name of another, and the pixels that Pillow reads."""
    root, pixels = tmp_path_factory.mktemp("mixed"), {}
    for index, (suffix, options) in enumerate([("png", {}), *OTHER_FORMATS.items()]):
        for name, shape in (("cat", (20 + index, 31)), ("dog", (9, 12))):
            (root / name).mkdir(exist_ok=True)
            Image.fromarray(draw(index, shape)).save(root / name / f"{index}.{suffix}", **options)
    (root / "cat/1.webp").rename(root / "cat/1.jpg")
    for path in sorted(root.glob("*/*")):
        with Image.open(path) as image:
            pixels[str(path.relative_to(root))] = np.asarray(image.convert("RGB"))
    return root, pixels


def test_every_format_has_the_pixels_of_pillow_in_memory_in_files_and_in_prediction(mixed_folder):
    root, pixels = mixed_folder
    described = image_folder(root, 2, size=(8, 9), validation=0, test=0, augment=pad_crop_flip(1))
    memory, files = described.load(), dataclasses.replace(described, memory_limit=0).load()
    expected = np.stack([resize_image(array, (8, 9)).numpy() for array in pixels.values()])
    np.testing.assert_array_equal(memory.train.images.numpy(), expected)
    for one, other in (
        (memory.train.batches(5), files.train.batches(5)),
        (memory.stream(1, 0, 4), files.stream(1, 0, 4)),
    ):
        for (images, _), (other_images, _) in zip(one, other, strict=True):
            np.testing.assert_array_equal(images, other_images)
    for (name, array), row in zip(pixels.items(), expected, strict=True):
        np.testing.assert_array_equal(read_image(root / name, resize((8, 9))), row)
        np.testing.assert_array_equal(decode_image(read_image_bytes(root / name)), array)  # what a server receives


def test_random_crops_and_records_read_every_format(mixed_folder, tmp_path):
    root, _ = mixed_folder
    options = {"size": (8, 9), "validation": 0, "test": 0, "augment": random_resized_crop()}
    [(images, _)] = image_folder(root, 12, **options).load().stream(1, 0, 1)
    assert images.shape == (12, 8, 9, 3)
    write_tfrecords(root, tmp_path / "records", shards=1, keep_encoding=True)
    records = imagenet_records(tmp_path / "records", 2, size=(8, 9), validation=0, test=0).load()
    folder = image_folder(root, 2, size=(8, 9), validation=0, test=0).load()
    expected = {image.tobytes() for image in folder.train.images.numpy()}
    assert {image.tobytes() for image in records.train.images.numpy()} == expected


def test_the_first_frame_counts_and_transparency_is_dropped():
    frames, content = [Image.fromarray(draw(seed, (6, 5))) for seed in (1, 2)], io.BytesIO()
    frames[0].save(content, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode_image(to_jpeg_or_png(content.getvalue())), draw(1, (6, 5)))
    rgba, content = np.dstack([draw(3, (6, 5)), np.full((6, 5), 40, np.uint8)]), io.BytesIO()
    Image.fromarray(rgba).save(content, "WEBP", lossless=True, exact=True)
    np.testing.assert_array_equal(decode_image(to_jpeg_or_png(content.getvalue())), rgba[..., :3])


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_damaged_files_of_other_formats_are_named(tmp_path, memory_limit):
    for index in range(4):
        (tmp_path / f"{index % 2}").mkdir(exist_ok=True)
        Image.fromarray(draw(index, (40, 31))).save(tmp_path / f"{index % 2}/{index}.webp")
    path = tmp_path / "1/3.webp"
    path.write_bytes(path.read_bytes()[:300])
    described = image_folder(tmp_path, 2, size=(8, 9), validation=0, test=0)
    with pytest.raises(
        DataError, match=r"1 problem in the data\n  1/3\.webp: damaged or cut off, it cannot be decoded"
    ):
        dataclasses.replace(described, memory_limit=memory_limit).load()
