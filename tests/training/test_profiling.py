"""Are the steps profiled that were asked for, and does training go on whatever becomes of the profile?"""

import tensorflow as tf

from keras_committee.training import TrainingOptions
from keras_committee.training.tensorboard import StepProfiler


def profiles(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def take(profile, steps):
    for number in range(steps):
        with profile.step():
            tf.constant(number) + 1


def test_the_steps_asked_for_are_in_the_profile_and_no_others(tmp_path):
    told = []
    with StepProfiler(tmp_path, (2, 3), told.append) as profile:
        take(profile, 5)
        assert told == [f"profile of steps 2 to 3: {tmp_path}"]
    [file] = profiles(tmp_path)
    content = file.read_bytes()
    assert b"train" in content
    assert len(told) == 1


def test_a_profile_that_training_cuts_short_is_written_as_far_as_it_got(tmp_path):
    told = []
    with StepProfiler(tmp_path, (2, 30), told.append) as profile:
        take(profile, 4)
        assert profiles(tmp_path) == []
    assert told == [f"profile of steps 2 to 4: {tmp_path}"]
    assert len(profiles(tmp_path)) == 1


def test_steps_that_never_came_are_told(tmp_path):
    told = []
    with StepProfiler(tmp_path, (10, 20), told.append) as profile:
        take(profile, 3)
    assert told == ["warning: no profile: 3 steps were taken, the first to profile is 10"]


def test_what_was_not_asked_for_is_not_done(tmp_path):
    with StepProfiler(tmp_path, None, print) as profile:
        take(profile, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_cannot_be_written_is_told_and_training_goes_on(tmp_path, monkeypatch):
    def full():
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    told = []
    with StepProfiler(tmp_path, (1, 2), told.append) as profile:
        with monkeypatch.context() as disk:
            disk.setattr(tf.profiler.experimental, "stop", full)
            take(profile, 4)
        tf.profiler.experimental.stop(save=False)
    assert told == ["warning: the profile cannot be written: No space left on device"]


def test_a_member_is_profiled_while_it_trains(new_run, capsys):
    run, train = new_run(["members=1", "epochs=1"])
    train(options=TrainingOptions(profile_steps=(3, 4)))
    assert len(profiles(run.member(0).tensorboard)) == 1
    assert f"profile of steps 3 to 4: {run.member(0).tensorboard}" in capsys.readouterr().err
    assert run.finished_members() == [0]
