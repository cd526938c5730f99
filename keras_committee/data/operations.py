"""What does an operation of Model Garden's policies do to an image, once nothing is left to chance?"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import tensorflow as tf

from keras_committee.data.dispatch import chooser, for_each_image
from keras_committee.errors import RecipeError

MAX_LEVEL = 10.0
GREY = [128] * 3  # what Model Garden fills with
COLUMNS = 4  # of a step's draws: operation, whether its argument is negative, row and column
PLACES = 2**31  # so many rows, or columns, from the first to the last of an image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operations:
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

        def vary(image, row):
            for start in range(0, draws.shape[1], COLUMNS):
                number, negative, *place = tf.unstack(row[start : start + COLUMNS])
                image = self._chosen(number, image, negative == 1, _pixel(image, place))
            return image

        return for_each_image(vary, images, draws)

    @functools.cached_property
    def _chosen(self):
        """Kept, since a stream of its own for each epoch would trace all of them again."""
        return chooser([_unchanged, *(self._function(name, level) for name, level in self.names_and_levels)])

    def _function(self, name, level) -> Callable:
        """A function of one image, whether its argument is negative, and the place of a cut-out square."""
        garden = model_garden()
        function = garden.NAME_TO_FUNC[name]
        largest = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3}  # theirs come with a random sign
        largest |= dict.fromkeys(["TranslateX", "TranslateY"], self.translate_const)
        if name in largest:
            size = level / MAX_LEVEL * largest[name]
            return lambda image, negative, place: function(image, _signed(size, negative), GREY)
        arguments = garden.level_to_arg(self.cutout_const, self.translate_const)[name](level)
        if name == "Cutout":  # theirs draws the place itself, then calls this
            return lambda image, negative, place: garden._fill_rectangle(image, *place, *arguments * 2, GREY)
        return lambda image, negative, place: function(image, *arguments)


def model_garden():
    """The module `official.vision.ops.augment`, whose import takes seconds."""
    from official.vision.ops import augment

    return augment


def need_model_garden(wanted: str) -> None:
    """Raise a `RecipeError` that names the extra where Model Garden is not installed; imports nothing heavy."""
    if importlib.util.find_spec("official") is None:
        raise RecipeError(
            f"{wanted} is Model Garden's, which is not installed. Install it and run the command again:\n"
            '  pip install "keras-committee[model-garden]"'
        )


def _unchanged(image, negative, place):
    return tf.identity(image)


def _pixel(image, place):
    """Column and row, int32, of a place in 2**31 parts of the height and the width."""
    size = tf.shape(image, out_type=tf.int64)
    row, column = (tf.cast(tf.cast(part, tf.int64) * size[axis] // PLACES, tf.int32) for axis, part in enumerate(place))
    return column, row


def _signed(size, negative):
    return tf.where(negative, tf.constant(-size, tf.float32), tf.constant(size, tf.float32))
