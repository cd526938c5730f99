"""What can be done at the command line, and what does a failure look like there?

Everything heavy is imported inside the commands: `--help` and a mistyped knob answer at once.
"""

import contextlib
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click

import keras_committee
from keras_committee.errors import CommitteeError
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run

_STRATEGIES = ["auto", "one", "mirrored", "multiworker"]
_MULTIWORKER = "multiworker: each member on all hosts of TF_CONFIG; the same command on each host."
_MFLOPS = "MFLOPs: 2 x multiply-adds / 1e6, for one image."


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0, that of a `CommitteeError`, 2 for usage, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # TensorFlow's C++ log greets and, without a GPU, complains; what goes wrong comes as a Python exception, too.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Its Python log warns of retracing where several models predict, each of them once.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    settings = {"debug": False, "command": shlex.join(["keras-committee", *arguments])}
    try:
        return cli.main(arguments, prog_name="keras-committee", standalone_mode=False, obj=settings) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _report(error, _usage(error), error.exit_code, settings)
    except CommitteeError as error:
        return _report(error, str(error), error.exit_code, settings)
    except click.Abort as error:
        if isinstance(error.__cause__, EOFError):  # click takes it for Ctrl-D; here it is a file cut short
            raise error.__cause__ from None
        return _report(error, f"interrupted. To go on: {settings['command']}", 130, settings)


def _debug_option(command):
    def remember(context: click.Context, _parameter, debug: bool) -> None:
        if debug:
            context.obj["debug"] = True

    return click.option(
        "--debug", is_flag=True, is_eager=True, expose_value=False, callback=remember, help="Show tracebacks of errors."
    )(command)


def _version_option(command):
    def show_version(context: click.Context, _parameter, asked: bool) -> None:
        if asked:
            click.echo(f"keras-committee {keras_committee.__version__}")
            context.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Show the version."
    )(command)


def _standard_options(command):
    return _debug_option(_version_option(command))


_set_option = click.option("--set", "overrides", metavar="KNOB=VALUE", multiple=True, help="Turn a knob of the recipe.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; all else goes to stderr.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@_standard_options
def cli() -> None:
    """Train a committee of small image classifiers, and see what its votes are worth.

    A RECIPE is a Python file. `train` and `show` execute it, and `evaluate` executes the copy in the run folder: use
    only files that you trust.
    """


@cli.command()
@click.argument("recipe", type=click.Path())
@_set_option
@_json_option
@_standard_options
def show(recipe: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the docstring, the knobs and the members of RECIPE."""
    recipe_file = RecipeFile.read(recipe)
    knobs = recipe_file.resolve(list(overrides))
    with _only_json(as_json):
        built = recipe_file.build(knobs)
        members = [_describe(built, index) for index in range(built.members)]
    if as_json:
        _print_json({"recipe": recipe_file.name, "doc": recipe_file.doc, "knobs": knobs, "members": members})
        return
    click.echo(f"{recipe_file.name}: {recipe_file.doc}\n")
    click.echo("\n".join(f"  --set {knob}={value!r}" for knob, value in knobs.items()) + "\n")
    cells = [[*_member_cells(member), *_skipping_cells(member)] for member in members]
    _print_table(["member", "name", "parameters", "MFLOPs", "expected depth", "expected saving"], cells)


@cli.command()
@click.argument("recipe", type=click.Path())
@click.option("--run", "folder", metavar="DIR", help="The run folder; runs/<name of the recipe> by default.")
@_set_option
@click.option("--workers", default="auto", show_default=True, help="Members that train at once, a number or auto.")
@click.option("--strategy", default="auto", show_default=True, type=click.Choice(_STRATEGIES), help=_MULTIWORKER)
@click.option("--deterministic", is_flag=True, help="Equal bits from equal runs, at a price in speed.")
@click.option("--save-every", type=click.FloatRange(0), default=300.0, show_default=True, metavar="SECONDS")
@click.option("--allow-change", is_flag=True, help="Go on in a run folder of an edited recipe or other knobs.")
@click.option("--from-scratch", is_flag=True, help="Discard the state of unfinished members.")
@click.option("--smoke", is_flag=True, help="Two members, one epoch, a few batches: does it run at all?")
@_json_option
@_standard_options
@click.pass_obj
def train(
    settings: dict,
    recipe: str,
    folder: str | None,
    overrides: tuple[str, ...],
    workers: str,
    strategy: str,
    deterministic: bool,
    save_every: float,
    allow_change: bool,
    from_scratch: bool,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train every member of RECIPE. The same command again goes on where it was, to the very step."""
    many = _parse_workers(workers)
    recipe_file = RecipeFile.read(recipe)
    knobs = recipe_file.resolve(list(overrides))
    folder = folder or str(Path("runs", f"{recipe_file.name}-smoke" if smoke else recipe_file.name))
    if strategy == "multiworker":
        from keras_committee import training

        if training.take_part(folder, recipe_file, knobs, smoke, many, training.Settings(deterministic=deterministic)):
            return
    run = Run.create(folder, recipe_file, knobs, smoke=smoke, command=settings["command"], allow_change=allow_change)
    _warn_of_versions(run)
    with run.lock(), _only_json(as_json):
        built = _built(recipe_file, knobs, smoke)
        from keras_committee.training import Settings, train_committee

        settings = Settings(save_seconds=save_every, deterministic=deterministic)
        train_committee(run, built, strategy, workers=many, settings=settings, from_scratch=from_scratch)
    if as_json:
        finished = run.finished_members()
        _print_json({"recipe": recipe_file.name, "run": folder, "knobs": knobs, "smoke": smoke, "finished": finished})
    else:
        click.echo(f"{len(run.finished_members())} members in {folder}. Next: {_command('evaluate', folder)}")


@cli.command()
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@_json_option
@_standard_options
def evaluate(run: str, split: str, as_json: bool) -> None:
    """Measure the members of RUN, and its committees of every size."""
    opened = Run.open(run)
    with opened.lock(), _only_json(as_json):
        built = _built(opened.recipe_file(), opened.knobs(), opened.smoke)
        from keras_committee import evaluation

        result = evaluation.evaluate(opened, built, split=split)
    if as_json:
        _print_json(result)
        return
    _print_evaluation(result)
    click.echo(f"{result['examples']} examples of {split}. All of it: {Path(run, 'evaluation.json')}")


def _built(recipe_file: RecipeFile, knobs: dict[str, Any], smoke: bool) -> Recipe:
    recipe = recipe_file.build(knobs)
    return recipe.smoke() if smoke else recipe


def _parse_workers(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"expected auto or a number of 1 or more. Received: {text!r}", param_hint="--workers")
    return int(text)


def _describe(recipe: Recipe, index: int) -> dict[str, Any]:
    import keras

    from keras_committee import flops
    from keras_committee.layers import blocks, expected_depth

    keras.utils.set_random_seed(recipe.seed + index)
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
    }


def _warn_of_versions(run: Run) -> None:
    changed = run.changed_versions()
    if changed:
        click.echo(f"warning: {run.path} was begun with other versions: {', '.join(changed)}.", err=True)
        click.echo("  It goes on, but not bit for bit as it would have.", err=True)


@contextlib.contextmanager
def _only_json(as_json: bool) -> Iterator[None]:
    """Keeps stdout for the one document where `as_json`: whatever else is printed inside goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))


def _print_evaluation(result: dict[str, Any]) -> None:
    scores = ["accuracy", "nll", "ece", "brier"]
    members = [[*_member_cells(member), *(f"{member[score]:.4f}" for score in scores)] for member in result["members"]]
    _print_table(["member", "name", "parameters", "MFLOPs", "accuracy", "NLL", "ECE", "Brier"], members)
    committees = [
        [
            str(each["size"]),
            str(each["accuracy"]["subsets"]),
            f"{each['mflops']:.2f}",
            f"{each['accuracy']['min']:.4f} .. {each['accuracy']['max']:.4f}",
            *(_spread(each[score]) for score in scores),
        ]
        for each in result["committees"]
    ]
    _print_table(
        ["size", "subsets", "MFLOPs", "accuracy of each", "accuracy", "NLL", "ECE", "Brier"],
        committees,
        "Mean ± standard deviation over the subsets. ",
    )


def _member_cells(member: dict[str, Any]) -> list[str]:
    return [str(member["index"]), member["name"], f"{member['parameters']:,}", f"{member['mflops']:.2f}"]


def _skipping_cells(member: dict[str, Any]) -> list[str]:
    if member["expected_depth"] is None:
        return ["-", "-"]
    return [f"{member['expected_depth']:.2f} blocks", f"{member['expected_saving']:.1%} in training"]


def _spread(score: dict[str, float]) -> str:
    return f"{score['mean']:.4f} ± {score['std']:.4f}"


def _print_table(columns: list[str], rows: list[list[str]], note: str = "") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    click.echo(f"{note}{_MFLOPS}\n")


def _command(*words: str) -> str:
    return shlex.join(["keras-committee", *words])


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return error.format_message() + (f"\n  see: {context.command_path} --help" if context else "")


def _report(error: BaseException, message: str, exit_code: int, settings: dict[str, Any]) -> int:
    if settings["debug"]:
        traceback.print_exception(error)
    click.echo(f"error: {message}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
