"""A member starts with the weights of another network, and one that does not fit is refused with a reason."""

import pathlib
import random
import re
import zipfile

import keras
import numpy as np
import pytest

from keras_committee import layers
from keras_committee.errors import RecipeError
from keras_committee.training.trainer import copy_weights


def network(classes=5, filters=4, layers_before=1, name="ours"):
    x = image = keras.Input((6, 6, 3))
    for _ in range(layers_before):
        x = layers.BatchNormalization()(keras.layers.Conv2D(filters, 3, padding="same")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Dropout(0.2)(x))
    model = keras.Model(image, keras.layers.Dense(classes)(x), name=name)
    for index, weight in enumerate(model.weights):
        weight.assign(np.random.default_rng([classes, filters, index]).normal(size=weight.shape))
    return model


def values(model):
    return [np.array(value) for value in model.get_weights()]


def assert_same(values, others):
    assert len(values) == len(others)
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.fixture
def saved(tmp_path):
    """Saves a network and gives its path."""

    def save(model, name="source.keras"):
        model.save(tmp_path / name)
        return str(tmp_path / name)

    return save


def refusal(initial, model=None, index=1):
    with pytest.raises(RecipeError) as caught:
        copy_weights(initial, model or network(), index)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_without_initial_weights_a_member_keeps_its_own():
    model = network()
    before = values(model)
    copy_weights(None, model, 1)
    assert_same(values(model), before)


def test_a_keras_file_gives_weights_and_batch_statistics(saved):
    source, model = network(), network()
    for weight in source.weights:
        weight.assign_add(np.full(weight.shape, 0.7))
    copy_weights(saved(source), model, 1)
    assert_same(values(model), values(source))


def test_a_run_folder_gives_each_member_the_weights_of_its_own(trained):
    run, recipe = trained
    for index in (0, 2):
        model = recipe.member(index)
        copy_weights(str(run.path), model, index)
        assert_same(values(model), values(keras.saving.load_model(run.member(index).model)))
    assert not np.array_equal(values(recipe.member(0))[0], values(model)[0])


def test_a_function_of_the_index_chooses_the_file(saved):
    files = [saved(network(filters=4), "a.keras"), saved(network(classes=7), "b.keras")]
    model = network(classes=7)
    kept = values(network(classes=7))
    model.set_weights([value + 1 for value in kept])
    copy_weights(lambda index: files[index], model, 1)
    assert_same(values(model), kept)


def test_logits_of_another_number_of_classes_stay_random_and_the_rest_is_copied(saved):
    source, model = network(classes=7), network(classes=5)
    random_logits = values(model)[-2:]
    copy_weights(saved(source), model, 1)
    assert_same(values(model), values(source)[:-2] + random_logits)


def test_survival_stays_that_of_the_recipe_and_the_branch_is_copied(saved):
    def gated(survival):
        image = keras.Input((4, 4, 3))
        branch = keras.Sequential([keras.layers.Conv2D(3, 3, padding="same")])
        return keras.Model(image, layers.StochasticDepth(branch, survival=survival)(image))

    source, model = gated(0.7), gated(0.2)
    copy_weights(saved(source), model, 1)
    ours, theirs = model.layers[-1], source.layers[-1]
    assert float(ours.survival) == pytest.approx(0.2)
    assert_same(values(ours.branch), values(theirs.branch))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert refusal(str(tmp_path / "none.keras")) == (
        f"Recipe(initial_weights=...): {tmp_path}/none.keras does not exist. "
        "Use a .keras file or a folder with finished members."
    )


def test_a_run_folder_without_the_member_is_refused(trained):
    run, _ = trained
    assert f"{run.path}/members/05/model.keras does not exist" in refusal(str(run.path), index=5)


def test_a_network_of_another_depth_is_refused(saved):
    file = saved(network(layers_before=2))
    assert refusal(file) == (
        f"Recipe(initial_weights=...): {file} has 5 layers with weights; member 1 (ours) has 3. "
        "Use the weights of a network of the same family and depth."
    )


def test_a_network_of_which_no_layer_fits_is_refused(saved):
    file = saved(network(filters=6, classes=7))
    assert refusal(file) == (
        f"Recipe(initial_weights=...): no layer of {file} has the shapes of member 1 (ours). "
        "Use the weights of a network of the same family and width."
    )


def test_a_file_of_another_kind_is_refused_unread(saved, tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"code")
    assert refusal(str(tmp_path / "weights.h5")) == (
        f"Recipe(initial_weights=...): {tmp_path}/weights.h5 is not a .keras file. "
        "Use one, or a folder with finished members."
    )


def test_A13_a_truncated_file_is_refused(saved, tmp_path):
    path = tmp_path / "source.keras"
    content = pathlib.Path(saved(network())).read_bytes()
    for kept in (0, 1, 100, len(content) // 3, len(content) - 1):
        path.write_bytes(content[:kept])
        assert f"cannot load {path}: " in refusal(str(path))


@pytest.mark.parametrize("part", ["model.weights.h5", "config.json"])
def test_A13_a_flipped_bit_in_a_file_is_refused(saved, tmp_path, part):
    path = pathlib.Path(saved(network()))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(part)
    rng, begin = random.Random(4), info.header_offset + 30 + len(part)  # 30: the bytes of a zip entry's header
    for _ in range(6):
        flipped = bytearray(content)
        flipped[begin + rng.randrange(info.compress_size)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        assert f"cannot load {path}: " in refusal(str(path))


def test_code_in_a_file_is_refused_and_does_not_run(saved):
    image = keras.Input((6, 6, 3))
    file = saved(keras.Model(image, keras.layers.Lambda(lambda x: x * 2)(image)))
    assert re.search(r"cannot load .*source\.keras: .*[Ll]ambda", refusal(file))
