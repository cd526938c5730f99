"""Cost of a recipe before it is trained."""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from keras_committee.api.results import Result, frame
from keras_committee.api.training import Parameters, RecipeSource, resolve_parameters
from keras_committee.errors import pluralize
from keras_committee.precision import training_device
from keras_committee.progress import track
from keras_committee.recipe import Recipe
from keras_committee.step_display import displayed
from keras_committee.tables import Block, format_duration, member_blocks

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingImports]

_STEPS_PER_EPOCH = 1_000  # placeholder for the schedule; the memory of an optimizer does not depend on it


class Description(Result):
    """Parameters of a recipe, and cost and memory of its members: the document of `describe --json`.

    Attributes:
        path: The recipe file.
    """

    def blocks(self) -> Iterable[Block]:
        yield f"{self['recipe']}: {self['doc']}\n"
        yield "\n".join(f"  --set {name}={value!r}" for name, value in self["knobs"].items()) + "\n"
        precision = self["precision"]
        reason = f", as {precision['reason']}" if precision["reason"] else ""
        yield f"  precision of a new run: {precision['policy']}{reason}\n"
        yield from member_blocks(self["members"])
        if training := self.document.get("training"):
            from keras_committee.training.num_workers import format_rates

            yield (
                f"Training takes about {format_duration(60 * training['minutes'])} on this machine: "
                f"{pluralize(len(self['members']), 'member')}, {training['workers']} at once, "
                f"{pluralize(training['epochs'], 'epoch')}."
            )
            yield (
                f"Measured: {format_rates(training['images_per_second'])}; reading {training['reading']:,.0f} images/s."
            )

    def to_frame(self) -> "pd.DataFrame":
        """Return a pandas data frame of the members: parameters, MFLOPs, memory, and depth under stochastic depth.

        Raises:
            RecipeError: If pandas is not installed.
        """
        return frame("index", self["members"])


@displayed
def describe(
    recipe: RecipeSource, /, *, parameters: Parameters = (), measure: bool = False, **recipe_parameters: Any
) -> Description:
    """Return cost and memory of each member of a recipe; nothing is trained or written.

    Args:
        recipe: As in `train`.
        parameters: As in `train`.
        measure: Measure the training speed of this machine, too; it loads the data.
        **recipe_parameters: As in `train`.

    Raises:
        RecipeError: If the recipe or a parameter is invalid.
        DataError: If `measure` cannot load the data.

    Example:
        >>> describe("recipes/cifar_wrn.py", width=2).to_frame()
    """
    recipe_file, values = resolve_parameters(recipe, parameters, recipe_parameters)
    built = recipe_file.build(values)
    precision = _describe_precision(built)
    indices = track(range(built.members), f"counting the cost of {pluralize(built.members, 'member')}", built.members)
    document = {
        "recipe": recipe_file.name,
        "doc": recipe_file.docstring,
        "knobs": values,
        "precision": precision,
        "members": [_describe_member(built, index) for index in indices],
    }
    if measure:
        from keras_committee.training.num_workers import estimate_recipe

        estimate = estimate_recipe(recipe_file, values, built)
        document["training"] = {**dataclasses.asdict(estimate), "epochs": built.epochs}
    return Description(document, recipe_file.path)


def _describe_precision(recipe: Recipe) -> dict[str, str]:
    """Return the precision in which a new run would train on this machine, and why if the recipe leaves it open."""
    if recipe.precision != "auto":
        return {"policy": recipe.precision, "reason": ""}
    device = training_device()
    return {"policy": device.precision, "reason": device.reason}


def _describe_member(recipe: Recipe, index: int) -> dict[str, Any]:
    import keras

    from keras_committee import flops
    from keras_committee.layers import expected_depth, stochastic_depth_blocks
    from keras_committee.models.building import build_member

    keras.utils.set_random_seed(recipe.seed + index)
    model = build_member(recipe, index)
    has_stochastic_depth = bool(stochastic_depth_blocks(model))
    return {
        "index": index,
        "name": model.name,
        "parameters": flops.parameters(model),
        "mflops": flops.mflops(model),
        "uncounted": flops.uncounted_layers(model),
        # Residual blocks that run in a training step, and the share of the multiply-adds saved by skipping the others.
        "expected_depth": expected_depth(model) if has_stochastic_depth else None,
        "expected_saving": flops.expected_flops_reduction(model) if has_stochastic_depth else None,
        "batch_size": recipe.data.batch_size,
        "memory": _memory_bytes(recipe, model),
    }


def _memory_bytes(recipe: Recipe, model) -> dict[str, int]:
    """Return bytes by purpose: training on one device with the recipe's whole batch, inference with one image."""
    from keras_committee import flops

    optimizer = recipe.optimizer(recipe.epochs * _STEPS_PER_EPOCH)
    optimizer.build(model.trainable_variables)
    training = flops.training_memory(
        model,
        recipe.data.batch_size,
        optimizer=optimizer,
        use_ema=recipe.ema_momentum is not None or recipe.swa_epoch_start is not None,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
    )
    return {**dataclasses.asdict(training), "training": training.total, "inference": flops.inference_memory(model)}
