"""`keras-committee describe`: print the parameters, cost and memory of a recipe."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from keras_committee.cli.options import json_option, recipe_argument, set_option, standard_options
from keras_committee.cli.output import print_json, reserve_stdout_for_json
from keras_committee.errors import pluralize
from keras_committee.precision import training_device
from keras_committee.progress import track
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.tables import format_duration, print_members, print_text

if TYPE_CHECKING:
    from keras_committee.training.num_workers import Estimate

_STEPS_PER_EPOCH = 1_000  # placeholder for the schedule; the memory of an optimizer does not depend on it


@click.command()
@recipe_argument
@set_option
@click.option("--measure", is_flag=True, help="Measure the training speed of this machine, too; it loads the data.")
@json_option
@standard_options
def describe(recipe: str, overrides: tuple[str, ...], measure: bool, as_json: bool) -> None:
    """Print the parameters, cost and memory of a recipe.

    For each member of RECIPE: weights, MFLOPs, expected depth and savings under stochastic depth, and estimated memory.
    """
    recipe_file = RecipeFile.read(recipe)
    parameters = recipe_file.resolve(list(overrides))
    with reserve_stdout_for_json(as_json):
        built = recipe_file.build(parameters)
        precision = _describe_precision(built)
        indices = track(
            range(built.members), f"counting the cost of {pluralize(built.members, 'member')}", built.members
        )
        members = [_describe_member(built, index) for index in indices]
        training = None
        if measure:
            from keras_committee.training.num_workers import estimate_recipe

            training = estimate_recipe(recipe_file, parameters, built)
    if as_json:
        print_json(
            {
                "recipe": recipe_file.name,
                "doc": recipe_file.docstring,
                "knobs": parameters,
                "precision": precision,
                "members": members,
                **({"training": dataclasses.asdict(training)} if training else {}),
            }
        )
        return
    print_text(f"{recipe_file.name}: {recipe_file.docstring}\n")
    print_text("\n".join(f"  --set {name}={value!r}" for name, value in parameters.items()) + "\n")
    reason = f", as {precision['reason']}" if precision["reason"] else ""
    print_text(f"  precision of a new run: {precision['policy']}{reason}\n")
    print_members(members)
    if training:
        _print_training(training, built)


def _describe_precision(recipe: Recipe) -> dict[str, str]:
    """Return the precision in which a new run would train on this machine, and why if the recipe leaves it open."""
    if recipe.precision != "auto":
        return {"policy": recipe.precision, "reason": ""}
    device = training_device()
    return {"policy": device.precision, "reason": device.reason}


def _print_training(estimate: "Estimate", recipe: Recipe) -> None:
    from keras_committee.training.num_workers import format_rates

    print_text(
        f"Training takes about {format_duration(60 * estimate.minutes)} on this machine: "
        f"{pluralize(recipe.members, 'member')}, {estimate.workers} at once, {pluralize(recipe.epochs, 'epoch')}."
    )
    print_text(f"Measured: {format_rates(estimate.images_per_second)}; reading {estimate.reading:,.0f} images/s.")


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
