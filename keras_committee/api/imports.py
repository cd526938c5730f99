"""Import of models that were trained elsewhere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_committee.api.results import Result
from keras_committee.api.run import Run
from keras_committee.api.training import Parameters, RecipeSource, recipe_command, resolve_parameters
from keras_committee.errors import RecipeError, VerificationError, pluralize
from keras_committee.files import expand_home
from keras_committee.input_scaling import InputNormalization, InputScaling, parse_input_scaling
from keras_committee.keras_archive import other_format, read_architecture
from keras_committee.keras_config import loading_backend
from keras_committee.run import Run as RunFolder
from keras_committee.run import default_run_path, open_run
from keras_committee.step_display import displayed

ClassNames = Sequence[str] | str | Path


class Import(Result):
    """Imported members of a run: the document of `import --json`.

    Attributes:
        path: The run folder.
    """

    @property
    def run(self) -> Run:
        """The run, whose steps are those of a trained one."""
        return Run(self.path)

    def blocks(self) -> Iterable[str]:
        yield from map(_format_summary, self["imported"])
        yield f"{self['run']} has {pluralize(len(self.run.members), 'member')}."


@displayed
def import_models(
    recipe: RecipeSource,
    models: str | Path | Sequence[str | Path],
    /,
    *,
    run: str | Path | Run | None = None,
    input_scaling: InputScaling | Mapping[Any, InputScaling] = "0..255",
    class_names: ClassNames | Mapping[Any, ClassNames] | None = None,
    reorder_classes: bool = False,
    resize: bool = False,
    signature: str = "serving_default",
    output: str | None = None,
    allow_duplicate_weights: bool = False,
    skip_sanity_checks: bool = False,
    parameters: Parameters = (),
    command: str | None = None,
    **recipe_parameters: Any,
) -> Import:
    """Import trained models as members of a run. The other steps treat them as members that were trained here.

    All models are checked against the data and each other before the first one is saved.

    Args:
        recipe: As in `train`. It defines the data on which the members are evaluated.
        models: Paths of `.keras` files and of SavedModel folders, or one path.
        run: The run folder, new or with members; None is `runs/NAME` with the name of the recipe.
        input_scaling: Pixel scaling that the models expect: `"0..255"`, `"0..1"`, `"-1..1"`, `"torch"`, `"caffe"` or
            `"MEAN/STD"`; or a dict with that of each model.
        class_names: Class names in the order of the outputs, or a text file with one per line, or a dict with those of
            each model; None if they are in the order of the data.
        reorder_classes: Reorder outputs whose classes are in another order.
        resize: Resize images inside models of another image size.
        signature: Signature of the SavedModels.
        output: Output of the signature, if it has several.
        allow_duplicate_weights: Accept members with identical weights.
        skip_sanity_checks: Import even if the data contradict `input_scaling` or `class_names`.
        parameters: As in `train`. Unless `members` is given, it is raised to make room for the models.
        command: Command that the run records; None is that of recipe, models and parameters.
        **recipe_parameters: As in `train`.

    Raises:
        RecipeError: If a model is missing or does not fit the recipe.
        DataError: If the data cannot be read.
        RunError: If the folder belongs to another recipe or other parameters, or is in use.
        VerificationError: If a model cannot be a member, has the weights of another one, or the data contradict what is
            declared about it.

    Example:
        >>> imported = import_models("recipes/cifar_wrn.py", ["a.keras", "b.keras"], input_scaling="0..1")
        >>> imported.run.evaluate()
    """
    paths = [str(expand_home(model)) for model in ([models] if isinstance(models, str | Path) else models)]
    _check_models(paths)
    scalings = _by_model("input_scaling", input_scaling, paths, _parse_scaling)
    names = _by_model("class_names", class_names, paths, _read_names)
    recipe_file, values = resolve_parameters(recipe, parameters, recipe_parameters)
    folder = run.path if isinstance(run, Run) else expand_home(run or default_run_path(recipe_file))
    if "members" in values and not _gives_members(parameters, recipe_parameters):
        values["members"] = _count_members(folder, len(paths))
    _check_archives(paths)
    command = command or recipe_command("import", recipe_file, folder, [*paths, "--run", folder], values)
    with open_run(recipe_file, values, path=folder, command=command, record_last=True) as (opened, built):
        with loading_backend():
            from keras_committee.evaluation.import_models import ImportOptions, ModelSource
            from keras_committee.evaluation.import_models import import_models as import_as_members

        sources = [
            ModelSource(
                path=Path(model),
                input_scaling=scalings.get(model, "0..255"),
                classes=names.get(model),
                signature=signature,
                output=output,
            )
            for model in paths
        ]
        options = ImportOptions(
            reorder_classes=reorder_classes,
            resize=resize,
            allow_duplicate_weights=allow_duplicate_weights,
            skip_sanity_checks=skip_sanity_checks,
        )
        imported = import_as_members(opened, built, sources, options)
    document = {"recipe": recipe_file.name, "run": str(folder), "parameters": values, "imported": imported}
    return Import(document, folder)


def _check_models(models: Sequence[str]) -> None:
    """Raise RecipeError for missing and other files, before a run folder is created or its members are more."""
    if not models:
        raise RecipeError("no model was named. No run was started.")
    missing = [model for model in models if not Path(model).exists()]
    if missing:
        raise RecipeError(
            f"no such model: {', '.join(missing)}. No run was started.\n"
            "  Name .keras files or SavedModel folders: keras-committee import RECIPE MODEL..."
        )
    for model in map(Path, models):
        if model.is_file() and model.suffix != ".keras":
            raise RecipeError(
                f"{model} is not a .keras file. No run was changed.\n"
                "  Load it with the library that wrote it and save it again: with Keras 3, model.save('name.keras');\n"
                "  with Keras 2 (tf_keras), model.export('folder'), which writes a SavedModel that `import` reads."
            )


def _check_archives(models: Sequence[str]) -> None:
    """Raise VerificationError for a `.keras` file that cannot be read, before TensorFlow is imported."""
    for file in [Path(model) for model in models if Path(model).is_file()]:
        if other := other_format(file):
            raise VerificationError(f"{file} is {other}")
        try:
            _, problem = read_architecture(file)
        except ValueError as error:
            raise VerificationError(
                f"{file} cannot be loaded: {error}. No run was changed.\n  Copy or save the model again."
            ) from error
        if problem:
            raise VerificationError(f"{file} {problem}. No code in it was run, and no run was changed.")


def _by_model(name: str, values: Any, models: Sequence[str], parse: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the parsed value of each model that has one."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        return dict.fromkeys(models, parse(values))
    by_model = {str(expand_home(model)): parse(value) for model, value in values.items()}
    if unknown := [model for model in by_model if model not in models]:
        raise RecipeError(f"{name} has a value for {unknown[0]}, which is not one of the models. No run was changed.")
    return by_model


def _parse_scaling(scaling: InputScaling) -> InputScaling:
    try:
        return scaling if isinstance(scaling, InputNormalization) else parse_input_scaling(scaling)
    except ValueError as error:
        raise RecipeError(f"--input-scaling: {error}") from error


def _read_names(names: ClassNames) -> tuple[str, ...]:
    if not isinstance(names, str | Path):
        return tuple(names)
    try:
        text = expand_home(names).read_text(encoding="utf-8-sig")  # Windows writes a byte order mark
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--class-names-file: cannot read {names}: {error}") from error


def _gives_members(parameters: Parameters, recipe_parameters: Mapping[str, Any]) -> bool:
    names = parameters if isinstance(parameters, Mapping) else [text.partition("=")[0] for text in parameters]
    return "members" in names or "members" in recipe_parameters


def _count_members(folder: Path, count: int) -> int:
    """Return the number of members of a run with room for `count` more."""
    run = RunFolder(folder)
    planned = run.parameters().get("members", 0) if (run.path / "environment.json").is_file() else 0
    return max(planned, len(run.finished_members()) + count)


def _format_summary(record: dict[str, Any]) -> str:
    outputs = "" if record["outputs"] == "logits" else f"; {record['outputs']}"
    return (
        f"member {record['member']}: {record['path']}, accuracy {record['right']:.1%} on {record['examples']:,} images"
        f"; classes {record['order']}{outputs}"
    )
