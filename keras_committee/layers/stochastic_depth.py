"""Stochastic depth: residual blocks that skip their branch at random during training, at no cost."""

import functools

import keras
import numpy as np
from keras import ops

from keras_committee.layers import row_window
from keras_committee.layers.functional_branch import (
    functional_branch,
    passthrough_with_zero_grads,
    remat,
    snapshot,
    split_variables,
)

MODES = ("batch", "sample", "subset")
SCALINGS = ("inference", "training")


@keras.saving.register_keras_serializable(package="keras_committee")
class StochasticDepth(keras.layers.Layer):
    """A residual block whose branch is skipped at random during training.

    Returns `shortcut + keep * branch(x)`. During training, `keep` is 1 with probability `survival` and 0 otherwise:

    - `"batch"`, the paper's mode: one decision for the whole batch, the same on every replica. For a dropped block
      neither the branch nor its gradient is computed: gradients are exactly zero and the state of the branch (moving
      statistics) does not change.
    - `"sample"`: one decision per example. The branch runs for all of them, so no time is saved.
    - `"subset"`: the branch runs on the surviving examples only: the whole batch, one of its halves, or nothing, chosen
      so that every example survives with probability `survival`. Because batches are shuffled, a half is as random as
      any other rows, and needs no gather.

    TensorFlow, JAX and PyTorch support every mode. JAX compiles the branch three times in `"subset"` mode, for the
    whole batch and for each half. On a CPU, XLA runs convolutions inside a conditional slowly; `"sample"` has none.

    At inference the branch always runs, multiplied by `survival` (scaling `"inference"`, the paper's rule) or by 1
    (scaling `"training"`, which divides a kept branch by `survival` during training instead). With a survival of 0 the
    branch never contributes, and does not run except in `"sample"` mode; with a survival of 1 the block is a plain
    residual block.

    `survival` is a variable: `set_survival` changes it between steps without retracing the model. The variable
    `run_count` counts the training calls that ran the branch; a call in which only some examples survived adds the
    fraction of these examples.

    Args:
        branch: Layer or model from `(batch, ...)` to the shape of the shortcut. It cannot have an activity regularizer,
            whose loss could not leave a skipped branch. Weight regularizers work as in every layer.
        survival: Float in [0, 1]. Probability that the branch runs.
        mode: `"batch"`, `"sample"` or `"subset"`.
        scaling: `"inference"` or `"training"`: when the branch is scaled.
        seed: Integer or None. None follows `keras.utils.set_random_seed`. Two layers with the same integer make the
            same decisions.
        remat: Boolean. Whether the activations of the branch are recomputed for the gradient instead of stored: less
            memory, about a third more time.

    Call arguments:
        x: Tensor of shape `(batch, ...)`, the input of the branch.
        shortcut: Tensor that is added to the branch. Defaults to `x`.
        training: Boolean. Whether blocks are dropped.
        relu: Boolean. Whether a ReLU follows, and the shortcut is not negative: a dropped block then skips it, too.

    Returns:
        Tensor of the shape of the shortcut, in the compute dtype.

    Raises:
        ValueError: If an argument is invalid, if the shapes of branch and shortcut differ, or if a branch inside a
            conditional would have to exchange its statistics with other replicas.

    Example:
        >>> branch = keras.Sequential([keras.layers.Conv2D(16, 3, padding="same"), keras.layers.ReLU()])
        >>> block = StochasticDepth(branch, survival=0.8)
        >>> block(images, training=True)  # images + branch(images) in 8 of 10 calls, else images

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
        remat: bool = False,
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
        self.remat = remat
        # XLA requires one shape for all steps. On JAX the flag would also disable the compilation of inference.
        self.supports_jit = not (mode == "subset" and keras.backend.backend() == "tensorflow")
        with row_window.run_on_cpu():
            self.seed_generator = (
                keras.random.SeedGenerator if mode == "batch" else row_window.PerReplicaSeedGenerator
            )(seed)
            self._survival = self._add_scalar("survival", _check_probability(survival))
            self.run_count = self._add_scalar("runs", 0.0)

    @property
    def survival(self) -> float:
        """Probability that the branch runs, as the shortest decimal that rounds to the float32 variable."""
        return float(str(np.float32(ops.convert_to_numpy(self._survival))))

    def set_survival(self, survival: float) -> None:
        """Set the probability from the next step on, without retracing compiled functions.

        Raises:
            ValueError: If `survival` is outside [0, 1].
        """
        self._survival.assign(_check_probability(survival))

    def build(self, x_shape, shortcut_shape=None):
        if not self.branch.built:
            self.branch.build(x_shape)
        self._check_branch(x_shape, shortcut_shape or x_shape)

    def call(self, x, shortcut=None, training=False, relu=False):
        shortcut = x if shortcut is None else shortcut
        survival = ops.convert_to_tensor(self._survival)
        if not training:
            scale = survival if self.scaling == "inference" else ops.cast(survival > 0, "float32")
            return self._all_rows(scale > 0, x, shortcut, scale, training, relu)
        scale = None if self.scaling == "inference" else 1.0 / ops.where(survival > 0, survival, 1.0)
        drop = {"batch": self._drop_batch, "sample": self._drop_samples, "subset": self._drop_rows}[self.mode]
        return drop(x, shortcut, survival, scale, relu)

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
            "remat": self.remat,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "branch": keras.saving.deserialize_keras_object(config["branch"])})

    def _drop_batch(self, x, shortcut, survival, scale, relu):
        with row_window.run_on_cpu():
            keep = self._uniform(()) < survival
            self.run_count.assign_add(ops.cast(keep, "float32"))
        return self._all_rows(keep, x, shortcut, scale, True, relu)

    def _drop_samples(self, x, shortcut, survival, scale, relu):
        with row_window.run_on_cpu():
            keep_mask = ops.cast(self._uniform(ops.shape(x)[:1]) < survival, "float32")
            self.run_count.assign_add(ops.mean(keep_mask))
        scaled_mask = keep_mask if scale is None else keep_mask * scale
        mask = ops.reshape(scaled_mask, (-1,) + (1,) * (len(x.shape) - 1))
        return self._all_rows(None, x, shortcut, mask, True, relu)

    def _drop_rows(self, x, shortcut, survival, scale, relu):
        with row_window.run_on_cpu():
            rows = ops.shape(x)[0]
            window = row_window.row_window(self._uniform((2,)), rows, survival)
            self.run_count.assign_add(ops.cast(window[1], "float32") / ops.cast(rows, "float32"))

        def residual(window, branch):
            full_shortcut, kept_rows = row_window.slice_rows(shortcut, *window)
            inputs = kept_rows if shortcut is x else row_window.get_rows(x, *window)
            results = self._add_branch(kept_rows, branch(inputs), scale, relu)
            return row_window.write_rows(full_shortcut, results, *window)

        branch_index, windows = row_window.switch_branches(*window, rows)
        return self._switch(
            branch_index, [functools.partial(residual, row_range) for row_range in windows], shortcut, True
        )

    def _all_rows(self, predicate, x, shortcut, scale, training, relu):
        """Run the block for all rows if the predicate is True or None, else return the shortcut."""
        return self._switch(
            predicate, [lambda branch: self._add_branch(shortcut, branch(x), scale, relu)], shortcut, training
        )

    def _add_branch(self, shortcut, outputs, scale, relu):
        if scale is not None:  # inside the conditional, which would otherwise compute the gradient of the scale
            outputs = outputs * ops.stop_gradient(self._cast(scale))
        return ops.relu(shortcut + outputs) if relu else shortcut + outputs

    def _switch(self, branch_index, residuals, shortcut, training):
        """Run one of the residuals, or return the shortcut.

        The branch runs as a pure function inside the conditional and its new state is assigned outside: JAX and
        rematerialization require it, and TensorFlow takes the same time as with assignments inside.

        Args:
            branch_index: Boolean or int32 scalar, or None. 0 and False return the shortcut, 1 and True run the first
                residual, i runs residual i. None runs the first one without a conditional.
            residuals: Functions of the branch, itself a function of its inputs.
            shortcut: Tensor.
            training: Boolean.
        """
        if branch_index is not None:
            self._check_replicas()
        weights, frozen, state = split_variables(self.branch)
        values_before = [ops.convert_to_tensor(v) for v in [*weights, *frozen]] + snapshot(state)
        branch_function = functional_branch(self.branch, training)
        branch_function = remat(branch_function, len(weights)) if self.remat and training else branch_function

        def run(residual):
            new_state = []

            def branch(inputs):
                outputs, *new = branch_function(inputs, *values_before)
                new_state.extend(new)
                return self._cast(outputs)

            return [residual(branch), *new_state]

        def skip():
            return [
                passthrough_with_zero_grads(shortcut, *values_before[: len(weights)]),
                *values_before[len(weights) + len(frozen) :],
            ]

        outputs, *after = _run_branch(branch_index, skip, [functools.partial(run, residual) for residual in residuals])
        if training:
            for variable, value in zip(state, after, strict=True):
                variable.assign(value)
        return outputs

    def _uniform(self, shape):
        return keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)

    def _cast(self, x):
        return ops.cast(x, self.compute_dtype)

    def _add_scalar(self, name, value):
        # float32 under every policy: 0.99 and 0.992 are the same number in bfloat16.
        initializer = keras.initializers.Constant(value)
        return self.add_weight((), initializer, "float32", trainable=False, autocast=False, name=name)

    def _check_branch(self, x_shape, shortcut_shape):
        branch_shape = tuple(self.branch.compute_output_spec(keras.KerasTensor(x_shape, self.compute_dtype)).shape)
        if branch_shape[1:] != tuple(shortcut_shape)[1:]:
            raise ValueError(
                f"The branch must return the shape of the shortcut. Received: branch {branch_shape}, shortcut "
                f"{tuple(shortcut_shape)}. If the block changes the shape, pass a projection of x as `shortcut`."
            )
        regularized = [
            layer.name for layer in self.branch._flatten_layers() if getattr(layer, "activity_regularizer", None)
        ]
        if regularized:
            raise ValueError(f"A branch cannot have an activity_regularizer. Received: {', '.join(regularized)}")

    def _check_replicas(self):
        if row_window.num_replicas() == 1:
            return
        synchronized = [layer.name for layer in self.branch._flatten_layers() if getattr(layer, "synchronized", False)]
        if synchronized:
            raise ValueError(
                f"{synchronized[0]} in the branch of {self.name} exchanges its statistics with other replicas, which "
                "TensorFlow cannot do inside a conditional. Set synchronized=False in the batch normalization layers "
                "of the branch, or mode='sample' in the block."
            )


def _check_probability(survival):
    if not 0.0 <= survival <= 1.0:
        raise ValueError(f"survival must be a probability in [0, 1]. Received: survival={survival}")
    return float(survival)


def _run_branch(branch_index, skip, branches):
    if branch_index is None:
        return branches[0]()
    if len(branches) == 1:
        return ops.cond(branch_index, branches[0], skip)
    return ops.switch(branch_index, [skip, *branches])
