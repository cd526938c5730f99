"""Untrusted `.keras` files: no code in them runs, wherever a member is loaded."""

import re
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from hostile_files import CODE, DAMAGE, an_hdf5_file

import keras_committee
from keras_committee.errors import ExportError, RecipeError, RunError, VerificationError
from keras_committee.models import from_keras_file, from_saved_model
from keras_committee.models.loading import load_member


def network():
    image = keras.Input((6, 6, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 1)(image))
    return keras.Model(image, keras.layers.Dense(3)(x))


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """The bytes of the file of a member."""
    path = tmp_path_factory.mktemp("valid") / "model.keras"
    network().save(path)
    return path.read_bytes()


@pytest.fixture
def hostile(valid, tmp_path):
    """`hostile(make)` writes a hostile file. At the end there must be no canary anywhere near it."""
    canary = tmp_path / "canary"

    def write(make):
        (tmp_path / "a" / "b").mkdir(parents=True)
        path = tmp_path / "a" / "b" / "model.keras"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # from Keras, about a saved lambda
            path.write_bytes(make(valid, canary))
        return path

    yield write
    assert [*tmp_path.rglob("canary"), *Path("/tmp").glob("canary")] == []


def test_a_valid_file_is_loaded(hostile):
    assert load_member(hostile(lambda content, _: content)).count_params() == 8 + 219


@pytest.mark.parametrize("kind", CODE)
def test_D20_a_file_with_code_is_refused_wherever_a_member_is_loaded(hostile, kind):
    from keras_committee.export.export_members import load_exportable
    from keras_committee.training.trainer import copy_weights

    make, words = CODE[kind]
    path = hostile(make)
    with pytest.raises(VerificationError, match=f"(contains code, in|is an unsafe archive:) .*{words}") as caught:
        load_member(path)
    assert caught.value.exit_code == 8
    assert "No code in it was run" in str(caught.value)
    with pytest.raises(ExportError, match=f"{words}[^§]*Nothing was published"):
        load_exportable(path)
    with pytest.raises(RecipeError, match=rf"Recipe\(initial_weights=\.\.\.\): cannot load .*{words}"):
        copy_weights(str(path), network(), 0)


@pytest.mark.parametrize("kind", DAMAGE)
def test_D20_a_file_that_misleads_keras_is_a_plain_error(hostile, kind):
    from keras_committee.training.trainer import copy_weights

    make, words = DAMAGE[kind]
    path = hostile(make)
    with pytest.raises(RunError, match=rf"model\.keras cannot be loaded: {words}") as caught:
        load_member(path)
    assert caught.value.exit_code == 4
    with pytest.raises(RecipeError, match=r"cannot load"):
        copy_weights(str(path), network(), 0)


def of_another_format(kind, path):
    """Write a file of another format under the name `.keras`."""
    if kind == "HDF5":
        path.write_bytes(an_hdf5_file(None, None))  # one with a lambda
    elif kind == "Keras 2":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", '{"keras_version": "2.15.0"}')
            archive.writestr("config.json", '{"module": "keras.src.engine.functional", "class_name": "Functional"}')
    else:
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("HDF5", r"is an HDF5 file \(\.h5\), not a \.keras archive\.\n.*\n.*model\.export\('folder'\)"),
        (
            "Keras 2",
            r"is a model of Keras 2\.15\.0 \(tf_keras\), which .*\n.*\n.*model\.export\('folder'\)",
        ),
        ("Git LFS", r"is a pointer of Git LFS, not the model\.\n  Run `git lfs pull`"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_way_that_works(kind, words, tmp_path):
    from keras_committee.training.trainer import copy_weights

    path = tmp_path / "model.keras"
    of_another_format(kind, path)
    for load in (load_member, from_keras_file):
        with pytest.raises(VerificationError, match=words):
            load(path)
    with pytest.raises(RecipeError, match=rf"Recipe\(initial_weights=\.\.\.\): cannot load .*{words}"):
        copy_weights(str(path), network(), 0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"save_format": "h5"}])
def test_the_way_that_works_for_a_model_of_tf_keras(options, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    image = tf_keras.Input((6, 6, 3))
    model = tf_keras.Model(image, tf_keras.layers.Dense(3)(tf_keras.layers.Flatten()(image)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.save(tmp_path / "model.keras", **options)
    with pytest.raises(VerificationError, match=r"model\.keras is an? (model of Keras 2|HDF5)"):
        load_member(tmp_path / "model.keras")
    model.export(str(tmp_path / "folder"))
    images = np.random.default_rng(1).uniform(0, 255, (2, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(from_saved_model(tmp_path / "folder")(images), model(images), rtol=1e-5)


def test_models_are_loaded_in_one_module_only():
    package = Path(keras_committee.__file__).parent
    sources = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    assert {name for name, text in sources.items() if re.search(r"load_model\(|model_from_json\(", text)} == {
        "models/loading.py"
    }
    # Weights alone run no code: those of a classifier of KerasHub.
    assert {name for name, text in sources.items() if "load_weights(" in text} <= {"models/pretrained.py"}
