"""How does a residual block skip its branch at random while training, and pay nothing for it?"""

import functools

import keras
import numpy as np
from keras import ops

from keras_committee.layers import row_window
from keras_committee.layers.functional_branch import pure_branch, rematerialised, unmoved, values_of, variables_of

MODES = ("batch", "sample", "subset")
SCALINGS = ("inference", "training")


@keras.saving.register_keras_serializable(package="keras_committee")
class StochasticDepth(keras.layers.Layer):
    """A residual block whose branch is skipped at random while training.

    Returns `shortcut + gate * branch(x)`. While training, the gate is open with probability `survival`:

    - `"batch"`, the paper's: one gate for the whole batch, the same on every replica. A closed gate runs neither the
      branch nor its gradient: gradients are exactly zero and the state of the branch (moving statistics) stays.
    - `"sample"`: one gate per example. The branch runs for all of them; nothing is saved.
    - `"subset"`: the branch sees the surviving examples only: the whole batch, one of its halves, or nothing, drawn so
      that every example survives with probability `survival`. As batches are shuffled, a half is as random as other
      rows, and it is cut and put back without gathering.

    TensorFlow, JAX and PyTorch train in every mode. JAX compiles the branch of a `"subset"` three times, for the whole
    batch and for each half. On a CPU, XLA runs convolutions inside a conditional slowly: `"sample"` has none.

    At inference the branch runs whole, times `survival` (scaling `"inference"`, the paper's rule) or times 1 (scaling
    `"training"`, where the open branch was divided by `survival` instead). A survival of 0 means at any time that the
    branch does not count, and outside `"sample"` mode that it does not run; a survival of 1 is the plain residual.

    `survival` is a variable: `set_survival` changes it between steps without tracing the model again. The variable
    `runs` counts training calls: 1 for each that ran the branch for all, a fraction where some examples survived.

    Args:
        branch: Layer or model mapping `(batch, ...)` to the shape of the shortcut. Activity regularisation inside is
            refused: its loss could not leave a skipped branch. Weight regularisation counts once, as anywhere.
        survival: Float in [0, 1]. Probability that the branch runs.
        mode: `"batch"`, `"sample"` or `"subset"`.
        scaling: `"inference"` or `"training"`: when the branch is scaled.
        seed: Integer or None. None follows `keras.utils.set_random_seed`; two layers given one integer draw the same.
        rematerialise: Boolean. Whether the branch keeps nothing for its gradient and runs again for it: less memory,
            about a third more time.

    Call arguments:
        x: Tensor of shape `(batch, ...)`, the input of the branch.
        shortcut: Tensor added to the branch; `x` where None.
        training: Boolean. Whether gates are drawn.

    Returns:
        Tensor of the shape of the shortcut, in the compute dtype.

    Raises:
        ValueError: If an argument is none of the above, if branch and shortcut differ in shape, or if a branch that may
            be skipped would have to exchange its statistics with other replicas.

    Example:
        >>> branch = keras.Sequential([keras.layers.Conv2D(16, 3, padding="same"), keras.layers.ReLU()])
        >>> block = StochasticDepth(branch, survival=0.8)
        >>> block(images, training=True)  # images, or images + branch(images) in eight of ten calls

    Source: Huang et al. 2016, arXiv:1603.09382, equations 2, 4 and 5.
    """

    def __init__(
        self,
        branch: keras.layers.Layer,
        *,
        survival: float,
        mode: str = "batch",
        scaling: str = "inference",
        seed: int | None = None,
        rematerialise: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(branch, keras.layers.Layer):
            raise ValueError(f"branch must be a Keras layer or model. Received: branch={branch!r}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}. Received: mode={mode!r}")
        if scaling not in SCALINGS:
            raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}. Received: scaling={scaling!r}")
        self.branch = branch
        self.mode = mode
        self.scaling = scaling
        self.seed = seed
        self.rematerialise = rematerialise
        # XLA wants one shape for all steps. Elsewhere the flag would also turn off what JAX needs for inference.
        self.supports_jit = not (mode == "subset" and keras.backend.backend() == "tensorflow")
        with row_window.on_host():
            self.seed_generator = (keras.random.SeedGenerator if mode == "batch" else row_window.ReplicaSeeds)(seed)
            self._survival = self._scalar("survival", _probability(survival))
            self.runs = self._scalar("runs", 0.0)

    @property
    def survival(self) -> float:
        """The probability that the branch runs: the shortest decimal that names the float32 variable."""
        return float(str(np.float32(ops.convert_to_numpy(self._survival))))

    def set_survival(self, survival: float) -> None:
        """Change the probability from the next step on, in functions traced already too.

        Raises:
            ValueError: If `survival` is outside [0, 1].
        """
        self._survival.assign(_probability(survival))

    def build(self, x_shape, shortcut_shape=None):
        if not self.branch.built:
            self.branch.build(x_shape)
        self._check_branch(x_shape, shortcut_shape or x_shape)

    def call(self, x, shortcut=None, training=False):
        shortcut = x if shortcut is None else shortcut
        survival = ops.convert_to_tensor(self._survival)
        if not training:
            scale = survival if self.scaling == "inference" else ops.cast(survival > 0, "float32")
            return self._whole(scale > 0, x, shortcut, scale, training)
        scale = None if self.scaling == "inference" else 1.0 / ops.where(survival > 0, survival, 1.0)
        drop = {"batch": self._batch, "sample": self._sample, "subset": self._subset}[self.mode]
        return drop(x, shortcut, survival, scale)

    def compute_output_shape(self, x_shape, shortcut_shape=None):
        return x_shape if shortcut_shape is None else shortcut_shape

    def get_config(self):
        return {
            **super().get_config(),
            "branch": keras.saving.serialize_keras_object(self.branch),
            "survival": self.survival,
            "mode": self.mode,
            "scaling": self.scaling,
            "seed": self.seed,
            "rematerialise": self.rematerialise,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "branch": keras.saving.deserialize_keras_object(config["branch"])})

    def _batch(self, x, shortcut, survival, scale):
        with row_window.on_host():
            is_open = self._uniform(()) < survival
            self.runs.assign_add(ops.cast(is_open, "float32"))
        return self._whole(is_open, x, shortcut, scale, True)

    def _sample(self, x, shortcut, survival, scale):
        with row_window.on_host():
            survives = ops.cast(self._uniform(ops.shape(x)[:1]) < survival, "float32")
            self.runs.assign_add(ops.mean(survives))
        gate = survives if scale is None else survives * scale
        return self._whole(None, x, shortcut, ops.reshape(gate, (-1,) + (1,) * (len(x.shape) - 1)), True)

    def _subset(self, x, shortcut, survival, scale):
        with row_window.on_host():
            rows = ops.shape(x)[0]
            window = row_window.window(self._uniform((2,)), rows, survival)
            self.runs.assign_add(ops.cast(window[1], "float32") / ops.cast(rows, "float32"))

        def residual(window, branch):
            whole, kept = row_window.cut(shortcut, *window)
            inputs = kept if shortcut is x else row_window.rows_of(x, *window)
            return row_window.put(whole, self._sum(kept, branch(inputs), scale), *window)

        choice, windows = row_window.choices(*window, rows)
        return self._one_of(choice, [functools.partial(residual, each) for each in windows], shortcut, True)

    def _whole(self, predicate, x, shortcut, scale, training):
        """The block for all rows alike, if the predicate holds or is None."""
        return self._one_of(predicate, [lambda branch: self._sum(shortcut, branch(x), scale)], shortcut, training)

    def _sum(self, shortcut, outputs, scale):
        if scale is not None:  # stopped inside the conditional, which would compute its gradient whether asked or not
            outputs = outputs * ops.stop_gradient(self._cast(scale))
        return shortcut + outputs

    def _one_of(self, choice, residuals, skipped, training):
        """`skipped` where the choice is 0 or False, else the residual of that number, from 1; the first where None.

        The branch runs as a pure function inside the conditional and its new state is assigned outside: JAX and
        rematerialisation need it so, and TensorFlow takes the same time as with assignments inside.
        """
        if choice is not None:
            self._check_replicas()
        weights, frozen, state = variables_of(self.branch)
        before = [ops.convert_to_tensor(v) for v in [*weights, *frozen]] + values_of(state)
        pure = pure_branch(self.branch, training)
        pure = rematerialised(pure, len(weights)) if self.rematerialise and training else pure

        def run(residual):
            after = []

            def branch(inputs):
                outputs, *new = pure(inputs, *before)
                after.extend(new)
                return self._cast(outputs)

            return [residual(branch), *after]

        def skip():
            return [unmoved(skipped, *before[: len(weights)]), *before[len(weights) + len(frozen) :]]

        outputs, *after = _chosen(choice, skip, [functools.partial(run, each) for each in residuals])
        if training:
            for variable, value in zip(state, after, strict=True):
                variable.assign(value)
        return outputs

    def _uniform(self, shape):
        return keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)

    def _cast(self, x):
        return ops.cast(x, self.compute_dtype)

    def _scalar(self, name, value):
        # float32 under every policy: bfloat16 cannot tell 0.99 from 0.992.
        initial = keras.initializers.Constant(value)
        return self.add_weight((), initial, "float32", trainable=False, autocast=False, name=name)

    def _check_branch(self, x_shape, shortcut_shape):
        branch_shape = tuple(self.branch.compute_output_spec(keras.KerasTensor(x_shape, self.compute_dtype)).shape)
        if branch_shape[1:] != tuple(shortcut_shape)[1:]:
            raise ValueError(
                f"The branch must return the shape of the shortcut. Received: branch {branch_shape}, shortcut "
                f"{tuple(shortcut_shape)}. Pass a projection of x as `shortcut` where a block changes the shape."
            )
        regularised = [layer.name for layer in _layers(self.branch) if getattr(layer, "activity_regularizer", None)]
        if regularised:
            raise ValueError(f"A branch cannot carry an activity_regularizer. Received: {', '.join(regularised)}")

    def _check_replicas(self):
        if row_window.replicas() == 1:
            return
        together = [layer.name for layer in _layers(self.branch) if getattr(layer, "synchronized", False)]
        if together:
            raise ValueError(
                f"{together[0]} in the branch of {self.name} exchanges its statistics with other replicas, which "
                "TensorFlow cannot do inside a conditional. Give the batch normalisations of the branch "
                "synchronized=False, or the block mode='sample'."
            )


def _probability(survival):
    if not 0.0 <= survival <= 1.0:
        raise ValueError(f"survival must be a probability in [0, 1]. Received: survival={survival}")
    return float(survival)


def _chosen(choice, skip, runs):
    if choice is None:
        return runs[0]()
    return ops.cond(choice, runs[0], skip) if len(runs) == 1 else ops.switch(choice, [skip, *runs])


def _layers(branch):
    return branch._flatten_layers()
