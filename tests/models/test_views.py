"""One network on several views: the mean of its logits, at their cost, also after saving and export."""

import keras
import numpy as np
import pytest

from keras_committee import flops, models
from keras_committee.models import views
from keras_committee.selection import View

pytestmark = pytest.mark.jax


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    return models.wide_resnet(10, 1, classes=4, image_shape=(8, 10, 3))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3)).astype("float32")


def mean_logits(network, images, mirror, shift):
    """The definition, in NumPy: half for the image, half for two shifts; each with its mirror image."""

    def logits(views):
        values = np.asarray(network(views))
        return (values + np.asarray(network(views[:, :, ::-1]))) / 2 if mirror else values

    if not shift:
        return logits(images)
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
    first, last = padded[:, :8, :10], padded[:, 2 * shift : 2 * shift + 8, 2 * shift : 2 * shift + 10]
    return logits(images) / 2 + logits(first) / 4 + logits(last) / 4


@pytest.mark.parametrize(("mirror", "shifts", "count"), [(True, 0, 2), (True, 1, 6), (False, 2, 3)])
def test_the_logits_are_the_means_of_those_of_the_views(network, images, tmp_path, mirror, shifts, count):
    model = models.with_views(network, mirror=mirror, shifts=shifts)
    expected = mean_logits(network, images, mirror, shifts)
    np.testing.assert_allclose(np.asarray(model(images)), expected, atol=1e-5)
    assert flops.multiply_adds(model) == count * flops.multiply_adds(network)
    assert flops.parameters(model) == flops.parameters(network)
    assert (model.name, model.input_shape, model.outputs[0].dtype) == ("wrn_10_1_views", (None, 8, 10, 3), "float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(np.asarray(loaded(images)), expected, atol=1e-5)


@pytest.mark.parametrize("shift", [-2, 0, 1])
@pytest.mark.parametrize("mirror", [True, False])
def test_a_view_is_the_image_shifted_with_reflected_borders_and_then_mirrored(network, images, mirror, shift):
    view = View(mirror=mirror, shift=shift)
    rows, columns = (np.abs(np.arange(size) - shift) for size in (8, 10))
    rows, columns = np.minimum(rows, 14 - rows), np.minimum(columns, 18 - columns)  # reflected at the last one
    expected = images[:, rows][:, :, columns]
    expected = expected[:, :, ::-1] if mirror else expected
    np.testing.assert_array_equal(np.asarray(views.view_of(images, view)), expected)
    plain, model, again = views.view_models([network] * 3, [None, view, view])
    assert (plain, again) == (network, model)
    assert model.network is network
    np.testing.assert_allclose(np.asarray(model(images)), np.asarray(network(expected)), atol=1e-5)
    assert flops.multiply_adds(model) == flops.multiply_adds(network)
    assert flops.parameters(model) == flops.parameters(network)


def test_views_that_cannot_be_are_an_error(network):
    with pytest.raises(ValueError, match="no view beside the image"):
        models.with_views(network, mirror=False)
    for shifts in (-1, 8):
        with pytest.raises(ValueError, match=f"Received: shifts={shifts}"):
            models.with_views(network, shifts=shifts)
