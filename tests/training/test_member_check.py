"""Members that later commands would refuse are refused before their first step, with what to change."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_committee import layers, models
from keras_committee.errors import RecipeError, ResourceError
from keras_committee.models import member_check
from keras_committee.models.member_check import registered_names
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import train_committee
from keras_committee.training.member_check import make_member_check

L = keras.layers


class Scale(L.Layer):
    """A layer of a recipe; its module is unknown to Keras."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs):
        return inputs * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


@keras.saving.register_keras_serializable(package="tests")
class RegisteredScale(Scale):
    pass


@keras.saving.register_keras_serializable(package="tests")
class ForgetfulScale(Scale):
    def get_config(self):
        return L.Layer.get_config(self)


@keras.saving.register_keras_serializable(package="tests")
class InPython(Scale):
    def call(self, inputs):
        outputs = tf.numpy_function(np.abs, [inputs], tf.float32)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="tests")
class Noisy(Scale):
    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs))


@keras.saving.register_keras_serializable(package="tests")
class Miscounting(Scale):
    def multiply_adds(self, input_shape, output_shape):
        return input_shape.size


@keras.saving.register_keras_serializable(package="tests")
def registered_swish(x):
    return x * keras.ops.sigmoid(x)


def swish(x):
    return x * keras.ops.sigmoid(x)


class Shrink(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 1e-4 * keras.ops.sum(x**2)

    def get_config(self):
        return {}


class Halves(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None):
        return keras.ops.full(shape, 0.5, dtype)


def member(layer):
    image = keras.Input((8, 8, 3), name="image")
    x = L.Flatten()(layer(L.Rescaling(1 / 255)(image)))
    return keras.Model(image, L.Dense(3, name="logits")(x), name="small")


def check(layer, registered=None):
    make_member_check()(member(layer), 4, registered_names() if registered is None else registered)


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        (L.Lambda(lambda x: x * 2.0, name="double"), r"layer 'double' \(Lambda\)"),
        (Scale(name="scale"), r"layer 'scale' \(Scale\)"),
        (L.Dense(4, kernel_regularizer=Shrink(), name="hidden"), r"layer 'hidden' \(Dense\): Shrink"),
        (L.Dense(4, kernel_initializer=Halves(), name="hidden"), r"layer 'hidden' \(Dense\): Halves"),
        (keras.Sequential([Scale(name="scale")]), r"layer 'scale' \(Scale\)"),
        (layers.StochasticDepth(Scale(name="scale"), survival=0.7), r"layer 'scale' \(Scale\)"),
    ],
)
def test_code_of_the_recipe_that_is_not_registered_is_named_with_the_way_out(layer, part):
    message = (
        rf"member 4 \(small\) cannot be loaded after training: its file would contain code, in {part}\n"
        r"  No step was trained\. Register each class and function of your own at module level of the recipe, with\n"
        r"  @keras\.saving\.register_keras_serializable\(\), and return all its arguments from `get_config`"
    )
    with pytest.raises(RecipeError, match=message):
        check(layer)


def test_a_function_of_the_recipe_that_is_not_registered_is_named():
    message = r"member 4 \(small\) cannot be loaded after training: Could not locate function 'swish'.*\n  No step was"
    with pytest.raises(RecipeError, match=message):
        check(L.Dense(4, activation=swish, name="hidden"))


def test_a_lambda_as_an_activation_is_refused():
    with pytest.raises(RecipeError, match=r"member 4 \(small\) cannot be loaded after training: .*\n  No step was"):
        check(L.Dense(4, activation=lambda x: x, name="hidden"))


@pytest.mark.parametrize("layer", [RegisteredScale(3.0), L.Dense(4, activation=registered_swish)])
def test_what_is_registered_only_while_the_member_is_built_is_unknown_to_later_commands(layer):
    later = {name for name in registered_names() if not name.startswith("tests>")}
    with pytest.raises(
        RecipeError, match=r"member 4 \(small\) cannot be loaded after training: .*(code, in layer|function)"
    ):
        check(layer, registered=later)
    assert keras.saving.get_registered_object("tests>RegisteredScale") is RegisteredScale
    check(layer)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            ForgetfulScale(3.0),
            "changes when it is saved and loaded: its outputs differ by up to .* missing in a `get_config`",
        ),
        (Noisy(), "changes when it is saved and loaded: its outputs are random at inference"),
        (InPython(), "cannot be exported: .*PyFunc.*: Python runs only in the process that exported it"),
        (Miscounting(), "the multiply-adds of .* cannot be counted: 'tuple' object has no attribute 'size'"),
    ],
)
def test_a_member_that_later_commands_would_refuse_is_refused(layer, words):
    with pytest.raises(RecipeError, match=f"{words}.*\n  No step was trained"):
        check(layer)


def test_a_layer_that_cannot_be_written_is_refused():
    class Whole(L.Layer):
        def __init__(self, part):
            super().__init__(name="whole")
            self.part = part

        def call(self, inputs):
            return self.part(inputs)

    with pytest.raises(RecipeError, match=r"member 4 \(small\) cannot be saved: .*Whole"):
        check(Whole(L.Dense(3)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: L.LSTM(4)(L.Reshape((8, 24))(x)),
        L.SpectralNormalization(L.Conv2D(4, 3)),
        keras.Sequential([L.RandomFlip(), L.RandomRotation(0.1), L.Conv2D(4, 3), L.BatchNormalization()]),
        layers.StochasticDepth(L.Dense(3), survival=0.7),
    ],
    ids=["lstm", "spectral normalization", "augmentation", "stochastic depth"],
)
def test_layers_of_keras_are_accepted_whether_or_not_they_can_be_counted(layer):
    check(layer)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_member_in_mixed_precision_is_accepted(precision):
    keras.config.set_dtype_policy(precision)
    make_member_check()(models.wide_resnet(10, 1, classes=3, image_shape=(8, 8, 3)), 0, registered_names())


def test_members_of_one_architecture_are_checked_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(member_check, "load_member", lambda file: loaded.append(file) or keras.saving.load_model(file))
    once = make_member_check()
    for index in range(3):
        once(member(L.Conv2D(4, 3)), index, registered_names())
    assert len(loaded) == 1
    once(member(L.Conv2D(5, 3)), 3, registered_names())
    assert len(loaded) == 2


def test_a_full_disk_is_no_error_of_the_recipe(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    model = member(L.Conv2D(4, 3))
    monkeypatch.setattr(type(model), "save", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        make_member_check()(model, 0, registered_names())


RECIPE = '''
"""A member with a layer of the recipe's own."""

import keras
from keras_committee import Recipe, data

class Twice(keras.layers.Layer):
    def call(self, inputs):
        return 2 * inputs

def recipe():
    def member(index):
        image = keras.Input((32, 32, 3))
        return keras.Model(image, keras.layers.Dense(10)(keras.layers.Flatten()(Twice(name="twice")(image))))
    optimizer = lambda steps: keras.optimizers.SGD()
    return Recipe(data=data.digits(64), member=member, members=1, epochs=1, optimizer=optimizer,
                  loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
'''


def test_training_refuses_such_a_member_before_its_first_step(tmp_path):
    (tmp_path / "own.py").write_text(RECIPE)
    file = RecipeFile.read(tmp_path / "own.py")
    run = Run.create(tmp_path / "run", file, {}, command="test")
    with pytest.raises(RecipeError, match=r"would contain code, in layer 'twice' \(Twice\)\n  No step was trained\."):
        train_committee(run, file.build({}))
    assert not run.member(0).state.exists()
