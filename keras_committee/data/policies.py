"""AutoAugment, RandAugment, TrivialAugment and AugMix with the operations of Model Garden or of Keras.

Model Garden and Keras draw inside the graph, so that a resumed stream could not repeat their draws. Their policies and
operations are used here, while every random choice is drawn beforehand.
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_committee.data.lazy_tensorflow import tf
from keras_committee.errors import RecipeError

POLICIES = ("v0", "reduced_imagenet", "reduced_cifar10", "svhn", "simple", "vit", "panoptic_deeplab_policy")
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
POSITION_SCALE = 2**31  # a position is drawn in so many parts of the height, or the width
_DRAWS_PER_STEP = 4  # operation, whether its argument is negative, row, column
_MAX_LEVEL = 10.0
_GRAY_FILL = [128] * 3  # Model Garden's fill color
_MAX_BRANCHES = 8
_TRIVIAL_LEVELS = 31  # strengths of TrivialAugment, 0 to 30
_AUGMIX_CHAINS = 3
_AUGMIX_DEPTH = 3
_AUGMIX_MIN_LEVEL = 0.1


def autoaugment(policy: str = "v0", *, cutout_const: float = 100.0, translate_const: float = 250.0) -> "AutoAugment":
    """Apply a random sub-policy of an AutoAugment policy to each image; see `AutoAugment`.

    Args:
        policy: One of `POLICIES`, such as `"v0"` (ImageNet), `"reduced_cifar10"` or `"svhn"`.
        cutout_const: Half the side of the cutout square at level 10, in pixels.
        translate_const: Translation at level 10, in pixels; use less for images smaller than 224.
    """
    return AutoAugment(policy=policy, cutout_const=cutout_const, translate_const=translate_const)


def randaugment(
    layers: int = 2, magnitude: float | None = None, *, source: str = "model-garden"
) -> "RandAugment | KerasRandAugment":
    """Apply `layers` random operations to each image.

    Args:
        layers: Number of operations, applied in order, 1 or more.
        magnitude: Strength, above 0 and at most 10. None uses the default of the source: 10 for Model Garden, 5 for
            Keras.
        source: Library of the operations: `"model-garden"` or `"keras"`.

    Raises:
        RecipeError: If a value is out of range, or Model Garden is requested and not installed.
    """
    sources = {"model-garden": RandAugment, "keras": KerasRandAugment}
    if source not in sources:
        raise RecipeError(f"randaugment: source must be one of {', '.join(sources)}. Received: source={source!r}")
    strength = {} if magnitude is None else {"magnitude": magnitude}
    return sources[source](layers=layers, **strength)


def trivialaugment(*, max_translation: float = 32.0) -> "TrivialAugment":
    """Apply one random operation of random strength to each image; see `TrivialAugment`.

    Args:
        max_translation: Largest translation, in pixels; use less for images smaller than 224.
    """
    return TrivialAugment(max_translation=max_translation)


def augmix(severity: float = 3.0, *, all_operations: bool = False) -> "AugMix":
    """Mix three chains of random operations into each image; see `AugMix`.

    Args:
        severity: Largest level of the operations, above 0.1 and at most 10.
        all_operations: Whether color, contrast, brightness and sharpness are among the operations.
    """
    return AugMix(severity=severity, all_operations=all_operations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugment:
    """One random sub-policy for each image; each of its operations is applied, in order, with its probability.

    Two of Model Garden's policies are not supported: `detection_v0`, which moves boxes, and `deit3_three_augment`,
    whose blur is drawn only once, when the graph is built. As in Model Garden, a solarization of level 10 inverts the
    image: the threshold 256 overflows to 0 in uint8.

    Args:
        policy: One of `POLICIES`. `"v0"` is Model Garden's default for ImageNet.
        cutout_const: Half the side of the cutout square at level 10, in pixels.
        translate_const: Translation at level 10, in pixels; use less for images smaller than 224.

    Raises:
        RecipeError: If the policy is unknown, or Model Garden is not installed.

    Source: Cubuk et al. 2019, arXiv:1805.09501; `official.vision.ops.augment.AutoAugment` of Model Garden 2.20.
    """

    policy: str = "v0"
    cutout_const: float = 100.0
    translate_const: float = 250.0

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise RecipeError(
                f"autoaugment: policy must be one of {', '.join(POLICIES)}. Received: policy={self.policy!r}"
            )
        _require_model_garden("autoaugment")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw four columns for each operation of the longest sub-policy: int32 `(examples, steps * 4)`.

        See `_ModelGardenOperations.apply` for the columns.
        """
        numbers, probabilities = self._tables()
        policies = rng.integers(len(numbers), size=examples)
        applied = rng.random((examples, numbers.shape[1])) < probabilities[policies]
        return _draw_arguments(rng, numbers[policies] * applied)

    def apply(self, images, draws):
        """Augment uint8 images of three channels."""
        _check_rgb(images, "autoaugment")
        return self._operations.apply(images, draws)

    def _sub_policies(self):
        """A list of sub-policies, each a list of `(name, probability, level)`."""
        return import_model_garden().AutoAugment(self.policy).policies

    @functools.cached_property
    def _operations(self):
        """The distinct pairs of name and level."""
        pairs = dict.fromkeys((name, level) for steps in self._sub_policies() for name, _, level in steps)
        return _ModelGardenOperations(
            names_and_levels=tuple(pairs),
            cutout_const=float(self.cutout_const),
            translate_const=float(self.translate_const),
        )

    def _tables(self):
        """Operation number and probability of each step of each sub-policy, both `(sub-policies, steps)`."""
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
    """Random operations of Model Garden for each image, drawn from all of them and the identity.

    Args:
        layers: Number of operations, applied in order, 1 or more.
        magnitude: Level of all operations, above 0 and at most 10.
        cutout_const: Half the side of the cutout square at level 10, in pixels.
        translate_const: Translation at level 10, in pixels; use less for images smaller than 224.

    Raises:
        RecipeError: If a value is out of range, or Model Garden is not installed.

    Source: Cubuk et al. 2020, arXiv:1909.13719; `official.vision.ops.augment.RandAugment` of Model Garden 2.20.
    """

    layers: int = 2
    magnitude: float = 10.0
    cutout_const: float = 40.0
    translate_const: float = 100.0

    def __post_init__(self):
        _check_strength(self.layers, self.magnitude)
        _require_model_garden("randaugment(source='model-garden')")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw four columns for each layer: int32 `(examples, layers * 4)`.

        See `_ModelGardenOperations.apply` for the columns.
        """
        count = len(self._operations.names_and_levels)
        return _draw_arguments(rng, rng.integers(count + 1, size=(examples, self.layers)))

    def apply(self, images, draws):
        """Augment uint8 images of three channels."""
        _check_rgb(images, "randaugment")
        return self._operations.apply(images, draws)

    @functools.cached_property
    def _operations(self):
        names = import_model_garden().RandAugment().available_ops
        return _ModelGardenOperations(
            names_and_levels=tuple((name, float(self.magnitude)) for name in names),
            cutout_const=float(self.cutout_const),
            translate_const=float(self.translate_const),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasRandAugment:
    """Random operations of Keras for each image, each with its own strength.

    An operation's factor is uniform between 0 and a tenth of `magnitude`, as in Keras. This is stronger than the paper:
    1 stands for a full turn, or for a translation out of the image. Keras applies the same operations to all images of
    a batch; here they are drawn for each image, as in the paper. Results are rounded to the nearest integer.

    Args:
        layers: Number of operations, applied in order, 1 or more.
        magnitude: Ten times Keras' `factor`, above 0 and at most 10; Keras' default is 5.

    Raises:
        RecipeError: If a value is out of range.

    Source: Cubuk et al. 2020, arXiv:1909.13719; `keras.layers.RandAugment` of Keras 3.15.
    """

    layers: int = 2
    magnitude: float = 5.0

    def __post_init__(self):
        _check_strength(self.layers, self.magnitude)

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw the operations, then a seed of two integers for each: int32 `(examples, layers * 3)`."""
        operations = rng.integers(len(KERAS_OPERATIONS), size=(examples, self.layers), dtype=np.int32)
        seeds = rng.integers(2**31, size=(examples, 2 * self.layers), dtype=np.int32)
        return np.concatenate([operations, seeds], axis=1)

    def apply(self, images, draws):
        """Augment uint8 images of three channels."""
        _check_rgb(images, "randaugment")

        def augment_image(image, row):
            image = tf.cast(image, tf.float32)[None]
            for step in range(self.layers):
                seed_column = self.layers + 2 * step
                image = self._operation_switch(row[step], image, row[seed_column : seed_column + 2])
            return tf.cast(tf.clip_by_value(tf.round(image[0]), 0.0, 255.0), tf.uint8)

        return _map_images(augment_image, images, draws)

    @functools.cached_property
    def _operation_switch(self):
        """Cached: otherwise the stream of every epoch would trace all operations again."""
        return _branch_switch([self._make_operation(layer) for layer in self._operation_layers()])

    def _operation_layers(self):
        """Keras' layers in the order of `KERAS_OPERATIONS`."""
        with tf.Graph().as_default():  # their seeds are variables, never read, which a pipeline's graph cannot create
            layer = keras.layers.RandAugment(factor=self.magnitude / 10, seed=0, dtype="float32")
        return [getattr(layer, name) for name in KERAS_OPERATIONS]

    def _make_operation(self, layer):
        def operation(image, seed):
            numbers = layer.get_random_transformation(image, training=True, seed=FixedSeedGenerator(seed))
            return tf.ensure_shape(layer.transform_images(image, numbers), image.shape)

        return operation


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrivialAugment:
    """One of 14 operations for each image, the identity among them, at one of 31 strengths; nothing to tune.

    The wide ranges of the paper: rotations up to 135 degrees, shears up to 0.99, brightness, color, contrast and
    sharpness from 0.01 to 1.99, posterization to 8 to 2 bits, solarization from 255 to 0. Empty corners are gray.

    Args:
        max_translation: Largest translation, in pixels, 0 or more; use less for images smaller than 224.

    Raises:
        RecipeError: If the translation is negative, or Model Garden is not installed.

    Source: Müller & Hutter 2021, arXiv:2103.10158, table 5; operations of Model Garden 2.20.
    """

    max_translation: float = 32.0

    def __post_init__(self):
        if self.max_translation < 0:
            raise RecipeError(
                f"trivialaugment: max_translation must be 0 or more pixels. Received: {self.max_translation!r}"
            )
        _require_model_garden("trivialaugment")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw operation, strength 0 to 30, and 1 where its argument is negative: int32 `(examples, 3)`."""
        return rng.integers(0, [len(self._arguments), _TRIVIAL_LEVELS, 2], size=(examples, 3), dtype=np.int32)

    def apply(self, images, draws):
        """Augment uint8 images of three channels."""
        _check_rgb(images, "trivialaugment")

        def augment_image(image, row):
            amount = tf.cast(row[1], tf.float32) / (_TRIVIAL_LEVELS - 1)
            return self._operation_switch(row[0], image, amount, row[2] == 1)

        return _map_images(augment_image, images, draws)

    @property
    def _arguments(self):
        """Argument of each operation at an amount of 0 to 1; `sign` is 1 or -1."""
        enhancement = lambda amount, sign: 1.0 + sign * 0.99 * amount  # noqa: E731
        translation = lambda amount, sign: sign * tf.floor(self.max_translation * amount)  # noqa: E731
        return {
            "Identity": None,
            "ShearX": lambda amount, sign: sign * 0.99 * amount,
            "ShearY": lambda amount, sign: sign * 0.99 * amount,
            "TranslateX": translation,
            "TranslateY": translation,
            "Rotate": lambda amount, sign: sign * 135.0 * amount,
            "Brightness": enhancement,
            "Color": enhancement,
            "Contrast": enhancement,
            "Sharpness": enhancement,
            "Posterize": lambda amount, sign: 8.0 - tf.round(6.0 * amount),
            "Solarize": lambda amount, sign: 255.0 * (1.0 - amount),
            "AutoContrast": None,
            "Equalize": None,
        }

    @functools.cached_property
    def _operation_switch(self):
        return _branch_switch([_make_scaled_operation(*pair) for pair in self._arguments.items()])


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugMix:
    """The image mixed with three chains of one to three random operations each.

    The weights of the chains are drawn from a Dirichlet distribution, the share of the chains from a Beta distribution,
    both uniform. Keras' own `AugMix` draws its operations once, when the graph is built; here they are drawn for each
    image. The consistency loss of the paper is not part of it.

    Args:
        severity: Largest level of the operations, above 0.1 and at most 10; each level is uniform from 0.1 on.
        all_operations: Whether color, contrast, brightness and sharpness are among the operations. The paper leaves
            them out where robustness to such corruptions is measured.

    Raises:
        RecipeError: If the severity is out of range, or Model Garden is not installed.

    Source: Hendrycks et al. 2020, arXiv:1912.02781, section 3; operations of Model Garden 2.20.
    """

    severity: float = 3.0
    all_operations: bool = False

    def __post_init__(self):
        if not _AUGMIX_MIN_LEVEL < self.severity <= _MAX_LEVEL:
            raise RecipeError(
                f"augmix: severity must be above {_AUGMIX_MIN_LEVEL} and at most 10. Received: {self.severity!r}"
            )
        _require_model_garden("augmix")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw operations and weights: int32 `(examples, 31)`.

        The columns: for each step of each chain the number of its operation (0 is the identity), its level in
        `POSITION_SCALE` parts of 10, and 1 where its argument is negative; then the weights of the chains and the share
        of the chains in the image, in `POSITION_SCALE` parts of 1.
        """
        steps = (examples, _AUGMIX_CHAINS, _AUGMIX_DEPTH)
        depths = rng.integers(1, _AUGMIX_DEPTH + 1, size=steps[:2])
        numbers = rng.integers(1, len(self._arguments(1.0)), size=steps)
        numbers[np.arange(_AUGMIX_DEPTH) >= depths[..., None]] = 0
        levels = rng.uniform(_AUGMIX_MIN_LEVEL, self.severity, size=steps) / _MAX_LEVEL
        columns = np.stack([numbers, _in_parts(levels), rng.integers(2, size=steps)], axis=-1)
        weights = rng.dirichlet([1.0] * _AUGMIX_CHAINS, size=examples)
        shares = np.column_stack([weights, rng.beta(1.0, 1.0, size=examples)])
        return np.concatenate([columns.reshape(examples, 3 * _AUGMIX_CHAINS * _AUGMIX_DEPTH), _in_parts(shares)], 1)

    def apply(self, images, draws):
        """Augment uint8 images of three channels."""
        _check_rgb(images, "augmix")
        operations = self._operation_switch(images.shape)

        def augment_image(image, row):
            shares = tf.cast(row[-_AUGMIX_CHAINS - 1 :], tf.float32) / POSITION_SCALE
            steps, mixed = tf.reshape(row[: -_AUGMIX_CHAINS - 1], (_AUGMIX_CHAINS, _AUGMIX_DEPTH, 3)), 0.0
            for chain in range(_AUGMIX_CHAINS):
                varied = image
                for step in range(_AUGMIX_DEPTH):
                    number, level, negative = tf.unstack(steps[chain, step])
                    varied = operations(number, varied, tf.cast(level, tf.float32) / POSITION_SCALE, negative == 1)
                mixed += shares[chain] * tf.cast(varied, tf.float32)
            mixed = (1.0 - shares[-1]) * tf.cast(image, tf.float32) + shares[-1] * mixed
            return tf.cast(tf.clip_by_value(tf.round(mixed), 0.0, 255.0), tf.uint8)

        return _map_images(augment_image, images, draws)

    def _arguments(self, side):
        """Argument of each operation at an amount of 0 to 1, a tenth of its level; `side` of the image in pixels."""
        translation = lambda amount, sign: sign * tf.floor(side / 3 * amount)  # noqa: E731
        arguments = {
            "Identity": None,
            "AutoContrast": None,
            "Equalize": None,
            "Posterize": lambda amount, sign: 4.0 - tf.floor(4.0 * amount),
            "Rotate": lambda amount, sign: sign * tf.floor(30.0 * amount),
            "Solarize": lambda amount, sign: 256.0 - tf.floor(256.0 * amount),
            "ShearX": lambda amount, sign: sign * 0.3 * amount,
            "ShearY": lambda amount, sign: sign * 0.3 * amount,
            "TranslateX": translation,
            "TranslateY": translation,
        }
        enhanced = ("Color", "Contrast", "Brightness", "Sharpness") if self.all_operations else ()
        return arguments | dict.fromkeys(enhanced, lambda amount, sign: 0.1 + 1.8 * amount)

    @functools.cached_property
    def _operation_switch(self):
        """Cached for each shape: otherwise the stream of every epoch would trace all operations again."""

        @functools.cache
        def switch(shape):
            arguments = self._arguments(min(shape[1:3]))
            return _branch_switch([_make_scaled_operation(*pair) for pair in arguments.items()])

        return lambda shape: switch(tuple(shape))


class FixedSeedGenerator(keras.random.SeedGenerator):
    """A `SeedGenerator` that starts from a given tensor and needs no variable.

    Args:
        seed: int32 `(2,)`.
    """

    def __init__(self, seed):
        self._seed, self._count = seed, 0

    def next(self, ordered=True):
        """Return the next seed, uint32 `(2,)`."""
        count, self._count = self._count, self._count + 1
        return tf.bitcast(self._seed + tf.constant([0, count]), tf.uint32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ModelGardenOperations:
    """Operations of `official.vision.ops.augment`, numbered from 1; 0 is the identity.

    Args:
        names_and_levels: Key of `NAME_TO_FUNC` and level, 0 to 10, of each operation.
        cutout_const: Half the side of the cutout square at level 10, in pixels.
        translate_const: Translation at level 10, in pixels.
    """

    names_and_levels: tuple[tuple[str, float], ...]
    cutout_const: float
    translate_const: float

    def apply(self, images, draws):
        """Apply the drawn operations to a batch.

        Args:
            images: uint8 `(batch, height, width, 3)`.
            draws: int32 `(batch, steps * 4)`. The columns of a step: number of the operation; 1 where its argument (an
                angle, a shear, a translation) is negative; row and column of the center of the cutout square, in
                `POSITION_SCALE` parts of height and width.

        Returns:
            uint8 images of the same shape.
        """

        def augment_image(image, row):
            for start in range(0, draws.shape[1], _DRAWS_PER_STEP):
                number, negative, *position = tf.unstack(row[start : start + _DRAWS_PER_STEP])
                image = self._operation_switch(number, image, negative == 1, _to_pixel(image, position))
            return image

        return _map_images(augment_image, images, draws)

    @functools.cached_property
    def _operation_switch(self):
        """Cached: otherwise the stream of every epoch would trace all operations again."""
        operations = (self._make_operation(name, level) for name, level in self.names_and_levels)
        return _branch_switch([_identity, *operations])

    def _make_operation(self, name, level) -> Callable:
        """Return a function of one image, the sign of its argument, and the center of the cutout square."""
        garden = import_model_garden()
        function = garden.NAME_TO_FUNC[name]
        max_arguments = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}  # Model Garden draws the sign of these
        max_arguments |= dict.fromkeys(["TranslateX", "TranslateY"], self.translate_const)
        if name in max_arguments:
            argument = level / _MAX_LEVEL * max_arguments[name]
            return lambda image, negative, position: function(image, _signed(argument, negative), _GRAY_FILL)
        arguments = garden.level_to_arg(self.cutout_const, self.translate_const)[name](level)
        if name == "Cutout":  # Model Garden draws the center, then calls `_fill_rectangle`
            return lambda image, negative, position: garden._fill_rectangle(
                image, *position, *arguments * 2, _GRAY_FILL
            )
        return lambda image, negative, position: function(image, *arguments)


def _make_scaled_operation(name: str, argument: Callable | None) -> Callable:
    """Return a function of one uint8 image, an amount of 0 to 1, and whether the argument is negative.

    Args:
        name: Name of the operation.
        argument: Function of the amount and of the sign, 1 or -1, that returns the argument; None for operations
            without one.
    """
    garden = import_model_garden()

    def posterize(image, bits):
        shift = tf.cast(8.0 - bits, tf.uint8)
        return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)

    def solarize(image, threshold):
        return tf.where(tf.cast(image, tf.float32) < threshold, image, 255 - image)

    def blend(degenerate):  # Model Garden's own needs a factor that is known when the graph is built
        def operation(image, factor):
            start = tf.cast(degenerate(image), tf.float32)
            blended = start + factor * (tf.cast(image, tf.float32) - start)
            return tf.cast(tf.clip_by_value(blended, 0.0, 255.0), tf.uint8)

        return operation

    operations = {
        "Identity": tf.identity,
        "AutoContrast": garden.autocontrast,
        "Equalize": garden.equalize,
        "Rotate": functools.partial(garden.wrapped_rotate, replace=_GRAY_FILL),
        "ShearX": functools.partial(garden.shear_x, replace=_GRAY_FILL),
        "ShearY": functools.partial(garden.shear_y, replace=_GRAY_FILL),
        "TranslateX": functools.partial(garden.translate_x, replace=_GRAY_FILL),
        "TranslateY": functools.partial(garden.translate_y, replace=_GRAY_FILL),
        "Posterize": posterize,
        "Solarize": solarize,
        "Brightness": blend(tf.zeros_like),
        "Color": blend(garden.grayscale),
        "Contrast": garden.contrast,
        "Sharpness": blend(lambda image: garden.sharpness(image, 0.0)),
    }
    operation = operations[name]
    if argument is None:
        return lambda image, amount, negative: operation(image)
    return lambda image, amount, negative: operation(image, argument(amount, tf.where(negative, -1.0, 1.0)))


def _in_parts(fractions: np.ndarray) -> np.ndarray:
    """Return fractions of 0 to 1 in `POSITION_SCALE` parts, int32."""
    return np.minimum(fractions * POSITION_SCALE, POSITION_SCALE - 1).astype(np.int32)


def import_model_garden():
    """Import `official.vision.ops.augment`, which takes seconds."""
    from official.vision.ops import augment

    return augment


def _require_model_garden(feature):
    """Raise a `RecipeError` if Model Garden is not installed, without importing it."""
    if importlib.util.find_spec("official") is None:
        raise RecipeError(
            f"{feature} requires Model Garden, which is not installed. Install it and run the command again:\n"
            '  pip install "keras-committee[model-garden]"'
        )


def _check_strength(layers, magnitude):
    if layers < 1 or not 0 < magnitude <= 10:
        raise RecipeError(
            "randaugment: layers must be 1 or more, magnitude must be above 0 and at most 10. "
            f"Received: {layers=}, {magnitude=}"
        )


def _check_rgb(images, name):
    if images.shape[-1] != 3:
        raise RecipeError(
            f"{name} requires images of three channels (RGB). Received: images of shape {tuple(images.shape[1:])}. "
            "Repeat a gray channel three times, or remove the augmentation."
        )


def _draw_arguments(rng, operations):
    """Draw the remaining columns of `_ModelGardenOperations.apply` for operation numbers `(examples, steps)`."""
    draws = np.empty((*operations.shape, _DRAWS_PER_STEP), np.int32)
    draws[..., 0] = operations
    draws[..., 1] = rng.integers(2, size=operations.shape)
    draws[..., 2:] = rng.integers(POSITION_SCALE, size=(*operations.shape, 2))
    return draws.reshape(len(operations), _DRAWS_PER_STEP * operations.shape[1])


def _map_images(augment_image: Callable, images, draws):
    """Apply `augment_image(image, row)`, which keeps the shape, to each uint8 image and its draws."""
    spec = tf.TensorSpec(images.shape[1:], tf.uint8)

    def augment_one(example):
        return tf.ensure_shape(augment_image(*example), spec.shape)

    return tf.map_fn(augment_one, (images, draws), fn_output_signature=spec)


def _branch_switch(functions: Sequence[Callable]) -> Callable:
    """Return a graph function `(number, ...)` that calls one of `functions`, all of which return the same type.

    TensorFlow visits each node of every branch that is not taken: 2.4 ms per image for the 46 branches of policy v0. A
    call that may not be inlined is one node, and a tree of calls has few branches to visit.
    """
    calls = [
        tf.function(function, autograph=False, experimental_attributes={"_noinline": True}) for function in functions
    ]
    if len(calls) <= _MAX_BRANCHES:
        return lambda number, *rest: tf.switch_case(number, [lambda call=call: call(*rest) for call in calls])
    groups = [
        _branch_switch(functions[start : start + _MAX_BRANCHES]) for start in range(0, len(functions), _MAX_BRANCHES)
    ]
    inner = _branch_switch([lambda number, *rest, group=group: group(number, *rest) for group in groups])
    return lambda number, *rest: inner(number // _MAX_BRANCHES, number % _MAX_BRANCHES, *rest)


def _identity(image, negative, position):
    return tf.identity(image)


def _to_pixel(image, position):
    """Convert a position in `POSITION_SCALE` parts of height and width to column and row, int32."""
    size = tf.shape(image, out_type=tf.int64)
    row, column = (
        tf.cast(tf.cast(fraction, tf.int64) * size[axis] // POSITION_SCALE, tf.int32)
        for axis, fraction in enumerate(position)
    )
    return column, row


def _signed(size, negative):
    return tf.where(negative, tf.constant(-size, tf.float32), tf.constant(size, tf.float32))
