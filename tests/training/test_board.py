"""What does TensorBoard find of a committee: its knobs, and pictures as it grows?"""

import dataclasses

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from keras_committee.training import tensorboard
from keras_committee.training.tensorboard import CommitteeTensorBoard


def found(run, size):
    return EventAccumulator(str(run.path / "tensorboard" / f"committee_of_{size}")).Reload()


def knobs(run, size):
    """The knobs beside the committee of a size."""
    content = found(run, size).PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    return metadata.parse_session_start_info_plugin_data(content)


def pictures(run, size):
    """The epochs that there is a picture of, by its name."""
    events = found(run, size)
    return {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}


def test_the_knobs_stand_beside_the_whole_committee_alone(trained):
    run, _ = trained
    told = knobs(run, 3)
    assert told.group_name == "tiny"
    assert {knob: value.number_value for knob, value in told.hparams.items()} == run.parameters()
    assert found(run, 2).Tags()["tensors"] != []
    with pytest.raises(KeyError):
        knobs(run, 2)


def test_more_members_take_the_knobs_with_them(new_run):
    run, train = new_run(["members=1", "epochs=1"])
    train()
    more, train = new_run(["members=2", "epochs=1"])
    train()
    assert knobs(more, 2).hparams["members"].number_value == 2
    with pytest.raises(KeyError):
        knobs(more, 1)
    assert len(list((run.path / "tensorboard").rglob("*.knobs"))) == 1


def test_pictures_come_five_times_in_a_training_and_show_the_whole_committee(new_run, trained, monkeypatch):
    run, recipe = trained
    copy, _ = new_run([])
    for index in range(3):
        copy.member(index).path.mkdir(parents=True)
        (copy.member(index).path / "validation").symlink_to(run.member(index).epoch_predictions(1).parent)
    monkeypatch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 0.0)
    shown = CommitteeTensorBoard(copy, recipe, recipe.data.load())
    shown.on_epoch_end(1)
    shown.on_epoch_end(2)
    shown.on_epoch_end(2)  # another member has ended it, too
    assert pictures(copy, 3) == {"confusion": [1, 2], "reliability": [1, 2]}
    image = found(copy, 3).Images("confusion")[0]
    assert image.encoded_image_string[:4] == b"\x89PNG"
    assert min(image.width, image.height) > 300


def test_a_trial_has_no_pictures(trained, monkeypatch):
    run, recipe = trained
    monkeypatch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 1000.0)
    shown = CommitteeTensorBoard(run, recipe, recipe.data.load())
    assert not shown._plots_due(recipe.epochs)


@pytest.mark.parametrize(("epochs", "due"), [(2, [1, 2]), (5, [1, 2, 3, 4, 5]), (12, [3, 5, 8, 10, 12])])
def test_a_fifth_of_the_training_lies_between_two_pictures(epochs, due, monkeypatch, trained):
    run, recipe = trained
    shown = CommitteeTensorBoard(run, dataclasses.replace(recipe, epochs=epochs), recipe.data.load())
    monkeypatch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 0.0)
    assert [epoch for epoch in range(1, epochs + 1) if shown._plots_due(epoch)] == due
