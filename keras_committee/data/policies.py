"""Which operations of Model Garden's AutoAugment and RandAugment vary an image, and how are they drawn?

Model Garden's own `distort` draws inside the graph, so a resumed stream would not repeat its draws. Its tables of
policies and its operations are used here, and every choice is drawn beforehand.
"""

import dataclasses
import functools

import numpy as np

from keras_committee.data.dispatch import check_coloured
from keras_committee.data.keras_policy import KerasRandAugment, check_strength
from keras_committee.data.operations import COLUMNS, PLACES, Operations, model_garden, need_model_garden
from keras_committee.errors import RecipeError

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
        need_model_garden("autoaugment")

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """The columns of `Operations.apply` for each operation of the longest sub-policy: int32 `(examples, k)`."""
        numbers, probabilities = self._tables()
        policies = generator.integers(len(numbers), size=examples)
        applied = generator.random((examples, numbers.shape[1])) < probabilities[policies]
        return _rows(generator, numbers[policies] * applied)

    def apply(self, images, draws):
        """The varied images."""
        check_coloured(images, "autoaugment")
        return self._operations.apply(images, draws)

    def _policies(self):
        """A list of sub-policies, each a list of `(name, probability, level)`."""
        return model_garden().AutoAugment(self.policy).policies

    @functools.cached_property
    def _operations(self):
        """Each pair of a name and a level once."""
        pairs = dict.fromkeys((name, level) for steps in self._policies() for name, _, level in steps)
        return Operations(
            names_and_levels=tuple(pairs),
            cutout_const=float(self.cutout_const),
            translate_const=float(self.translate_const),
        )

    def _tables(self):
        """Number and probability of the operation of each step of each sub-policy: `(sub-policies, steps)` both."""
        policies, pairs = self._policies(), self._operations.names_and_levels
        numbers = np.zeros((len(policies), max(map(len, policies))), np.int64)
        probabilities = np.zeros(numbers.shape)
        for row, steps in enumerate(policies):
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
        need_model_garden("randaugment(source='model-garden')")

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """The columns of `Operations.apply` for each of the layers: int32 `(examples, layers * 4)`."""
        count = len(self._operations.names_and_levels)
        return _rows(generator, generator.integers(count + 1, size=(examples, self.layers)))

    def apply(self, images, draws):
        """The varied images."""
        check_coloured(images, "randaugment")
        return self._operations.apply(images, draws)

    @functools.cached_property
    def _operations(self):
        names = model_garden().RandAugment().available_ops
        return Operations(
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


def _rows(generator, numbers):
    """The draws of `Operations.apply` for its operations' numbers, `(examples, steps)`."""
    rows = np.empty((*numbers.shape, COLUMNS), np.int32)
    rows[..., 0] = numbers
    rows[..., 1] = generator.integers(2, size=numbers.shape)
    rows[..., 2:] = generator.integers(PLACES, size=(*numbers.shape, 2))
    return rows.reshape(len(numbers), COLUMNS * numbers.shape[1])
