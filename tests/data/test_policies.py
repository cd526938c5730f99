"""The policies equal Model Garden's and Keras' operations, and draw as defined."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import data
from keras_committee.data.policies import (
    KERAS_OPERATIONS,
    POLICIES,
    POSITION_SCALE,
    FixedSeedGenerator,
    import_model_garden,
)
from keras_committee.errors import RecipeError

pytestmark = pytest.mark.filterwarnings("ignore")  # of the import of Model Garden
SHAPE = (12, 10, 3)  # rows and columns must not be confused
CHEAP = "panoptic_deeplab_policy"


def textured_images(examples):
    """Noise around a different value for each image, so that every operation changes it."""
    draw = np.random.default_rng(1)
    middle = draw.integers(40, 200, (examples, 1, 1, 3))
    return (middle + draw.integers(-40, 56, (examples, *SHAPE))).astype(np.uint8)


class Chosen:
    """A `tf.random.uniform` that returns given values: policy numbers, centers of squares, floats in [0, 1)."""

    def __init__(self, floats, number=None, center=()):
        self._floats, self._number, self._center = iter(floats), number, iter(center)

    def uniform(self, shape, minval=None, maxval=None, dtype=tf.float32):
        if dtype == tf.int32:
            return tf.constant(self._number if minval is None else next(self._center))
        return tf.constant(next(self._floats))


def applied(probability):
    """Whether an operation of this probability can be left out and can be applied."""
    return [False] * (probability < 1) + [True] * (probability > 0)


def cases(policy):
    """Each sub-policy with each choice of applied operations, signs and centers."""
    policies = import_model_garden().AutoAugment(policy).policies
    for number, steps in enumerate(policies):
        for taken in itertools.product(*(applied(probability) for _, probability, _ in steps)):
            yield number, taken, False, (2, 7)
            yield number, taken, True, (11, 4)


def theirs(policy, images, chosen, monkeypatch):
    """Apply Model Garden's policy; `floor(0.2 + 0.5)` makes an argument negative."""
    garden, made, varied = import_model_garden(), [], []
    with monkeypatch.context() as patched:
        for sign in (0.7, 0.2):
            patched.setattr(tf.random, "uniform", Chosen(itertools.repeat(sign)).uniform)
            made.append(garden.AutoAugment(policy)._make_tf_policies())
        for image, (number, taken, negative, center) in zip(images, chosen, strict=True):
            floats = [0.9999 if is_taken else 0.0 for is_taken in taken]
            patched.setattr(tf.random, "uniform", Chosen(floats, number, center * len(taken)).uniform)
            varied.append(garden.select_and_apply_random_policy(made[negative], tf.constant(image))[0].numpy())
    return np.stack(varied)


def row(numbers, negative, center):
    """The draws of one image."""
    parts = [-(-at * POSITION_SCALE // size) for at, size in zip(center, SHAPE, strict=False)]
    return [column for number in numbers for column in (number, int(negative), *parts)]


def graph(augment, images, draws):
    """Apply an augmentation in a pipeline."""
    pairs = tf.data.Dataset.from_tensors((images, np.array(draws, np.int32)))
    return next(pairs.map(augment.apply).as_numpy_iterator())


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_sub_policy_equals_model_garden_to_the_last_bit(policy, monkeypatch):
    augment, chosen = data.autoaugment(policy), list(cases(policy))
    numbers, images = augment._tables()[0], textured_images(len(chosen))
    draws = [row(numbers[number] * taken, negative, center) for number, taken, negative, center in chosen]
    varied = graph(augment, images, draws)
    assert varied.dtype == np.uint8
    np.testing.assert_array_equal(varied, theirs(policy, images, chosen, monkeypatch))
    assert (varied != images).any(axis=(1, 2, 3)).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("magnitude", [7, 10])
def test_every_operation_of_randaugment_equals_model_garden_to_the_last_bit(magnitude, monkeypatch):
    chosen = list(itertools.product(range(17), (False, True), [(2, 7), (11, 4)]))
    images, expected = textured_images(len(chosen)), []
    for image, (number, negative, center) in zip(images, chosen, strict=True):
        fake = Chosen(itertools.repeat(0.2 if negative else 0.7), number, center)
        monkeypatch.setattr(tf.random, "uniform", fake.uniform)
        expected.append(
            import_model_garden().RandAugment(num_layers=1, magnitude=magnitude).distort(tf.constant(image))
        )
    monkeypatch.undo()
    draws = [row([(number + 1) % 17], negative, center) for number, negative, center in chosen]
    np.testing.assert_array_equal(graph(data.randaugment(1, magnitude), images, draws), np.stack(expected))


@pytest.mark.slow  # 51 operations; the fast tests have one layer of each
def test_a_second_layer_follows_the_first():
    images = tf.constant(textured_images(2))
    draws = data.randaugment(2).draw(np.random.default_rng(3), 2)
    once = data.randaugment(1).apply(images, draws[:, :4])
    twice = data.randaugment(1).apply(once, draws[:, 4:])
    np.testing.assert_array_equal(data.randaugment(2).apply(images, draws), twice)


def test_sub_policies_are_equally_likely_and_operations_have_their_probabilities():
    augment, examples = data.autoaugment("v0"), 60_000
    first, second = augment.draw(np.random.default_rng(2), examples)[:, [0, 4]].T
    expected = np.zeros((first.max() + 1, second.max() + 1))
    for numbers, chances in zip(*augment._tables(), strict=True):
        for taken in itertools.product((False, True), repeat=2):
            expected[tuple(numbers * taken)] += np.prod(np.where(taken, chances, 1 - chances)) / 25
    found = np.zeros(expected.shape)
    np.add.at(found, (first, second), 1 / examples)
    assert expected.sum() == pytest.approx(1)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(expected.max() / examples))
    assert found[expected == 0].max() == 0


def test_randaugment_draws_each_operation_and_none_equally_often():
    draws = data.randaugment(3).draw(np.random.default_rng(2), 20_000)
    for column in (0, 4, 8):
        counts = np.bincount(draws[:, column], minlength=17)
        np.testing.assert_allclose(counts / 20_000, 1 / 17, atol=5 * np.sqrt(1 / 17 / 20_000))


@pytest.mark.parametrize("augment", [data.autoaugment(CHEAP), data.randaugment(2)], ids=["auto", "rand"])
def test_signs_are_even_and_centers_uniform(augment):
    draws = augment.draw(np.random.default_rng(4), 20_000)
    assert (draws.shape, draws.dtype) == ((20_000, 8), np.int32)
    signs, rows, columns = draws[:, 1::4], draws[:, 2::4] / POSITION_SCALE, draws[:, 3::4] / POSITION_SCALE
    np.testing.assert_allclose(signs.mean(axis=0), 0.5, atol=0.02)
    for positions in (rows, columns):
        np.testing.assert_allclose(
            np.quantile(positions, [0, 0.2, 0.7, 1], axis=0).T, [[0, 0.2, 0.7, 1]] * 2, atol=0.02
        )


@pytest.mark.parametrize(
    "augment",
    [
        data.autoaugment(CHEAP),
        data.randaugment(),
        data.randaugment(source="keras"),
        data.trivialaugment(),
        data.augmix(),
    ],
    ids=["auto", "rand", "keras", "trivial", "augmix"],
)
def test_draws_are_a_pure_function_of_the_generator(augment):
    first, again, other = (augment.draw(np.random.default_rng(seed), 50) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert augment.draw(np.random.default_rng(0), 0).shape == (0, first.shape[1])


def test_all_policies_that_a_pipeline_can_repeat_are_supported():
    refused = {"detection_v0", "deit3_three_augment", "test"}
    assert set(POLICIES) == set(import_model_garden().AutoAugment().available_policies) - refused


def test_an_unknown_policy_is_refused():
    with pytest.raises(
        RecipeError, match=r"policy must be one of v0, reduced_imagenet.* Received: policy='detection_v0'"
    ):
        data.autoaugment("detection_v0")


def test_an_unknown_source_is_refused():
    with pytest.raises(RecipeError, match=r"source must be one of model-garden, keras\. Received: source='torch'"):
        data.randaugment(source="torch")


@pytest.mark.parametrize(("layers", "magnitude"), [(0, 7), (2, 0), (2, 10.5)])
@pytest.mark.parametrize("source", ["model-garden", "keras"])
def test_a_strength_out_of_range_is_refused(layers, magnitude, source):
    with pytest.raises(RecipeError, match=rf"layers must be 1 or more.*layers={layers}, magnitude={magnitude}"):
        data.randaugment(layers, magnitude, source=source)


@pytest.mark.parametrize("make", [data.autoaugment, data.randaugment, data.trivialaugment, data.augmix])
def test_without_model_garden_the_error_names_the_extra(make, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'not installed.*\n  pip install "keras-committee\[model-garden\]"'):
        make()


@pytest.mark.parametrize(
    "augment",
    [data.autoaugment(), data.randaugment(), data.randaugment(source="keras"), data.trivialaugment(), data.augmix()],
    ids=["auto", "rand", "keras", "trivial", "augmix"],
)
def test_gray_images_are_refused_before_anything_is_read(augment):
    images = tf.data.Dataset.from_tensors((textured_images(2)[..., :1], np.zeros((2, 8), np.int32)))
    with pytest.raises(RecipeError, match=r"three channels.*shape \(12, 10, 1\)\. Repeat a gray channel"):
        images.map(augment.apply)


IMAGES_PER_OPERATION = 3  # images of each operation


def uniform_images(examples):
    return np.random.default_rng(1).integers(40, 220, (examples, *SHAPE), dtype=np.uint8)


def keras_draws():
    """Draws that name each operation: number and seed."""
    numbers = np.repeat(np.arange(len(KERAS_OPERATIONS)), IMAGES_PER_OPERATION)
    seeds = np.random.default_rng(5).integers(2**31, size=(len(numbers), 2))
    return np.concatenate([numbers[:, None], seeds], axis=1).astype(np.int32)


def keras_result(layer, image, number, seed):
    """Apply one operation of Keras' layer with the given seed."""
    image, name = tf.constant(image, tf.float32)[None], list(KERAS_OPERATIONS)[number]
    numbers = getattr(layer, name).get_random_transformation(
        image, training=True, seed=FixedSeedGenerator(tf.constant(seed))
    )
    # The layer computes all its operations and selects one by index; here the only one, 0.
    return layer.transform_images(image, {"layer_idxes": [0], "transforms": {name: numbers}})[0]


def test_the_operations_are_those_of_keras_in_its_order():
    assert list(KERAS_OPERATIONS) == keras.layers.RandAugment._AUGMENT_LAYERS


def test_every_operation_equals_that_of_keras():
    draws = keras_draws()
    images, layer = uniform_images(len(draws)), keras.layers.RandAugment(num_ops=1, factor=0.7)
    expected = [keras_result(layer, image, row[0], row[1:]) for image, row in zip(images, draws, strict=True)]
    varied = graph(data.randaugment(1, 7, source="keras"), images, draws)
    assert varied.dtype == np.uint8
    np.testing.assert_array_equal(varied, np.clip(np.rint(expected), 0, 255).astype(np.uint8))
    assert (varied != images).any(axis=(1, 2, 3)).mean() > 0.7


def test_the_draws_alone_decide_and_the_second_layer_follows_the_first():
    both, single = data.randaugment(2, source="keras"), data.randaugment(1, source="keras")
    draws = np.array([[0, 2, 5, 6, 7, 8], [7, 5, 3, 4, 1, 2]], np.int32)  # operations, then two seeds each
    images = tf.constant(uniform_images(2))
    varied = both.apply(images, draws).numpy()
    np.testing.assert_array_equal(varied, both.apply(images, draws))
    once = single.apply(images, draws[:, [0, 2, 3]])
    apart = np.abs(single.apply(once, draws[:, [1, 4, 5]]).numpy().astype(int) - varied)
    assert np.median(apart) <= 1  # between the layers nothing is rounded


def test_operations_are_equally_likely_and_a_seed_gives_several_numbers():
    draws = data.randaugment(2, source="keras").draw(np.random.default_rng(0), 11_000)
    counts = np.bincount(draws[:, :2].ravel(), minlength=11)
    np.testing.assert_allclose(counts / 22_000, 1 / 11, atol=0.01)
    seeds = FixedSeedGenerator(tf.constant([3, 5]))
    assert [seeds.next().numpy().tolist() for _ in range(3)] == [[3, 5], [3, 6], [3, 7]]


GRAY = [128] * 3


def trivial_operation(image, number, level, sign):
    """The definition of table 5, with arguments that are Python numbers."""
    garden, strength = import_model_garden(), level / 30
    enhanced = 1 + sign * 0.99 * strength
    operations = [
        lambda: tf.constant(image),
        lambda: garden.shear_x(image, sign * 0.99 * strength, GRAY),
        lambda: garden.shear_y(image, sign * 0.99 * strength, GRAY),
        lambda: garden.translate_x(image, sign * int(4 * strength), GRAY),
        lambda: garden.translate_y(image, sign * int(4 * strength), GRAY),
        lambda: garden.wrapped_rotate(image, sign * 135 * strength, GRAY),
        lambda: garden.brightness(image, enhanced),
        lambda: garden.color(image, enhanced),
        lambda: garden.contrast(image, enhanced),
        lambda: garden.sharpness(image, enhanced),
        lambda: garden.posterize(image, np.uint8(8 - round(level / 5))),
        lambda: tf.where(tf.cast(image, tf.float32) < 255 - 8.5 * level, image, 255 - image),
        lambda: garden.autocontrast(image),
        lambda: garden.equalize(image),
    ]
    return operations[number]().numpy()


@pytest.mark.slow  # 14 operations
def test_every_operation_of_trivialaugment_equals_its_definition():
    chosen = list(itertools.product(range(14), (0, 13, 29), (0, 1)))
    images = textured_images(len(chosen))
    varied = graph(data.trivialaugment(max_translation=4), images, chosen)
    expected = [
        trivial_operation(tf.constant(image), number, level, -1 if negative else 1)
        for image, (number, level, negative) in zip(images, chosen, strict=True)
    ]
    assert np.abs(varied.astype(int) - expected).max() <= 1  # float32 and Python numbers before rounding down
    varies = [number * level > 0 for number, level, _ in chosen]
    assert (varied != images).any(axis=(1, 2, 3))[varies].mean() > 0.9  # no pixel may reach a threshold of solarization


def test_trivialaugment_draws_each_operation_and_strength_equally_often():
    draws = data.trivialaugment().draw(np.random.default_rng(0), 42_000)
    for column, values in enumerate((14, 31, 2)):
        np.testing.assert_allclose(np.bincount(draws[:, column], minlength=values) / 42_000, 1 / values, atol=0.015)


def augmix_loop(image, draws, policy):
    """The definition: three chains, one operation after another, mixed in floating point."""
    garden, steps, shares = import_model_garden(), draws[:27].reshape(3, 3, 3), draws[27:] / POSITION_SCALE
    side, mixed = min(image.shape[:2]), np.zeros(image.shape)
    for chain, weight in zip(steps, shares, strict=False):
        varied = tf.constant(image)
        for number, parts, negative in chain:
            level, sign = parts / POSITION_SCALE * 10, -1 if negative else 1
            operations = [
                lambda x: x,
                garden.autocontrast,
                garden.equalize,
                lambda x, level=level: garden.posterize(x, np.uint8(4 - int(4 * level / 10))),
                lambda x, level=level, sign=sign: garden.wrapped_rotate(x, sign * int(30 * level / 10), GRAY),
                lambda x, level=level: garden.solarize(x, 256 - int(256 * level / 10)),
                lambda x, level=level, sign=sign: garden.shear_x(x, sign * 0.3 * level / 10, GRAY),
                lambda x, level=level, sign=sign: garden.shear_y(x, sign * 0.3 * level / 10, GRAY),
                lambda x, level=level, sign=sign: garden.translate_x(x, sign * int(side / 3 * level / 10), GRAY),
                lambda x, level=level, sign=sign: garden.translate_y(x, sign * int(side / 3 * level / 10), GRAY),
            ]
            varied = operations[number](varied)
        mixed += weight * varied.numpy()
    return (1 - shares[3]) * image + shares[3] * mixed


@pytest.mark.slow  # 9 operations, nine times in the graph
def test_augmix_equals_the_loop_over_its_chains():
    augment = data.augmix(severity=9)
    draws, images = augment.draw(np.random.default_rng(6), 40), textured_images(40)
    varied = graph(augment, images, draws)
    expected = np.stack([augmix_loop(image, row, augment) for image, row in zip(images, draws, strict=True)])
    assert np.abs(varied - expected).max() <= 0.51
    assert (varied != images).any(axis=(1, 2, 3)).mean() > 0.8


def test_augmix_draws_chains_of_one_to_three_operations_and_uniform_shares():
    draws = data.augmix(severity=3).draw(np.random.default_rng(0), 20_000)
    steps, shares = draws[:, :27].reshape(-1, 3, 3), draws[:, 27:] / POSITION_SCALE
    depths = (steps[..., 0] > 0).sum(axis=1)
    np.testing.assert_allclose(np.bincount(depths) / len(depths), [0, 1 / 3, 1 / 3, 1 / 3], atol=0.01)
    numbers = steps[..., 0][steps[..., 0] > 0]
    np.testing.assert_allclose(np.bincount(numbers)[1:] / len(numbers), 1 / 9, atol=0.01)
    levels = steps[..., 1] / POSITION_SCALE * 10
    np.testing.assert_allclose(np.quantile(levels, [0, 0.5, 1]), [0.1, 1.55, 3.0], atol=0.03)
    np.testing.assert_allclose(shares[:, :3].sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.quantile(shares[:, 3], [0.2, 0.7]), [0.2, 0.7], atol=0.02)
    assert data.augmix(all_operations=True).draw(np.random.default_rng(0), 500)[:, 0].max() == 13


@pytest.mark.parametrize("severity", [0.1, 10.5])
def test_a_severity_out_of_range_is_refused(severity):
    with pytest.raises(RecipeError, match=rf"severity must be above 0.1 and at most 10\. Received: {severity}"):
        data.augmix(severity)


def test_a_negative_translation_is_refused():
    with pytest.raises(RecipeError, match=r"0 or more pixels\. Received: -1"):
        data.trivialaugment(max_translation=-1)
