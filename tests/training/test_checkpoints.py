"""Checkpoints exist completely or not at all, whatever kills the process, fills the disk or flips a bit."""

import collections
import dataclasses
import errno
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import keras
import ml_dtypes
import numpy as np
import pytest

from keras_committee import checkpoints as checkpoint_module
from keras_committee import files
from keras_committee.checkpoints import Checkpoint, Checkpoints
from keras_committee.errors import ResourceError, RunError
from keras_committee.training.member_state import BestEpoch, MemberState

SAVES = pathlib.Path(__file__).with_name("killed_saves.py")


def arrays_of(step):
    draw = np.random.default_rng(step)
    return {
        "model/00000": draw.normal(size=(7, 3)).astype("float32"),
        "optimizer/00000": np.array(step),
        "epoch/losses": draw.normal(size=5),
    }


def save(checkpoints, step, needs=None):
    checkpoints.save(step, arrays_of(step), {"history": [{"epoch": 1, "loss": 0.25}], "rollbacks": 3}, needs)


def save_best(checkpoints, epoch):
    weights = {"model/00000": np.random.default_rng(1000 + epoch).normal(size=40)}
    return checkpoints.save_named(f"best-{epoch:06d}", weights)


def assert_same(arrays, others):
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (others[name].dtype, others[name].shape)
        np.testing.assert_array_equal(array, others[name])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def everything(folder):
    """All that lies below: names, contents and times."""
    paths = sorted([folder, *folder.rglob("*")])
    return [(path, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def checkpoints(folder):
    """Two checkpoints, each with named weights of its own."""
    made = Checkpoints(folder)
    save(made, 128, save_best(made, 1))
    save(made, 4120, save_best(made, 2))
    return made


def test_where_nothing_was_saved_there_is_nothing_and_no_folder_is_made(folder):
    assert Checkpoints(folder).load_newest() == (None, [])
    assert not folder.exists()


def test_arrays_and_document_come_back_as_they_were(folder):
    arrays = {
        "model/00000": np.array([[0.2, -0.7], [np.inf, np.nan]], "float32"),
        "model/00001": np.array([2**63 - 1, -5], "int64"),
        "optimizer/seed": np.array([2**32 - 1, 0], "uint32"),
        "optimizer/iterations": np.array(41, "int64"),
        "epoch/gradients": np.zeros((0, 0)),
        "epoch/column": np.arange(12.0).reshape(3, 4).T,
        "flags": np.array([True, False]),
    }
    document = {"history": [{"epoch": 1, "loss": 0.1}], "hits": [3, 5], "best": None, "text": "é\n"}
    Checkpoints(folder).save(41, arrays, document)
    checkpoint, problems = Checkpoints(folder).load_newest()
    assert (checkpoint.step, checkpoint.document, problems) == (41, document, [])
    assert_same(checkpoint.arrays, arrays)


def test_bfloat16_comes_back_as_bytes_that_are_its_own(folder):
    values = np.array([0.2, -3.0e38, 1e-40], ml_dtypes.bfloat16)
    scalar = np.array(0.7, ml_dtypes.bfloat16)
    Checkpoints(folder).save(1, {"values": values, "scalar": scalar}, {})
    arrays = Checkpoints(folder).load_newest()[0].arrays
    assert [array.dtype.kind for array in arrays.values()] == ["V", "V"]
    assert arrays["values"].view(ml_dtypes.bfloat16).tobytes() == values.tobytes()
    assert arrays["scalar"].view(ml_dtypes.bfloat16) == scalar


def test_the_two_newest_are_kept_with_what_they_need_and_nothing_else(folder):
    made = Checkpoints(folder)
    save(made, 10, save_best(made, 1))
    save(made, 20, save_best(made, 2))
    save(made, 30, "best-000002")
    assert names(folder) == ["best-000002", "step-000000020", "step-000000030"]
    save_best(made, 4)  # a kill came before the checkpoint that was to name it
    save(made, 40, save_best(made, 5))
    assert names(folder) == ["best-000002", "best-000005", "step-000000030", "step-000000040"]
    save(made, 50)
    save(made, 60)
    assert names(folder) == ["step-000000050", "step-000000060"]


def test_the_newest_is_that_of_the_highest_step_beyond_nine_digits(folder):
    made = Checkpoints(folder)
    for step in (999_999_999, 1_000_000_000):
        save(made, step)
    assert made.load_newest()[0].step == 1_000_000_000


def test_the_same_step_is_replaced(checkpoints, folder):
    checkpoints.save(4120, {"other": np.array([0.7])}, {"epoch": "ended"}, "best-000002")
    checkpoint, problems = checkpoints.load_newest()
    assert (checkpoint.step, checkpoint.document, problems) == (4120, {"epoch": "ended"}, [])
    assert_same(checkpoint.arrays, {"other": np.array([0.7])})
    assert names(folder) == ["best-000001", "best-000002", "step-000000128", "step-000004120"]


def test_named_weights_come_back(checkpoints):
    expected = np.random.default_rng(1002).normal(size=40)
    assert_same(checkpoints.load_named("best-000002"), {"model/00000": expected})


def test_damaged_named_weights_are_a_run_error(checkpoints, folder):
    flip(random.Random(3), folder / "best-000002/arrays.npz")
    with pytest.raises(RunError, match=r"best-000002 fails its checksum: arrays\.npz\. Train this member again"):
        checkpoints.load_named("best-000002")


def test_a_number_that_json_does_not_know_leaves_no_part(checkpoints, folder):
    before = names(folder)
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.save(5000, arrays_of(1), {"loss": float("nan")})
    assert names(folder) == before


def test_discarded_checkpoints_are_gone(checkpoints, folder):
    checkpoints.discard()
    checkpoints.discard()
    assert not folder.exists()


# A02: killed inside of a save


@pytest.fixture(scope="module")
def kills(tmp_path_factory, fork_server):
    """What each kill left, by scene: see killed_saves.py."""
    scratch = tmp_path_factory.mktemp("kills")

    def run(scene):
        command = [sys.executable, SAVES, scratch / scene, scene]
        (scratch / scene).mkdir()
        with fork_server.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            output, _ = process.communicate(timeout=120)
        return [json.loads(line) for line in output.splitlines()]

    return run


def found(kill):
    return kill["found"] and (kill["found"]["steps"], kill["found"]["value"], kill["found"]["best"])


def whole(step, value, best):
    """What `killed_saves.py` saves at a step: every part of it of the same save."""
    return ([step, step], value, best and [float(np.float32(best))])


def assert_torn_is_reported_and_gone(kill):
    torn = [name for name in kill["before"] if name.startswith(".part-")]
    assert len(kill["problems"]) == len(torn)
    assert all(
        f"{name} was never completed; removed" in problem for name, problem in zip(torn, kill["problems"], strict=True)
    )
    assert all(name.startswith(("step-", "best-")) for name in kill["after"])
    assert "step-000000040" in kill["after"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "least", "old", "new"),
    [
        ("first", 25, None, whole(30, 0.3, None)),
        ("third", 70, whole(20, 0.2, 0.2), whole(30, 0.3, 0.3)),
        ("again", 35, whole(20, 0.2, 0.2), whole(20, 0.3, 0.2)),
    ],
)
def test_A02_a_kill_at_every_file_system_call_of_a_save_leaves_the_old_state_or_the_new(kills, scene, least, old, new):
    *killed, ended = kills(scene)
    assert len(killed) >= least
    assert {kill["code"] for kill in killed} == {-9}
    assert ended["code"] == 0
    states = [found(kill) for kill in [*killed, ended]]
    turn = states.index(new)
    assert turn > 10
    assert states == [old] * turn + [new] * (len(states) - turn)
    assert any(kill["problems"] for kill in killed)
    for kill in [*killed, ended]:
        assert_torn_is_reported_and_gone(kill)


@pytest.mark.slow
def test_A02_a_kill_while_a_damaged_checkpoint_is_removed_leaves_the_older_one(kills):
    *killed, ended = kills("damaged")
    assert len(killed) >= 15
    assert ended["code"] == 0
    assert {str(found(kill)) for kill in [*killed, ended]} == {str(whole(10, 0.1, 0.1))}
    assert all(name.startswith(("step-", "best-")) for kill in killed for name in kill["after"])


def test_A02_what_a_process_of_the_same_number_left_is_in_nobodys_way(checkpoints, folder):
    for name in (f".part-step-000005000-{os.getpid()}", f".gone-step-000000128-{os.getpid()}", ".old-step-000004120"):
        (folder / name).mkdir()
        (folder / name / "rest").touch()
    checkpoint, problems = checkpoints.load_newest()
    assert checkpoint.step == 4120
    assert problems == [f"{folder}/.part-step-000005000-{os.getpid()} was never completed; removed"]
    save(checkpoints, 5000)
    assert names(folder) == ["best-000002", "step-000004120", "step-000005000"]


# A13: damaged


def truncate(draw, path):
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def zero_tail(draw, path):
    content = path.read_bytes()
    kept = draw.randrange(len(content))
    path.write_bytes(content[:kept] + bytes(len(content) - kept))


def flip(draw, path):
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def swap(draw, path):
    """The same file of the other checkpoint, or of the other named weights."""
    others = {"step-000004120": "step-000000128", "best-000002": "best-000001"}
    other = path.parent.parent / others[path.parent.name] / path.name
    shutil.copyfile(other, path)


def remove(draw, path):
    path.unlink()


PLACES = [f"{where}/{file}" for where in ("step-000004120", "best-000002") for file in ("arrays.npz", "manifest.json")]
CORRUPTIONS = [
    *[(damage, place, seed) for damage in (truncate, zero_tail, flip) for place in PLACES for seed in range(12)],
    *[(damage, place, 0) for damage in (swap, remove) for place in PLACES],
]


def test_A13_of_150_corruptions_each_is_seen_and_the_older_checkpoint_goes_on(checkpoints, folder, tmp_path):
    assert len(CORRUPTIONS) >= 150
    failures = []
    for damage, place, seed in CORRUPTIONS:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damage(random.Random(seed), copy / place)
        checkpoint, problems = Checkpoints(copy).load_newest()
        right = checkpoint.step == 128 and len(problems) == 1 and place.split("/")[0] in problems[0]
        failures += [] if right else [(damage.__name__, place, seed, checkpoint.step, problems)]
        assert_same(checkpoint.arrays, arrays_of(checkpoint.step))
        save(Checkpoints(copy), 200, "best-000001")
        assert names(copy) == ["best-000001", "step-000000128", "step-000000200"]
        shutil.rmtree(copy)
    assert failures == []


@pytest.mark.parametrize(("ours", "theirs"), [("step-000004120", "step-000000128"), ("best-000002", "best-000001")])
def test_A13_a_whole_folder_in_the_place_of_another_is_seen(checkpoints, folder, ours, theirs):
    shutil.rmtree(folder / ours)
    shutil.copytree(folder / theirs, folder / ours)
    checkpoint, problems = checkpoints.load_newest()
    assert checkpoint.step == 128
    assert problems == [f"{folder / ours} was written as {theirs}"]


def test_A13_named_weights_in_place_of_a_checkpoint_are_detected(checkpoints, folder):
    shutil.rmtree(folder / "step-000004120")
    shutil.copytree(folder / "best-000002", folder / "step-000004120")
    assert checkpoints.load_newest()[0].step == 128


def test_A13_a_damaged_checkpoint_does_not_stand_before_those_to_come(checkpoints, folder):
    flip(random.Random(1), folder / "step-000004120/arrays.npz")
    assert checkpoints.load_newest()[0].step == 128
    save(checkpoints, 300, "best-000001")
    checkpoint, problems = checkpoints.load_newest()
    assert (checkpoint.step, problems) == (300, [])
    assert names(folder) == ["best-000001", "step-000000128", "step-000000300"]


def test_A14_where_all_are_damaged_nothing_starts_over_and_nothing_is_removed(checkpoints, folder):
    flip(random.Random(5), folder / "step-000004120/arrays.npz")
    truncate(random.Random(6), folder / "step-000000128/manifest.json")
    before = everything(folder)
    with pytest.raises(RunError, match=r"no usable checkpoint in .*state:") as caught:
        checkpoints.load_newest()
    assert caught.value.exit_code == 4
    assert f"{folder}/step-000004120 fails its checksum: arrays.npz" in str(caught.value)
    assert f"{folder}/step-000000128 cannot be read" in str(caught.value)
    assert str(caught.value).endswith("discard it: --restart.")
    assert everything(folder) == before


def test_A14_where_the_weights_that_all_need_are_damaged_nothing_starts_over(checkpoints, folder):
    save(checkpoints, 5000, "best-000002")
    zero_tail(random.Random(5), folder / "best-000002/arrays.npz")
    before = everything(folder)
    with pytest.raises(RunError, match=r"no usable checkpoint in .*state:\n .*best-000002 .*\n .*best-000002 "):
        checkpoints.load_newest()
    assert everything(folder) == before


def test_E11_what_cannot_be_read_just_now_is_not_taken_for_damaged(checkpoints, folder, monkeypatch):
    def too_many(path):
        raise OSError(errno.EMFILE, "Too many open files")

    before = everything(folder)
    monkeypatch.setattr(checkpoint_module, "file_hash", too_many)
    with pytest.raises(ResourceError, match=r"cannot read the checkpoint .*4120: Too many open files") as caught:
        checkpoints.load_newest()
    assert caught.value.exit_code == 7
    assert everything(folder) == before


def test_A16_the_order_is_that_of_the_steps_whatever_the_clocks_say(checkpoints, folder, monkeypatch):
    for path, days in ((folder / "step-000004120", -1), (folder / "step-000000128", 1)):
        os.utime(path, (time.time() + days * 86_400,) * 2)
    assert checkpoints.load_newest()[0].step == 4120
    today = time.time()
    for days, step in ((-2, 4200), (1, 4300), (-1, 4400)):
        monkeypatch.setattr(time, "time", lambda days=days: today + days * 86_400)
        save(checkpoints, step)
        os.utime(folder / f"step-{step:09d}", (time.time(),) * 2)
        assert checkpoints.load_newest()[0].step == step
    assert names(folder) == ["step-000004300", "step-000004400"]


def test_A18_another_format_is_refused_and_left_as_it_is(checkpoints, folder, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "FORMAT", 99)
    save(checkpoints, 5000)
    monkeypatch.undo()
    before = everything(folder)
    with pytest.raises(RunError, match=r"step-000005000 has format 99; this version of keras-committee reads format"):
        checkpoints.load_newest()
    assert everything(folder) == before


# A06: no room


class Disk:
    """A disk with a number of free bytes."""

    def __init__(self, free):
        self.free = free

    def open(self, path, mode="r"):
        return io.BufferedWriter(_Raw(self, path)) if mode == "wb" else open(path, mode)


class _Raw(io.FileIO):
    def __init__(self, disk, path):
        super().__init__(path, "w")
        self._disk = disk

    def write(self, content):
        if not self._disk.free:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = super().write(memoryview(content)[: self._disk.free])
        self._disk.free -= count
        return count


class Rename:
    """`os.rename`, but one call fails: that of number `last`, or the one to a name with `part` in it."""

    def __init__(self, last=None, part=None):
        self._rename, self._last, self._part, self.calls = os.rename, last, part, 0

    def __call__(self, source, target):
        self.calls += 1
        if self.calls == self._last or (self._part and self._part in str(target)):
            raise OSError(errno.ENOSPC, "No space left on device")
        self._rename(source, target)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.4, 0.7, 0.8, 0.9, 0.999])
def test_A06_a_full_disk_keeps_the_checkpoints_before_it(checkpoints, folder, monkeypatch, share):
    disk = Disk(1_000_000)
    for module in (checkpoint_module, files):
        monkeypatch.setattr(module, "open", disk.open, raising=False)
    save(checkpoints, 4500, "best-000002")
    disk.free = int(share * (1_000_000 - disk.free))
    before = everything(folder)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        save(checkpoints, 5000, "best-000002")
    assert caught.value.exit_code == 7
    assert disk.free == 0
    assert "training state up to step 4500 is safe" in str(caught.value)
    assert [(path, content) for path, _, content in everything(folder)] == [
        (path, content) for path, _, content in before
    ]
    disk.free = 1_000_000
    assert checkpoints.load_newest()[0].step == 4500
    save(checkpoints, 5000)
    assert checkpoints.load_newest()[0].step == 5000


def test_A06_the_message_tells_path_need_room_and_the_step_that_is_safe(checkpoints, folder, monkeypatch):
    Usage = collections.namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9e9, 8.7e9, 0.3e9))
    monkeypatch.setattr(checkpoint_module, "open", Disk(0).open, raising=False)
    arrays = {"model/00000": np.broadcast_to(np.float32(0.2), (300_000_000,))}  # takes no memory
    with pytest.raises(ResourceError, match="cannot write the checkpoint") as caught:
        checkpoints.save(5000, arrays, {})
    assert str(caught.value) == (
        f"cannot write the checkpoint {folder}/step-000005000: No space left on device "
        "(needs 1.200 GB, 0.300 GB free); training state up to step 4120 is safe.\n"
        "  Free disk space or fix the permissions. To resume, run the same command again."
    )


def test_A06_an_error_at_the_first_checkpoint_reports_that_no_step_was_saved(folder, monkeypatch):
    monkeypatch.setattr(files, "open", Disk(0).open, raising=False)
    with pytest.raises(ResourceError, match=r"000: No space left on device \(needs .* no step was saved before\."):
        save(Checkpoints(folder), 0)


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "mkdir"])
def test_A06_a_disk_that_fails_at_one_call_keeps_the_checkpoints_before_it(checkpoints, folder, monkeypatch, call):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(ResourceError, match=r"step-000004120: Input/output error .* up to step 4120 is safe"):
        save(checkpoints, 4120, "best-000002")
    monkeypatch.undo()
    checkpoint, problems = checkpoints.load_newest()
    assert (checkpoint.step, problems) == (4120, [])
    assert_same(checkpoint.arrays, arrays_of(4120))
    assert names(folder) == ["best-000001", "best-000002", "step-000000128", "step-000004120"]


def test_A06_the_old_one_takes_its_name_again_where_the_new_one_cannot(checkpoints, folder, monkeypatch):
    rename = Rename(last=2)
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ResourceError, match="up to step 4120 is safe"):
        checkpoints.save(4120, {"other": np.array(0.7)}, {})
    assert_same(checkpoints.load_newest()[0].arrays, arrays_of(4120))
    assert rename.calls == 3


def test_E05_a_file_system_that_became_read_only_is_a_resource_error(checkpoints, folder, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for call in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, call, read_only)
    before = everything(folder)
    with pytest.raises(ResourceError, match=r"Read-only file system .* up to step 4120 is safe"):
        save(checkpoints, 5000)
    assert checkpoints.load_newest()[0].step == 4120
    assert everything(folder) == before
    flip(random.Random(1), folder / "step-000004120/arrays.npz")
    with pytest.raises(ResourceError, match=r"cannot write .*state: Read-only file system"):
        checkpoints.load_newest()


def test_older_checkpoints_that_cannot_be_removed_are_a_resource_error(checkpoints, monkeypatch):
    monkeypatch.setattr(os, "rename", Rename(part=".gone-"))
    with pytest.raises(ResourceError, match=r"cannot write .*state: No space left on device"):
        save(checkpoints, 5000)
    assert checkpoints.load_newest()[0].step == 5000


def test_a_reader_beside_the_writer_changes_nothing(checkpoints, folder):
    flip(random.Random(1), folder / "step-000004120/arrays.npz")
    for name in (".part-step-000005000-1", ".gone-step-000000001-1", ".old-step-000000128", ".old-step-000000007"):
        (folder / name).mkdir()
    before = everything(folder)
    checkpoint, problems = Checkpoints(folder, read_only=True).load_newest()
    assert checkpoint.step == 128
    assert problems == [f"{folder}/step-000004120 fails its checksum: arrays.npz"]
    assert everything(folder) == before


STATE = {
    "step": 7,
    "history": [{"epoch": 1, "loss": 0.7}],
    "losses": [0.2, 0.7],
    "num_correct": [3, 5],
    "gradients": [np.float32([0.2, 0.7]), np.float32([0.1, 0.3])],
    "block_run_counts": np.array([2.0, 1.0]),
    "timed_steps": (2, 0.7),
    "best": BestEpoch(1, 0.7, "best-000001"),
    "rollbacks": 2,
    "stopped_early": True,
}


def member_state(seed, **fields):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    optimizer = keras.optimizers.SGD(0.2, momentum=0.9)
    optimizer.build(model.trainable_variables)
    return MemberState(model, optimizer, **fields)


def test_every_field_of_a_members_state_comes_back():
    saved, again = member_state(2, **STATE), member_state(7)
    again.restore(Checkpoint(7, saved.arrays(), json.loads(json.dumps(saved.document()))))
    names = [field.name for field in dataclasses.fields(MemberState)]
    assert names == ["model", "optimizer", "ema", "swa", "slow_weights", *STATE]
    for name, value in STATE.items():
        np.testing.assert_equal(getattr(again, name), value, err_msg=name)
    for old, new in zip(saved.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
