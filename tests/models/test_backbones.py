"""Backbones of keras-cv as members."""

import keras
import numpy as np
import pytest

from keras_committee.errors import VerificationError
from keras_committee.models import from_keras_cv, from_keras_file

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 16, 12, 3)).astype("float32")


def backbone(shape=(16, 12, 3)):
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Conv2D(5, 3, kernel_initializer="random_normal")(image), name="body")


def headed(member, features):
    """The mean over the positions through the member's dense layer, in numpy."""
    logits = next(layer for layer in member._flatten_layers() if layer.name == "logits")
    return np.asarray(features).mean((1, 2)) @ np.asarray(logits.kernel) + np.asarray(logits.bias)


@pytest.mark.parametrize(("rescales", "factor"), [(True, 1), (False, 1 / 255)])
def test_C04_a_backbone_says_which_pixels_it_takes(rescales, factor):
    body = backbone()
    body.include_rescaling = rescales
    member = from_keras_cv(body, 4, dropout=0.2)
    np.testing.assert_allclose(member(IMAGES), headed(member, body(IMAGES * factor)), rtol=1e-4, atol=1e-5)
    assert (member.name, member.output_shape) == ("body", (None, 4))


def test_one_that_does_not_say_needs_a_scale():
    with pytest.raises(VerificationError, match="'body' does not say whether it rescales pixels"):
        from_keras_cv(backbone(), 4)
    member = from_keras_cv(backbone((None, None, 3)), 4, input_scaling="-1..1", image_size=(16, 12))
    assert member.input_shape == (None, 16, 12, 3)


def test_what_gives_no_features_is_no_backbone():
    flat = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten()], name="flat")
    with pytest.raises(VerificationError, match="'flat' is no backbone"):
        from_keras_cv(flat, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what keras-cv imports
@pytest.mark.parametrize("rescales", [True, False])
def test_a_backbone_of_keras_cv_votes_and_comes_back_from_its_file(rescales, tmp_path):
    keras_cv = pytest.importorskip("keras_cv")
    body = keras_cv.models.ResNetV2Backbone(
        stackwise_filters=[4, 8], stackwise_blocks=[2, 2], stackwise_strides=[1, 2], include_rescaling=rescales,
    )  # fmt: skip
    member = from_keras_cv(body, 4, image_size=(16, 12))
    np.testing.assert_allclose(
        member(IMAGES), headed(member, body(IMAGES if rescales else IMAGES / 255)), rtol=1e-3, atol=1e-5
    )
    member.save(tmp_path / "member.keras")
    np.testing.assert_allclose(from_keras_file(tmp_path / "member.keras")(IMAGES), member(IMAGES), atol=1e-6)
