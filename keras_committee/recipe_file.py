"""Recipe files: parsing, parameter overrides, and building the recipe.

A recipe file is parsed before it is executed: its parameters are known, and a mistyped override fails, before any of
its code runs.
"""

import ast
import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import CommitteeError, RecipeError, did_you_mean
from keras_committee.files import expand_home
from keras_committee.folder_kinds import explain_wrong_folder
from keras_committee.keras_config import use_standard_config
from keras_committee.recipe import Recipe
from keras_committee.recipe_source import MODULES_FOLDER, RecipeImporter, RecipeModules, decode, parse

_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a string",
    tuple: "a tuple",
    list: "a list",
}
# Fields of a Recipe.
_USER_FUNCTIONS = ("member", "optimizer", "initial_weights", "trainable_layers", "survival", "learning_rate_scale")
_PARSE_ERRORS = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)  # of `ast.literal_eval`


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A recipe file that was parsed, but not executed.

    Attributes:
        path: The file.
        name: Name of the recipe, by default the stem of the file.
        content: Bytes of the file.
        docstring: Docstring of the file, or the empty string.
        defaults: The recipe parameters, in the order of the function's arguments, with their default values.
        modules: The modules beside the file that it imports.
    """

    path: Path
    name: str
    content: bytes
    docstring: str
    defaults: dict[str, Any]
    modules: RecipeModules

    @classmethod
    def read(cls, path: str | Path, name: str | None = None) -> Self:
        """Parse the file at `path` without executing it.

        Args:
            path: The recipe file.
            name: Name of the recipe; None is the stem of the file.

        Raises:
            RecipeError: If the file is missing, is not Python, or has no function `recipe` with literal defaults.
        """
        if "://" in str(path):
            raise RecipeError(
                f"{path} is a URL. Recipes are executed as code and never fetched: download the file, read it, and "
                "pass its path."
            )
        path = expand_home(path)
        content = _read_bytes(path)
        tree = parse(path, content)
        defaults = _literal_defaults(path, _find_recipe_function(path, tree))
        modules = RecipeModules.find(path, tree)
        return cls(path, name or path.stem, content, ast.get_docstring(tree) or "", defaults, modules)

    def files(self) -> dict[str, bytes]:
        """Return the files to record, by path relative to the run folder: the recipe and the modules beside it."""
        modules = {f"{MODULES_FOLDER}/{name}": content for name, content in self.modules.contents.items()}
        return {"recipe.py": self.content, **modules}

    def sources(self) -> dict[str, str]:
        """Return the text of each of the `files`."""
        return {name: decode(Path(name), content) for name, content in self.files().items()}

    def resolve(self, overrides: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters: the defaults, updated by `overrides`.

        Args:
            overrides: Strings `"name=value"`, converted to the type of the default, of which the last one for a name
                wins; or a mapping of names to values of the right type.

        Raises:
            RecipeError: If a parameter is unknown, or a value does not have the type of the default.
        """
        parameters = dict(self.defaults)
        if isinstance(overrides, Mapping):
            for name in overrides:
                self._require_parameter(name)
            return parameters | dict(overrides)
        for override in overrides:
            name, separator, text = override.partition("=")
            if not separator:
                raise RecipeError(f"--set must be NAME=VALUE. Received: {override!r}\n{self._parameters_line()}")
            self._require_parameter(name)
            parameters[name] = self._convert(name, text)
        return parameters

    def same_program_as(self, other: Self) -> bool:
        """Return whether both are the same program: the files differ only in docstrings, comments and layout."""
        programs = [
            {name: _ast_without_docstrings(content) for name, content in file.files().items()} for file in (self, other)
        ]
        return programs[0] == programs[1]

    def build(self, parameters: dict[str, Any], *, smoke: bool = False) -> Recipe:
        """Execute the file and call its `recipe(**parameters)`.

        Args:
            parameters: The recipe parameters, as returned by `resolve`.
            smoke: Whether to return the reduced recipe of `Recipe.for_smoke_run`.

        Raises:
            RecipeError: If the recipe raises, now or in one of its functions later, or does not return a `Recipe`.
            CommitteeError: Any other subclass that the recipe raises, unchanged.
        """
        importer = RecipeImporter(self.name, self.path, self.content, self.modules)
        use_standard_config()
        module = self._locate_errors(importer.load_recipe, importer)()
        use_standard_config()  # the file may have been the first to import Keras
        recipe = self._locate_errors(module.recipe, importer)(**parameters)
        if not isinstance(recipe, Recipe):
            raise RecipeError(
                f"{self.path}: recipe() must return a keras_committee.Recipe. Received: {type(recipe).__name__}"
            )
        fields = {name: getattr(recipe, name) for name in _USER_FUNCTIONS}
        functions = {name: self._locate_errors(value, importer) for name, value in fields.items() if callable(value)}
        located = dataclasses.replace(recipe, **functions)
        return located.for_smoke_run() if smoke else located

    def _locate_errors(self, function: Callable, importer: RecipeImporter) -> Callable:
        """Wrap `function` so that its exceptions become a `RecipeError` with the file and line in the recipe.

        While it runs, the modules of the recipe can be imported.
        """

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            importer.activate()
            try:
                return function(*args, **kwargs)
            except CommitteeError:
                raise
            except (Exception, SystemExit) as error:
                location = _innermost_location(error, importer.paths) or str(self.path)
                raise RecipeError(f"{location}: {type(error).__name__}: {error}") from error

        return wrapper

    def _require_parameter(self, name: str) -> None:
        if name not in self.defaults:
            suggestion = did_you_mean(name, self.defaults)
            raise RecipeError(f"{self.path} has no parameter {name!r}.{suggestion}\n{self._parameters_line()}")

    def _convert(self, name: str, text: str) -> Any:
        default = self.defaults[name]
        try:
            return _parse_value(text, default)
        except _PARSE_ERRORS as error:
            expected = f"{_TYPE_NAMES[type(default)]}, like its default {default!r}"
            raise RecipeError(f"{self.path}: parameter {name!r} must be {expected}. Received: {text!r}") from error

    def _parameters_line(self) -> str:
        listing = ", ".join(f"{name}={default!r}" for name, default in self.defaults.items())
        return f"  parameters: {listing or 'none'}"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        recipes = sorted(file.name for file in path.parent.glob("*.py"))
        suggestion = did_you_mean(path.name, recipes) or did_you_mean(path.name + ".py", recipes)
        listing = f"\n  recipes in {path.parent}: {', '.join(recipes)}" if recipes else ""
        raise RecipeError(f"no such recipe: {path}.{suggestion}{listing}") from error
    except OSError as error:
        if path.is_dir():
            raise RecipeError(f"{path} is not a recipe, which is a Python file: {_explain_folder(path)}") from error
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error


def _explain_folder(path: Path) -> str:
    if explanation := explain_wrong_folder(path):
        return explanation
    recipes = [repr(str(file)) for file in sorted(path.glob("*.py"))]
    next_step = f"Did you mean {' or '.join(recipes)}?" if recipes else "To write a recipe, use `keras-committee init`."
    return f"it is a folder. {next_step}"


def _find_recipe_function(path: Path, tree: ast.Module) -> ast.FunctionDef:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "recipe"]
    if not functions:
        raise RecipeError(
            f"{path} has no function `recipe`. Define `recipe(...)`: its arguments are the recipe parameters, and it "
            "returns a Recipe."
        )
    return functions[-1]


def _literal_defaults(path: Path, function: ast.FunctionDef) -> dict[str, Any]:
    """Return the arguments of `function`, in order, with the values of their defaults."""
    arguments = function.args
    if arguments.posonlyargs or arguments.vararg or arguments.kwarg:
        raise RecipeError(
            f"{path}:{function.lineno}: recipe() must have named arguments only, without `/`, `*args` and `**kwargs`."
        )
    without_default = [None] * (len(arguments.args) - len(arguments.defaults))
    pairs = zip(
        [*arguments.args, *arguments.kwonlyargs],
        [*without_default, *arguments.defaults, *arguments.kw_defaults],
        strict=True,
    )
    return {argument.arg: _literal_default(path, argument, default) for argument, default in pairs}


def _literal_default(path: Path, argument: ast.arg, default: ast.expr | None) -> Any:
    if default is None:
        raise RecipeError(
            f"{path}:{argument.lineno}: parameter {argument.arg!r} must have a default, which defines its type."
        )
    try:
        value = ast.literal_eval(default)
    except ValueError:
        value = ...
    if not _is_json_value(value):
        raise RecipeError(
            f"{path}:{default.lineno}: the default of parameter {argument.arg!r} must be a literal None, bool, int, "
            f"float, str, tuple or list. Received: {ast.unparse(default)}"
        )
    return value


def _is_json_value(value: Any) -> bool:
    """Return whether `value` can be stored in `parameters.json`."""
    if isinstance(value, tuple | list):
        return all(_is_json_value(item) for item in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _parse_value(text: str, default: Any) -> Any:
    """Convert `text` to the type of `default`. Raises one of `_PARSE_ERRORS`."""
    if default is None:
        return _parse_literal_or_text(text)
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if isinstance(default, tuple | list):
        sequence = ast.literal_eval(text)
        value = type(default)(sequence) if isinstance(sequence, tuple | list) else ...
    else:
        value = type(default)(text)
    if not _is_json_value(value):
        raise ValueError(text)
    return value


def _parse_literal_or_text(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except _PARSE_ERRORS:
        return text
    return value if _is_json_value(value) else text


def _ast_without_docstrings(content: bytes) -> str:
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _innermost_location(error: BaseException, paths: Collection[str]) -> str:
    """Return `path:line` of the innermost frame of `error` in one of the files, or the empty string."""
    location, frame = "", error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename in paths:
            location = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        frame = frame.tb_next
    return location
