"""Untrained members: only one graph of layers from an image to one output is a member."""

import types

import keras
import pytest

from keras_committee.errors import RecipeError
from keras_committee.models.building import build_member


class Subclass(keras.Model):
    def call(self, x):
        return x


def graph(inputs=1, outputs=1, size=8):
    images = [keras.Input((size, size, 3)) for _ in range(inputs)]
    x = keras.layers.GlobalAveragePooling2D()(images[0] if inputs == 1 else keras.layers.add(images))
    logits = [keras.layers.Dense(3)(x) for _ in range(outputs)]
    return keras.Model(images if inputs > 1 else images[0], logits if outputs > 1 else logits[0], name="net")


def built_subclass():
    model = Subclass(name="net")
    model.build((None, 8, 8, 3))
    return model


def build(model, precision="float32"):
    return build_member(types.SimpleNamespace(member=lambda index: model(), precision=precision), 0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: None, "it must return a Keras model. Received: NoneType"),
        (lambda: keras.layers.Dense(3), "it must return a Keras model. Received: Dense"),
        (lambda: keras.Sequential([keras.layers.Dense(3)], name="net"), "'net' is not built. Begin it with keras.Inp"),
        (lambda: Subclass(name="net"), "'net', a Subclass, is not a graph of layers.* Define it as a functional model"),
        (built_subclass, "'net', a Subclass, is not a graph of layers"),
        (lambda: graph(inputs=2), "'net' must have one input.* Received: 2 inputs and 1 outputs"),
        (lambda: graph(outputs=3), "'net' must have one input.* Received: 1 inputs and 3 outputs"),
        (
            lambda: graph(size=None),
            r"'net' takes images of shape \(None, None, 3\). Pass the full shape to keras.Input",
        ),
    ],
)
def test_what_is_not_a_member_is_an_error_with_the_remedy(model, message):
    with pytest.raises(RecipeError, match=rf"(?s)^Recipe\(member=\.\.\.\): {message}"):
        build(model)


def test_functional_and_built_sequential_models_are_members_in_the_precision_of_the_recipe():
    sequential = build(lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]))
    assert sequential.output_shape == (None, 192)
    assert build(graph, "mixed_bfloat16").layers[-1].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
