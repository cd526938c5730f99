"""A best epoch chosen on few validation images has a warning."""

import dataclasses
import types

import pytest

from keras_committee.training.fit import _few_images_note


@pytest.mark.parametrize(
    ("restore_best", "images", "words"),
    [("accuracy", 19, "warning: the best epoch of each member is chosen on 19 validation images only"),
     ("nll", 100, ""), (None, 19, "")],
)  # fmt: skip
def test_the_number_of_validation_images_is_named(trained, restore_best, images, words):
    recipe = dataclasses.replace(trained[1], restore_best=restore_best)
    note = _few_images_note(recipe, types.SimpleNamespace(validation=range(images)))
    assert note[: len(words) or None] == words
