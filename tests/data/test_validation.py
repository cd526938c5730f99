"""All problems of a data set are listed in one message, and duplicates between splits are found."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.data import image_folder, validation
from keras_committee.data.images import InMemoryImages
from keras_committee.data.record_writer import write_tfrecords
from keras_committee.data.splits import Split, Splits
from keras_committee.errors import DataError, RecipeError, raise_if_problems

SPLIT = {"train/cat": 12, "train/dog": 12, "test/cat": 3, "test/dog": 3}


def load(root, **options):
    options = {"validation": 4, "memory_limit": 10**9} | options
    memory_limit = options.pop("memory_limit")
    described = data.image_folder(root, 4, size=(8, 8), **options)
    return dataclasses.replace(described, memory_limit=memory_limit).load()


def test_B01_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="absent: 1 problem in the data\n  there is no such folder\nName the folder"):
        load(tmp_path / "absent")


def test_B01_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "file")


def test_B01_an_empty_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="there are no class folders in"):
        load(tmp_path)


def test_B01_a_missing_test_folder_is_named(write_images):
    with pytest.raises(DataError, match="test/: there is no such folder in"):
        load(write_images({"train/cat": 12, "train/dog": 12}))


def test_B01_missing_train_and_test_folders_are_both_named(tmp_path):
    with pytest.raises(DataError, match="train/: there is no such folder") as caught:
        data.cifar10(4, directory=tmp_path).load()
    assert "test/: there is no such folder" in str(caught.value)


def test_B05_a_class_on_one_side_only_is_named_either_way(write_images):
    root = write_images(SPLIT | {"train/emu": 5, "test/fox": 2})
    with pytest.raises(DataError, match="test/emu: there is no such folder, but another split has the class") as caught:
        load(root)
    assert "train/fox: there is no such folder" in str(caught.value)


def test_B05_a_class_without_images_is_named(write_images):
    with pytest.raises(DataError, match="train/emu/: the class has no images"):
        load(write_images(SPLIT | {"train/emu": 0, "test/emu": 2}))


@pytest.mark.parametrize("memory_limit", [0, 10**9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_B02_every_cut_off_image_is_named(write_images, noise, encoded, memory_limit, kind):
    root = write_images(SPLIT)
    for name in ("train/cat/0003.png", "train/dog/0011.png", "test/cat/0000.png"):
        (root / name).write_bytes(encoded(noise(20, 20), kind)[:-30])
    with pytest.raises(DataError, match="3 problems in the data") as caught:
        load(root, memory_limit=memory_limit)
    for name in ("train/cat/0003.png", "train/dog/0011.png", "test/cat/0000.png"):
        assert f"{name}: damaged or cut off, it cannot be decoded" in str(caught.value)


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_B02_so_many_unreadable_images_may_be_skipped(write_images, noise, encoded, memory_limit, caplog):
    root = write_images(SPLIT)
    for name in ("train/cat/0003.png", "train/dog/0011.png", "test/cat/0000.png"):
        (root / name).write_bytes(encoded(noise(20, 20), "PNG")[:-30])
    splits = load(root, memory_limit=memory_limit, skip_bad=3)
    assert len(splits.train) + len(splits.validation) == 22
    assert splits.test.labels.tolist() == [0, 0, 1, 1, 1]
    images = np.concatenate([images for images, _ in splits.test.batches(2)])
    np.testing.assert_array_equal(images[0], noise(8, 8, seed=2001))  # the first is gone
    assert "skipped because of skip_bad=3: train/cat/0003.png: damaged or cut off" in caplog.text
    with pytest.raises(DataError, match=r"3 problems in the data(.|\n)*skip_bad=N skips up to N unreadable"):
        load(root, memory_limit=memory_limit, skip_bad=2)


DAMAGED_IN_THE_MIDDLE = {"train/cat/0003.png": "PNG", "train/dog/0011.png": "JPEG", "test/cat/0000.png": "JPEG"}


@pytest.mark.parametrize("augment", [None, data.random_resized_crop()])
@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_B02_every_image_damaged_in_the_middle_is_named_or_skipped(
    write_images, damaged, memory_limit, augment, caplog
):
    root = write_images(SPLIT)
    for name, kind in DAMAGED_IN_THE_MIDDLE.items():
        (root / name).write_bytes(damaged(kind))
    options = {"memory_limit": memory_limit, "augment": augment}
    with pytest.raises(DataError, match="3 problems in the data") as caught:
        load(root, **options)
    for name in DAMAGED_IN_THE_MIDDLE:
        assert f"{name}: damaged or cut off, it cannot be decoded" in str(caught.value)
    splits = load(root, **options, skip_bad=3)
    assert len(splits.train) + len(splits.validation) == 22
    assert "skipped because of skip_bad=3: train/cat/0003.png: damaged or cut off" in caplog.text
    assert sum(len(labels) for _, labels in splits.stream(0, 0, 5)) == 20


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_B02_a_damaged_image_in_a_record_with_a_sound_checksum_is_named_or_skipped(
    write_images, damaged, memory_limit, monkeypatch
):
    root = write_images({"train/cat": 12, "train/dog": 12})
    (root / "train/cat/0003.png").write_bytes(damaged("PNG"))
    monkeypatch.setattr("keras_committee.data.record_writer.check_files", lambda files: {})  # as other programs do
    write_tfrecords(root / "train", root / "records", shards=1, keep_encoding=True)
    described = data.imagenet_records(root / "records", 4, size=(8, 8), validation=4, test=4)
    described = dataclasses.replace(described, memory_limit=memory_limit)
    with pytest.raises(DataError, match=r"train-00000-of-00001, record \d+: damaged or cut off(.|\n)*skip_bad=N"):
        described.load()
    splits = dataclasses.replace(described, skip_bad=1).load()
    assert sum(map(len, (splits.train, splits.validation, splits.test))) == 23


def test_an_image_damaged_after_the_check_is_named_where_it_is_read(write_images, damaged):
    splits = load(write_images(SPLIT), memory_limit=0)
    root, name = splits.train.images.root, splits.train.images.names[7]
    (root / name).write_bytes(damaged("PNG"))
    message = rf"1 problem in the data\n  {name}: damaged or cut off(.|\n)*kept. Restore these files(.|\n)*skip_bad=N"
    with pytest.raises(DataError, match=message), validation.name_unreadable_images(splits.train, splits.test):
        list(splits.train.batches(4))
    (root / name).unlink()
    message = rf"  {name}: cannot be read \(No such file"
    with pytest.raises(DataError, match=message), validation.name_unreadable_images(splits.train):
        list(splits.stream(0, 0, 20))
    with pytest.raises(tf.errors.InvalidArgumentError), validation.name_unreadable_images(splits.test):
        tf.io.decode_jpeg(b"not an image of the split")
    with pytest.raises(ZeroDivisionError), validation.name_unreadable_images(splits.test):
        1 / 0  # noqa: B018


def test_images_are_decoded_once_and_again_after_a_change(write_images, damaged, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(validation, "_MIN_CACHED_IMAGES", 1)
    files, read = load(write_images(SPLIT), memory_limit=0).train.images, []
    monkeypatch.setattr(
        type(files), "read", lambda self, index: read.append(index) or (files.root / files.names[index]).read_bytes()
    )
    assert (validation.check_files(files), read) == ({}, [])  # read by `load`
    (files.root / files.names[5]).write_bytes(damaged("PNG"))
    for _ in range(2):  # a damaged image is never remembered
        assert list(validation.check_files(files)) == [5]
        assert read == [5]
        read.clear()
    assert list(validation.check_files(files, recheck=True)) == [5]
    assert len(read) == len(files)


def test_images_are_decoded_without_a_place_to_remember_them(write_images, damaged, monkeypatch):
    monkeypatch.setattr(validation, "_MIN_CACHED_IMAGES", 1)
    monkeypatch.setattr(data.images, "user_cache_paths", lambda folder, name: [])
    root = write_images(SPLIT)
    load(root, memory_limit=0)
    (root / "train/cat/0003.png").write_bytes(damaged("PNG"))
    with pytest.raises(DataError, match="1 problem"):
        load(root, memory_limit=0)


def test_a_negative_number_of_images_to_skip_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"skip_bad must be 0 or more\. Received: skip_bad=-1"):
        load(tmp_path, skip_bad=-1)


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_B03_content_that_is_no_image_is_named(write_images, noise, encoded, memory_limit):
    root = write_images(SPLIT)
    (root / "train/cat/0000.png").write_bytes(encoded(noise(8, 8), "TIFF"))
    (root / "train/cat/0001.png").write_bytes(b"hello, this is text")
    (root / "train/cat/0002.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/cat/0000\.png: not a JPEG, PNG, WebP, BMP, GIF or AVIF file") as caught:
        load(root, memory_limit=memory_limit)
    assert "train/cat/0001.png: not a JPEG, PNG, WebP, BMP, GIF or AVIF file" in str(caught.value)
    assert "train/cat/0002.png: the file is empty" in str(caught.value)


def test_B03_other_image_formats_and_inner_folders_are_named(write_images):
    root = write_images(SPLIT)
    (root / "train/cat/0000.heic").write_bytes(b"x")
    (root / "train/cat/more").mkdir()
    with pytest.raises(
        DataError, match=r"train/cat/0000\.heic: not supported, images end in \.jpg, \.jpeg, \.png"
    ) as caught:
        load(root)
    assert "train/cat/more/: folders inside a class folder" in str(caught.value)


def test_B03_other_files_are_skipped_with_one_warning(write_images, caplog):
    root = write_images(SPLIT)
    examples = len(load(root).train)
    for name in ("train/cat/notes.txt", "train/cat/.DS_Store", "train/dog/Thumbs.db", "test/dog/readme"):
        (root / name).write_bytes(b"x")
    (root / "train/__MACOSX").mkdir()
    (root / "train/cat/@eaDir").mkdir()
    assert len(load(root).train) == examples
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.endswith("skipped 2 files that are not images: train/cat/notes.txt, test/dog/readme")


@pytest.mark.parametrize(
    ("options", "damage", "hint"),
    [
        ({"validation": 999}, None, "\nChoose a smaller batch_size, validation or test in the recipe."),
        ({}, ("train/cat/0000.tif", b""), "\nFix or remove what is listed above, then run the command again."),
        ({}, ("train/cat/0000.png", b""), "(in the recipe, skip_bad=N skips up to N unreadable images)"),
    ],
)
def test_the_hint_fits_the_problem(write_images, options, damage, hint):
    root = write_images(SPLIT)
    if damage:
        (root / damage[0]).write_bytes(damage[1])
    with pytest.raises(DataError) as caught:
        load(root, **options)
    assert hint in str(caught.value)


@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_an_unreadable_file_is_named(write_images, memory_limit):
    root = write_images(SPLIT)
    (root / "train/dog/0004.png").unlink()
    (root / "train/dog/0004.png").symlink_to(root / "gone.png")
    with pytest.raises(DataError, match=r"train/dog/0004\.png: cannot be read \(No such file"):
        load(root, memory_limit=memory_limit)


def test_B03_a_jpeg_under_a_png_name_is_read(write_images, noise, encoded):
    root = write_images(SPLIT)
    (root / "train/cat/0000.png").write_bytes(encoded(noise(8, 8), "JPEG"))
    assert len(load(root).train) == 20


def test_bytes_after_the_end_of_an_image_are_allowed(write_images, noise, encoded):
    root = write_images(SPLIT)
    (root / "train/cat/0000.png").write_bytes(encoded(noise(8, 8), "JPEG") + b"\0" * 40)
    assert len(load(root, memory_limit=0).train) == 20


def test_structure_sizes_and_images_are_reported_together(write_images):
    root = write_images(SPLIT | {"train/emu": 5})
    (root / "train/cat/0003.png").write_bytes(b"")
    with pytest.raises(DataError, match="3 problems in the data") as caught:
        load(root, validation=29)
    assert "test/emu: there is no such folder" in str(caught.value)
    assert "the validation split takes 29 of 29 examples: none remain for training" in str(caught.value)
    assert "train/cat/0003.png: the file is empty" in str(caught.value)


def test_B10_fewer_training_examples_than_a_batch_are_named(write_images):
    root = write_images({"train/cat": 3, "train/dog": 3, "test/cat": 3, "test/dog": 3})
    with pytest.raises(DataError, match="3 training examples do not fill one batch of 4"):
        load(root, validation=3)


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(DataError, match="data: 23 problems in the data") as caught:
        raise_if_problems("data", [f"row {number}" for number in range(23)], "Fix it.")
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  row 0", "  row 1"]
    assert lines[20:] == ["  row 19", "  and 3 more", "Fix it."]


def test_without_problems_nothing_is_raised():
    assert raise_if_problems("data", [], "Fix it.") is None


def split(pixels):
    return Split(images=InMemoryImages(pixels), labels=np.zeros(len(pixels), np.int32))


def splits_of(train, validation, test):
    parts = {"train": split(train), "validation": split(validation), "test": split(test)}
    return Splits(classes=("cat",), batch_size=2, augment=None, **parts)


def test_B08_every_planted_duplicate_is_found(noise):
    train, test = (np.stack([noise(40, 40, seed=100 * part + row) for row in range(30)]) for part in (1, 2))
    train[7], train[9], train[20] = test[3], test[3], test[29]
    test[11] = train[4]
    test[12] = train[5]
    test[12, -1, -1, -1] ^= 1  # equal for the first 4096 bytes and almost to the end
    assert validation.find_duplicates([split(train)], split(test)) == [[(3, 7), (11, 4), (29, 20)]]


def test_B08_duplicates_are_listed_with_their_split_and_counted(noise):
    images = np.stack([noise(8, 8, seed=row) for row in range(20)])
    warning = validation.duplicates_warning(splits_of(images[:10], images[10:12], images[4:20]))
    assert warning.startswith(
        "8 of 16 test images are in the training or validation split, too: 0 is train image 4, 1 is train image 5"
    )
    assert ", and 3 more.\n  The test accuracy is too high" in warning
    warning = validation.duplicates_warning(splits_of(images[:10], images[10:12], images[11:20]))
    assert warning.startswith(
        "1 of 9 test images is in the training or validation split, too: 0 is validation image 1."
    )
    assert validation.duplicates_warning(splits_of(images[:10], images[10:12], images[12:20])) is None


@pytest.mark.parametrize("size", [(8, 8), (60, 60)])
def test_B08_duplicate_files_are_named(write_images, size):
    root = write_images({"train/cat": 12, "train/dog": 12, "test/cat": 3, "test/dog": 3}, size=size)
    (root / "test/dog/0002.png").write_bytes((root / "train/cat/0005.png").read_bytes())
    described = image_folder(root, 4, size=(8, 8), validation=2)
    loaded = described.load()
    files = Splits(
        classes=loaded.classes,
        batch_size=4,
        augment=None,
        **{part: getattr(described.reader.find(), part) for part in ("train", "test")},
        validation=split(np.zeros((0, 8, 8, 3), np.uint8)),
    )
    assert "test/dog/0002.png is train image train/cat/0005.png." in validation.duplicates_warning(files)
    assert validation.duplicates_warning(loaded).startswith(
        "1 of 6 test images"
    )  # in memory images have indices, not names
