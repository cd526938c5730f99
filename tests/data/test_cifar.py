"""CIFAR loads from each of its three sources, and invalid or hostile files are rejected."""

import functools
import io
import pickle
import tarfile
from pathlib import Path

import keras
import keras.src.datasets.cifar10 as keras_cifar10
import numpy as np
import pytest

from keras_committee import data
from keras_committee.errors import DataError
from keras_committee.files import file_hash


def arrays(examples=60, tests=20, classes=10):
    generator = np.random.default_rng(0)
    return {
        "x_train": generator.integers(0, 256, (examples, 32, 32, 3), dtype=np.uint8),
        "y_train": np.arange(examples, dtype=np.int64) % classes,
        "x_test": generator.integers(0, 256, (tests, 32, 32, 3), dtype=np.uint8),
        "y_test": np.arange(tests, dtype=np.int64) % classes,
    }


@pytest.fixture
def npz(tmp_path):
    """`npz(x_train=...)`: an array file, with the given arrays replaced; None leaves one out."""

    def write(**changes):
        content = {name: array for name, array in (arrays() | changes).items() if array is not None}
        path = tmp_path / "cifar.npz"
        np.savez(path, **content)
        return path

    return write


def load(path, **options):
    return data.cifar10(8, directory=path, validation=10, **options).load()


def test_an_array_file_gives_its_pixels_and_labels(npz):
    loaded = load(npz())
    images, labels = next(iter(loaded.test.batches(20)))
    np.testing.assert_array_equal(images, arrays()["x_test"])
    np.testing.assert_array_equal(labels, arrays()["y_test"])
    assert (len(loaded.train), len(loaded.validation)) == (50, 10)
    assert loaded.train.labels.dtype == np.int32
    assert loaded.classes[3:5] == ("cat", "deer")


def test_labels_may_have_the_shape_that_keras_returns(npz):
    assert len(load(npz(y_train=arrays()["y_train"][:, None])).train) == 50


def test_cifar100_has_a_hundred_sorted_class_names(tmp_path):
    np.savez(tmp_path / "c.npz", **arrays(400, 200, classes=100))
    loaded = data.cifar100(8, directory=tmp_path / "c.npz", validation=100).load()
    assert len(set(loaded.classes)) == 100
    assert list(loaded.classes) == sorted(loaded.classes)
    assert (loaded.classes[0], loaded.classes[52], loaded.classes[99]) == ("apple", "oak_tree", "worm")


def test_class_folders_are_read_in_the_official_order(write_images):
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    root = write_images({f"{part}/{name}": 3 for part in ("train", "test") for name in names}, size=(32, 32))
    loaded = load(root)
    assert loaded.classes == names
    assert loaded.test.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert (len(loaded.train), len(loaded.validation)) == (20, 10)


def test_class_folders_must_have_ten_classes_and_images_of_32_pixels(write_images):
    root = write_images({"train/cat": 9, "train/dog": 9, "test/cat": 1, "test/dog": 1}, size=(32, 30))
    with pytest.raises(DataError, match=r"train/cat/0003\.png: 32x30 pixels, expected 32x32") as caught:
        load(root)
    assert "2 class folders, expected 10" in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, r"y_train: label 10 at row 47, classes 0\.\.9"),
        (-1, r"y_train: label -1 at row 47, classes 0\.\.9"),
    ],
)
def test_B04_a_label_out_of_range_is_named_with_its_row(npz, label, message):
    labels = arrays()["y_train"]
    labels[47] = label
    with pytest.raises(DataError, match=message):
        load(npz(y_train=labels))


def test_B04_float_labels_are_refused_and_nan_is_named(npz):
    labels = arrays()["y_test"].astype(np.float64)
    labels[4] = np.nan
    with pytest.raises(DataError, match="y_test: float64 labels, expected integers") as caught:
        load(npz(y_test=labels))
    assert "y_test: label nan at row 4, classes 0..9" in str(caught.value)


def test_B04_labels_of_text_or_of_two_axes_are_refused(npz):
    with pytest.raises(DataError, match="y_test: <U3 labels, expected integers") as caught:
        load(npz(y_test=np.array(["cat"] * 20), y_train=np.zeros((60, 10), np.int64)))
    assert "y_train: shape (60, 10), expected one label for each image" in str(caught.value)


def test_B05_a_class_without_examples_is_named_on_either_side(npz):
    train, test = arrays()["y_train"], arrays()["y_test"]
    train[train == 3] = 4
    with pytest.raises(DataError, match=r"y_train: class 3 \(cat\) has no examples") as caught:
        load(npz(y_train=train, y_test=np.where(test == 9, 0, test)))
    assert "y_test: class 9 (truck) has no examples" in str(caught.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((60, 32, 32, 3), np.float32), r"x_train: float32 of shape \(60, 32, 32, 3\), expected uint8"),
        (np.zeros((60, 3, 32, 32), np.uint8), r"uint8 of shape \(60, 3, 32, 32\), .* \(examples, 32, 32, 3\)"),
        (np.zeros((60, 32, 32), np.uint8), r"x_train: uint8 of shape \(60, 32, 32\), expected"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(npz, images, message):
    with pytest.raises(DataError, match=message):
        load(npz(x_train=images))


def test_one_message_lists_all_problems(npz):
    labels = arrays()["y_train"]
    labels[[5, 9]] = 77
    with pytest.raises(DataError, match="cifar10: 4 problems in the data") as caught:
        load(npz(y_train=labels[:50], x_test=arrays()["x_test"].astype(np.int32)))
    assert "label 77 at row 5" in str(caught.value)
    assert "label 77 at row 9" in str(caught.value)
    assert "x_train has 60 images, y_train has 50 labels" in str(caught.value)
    assert "x_test: int32" in str(caught.value)
    assert str(caught.value).endswith("then run the command again.")


def test_a_missing_array_is_named(npz):
    with pytest.raises(DataError, match=r"y_test: the array is missing\nUse a folder with train/<class>"):
        load(npz(y_test=None))


def test_pickled_arrays_are_refused(npz):
    with pytest.raises(DataError, match="Object arrays cannot be loaded when allow_pickle=False"):
        load(npz(y_test=np.array([{}] * 20, dtype=object)))


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_damaged_array_file_is_named(tmp_path, content):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*bad\.npz"):
        load(tmp_path / "bad.npz")


def test_a_missing_array_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*absent\.npz"):
        load(tmp_path / "absent.npz")


def test_the_download_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    labels = [number % 10 for number in range(10_000)]
    batch = {b"data": np.zeros((10_000, 3_072), np.uint8), b"labels": labels}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    for number in range(1, 6):
        (folder / f"data_batch_{number}").symlink_to(folder / "test_batch")
    monkeypatch.setattr(keras_cifar10, "get_file", lambda **arguments: str(tmp_path))
    loaded = data.cifar10(128, validation=5_000).load()
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (45_000, 5_000, 10_000)
    assert np.bincount(loaded.validation.labels).tolist() == [500] * 10
    assert loaded.classes[-1] == "truck"


def test_a_failing_download_names_the_alternatives(monkeypatch):
    def fail(**arguments):
        raise Exception("URL fetch failure on https://example.org: None -- no route")

    monkeypatch.setattr(keras_cifar10, "get_file", fail)
    with pytest.raises(DataError, match=r"could not download the data \(URL fetch failure on .* no route\)") as caught:
        data.cifar10(128).load()
    assert "Name a local copy with `directory` (in the recipes: --set data_dir=PATH): a folder with" in str(
        caught.value
    )
    assert "or an .npz file with the arrays x_train, y_train, x_test, y_test." in str(caught.value)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """`serve(archive, **arguments)`: Keras downloads CIFAR-10 from this file, into a home of this test."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))

    def serve(archive, **arguments):
        def get_file(fname, origin, **others):
            fixed = {"cache_dir": tmp_path / "home", "origin": archive.as_uri()}
            return keras.utils.get_file(fname, **(others | fixed | arguments))

        monkeypatch.setattr(keras_cifar10, "get_file", get_file)

    (tmp_path / "home").mkdir()
    return serve


def archive_of(path, *members):
    """A .tar.gz of (TarInfo, content) at `path`."""
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name, **fields):
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_B06_a_download_with_a_wrong_checksum_is_reported_with_both_hashes_and_deleted(serve, tmp_path):
    archive = archive_of(tmp_path / "cifar.tar.gz", (member("cifar-10-batches-py/test_batch"), b"flipped"))
    serve(archive)
    with pytest.raises(
        DataError, match="cifar10: the download is not the file that Keras expects, SHA-256 6d958be0"
    ) as caught:
        data.cifar10(8).load()
    assert f"had SHA-256 {file_hash(archive)}\nRun the same command to download it again" in str(caught.value)
    assert [path.name for path in (tmp_path / "home" / "datasets").iterdir()] == []


@pytest.mark.parametrize(
    "evil",
    [
        member("../../../canary"),
        member("/canary"),
        member("a/../../../../canary"),
        member("link", type=tarfile.SYMTYPE, linkname="../../../../canary"),
        member("hard", type=tarfile.LNKTYPE, linkname="../../../canary"),
        member("device", type=tarfile.CHRTYPE),
    ],
    ids=["up", "absolute", "down-and-up", "symlink", "hardlink", "device"],
)
def test_B07_an_archive_that_writes_outside_of_its_folder_is_refused(serve, tmp_path, evil):
    archive = archive_of(tmp_path / "evil.tar.gz", (member("cifar-10-batches-py/test_batch"), b""), (evil, b""))
    serve(archive, file_hash=file_hash(archive))
    with pytest.raises(DataError, match=r"could not download the data .*\nName a local copy"):
        data.cifar10(8).load()
    assert [*tmp_path.rglob("canary"), *Path("/").glob("canary")] == []


class Gadget:
    """Runs `open(path, "w")` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return functools.partial(open), (str(self.path), "w")


def test_a_pickle_with_code_in_a_download_is_refused(serve, tmp_path):
    batch = pickle.dumps({b"data": Gadget(tmp_path / "canary"), b"labels": []})
    archive = archive_of(tmp_path / "evil.tar.gz", (member("cifar-10-batches-py/data_batch_1"), batch))
    serve(archive, file_hash=file_hash(archive))
    with pytest.raises(DataError, match=r"could not download the data \(Refusing to deserialize `functools"):
        data.cifar10(8).load()
    assert not (tmp_path / "canary").exists()
