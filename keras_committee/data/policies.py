"""Which operations of Model Garden's AutoAugment and RandAugment vary an image, and how are they drawn?

Model Garden's own `distort` draws inside the graph, so a resumed stream would not repeat its draws. Its tables of
policies and its operations are used here, and every choice is drawn beforehand.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_committee.data.augment import branch_switch, check_rgb, for_each_image
from keras_committee.errors import RecipeError

KERAS_OPERATIONS = (
    "random_shear",
    "random_translation",
    "random_rotation",
    "random_brightness",
    "random_color_degeneration",
    "random_contrast",
    "random_sharpness",
    "random_posterization",
    "solarization",
    "auto_contrast",
    "equalization",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasRandAugment:
    """So many of Keras' eleven operations for each image, each with a strength of its own.

    An operation's factor is uniform from 0 to a tenth of `magnitude`, as in Keras. That is harsher than the paper: 1
    stands for a whole turn, or for a shift out of the image. Keras gives all images of a batch the same operations;
    these are drawn for each image, as in the paper. Values between two integers are rounded.

    Args:
        layers: Number of operations, one after another, 1 or more.
        magnitude: Ten times Keras' `factor`, above 0 and at most 10; Keras' default is 5.

    Raises:
        RecipeError: If a value makes no sense.

    Source: Cubuk et al. 2020, arXiv:1909.13719; `keras.layers.RandAugment` of Keras 3.15.
    """

    layers: int = 2
    magnitude: float = 5.0

    def __post_init__(self):
        check_strength(self.layers, self.magnitude)

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """The operations, then a seed of two numbers for each: int32 `(examples, layers * 3)`."""
        operations = rng.integers(len(KERAS_OPERATIONS), size=(examples, self.layers), dtype=np.int32)
        seeds = rng.integers(2**31, size=(examples, 2 * self.layers), dtype=np.int32)
        return np.concatenate([operations, seeds], axis=1)

    def apply(self, images, draws):
        """The varied images."""
        check_rgb(images, "randaugment")

        def augment_image(image, row):
            image = tf.cast(image, tf.float32)[None]
            for step in range(self.layers):
                seed_column = self.layers + 2 * step
                image = self._operation_switch(row[step], image, row[seed_column : seed_column + 2])
            return tf.cast(tf.clip_by_value(tf.round(image[0]), 0.0, 255.0), tf.uint8)

        return for_each_image(augment_image, images, draws)

    @functools.cached_property
    def _operation_switch(self):
        """Kept, since a stream of its own for each epoch would trace all of them again."""
        return branch_switch([self._make_operation(layer) for layer in self._operation_layers()])

    def _operation_layers(self):
        """Keras' layers, in the order of `OPERATIONS`."""
        with tf.Graph().as_default():  # their seeds are variables, never read, that a pipeline's graph cannot make
            layer = keras.layers.RandAugment(factor=self.magnitude / 10, seed=0, dtype="float32")
        return [getattr(layer, name) for name in KERAS_OPERATIONS]

    def _make_operation(self, layer):
        def operation(image, seed):
            numbers = layer.get_random_transformation(image, training=True, seed=FixedSeedGenerator(seed))
            return tf.ensure_shape(layer.transform_images(image, numbers), image.shape)

        return operation


def check_strength(layers: int, magnitude: float) -> None:
    """Raise a `RecipeError` where RandAugment's two numbers make no sense."""
    if layers < 1 or not 0 < magnitude <= 10:
        raise RecipeError(
            f"randaugment needs 1 or more layers and a magnitude above 0, at most 10. Received: {layers=}, {magnitude=}"
        )


class FixedSeedGenerator(keras.random.SeedGenerator):
    """A source of seeds that begins with a given one and needs no variable.

    Args:
        seed: int32 `(2,)`.
    """

    def __init__(self, seed):
        self._seed, self._count = seed, 0

    def next(self, ordered=True):
        """The seed after `count` others: uint32 `(2,)`."""
        count, self._count = self._count, self._count + 1
        return tf.bitcast(self._seed + tf.constant([0, count]), tf.uint32)


POLICIES = ("v0", "reduced_imagenet", "reduced_cifar10", "svhn", "simple", "vit", "panoptic_deeplab_policy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugment:
    """One sub-policy of a policy for each image; each of its operations is applied with its probability, in order.

    Two of Model Garden's policies are not to be had: `detection_v0`, which moves boxes, and `deit3_three_augment`,
    whose blur is drawn once, when the graph is made. As there, a solarization of level 10 inverts: 256 is 0 in uint8.

    Args:
        policy: One of `POLICIES`. `v0` is Model Garden's default for ImageNet.
        cutout_const: Pixels from the middle to an edge of a cut-out square at level 10.
        translate_const: Pixels that an image is shifted by at level 10; choose less for images smaller than 224.

    Raises:
        RecipeError: If there is no such policy, or Model Garden is not installed.

    Source: Cubuk et al. 2019, arXiv:1805.09501; `official.vision.ops.augment.AutoAugment` of Model Garden 2.20.
    """

    policy: str = "v0"
    cutout_const: float = 100.0
    translate_const: float = 250.0

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise RecipeError(f"autoaugment knows the policies {', '.join(POLICIES)}. Received: policy={self.policy!r}")
        require_model_garden("autoaugment")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """The columns of `Operations.apply` for each operation of the longest sub-policy: int32 `(examples, k)`."""
        numbers, probabilities = self._tables()
        policies = rng.integers(len(numbers), size=examples)
        applied = rng.random((examples, numbers.shape[1])) < probabilities[policies]
        return _make_draws(rng, numbers[policies] * applied)

    def apply(self, images, draws):
        """The varied images."""
        check_rgb(images, "autoaugment")
        return self._operations.apply(images, draws)

    def _sub_policies(self):
        """A list of sub-policies, each a list of `(name, probability, level)`."""
        return import_model_garden().AutoAugment(self.policy).policies

    @functools.cached_property
    def _operations(self):
        """Each pair of a name and a level once."""
        pairs = dict.fromkeys((name, level) for steps in self._sub_policies() for name, _, level in steps)
        return ModelGardenOperations(
            names_and_levels=tuple(pairs),
            cutout_const=float(self.cutout_const),
            translate_const=float(self.translate_const),
        )

    def _tables(self):
        """Number and probability of the operation of each step of each sub-policy: `(sub-policies, steps)` both."""
        sub_policies, pairs = self._sub_policies(), self._operations.names_and_levels
        numbers = np.zeros((len(sub_policies), max(map(len, sub_policies))), np.int64)
        probabilities = np.zeros(numbers.shape)
        for row, steps in enumerate(sub_policies):
            for column, (name, probability, level) in enumerate(steps):
                numbers[row, column] = 1 + pairs.index((name, level))
                probabilities[row, column] = probability
        return numbers, probabilities


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """So many operations for each image, each drawn from all of them and from leaving the image as it is.

    Args:
        layers: Number of operations, one after another, 1 or more.
        magnitude: Level of all operations, above 0 and at most 10.
        cutout_const: Pixels from the middle to an edge of a cut-out square at level 10.
        translate_const: Pixels that an image is shifted by at level 10; choose less for images smaller than 224.

    Raises:
        RecipeError: If a value makes no sense, or Model Garden is not installed.

    Source: Cubuk et al. 2020, arXiv:1909.13719; `official.vision.ops.augment.RandAugment` of Model Garden 2.20.
    """

    layers: int = 2
    magnitude: float = 10.0
    cutout_const: float = 40.0
    translate_const: float = 100.0

    def __post_init__(self):
        check_strength(self.layers, self.magnitude)
        require_model_garden("randaugment(source='model-garden')")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """The columns of `Operations.apply` for each of the layers: int32 `(examples, layers * 4)`."""
        count = len(self._operations.names_and_levels)
        return _make_draws(rng, rng.integers(count + 1, size=(examples, self.layers)))

    def apply(self, images, draws):
        """The varied images."""
        check_rgb(images, "randaugment")
        return self._operations.apply(images, draws)

    @functools.cached_property
    def _operations(self):
        names = import_model_garden().RandAugment().available_ops
        return ModelGardenOperations(
            names_and_levels=tuple((name, float(self.magnitude)) for name in names),
            cutout_const=float(self.cutout_const),
            translate_const=float(self.translate_const),
        )


def autoaugment(policy: str = "v0", *, cutout_const: float = 100.0, translate_const: float = 250.0) -> AutoAugment:
    """A policy of AutoAugment: `v0` (ImageNet), `reduced_imagenet`, `reduced_cifar10`, `svhn` and more."""
    return AutoAugment(policy=policy, cutout_const=cutout_const, translate_const=translate_const)


def randaugment(
    layers: int = 2, magnitude: float | None = None, *, source: str = "model-garden"
) -> RandAugment | KerasRandAugment:
    """RandAugment: `layers` random operations for each image.

    Args:
        layers: Number of operations, one after another, 1 or more.
        magnitude: Above 0, at most 10. None takes the default of the source: Model Garden's 10, Keras' 5.
        source: Whose operations: `"model-garden"` or `"keras"`.

    Raises:
        RecipeError: If a value makes no sense, or Model Garden is wanted and not installed.
    """
    sources = {"model-garden": RandAugment, "keras": KerasRandAugment}
    if source not in sources:
        raise RecipeError(f"randaugment knows the sources {', '.join(sources)}. Received: source={source!r}")
    strength = {} if magnitude is None else {"magnitude": magnitude}
    return sources[source](layers=layers, **strength)


def _make_draws(rng, operations):
    """The draws of `Operations.apply` for its operations' numbers, `(examples, steps)`."""
    draws = np.empty((*operations.shape, DRAWS_PER_STEP), np.int32)
    draws[..., 0] = operations
    draws[..., 1] = rng.integers(2, size=operations.shape)
    draws[..., 2:] = rng.integers(POSITION_SCALE, size=(*operations.shape, 2))
    return draws.reshape(len(operations), DRAWS_PER_STEP * operations.shape[1])


MAX_LEVEL = 10.0
GRAY_FILL = [128] * 3  # what Model Garden fills with
DRAWS_PER_STEP = 4  # of a step's draws: operation, whether its argument is negative, row and column
POSITION_SCALE = 2**31  # so many rows, or columns, from the first to the last of an image


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelGardenOperations:
    """Operations of `official.vision.ops.augment` by number; 0 leaves the image as it is.

    Args:
        names_and_levels: Name in `NAME_TO_FUNC` and level, 0 to 10, of operations 1, 2 and so on.
        cutout_const: Pixels from the middle to an edge of a cut-out square at level 10.
        translate_const: Pixels that an image is shifted by at level 10.
    """

    names_and_levels: tuple[tuple[str, float], ...]
    cutout_const: float
    translate_const: float

    def apply(self, images, draws):
        """Uint8 `(batch, height, width, 3)` and int32 `(batch, steps * 4)` to uint8 images of the same shape.

        The four columns of a step are the operation's number, 1 where its argument (an angle, a shear, a shift) is
        negative, and row and column of a cut-out square's middle, in 2**31 parts of the height and the width.
        """

        def augment_image(image, row):
            for start in range(0, draws.shape[1], DRAWS_PER_STEP):
                number, negative, *position = tf.unstack(row[start : start + DRAWS_PER_STEP])
                image = self._operation_switch(number, image, negative == 1, _to_pixel(image, position))
            return image

        return for_each_image(augment_image, images, draws)

    @functools.cached_property
    def _operation_switch(self):
        """Kept, since a stream of its own for each epoch would trace all of them again."""
        return branch_switch([_identity, *(self._make_operation(name, level) for name, level in self.names_and_levels)])

    def _make_operation(self, name, level) -> Callable:
        """A function of one image, whether its argument is negative, and the place of a cut-out square."""
        garden = import_model_garden()
        function = garden.NAME_TO_FUNC[name]
        max_arguments = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}  # theirs come with a random sign
        max_arguments |= dict.fromkeys(["TranslateX", "TranslateY"], self.translate_const)
        if name in max_arguments:
            argument = level / MAX_LEVEL * max_arguments[name]
            return lambda image, negative, place: function(image, _signed(argument, negative), GRAY_FILL)
        arguments = garden.level_to_arg(self.cutout_const, self.translate_const)[name](level)
        if name == "Cutout":  # theirs draws the place itself, then calls this
            return lambda image, negative, place: garden._fill_rectangle(image, *place, *arguments * 2, GRAY_FILL)
        return lambda image, negative, place: function(image, *arguments)


def import_model_garden():
    """The module `official.vision.ops.augment`, whose import takes seconds."""
    from official.vision.ops import augment

    return augment


def require_model_garden(feature: str) -> None:
    """Raise a `RecipeError` that names the extra where Model Garden is not installed; imports nothing heavy."""
    if importlib.util.find_spec("official") is None:
        raise RecipeError(
            f"{feature} is Model Garden's, which is not installed. Install it and run the command again:\n"
            '  pip install "keras-committee[model-garden]"'
        )


def _identity(image, negative, position):
    return tf.identity(image)


def _to_pixel(image, position):
    """Column and row, int32, of a place in 2**31 parts of the height and the width."""
    size = tf.shape(image, out_type=tf.int64)
    row, column = (
        tf.cast(tf.cast(fraction, tf.int64) * size[axis] // POSITION_SCALE, tf.int32)
        for axis, fraction in enumerate(position)
    )
    return column, row


def _signed(size, negative):
    return tf.where(negative, tf.constant(-size, tf.float32), tf.constant(size, tf.float32))
