"""`keras-committee show`: what is a recipe, and what will its members cost?"""

import dataclasses
from typing import Any

import click

from keras_committee.cli import options
from keras_committee.cli.options import json_option, set_option, standard_options
from keras_committee.cli.output import only_json, print_json
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.tables import print_members

_STEPS = 1_000  # of an epoch; the memory of an optimizer does not depend on them


@click.command()
@click.argument("recipe", type=click.Path(), shell_complete=options.recipes)
@set_option
@json_option
@standard_options
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the docstring, the knobs and the members of RECIPE."""
    recipe_file = RecipeFile.read(recipe)
    knobs = recipe_file.resolve(list(overrides))
    with only_json(as_json):
        built = recipe_file.build(knobs)
        members = [_describe(built, index) for index in range(built.members)]
    if as_json:
        print_json({"recipe": recipe_file.name, "doc": recipe_file.doc, "knobs": knobs, "members": members})
        return
    click.echo(f"{recipe_file.name}: {recipe_file.doc}\n")
    click.echo("\n".join(f"  --set {knob}={value!r}" for knob, value in knobs.items()) + "\n")
    print_members(members)


def _describe(recipe: Recipe, index: int) -> dict[str, Any]:
    import keras

    from keras_committee import flops
    from keras_committee.layers import blocks, expected_depth
    from keras_committee.models.precision import under_policy

    keras.utils.set_random_seed(recipe.seed + index)
    with under_policy(recipe.precision):
        model = recipe.member(index)
    skips = bool(blocks(model))
    return {
        "index": index,
        "name": model.name,
        "parameters": flops.parameters(model),
        "mflops": flops.mflops(model),
        # Residual blocks that run in a training step, and the share of the multiply-adds saved by skipping the others.
        "expected_depth": expected_depth(model) if skips else None,
        "expected_saving": flops.expected_saving(model) if skips else None,
        "batch_size": recipe.data.batch_size,
        "memory": _memory(recipe, model),
    }


def _memory(recipe: Recipe, model) -> dict[str, int]:
    """Bytes by what they are for, on one device that takes the recipe's whole batch; `inference` is of one image."""
    from keras_committee import flops

    optimizer = recipe.optimizer(recipe.epochs * _STEPS)
    optimizer.build(model.trainable_variables)
    training = flops.training_memory(
        model,
        recipe.data.batch_size,
        optimizer=optimizer,
        averages=recipe.ema is not None,
        parts=recipe.accumulate,
    )
    return {**dataclasses.asdict(training), "training": training.total, "inference": flops.inference_memory(model)}
