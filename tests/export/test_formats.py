"""Exports in the formats of other runtimes: loaded in each runtime, and compared with Keras."""

import json
import shutil

import numpy as np
import pytest
from committees import CLASSES, SHAPE, choose, dense, small_member

from keras_committee import aggregation
from keras_committee.errors import ExportError, RecipeError
from keras_committee.export import export as export_module
from keras_committee.export import formats, publish
from keras_committee.export.export import publish_committee
from keras_committee.export.predict import ConvertedCommittee
from keras_committee.folder_kinds import version_format
from keras_committee.models import log_probabilities
from keras_committee.models.views import ViewModel
from keras_committee.selection import AcceptanceRule, Promise, SetRule, View

NAMES = tuple(formats.CONVERTED_FORMATS)


@pytest.fixture(scope="module")
def members():
    return [small_member(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def images():
    coarse = np.random.default_rng(8).integers(0, 256, (33, 2, 3, 3)).astype(np.float32)
    return coarse.repeat(4, axis=1).repeat(2, axis=2)


def logits_of(members, images):
    return np.stack([log_probabilities(member, [images]) for member in members], axis=1)


def require(name):
    for module in formats.CONVERTED_FORMATS[name].modules:
        pytest.importorskip(module)


@pytest.fixture(scope="module")
def views(members):
    """A network, its mirrored view, which shares its weights, and another network."""
    return [members[0], ViewModel(members[0], View(mirror=True)), members[1]]


@pytest.fixture(scope="module")
def selection(views, images):
    """A cascade of three stages at each of which some images stop, with sets of several sizes."""
    temperatures = [0.7, 1.0, 1.4]
    logits = logits_of(views, images)
    parts = [choose(count, temperatures=temperatures[:count]) for count in (1, 2)]
    thresholds = [float(np.median(dense(logits[:, : len(p.members)], p)["confidence"])) + 1e-3 for p in parts]
    outputs = dense(logits, choose(3, temperatures=temperatures, thresholds=thresholds))
    scores = aggregation.conformity("raps", outputs["probabilities"], penalty=0.1, free_ranks=1)
    middle = float(np.median(np.sort(scores)[:, 1]))
    promise = Promise(
        split="validation",
        examples=40,
        chosen_on=39,
        sets=SetRule(
            coverage=0.9, method="raps", thresholds=(middle, middle - 0.03, middle + 0.02), penalty=0.1, free_ranks=1
        ),
        acceptance=AcceptanceRule(
            max_risk=0.1, certainty=0.95, threshold=float(np.median(outputs["confidence"])) + 1e-3
        ),
    )
    return choose(3, temperatures=temperatures, thresholds=thresholds, promise=promise)


@pytest.fixture(scope="module", params=NAMES)
def version(request, views, selection, tmp_path_factory):
    """A cascade in each format, converted once and verified in another process."""
    require(request.param)
    return publish_committee(selection, views, tmp_path_factory.mktemp("models") / "small", model_format=request.param)


@pytest.mark.slow
def test_a_cascade_has_the_outputs_of_keras_for_any_number_of_images(version, views, selection, images):
    fmt = formats.CONVERTED_FORMATS[version_format(version)]
    temperatures = np.array([member.temperature for member in selection.members], np.float32)
    expected = aggregation.selected_outputs(selection, logits_of(views, images) / temperatures[:, None])
    expected["class_id"] = expected["probabilities"].argmax(-1)
    if fmt.has_strings:
        expected["label"] = np.array(CLASSES, "S")[expected["class_id"]].astype(object)
    del expected["agreement"]
    assert len(set(expected["members_used"])) == 3
    assert len(set(expected["set_size"])) > 1
    assert len(set(expected["accepted"])) == 2
    run = formats.load(version)
    for count in (33, 1, 5):
        outputs = run(images[:count])
        assert set(outputs) == set(expected)
        for name in ("probabilities", "confidence", "mutual_information"):
            assert outputs[name].dtype == np.float32
            np.testing.assert_allclose(outputs[name], expected[name][:count], atol=2e-6)
        for name in set(expected) - {"probabilities", "confidence", "mutual_information"}:
            np.testing.assert_array_equal(outputs[name], expected[name][:count])
    manifest = json.loads((version / "committee.json").read_text())
    assert manifest["model_format"] == fmt.name
    assert manifest["verified"]["runtime"] == formats.runtime_version(fmt.name)
    assert 0 < manifest["verified"]["largest_difference"] < 1e-5
    assert set(manifest["files"]) == {file.name for file in version.iterdir()} - {"committee.json"}


@pytest.mark.slow
def test_later_stages_are_in_branches_and_views_share_their_weights(version, views):
    kernels = [layer.kernel.numpy() for model in (views[0], views[2]) for layer in model.layers[-1:]]
    content = b"".join(file.read_bytes() for file in version.iterdir())
    counts = [content.count(part) for kernel in kernels for part in (kernel.tobytes(), kernel.T.tobytes())]
    assert sorted(counts) == [0, 0, 1, 1]
    if version_format(version) == "onnx":
        import onnx

        nested, nodes = [], onnx.load(version / "model.onnx").graph.node
        while nodes:
            nested.append(sum(node.op_type == "Conv" for node in nodes))
            conditions = [node for node in nodes if node.op_type == "If"]
            nodes = [inner for node in conditions for branch in node.attribute for inner in branch.g.node]
        assert nested == [1, 1, 1]


@pytest.mark.slow
def test_a_changed_weight_fails_the_verification_and_nothing_is_published(
    version, views, selection, tmp_path, monkeypatch
):
    bias = views[2].layers[-1].bias.numpy()

    def copy_and_damage(committee, name, folder, input_dtype):
        shutil.copytree(version, folder)
        file = folder / ("model.bin" if name == "openvino" else formats.CONVERTED_FORMATS[name].file)
        content = file.read_bytes()
        assert content.count(bias.tobytes()) == 1
        file.write_bytes(content.replace(bias.tobytes(), (bias + np.float32([0, 0.01, 0])).tobytes()))

    monkeypatch.setattr(export_module, "convert", copy_and_damage)
    with pytest.raises(ExportError, match=r"differ from those of the Keras members\. Nothing was published"):
        publish_committee(selection, views, tmp_path / "small", model_format=version_format(version))
    assert publish.taken_versions(tmp_path / "small") == []


@pytest.mark.slow
def test_pixels_of_eight_bits_have_the_answers_of_floats_to_the_last_bit(
    version, views, selection, images, tmp_path, verified_here
):
    options = {"model_format": version_format(version), "input_dtype": "uint8"}
    other = publish_committee(selection, views, tmp_path / "small", **options)
    assert json.loads((other / "committee.json").read_text())["image"]["dtype"] == "uint8"
    expected, outputs = formats.load(version)(images), formats.load(other)(images.astype(np.uint8))
    for name, value in expected.items():
        np.testing.assert_array_equal(outputs[name], value)
    committee = ConvertedCommittee(other)
    pixels = {committee.transforms[0]: images.astype(np.uint8)}
    np.testing.assert_array_equal(committee.predict(pixels)["probabilities"], expected["probabilities"])


@pytest.mark.slow
def test_predict_reads_images_for_a_converted_version_and_refuses_a_damaged_one(version, images, tmp_path):
    committee = ConvertedCommittee(version.parent)
    pixels = {committee.transforms[0]: images.astype(np.uint8)}
    assert committee.transforms[0].size == SHAPE[:2]
    assert committee.classes == CLASSES
    np.testing.assert_array_equal(committee.predict(pixels)["class_id"], formats.load(version)(images)["class_id"])
    copy = tmp_path / "1"
    shutil.copytree(version, copy)
    file = copy / formats.CONVERTED_FORMATS[version_format(version)].file
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(ExportError, match=r"is damaged: its SHA-256 is not that in committee.json"):
        ConvertedCommittee(copy)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda module: None if module == "tf2onnx" else module)
    with pytest.raises(
        RecipeError, match=r'onnx requires packages that are not installed: tf2onnx\.\n  pip install "ker'
    ):
        formats.check_format("onnx")
    formats.check_format("openvino")


def test_formats_and_precisions_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"saved-model, onnx, litert, openvino. Received: 'onx'. Did you mean 'onnx'"):
        formats.check_format("onx")
    with pytest.raises(RecipeError, match=r"in ONNX computes in float32. Received: precision 'bfloat16'"):
        formats.check_format("onnx", "bfloat16")
    with pytest.raises(RecipeError, match=r"predict_uint8 takes uint8 pixels, [\s\S]*without --input-dtype"):
        formats.check_format("saved-model", input_dtype="uint8")
    with pytest.raises(RecipeError, match=r"must be one of float32, uint8. Received: 'int8'"):
        formats.check_format("onnx", input_dtype="int8")


def test_a_model_folder_has_versions_in_one_format(tmp_path):
    (tmp_path / "model" / "3").mkdir(parents=True)
    (tmp_path / "model" / "3" / "model.tflite").touch()
    formats.check_no_other_format(tmp_path / "model", "litert")
    with pytest.raises(RecipeError, match="has version 3 in the format litert; a model folder has one format"):
        publish.check_target(tmp_path / "model")


def test_the_default_folder_is_that_of_the_format(tmp_path):
    assert str(publish.default_model_dir(tmp_path / "digits")) == "saved_models/digits"
    assert str(publish.default_model_dir(tmp_path / "digits", "onnx")) == "onnx_models/digits"
