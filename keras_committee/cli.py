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
from keras_committee.tables import print_evaluation, print_members

_STRATEGIES = ["auto", "one", "mirrored", "multiworker"]
_MULTIWORKER = "multiworker: each member on all hosts of TF_CONFIG; the same command on each host."


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
    print_members(members)


@cli.command()
@click.argument("recipe", type=click.Path())
@click.option("--run", "folder", metavar="DIR", help="The run folder; runs/<name of the recipe> by default.")
@_set_option
@click.option("--members", "only", metavar="I,J,...", help="Train only these; other jobs may train others beside it.")
@click.option("--workers", default="auto", show_default=True, help="Members that train at once, a number or auto.")
@click.option("--strategy", default="auto", show_default=True, type=click.Choice(_STRATEGIES), help=_MULTIWORKER)
@click.option("--ray", "address", metavar="ADDRESS", help="Train on a Ray cluster: auto, HOST:PORT, local.")
@click.option("--per-member", metavar="cpus=N,gpus=N", help="What each member asks --ray for.")
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
    only: str | None,
    workers: str,
    strategy: str,
    address: str | None,
    per_member: str | None,
    deterministic: bool,
    save_every: float,
    allow_change: bool,
    from_scratch: bool,
    smoke: bool,
    as_json: bool,
) -> None:
    """Train every member of RECIPE. The same command again goes on where it was, to the very step."""
    many, members = _parse_workers(workers), _parse_members(only)
    recipe_file = RecipeFile.read(recipe)
    knobs = recipe_file.resolve(list(overrides))
    folder = folder or str(Path("runs", f"{recipe_file.name}-smoke" if smoke else recipe_file.name))
    if strategy == "multiworker":
        from keras_committee import training

        if training.take_part(folder, recipe_file, knobs, smoke, many, training.Settings(deterministic=deterministic)):
            return
    run = Run.create(
        folder,
        recipe_file,
        knobs,
        smoke=smoke,
        command=settings["command"],
        allow_change=allow_change,
        shared=only is not None,
    )
    _warn_of_versions(run)
    with run.lock(shared=members is not None), _only_json(as_json):
        built = _built(recipe_file, knobs, smoke)
        from keras_committee.training import Settings, joined, train_committee

        how = Settings(save_seconds=save_every, deterministic=deterministic)
        with joined(address, per_member) as ray:
            train_committee(
                run, built, strategy, workers=many, members=members, settings=how, from_scratch=from_scratch, ray=ray
            )
    if as_json:
        finished = run.finished_members()
        _print_json({"recipe": recipe_file.name, "run": folder, "knobs": knobs, "smoke": smoke, "finished": finished})
    else:
        _say(f"{len(run.finished_members())} members in {folder}. Next: {_command('evaluate', folder)}")


@cli.command()
@click.argument("run", type=click.Path())
@click.option("--split", type=click.Choice(["test", "validation", "train"]), default="test", show_default=True)
@click.option("--min-members", type=click.IntRange(1), help="Take the committee as it is with so many members.")
@click.option("--allow-twins", is_flag=True, help="Members may have identical weights.")
@_json_option
@_standard_options
def evaluate(run: str, split: str, min_members: int | None, allow_twins: bool, as_json: bool) -> None:
    """Measure the members of RUN, and its committees of every size."""
    opened = Run.open(run)
    with opened.lock(), _only_json(as_json):
        built = _built(opened.recipe_file(), opened.knobs(), opened.smoke)
        from keras_committee import evaluation

        result = evaluation.evaluate(opened, built, split=split, min_members=min_members, allow_twins=allow_twins)
    if as_json:
        _print_json(result)
        return
    print_evaluation(result)
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


def _parse_members(text: str | None) -> list[int] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"expected indices such as 0,3. Received: {text!r}", param_hint="--members")
    return [int(part) for part in parts]


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
    _say(json.dumps(document, ensure_ascii=False, allow_nan=False))


def _say(text: str) -> None:
    """A last word on stdout. The work is done: nobody need be there to read it, as after `| head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python fails to flush as it ends


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
