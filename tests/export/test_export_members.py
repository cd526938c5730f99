"""Which members are exported, and which files and sizes are rejected."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import pytest
from committees import SHAPE, small_member

from keras_committee.data import center_crop, resize
from keras_committee.errors import ExportError, IncompleteError, RecipeError, RunError
from keras_committee.export.export import export
from keras_committee.export.export_members import (
    all_members,
    image_shape,
    load_exportable,
    resolve_transforms,
    selected_models,
    single_member,
)
from keras_committee.files import file_hash
from keras_committee.layers import WeightedGeometricMean
from keras_committee.run import Run
from keras_committee.tfserving.session import Session


@pytest.fixture
def members():
    return [small_member(seed) for seed in range(2)]


def lambda_member(path):
    image = keras.Input(SHAPE, name="image")
    x = keras.layers.Lambda(lambda x: x / 2, name="sneaky")(image)
    keras.Model(image, keras.layers.Dense(3)(keras.layers.Flatten()(x))).save(path)


def gadget_member(path):
    """Write a `.keras` file whose activation is `os.system`."""
    small_member(0).save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    dense = config["config"]["layers"][-1]["config"]
    dense["name"] = "gadget"
    dense["activation"] = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "config.json": json.dumps(config).encode()}.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(("make", "layer"), [(lambda_member, "sneaky"), (gadget_member, "gadget")])
def test_D20_a_member_with_code_is_rejected_with_the_name_of_its_layer(tmp_path, make, layer):
    make(tmp_path / "model.keras")
    with pytest.raises(ExportError, match=f"contains code, in layer '{layer}'") as caught:
        load_exportable(tmp_path / "model.keras")
    assert caught.value.exit_code == 8


def test_members_of_any_size_use_the_size_of_the_data_or_of_the_other_members(members):
    free = keras.Input((None, None, 3))
    free = keras.Model(free, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(free)))
    assert resolve_transforms([free, members[0]], [None, None]) == [resize(SHAPE[:2]), resize(SHAPE[:2])]
    assert resolve_transforms([free, members[0]], [None, None], (10, 12)) == [resize((10, 12)), resize(SHAPE[:2])]
    recorded = {"size": [9, 9], "padding": 3, "method": "bicubic"}
    assert resolve_transforms([free], [recorded]) == [center_crop(9, padding=3, method="bicubic")]
    with pytest.raises(ExportError, match="some members accept any image size"):
        resolve_transforms([free], [None])
    with pytest.raises(ExportError, match=r"must be that of the members, 8x6. Received: image_size=\(10, 12\)"):
        resolve_transforms(members[:1], [None], (10, 12))
    assert image_shape([free, members[0]], [resize((12, 12)), resize((9, 20))]) == (9, 20, 3)  # the most pixels


def test_an_incomplete_weighted_committee_keeps_its_proportions(trained, monkeypatch):
    run, recipe = trained
    weighted = dataclasses.replace(recipe, members=4, head=WeightedGeometricMean((0.1, 0.2, 0.3, 0.4)))
    monkeypatch.setattr(Run, "recipe", lambda run: weighted)
    with pytest.raises(IncompleteError, match=r"has 3 of 4 members; not trained: 3[\s\S]*--allow-incomplete 3"):
        all_members([run])
    selection, models, _ = all_members([run], min_members=3)
    assert len(models) == len(selection.members) == 3
    assert selection.weights == pytest.approx((1 / 6, 2 / 6, 3 / 6))


def test_one_member_alone_predicts_as_its_network_does(trained, tmp_path, verified_here):
    run, recipe = trained
    version = export(run, tmp_path / "one", member=1)
    manifest = json.loads((version / "committee.json").read_text())
    assert [(member["index"], member["weights"]) for member in manifest["members"]] == [
        (1, file_hash(run.member(1).model))
    ]
    images = recipe.data.load().test.images.numpy()[:20]
    logits = load_exportable(run.member(1).model)(images.astype("float32"))
    with Session.load(version) as session:
        outputs = session.run("predict_uint8", {"image": images})
        np.testing.assert_allclose(outputs["probabilities"], keras.ops.softmax(logits), atol=1e-5)
        assert set(outputs["members_used"]) == {1}
        assert not outputs["mutual_information"].any()
        assert session.run("predict_members", {"image": images.astype("float32")})["member_probabilities"].shape[1] == 1


def test_a_member_that_is_missing_or_one_of_several_runs_is_refused(trained, monkeypatch):
    run, recipe = trained
    with pytest.raises(RecipeError, match=r"has no member 3. Finished members: 0, 1, 2"):
        single_member(run, 3)
    monkeypatch.setattr(Run, "recipe", lambda run: dataclasses.replace(recipe, members=4))
    with pytest.raises(
        IncompleteError, match=r"member 3 of .* is not trained. Finished members: 0, 1, 2[\s\S]*To resume"
    ):
        single_member(run, 3)
    with pytest.raises(RecipeError, match="from one run, without a selection"):
        export([run, run], member=0)


def test_selected_members_are_loaded_once_and_changed_or_missing_ones_are_rejected(trained):
    run, _ = trained
    committee, _, _ = all_members([run])
    first, second = committee.members[:2]

    def load(*members):
        return selected_models(dataclasses.replace(committee, members=members), run.path)[0]

    models = load(second, first, second)
    assert models[0] is models[2] is not models[1]
    with pytest.raises(ExportError, match=r"is not the selected member: .* in the selection it is 000000000000"):
        load(first, dataclasses.replace(second, weights="0" * 64))
    with pytest.raises(RunError, match="member 77 of the selection, does not exist"):
        load(dataclasses.replace(first, index=77))
