"""Class folders are written in Model Garden's format, completely, and the same after a kill."""

import io
import json
import os
import time

import numpy as np
import pytest
from PIL import Image
from shard_files import field, payloads

from keras_committee.cli import main
from keras_committee.data import record_writer
from keras_committee.data.preprocessing import decode_image
from keras_committee.data.record_writer import serialize_example, write_tfrecords
from keras_committee.errors import DataError, InUseError, RecipeError
from keras_committee.files import file_lock

PARTS = {"train/n00000001_ant": 9, "train/bee": 7, "val/n00000001_ant": 3, "val/bee": 2}
FIELDS = {
    "image/height": 6,
    "image/width": 5,
    "image/colorspace": b"RGB",
    "image/channels": 3,
    "image/class/label": 3,
    "image/class/synset": b"n01440764",
    "image/class/text": b"tench",
    "image/filename": b"a.JPEG",
    "image/format": b"JPEG",
}


def content(folder):
    """Name and bytes of every shard."""
    return {path.name: path.read_bytes() for path in folder.glob("*-of-*")}


def test_an_example_has_the_fields_of_model_garden_and_the_bytes_of_the_file(noise, encoded):
    image = encoded(noise(6, 5), "JPEG")
    example, reencoded = serialize_example(image, "a.JPEG", 2, "n01440764_tench")
    assert {name: field(example, name) for name in FIELDS} == FIELDS
    assert field(example, "image/encoded") == image
    assert not reencoded


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("JPEG", "CMYK")])
def test_an_encoding_that_model_garden_cannot_read_becomes_a_jpeg_unless_it_is_kept(noise, encoded, kind, mode):
    image = encoded(np.full((16, 16, 3), (200, 40, 90), np.uint8), kind, mode)
    example, reencoded = serialize_example(image, "a", 0, "bee")
    again = field(example, "image/encoded")
    assert reencoded
    assert (Image.open(io.BytesIO(again)).format, Image.open(io.BytesIO(again)).mode) == ("JPEG", "RGB")
    np.testing.assert_allclose(decode_image(again), decode_image(image), atol=3)
    example, reencoded = serialize_example(image, "a", 0, "bee", keep_encoding=True)
    assert field(example, "image/encoded") == image
    assert field(example, "image/format") == kind.encode()
    assert not reencoded


@pytest.mark.parametrize(
    ("folder", "synset", "text"),
    [
        ("n01440764_tench", "n01440764", "tench"),
        ("n01440764", "n01440764", "n01440764"),
        ("red fox", "red fox", "red fox"),
    ],
)
def test_a_class_folder_names_synset_and_text(noise, encoded, folder, synset, text):
    example, _ = serialize_example(encoded(noise(6, 5), "JPEG"), "a", 0, folder)
    assert (field(example, "image/class/synset"), field(example, "image/class/text")) == (
        synset.encode(),
        text.encode(),
    )


def test_every_image_is_written_once_in_the_same_random_order(records, tmp_path):
    write_tfrecords(tmp_path, tmp_path / "again", shards=3, keep_encoding=True, workers=1)
    assert content(tmp_path / "again") == content(records)
    names = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003", "validation-00000-of-00001"]
    assert sorted(content(records)) == names
    written = [payload for name in names for payload in payloads(records / name)]
    files = [path.read_bytes() for part in ("train", "val") for path in sorted((tmp_path / part).rglob("*.png"))]
    assert sorted(field(payload, "image/encoded") for payload in written) == sorted(files)
    labels = [field(payload, "image/class/label") for payload in written[:16]]
    assert sorted(labels) == [1] * 7 + [2] * 9
    assert labels != sorted(labels)
    assert (records / "labels.txt").read_text() == "bee\nn00000001_ant\n"


def test_a_killed_conversion_resumes_and_the_folder_appears_at_the_end(records, tmp_path, monkeypatch):
    write, written = record_writer.serialize_example, []

    def killed(*arguments, **options):
        written.append(arguments[1])
        return [write, kill][len(written) == 9](*arguments, **options)

    def kill(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(record_writer, "serialize_example", killed)
    with pytest.raises(KeyboardInterrupt):
        write_tfrecords(tmp_path, tmp_path / "slow", shards=3, keep_encoding=True, workers=1)
    assert not (tmp_path / "slow").exists()
    staging = tmp_path / ".slow.unfinished"
    assert [name for name in content(staging) if not name.startswith(".")] == ["train-00000-of-00003"]
    stamp = os.stat(staging / "train-00000-of-00003").st_mtime_ns
    monkeypatch.setattr(record_writer, "serialize_example", write)
    progress = []
    write_tfrecords(
        tmp_path,
        tmp_path / "slow",
        shards=3,
        keep_encoding=True,
        workers=1,
        on_progress=lambda *done: progress.append(done),
    )
    assert content(tmp_path / "slow") == content(records)
    assert os.stat(tmp_path / "slow" / "train-00000-of-00003").st_mtime_ns == stamp
    assert (progress[0], progress[-1]) == ((6, 21), (21, 21))
    assert not staging.exists()
    assert [path.name for path in (tmp_path / "slow").glob("*.tmp")] == []


def test_shards_of_other_images_are_written_again(records, tmp_path):
    staging = tmp_path / ".other.unfinished"
    staging.mkdir()
    (staging / "records.json").write_text('{"images": "of another source"}')
    (staging / "train-00000-of-00003").write_bytes(b"old")
    (staging / "train-00000-of-00009").write_bytes(b"old")
    write_tfrecords(tmp_path, tmp_path / "other", shards=3, keep_encoding=True)
    assert content(tmp_path / "other") == content(records)


def test_B02_broken_images_are_named_before_anything_is_written(tmp_path, write_images):
    source = write_images(PARTS)
    for name in ("train/bee/0003.png", "val/bee/0001.png"):
        (source / name).write_bytes((source / name).read_bytes()[:60])
    with pytest.raises(DataError, match="2 problems") as raised:
        write_tfrecords(source, tmp_path / "records", shards=2)
    assert "train/bee/0003.png: damaged or cut off" in str(raised.value)
    assert "val/bee/0001.png: damaged or cut off" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir() if "records" in path.name] == []


def test_images_damaged_in_the_middle_are_named_or_left_out(tmp_path, write_images, damaged, noise, caplog):
    source = write_images(PARTS)
    (source / "train/bee/0003.png").write_bytes(damaged("PNG"))
    (source / "val/bee/0001.png").write_bytes(damaged("JPEG"))
    with pytest.raises(DataError, match=r"2 problems(.|\n)*--skip-bad N") as raised:
        write_tfrecords(source, tmp_path / "records", shards=2, keep_encoding=True)
    assert "train/bee/0003.png: damaged or cut off" in str(raised.value)
    assert "val/bee/0001.png: damaged or cut off" in str(raised.value)
    written = write_tfrecords(source, tmp_path / "records", shards=2, keep_encoding=True, skip_bad=2)
    assert {name: split["examples"] for name, split in written["splits"].items()} == {"train": 15, "validation": 4}
    assert "left out because of --skip-bad 2: train/bee/0003.png: damaged or cut off" in caplog.text


def test_an_image_damaged_during_the_conversion_is_named_whichever_thread_reads_it(
    tmp_path, write_images, damaged, monkeypatch
):
    source = write_images(PARTS)
    (source / "train/bee/0003.png").write_bytes(damaged("PNG"))
    monkeypatch.setattr(record_writer, "check_files", lambda files: {})  # as if it was damaged afterwards
    with pytest.raises(DataError, match=r"train/bee/0003\.png cannot be read: .* run the command again; it resumes"):
        write_tfrecords(source, tmp_path / "records", shards=16, workers=2)


def test_the_error_of_a_later_shard_is_raised_in_place_of_the_cancellation_of_an_earlier_one(
    tmp_path, write_images, monkeypatch
):
    def write_shard(path, split, rows, classes, keep_encoding, on_images_done):
        if path.name.startswith("train-00001"):
            raise DataError("train/bee/0003.png cannot be read")
        while True:  # until it is cancelled
            on_images_done(0)
            time.sleep(0.01)

    monkeypatch.setattr(record_writer, "_write_shard", write_shard)
    with pytest.raises(DataError, match=r"train/bee/0003\.png cannot be read"):
        write_tfrecords(write_images(PARTS), tmp_path / "records", shards=2, workers=2)


def test_given_split_folders_are_written(tmp_path, write_images):
    source = write_images({"a/cat": 9, "a/dog": 9, "b/cat": 3, "b/dog": 2, "train/cat": 1})
    written = write_tfrecords(source, tmp_path / "records", shards=2, split_folders={"train": "a", "test": "b"})
    assert {name: split["examples"] for name, split in written["splits"].items()} == {"train": 18, "validation": 5}
    with pytest.raises(RecipeError, match="split_folders must name the folder"):
        write_tfrecords(source, tmp_path / "others", shards=2, split_folders={"test": "b"})


def test_an_existing_destination_is_refused_and_unchanged(records, tmp_path):
    before = content(records)
    with pytest.raises(RecipeError, match="exists"):
        write_tfrecords(tmp_path, records, shards=2)
    assert content(records) == before
    with pytest.raises(RecipeError, match="5 validation images cannot fill 6 shards"):
        write_tfrecords(tmp_path, tmp_path / "x", shards=2, validation_shards=6)
    with (
        file_lock(tmp_path / ".x.unfinished" / "lock", "it"),
        pytest.raises(InUseError, match=r"\.x\.unfinished is in use by pid"),
    ):
        write_tfrecords(tmp_path, tmp_path / "x", shards=2)


def test_the_command_writes_json_and_reports_errors(tmp_path, write_images, capfd):
    source = write_images(PARTS)
    assert main(["make-tfrecords", str(source), str(tmp_path / "a"), "--shards", "2", "--json"]) == 0
    out, err = capfd.readouterr()
    summary = json.loads(out)
    assert summary["splits"] == {"train": {"examples": 16, "shards": 2}, "validation": {"examples": 5, "shards": 1}}
    assert (summary["reencoded"], summary["classes"], summary["first_label"]) == (21, 2, 1)
    assert err.splitlines()[-1] == "writing 21 images"
    assert main(["make-tfrecords", str(source), str(tmp_path / "a"), "--shards", "2"]) == 2
    assert "exists" in capfd.readouterr().err
    assert main(["make-tfrecords", str(tmp_path / "none"), str(tmp_path / "b"), "--shards", "2"]) == 3
    assert "there is no such folder" in capfd.readouterr().err
