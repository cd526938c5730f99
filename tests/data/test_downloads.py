"""Is a download that is damaged or hostile refused before anything of it is used?"""

import functools
import io
import pickle
import tarfile
from pathlib import Path

import keras
import keras.src.datasets.cifar10 as keras_cifar10
import pytest

from keras_committee import data
from keras_committee.errors import DataError
from keras_committee.files import file_hash


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


def test_B06_a_download_with_a_wrong_checksum_is_told_with_both_hashes_and_deleted(serve, tmp_path):
    archive = archive_of(tmp_path / "cifar.tar.gz", (member("cifar-10-batches-py/test_batch"), b"flipped"))
    serve(archive)
    with pytest.raises(DataError, match="cifar10: the download is not what Keras expects: SHA-256 6d958be0") as caught:
        data.cifar10(8).load()
    assert f"had SHA-256 {file_hash(archive)}\nThe same command downloads it again" in str(caught.value)
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
def test_B07_an_archive_that_reaches_out_of_its_folder_is_refused(serve, tmp_path, evil):
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
