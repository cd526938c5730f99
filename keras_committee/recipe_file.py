"""Recipe files: parsing, parameter overrides, and building the recipe.

A recipe file is parsed before it is executed: its parameters are known, and a mistyped override fails, before any of
its code runs.
"""

import ast
import dataclasses
import functools
import math
import numbers
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from keras_committee.class_folders import list_images
from keras_committee.errors import CommitteeError, DataError, RecipeError, did_you_mean
from keras_committee.files import expand_home
from keras_committee.folder_kinds import FolderKind, explain_wrong_folder, folder_kind
from keras_committee.keras_config import load_keras, use_standard_config
from keras_committee.recipe import Recipe, check_field
from keras_committee.recipe_function import function_source
from keras_committee.recipe_source import MODULES_FOLDER, RecipeImporter, RecipeModules, decode, parse
from keras_committee.shard_files import matching_shards, split_shards

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
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
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
        fields: The fields of the returned `Recipe` that are parameters as they are given, with the parameters' names.
        data_folders: The data functions that read a parameter as their path, with the parameters' names, such as
            `{"image_folder": "data_dir"}` for `data=data.image_folder(data_dir, ...)`.
    """

    path: Path
    name: str
    content: bytes
    docstring: str
    defaults: dict[str, Any]
    modules: RecipeModules
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    data_folders: dict[str, str] = dataclasses.field(default_factory=dict)

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
        return cls._parse(path, _read_bytes(path), name or path.stem)

    @classmethod
    def from_function(cls, function: Callable[..., Recipe]) -> Self:
        """Return the recipe file of a function, which may be defined in a module, a script or a notebook.

        The file is the source of the function, with the imports and definitions that it uses.

        Args:
            function: Returns the recipe; its arguments are the recipe parameters.

        Raises:
            RecipeError: If its source is not available, it uses a value that cannot be written to a file, or it is no
                valid recipe.
        """
        source = function_source(function)
        return cls._parse(source.path, source.content, source.name)

    @classmethod
    def _parse(cls, path: Path, content: bytes, name: str) -> Self:
        tree = parse(path, content)
        function = _find_recipe_function(path, tree)
        defaults = _literal_defaults(path, function)
        modules, values = RecipeModules.find(path, tree), _recipe_values(tree, function)
        docstring, unchanged = ast.get_docstring(tree) or "", set(defaults) - _assigned_names(function)
        fields = {field: value.id for field, value in values.items() if isinstance(value, ast.Name)}
        fields = {field: parameter for field, parameter in fields.items() if parameter in unchanged}
        folders = {reader: parameter for reader, parameter in _data_folder(values) if parameter in unchanged}
        return cls(path, name, content, docstring, defaults, modules, fields, folders)

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
                wins; or a mapping of names to values, whose type must be that of the default. An integer in place of
                a float, and a `Path` in place of a string, are converted.

        Raises:
            RecipeError: If a parameter is unknown, a value does not have the type of the default, or the `Recipe` will
                reject it, as far as that is known without executing the file.
        """
        if isinstance(overrides, Mapping):
            values = {name: self._checked(name, value) for name, value in overrides.items()}
        else:
            values = dict(map(self._parse_override, overrides))
        parameters = self.defaults | values
        for field, name in self.fields.items():
            check_field(field, parameters[name])
        return parameters

    def require_data_folders(self, parameters: Mapping[str, Any]) -> None:
        """Raise DataError if a folder of the data is none, as far as that is known without executing the file."""
        for reader, name in self.data_folders.items():
            if isinstance(value := parameters[name], str):
                _DATA_PATHS[reader].check(expand_home(value))

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
        self._locate_errors(load_keras, importer)()
        use_standard_config()
        module = self._locate_errors(importer.load_recipe, importer)()
        use_standard_config()  # the file may have changed it
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

    def _parse_override(self, override: str) -> tuple[str, Any]:
        name, separator, text = override.partition("=")
        if not separator:
            raise RecipeError(f"--set must be NAME=VALUE. Received: {override!r}\n{self._parameters_line()}")
        self._require_parameter(name)
        return name, self._convert(name, text)

    def _require_parameter(self, name: str) -> None:
        if name not in self.defaults:
            suggestion = did_you_mean(name, self.defaults)
            raise RecipeError(f"{self.path} has no parameter {name!r}.{suggestion}\n{self._parameters_line()}")

    def _convert(self, name: str, text: str) -> Any:
        try:
            return _parse_value(text, self.defaults[name])
        except _PARSE_ERRORS as error:
            raise self._invalid_value(name, text) from error

    def _checked(self, name: str, value: Any) -> Any:
        """Return a value of a parameter that was given in Python, of the type of its default."""
        self._require_parameter(name)
        default = self.defaults[name]
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(value, numbers.Number) and (item := getattr(value, "item", None)):  # of NumPy
            value = item()
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if isinstance(default, tuple | list) and isinstance(value, tuple | list):
            value = type(default)(value)
        if not _is_json_value(value) or (default is not None and type(value) is not type(default)):
            raise self._invalid_value(name, value)
        return value

    def _invalid_value(self, name: str, value: Any) -> RecipeError:
        default = self.defaults[name]
        types = "None, a bool, int, float, string, tuple or list" if default is None else _TYPE_NAMES[type(default)]
        expected = f"{types}, like its default {default!r}"
        return RecipeError(f"{self.path}: parameter {name!r} must be {expected}. Received: {value!r}")

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


def _recipe_values(tree: ast.Module, function: ast.FunctionDef) -> dict[str, ast.expr]:
    """Return the fields of `return Recipe(...)` and their expressions.

    None is returned where it is not certain: the function has another `return`, or something else is named `Recipe`.
    """
    *_, last = function.body
    call = last.value if isinstance(last, ast.Return) else None
    nodes = list(ast.walk(function))
    inner = {node for part in nodes if part is not function and isinstance(part, _FUNCTIONS) for node in ast.walk(part)}
    has_one_return = [node for node in nodes if isinstance(node, ast.Return) and node not in inner] == [last]
    if not (isinstance(call, ast.Call) and has_one_return and _is_recipe_class(tree, call.func)):
        return {}
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _assigned_names(function: ast.FunctionDef) -> set[str]:
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    return {node.id for node in names if not isinstance(node.ctx, ast.Load)}


def _data_folder(values: Mapping[str, ast.expr]) -> Iterator[tuple[str, str]]:
    """Yield `("image_folder", "data_dir")` for `data=data.image_folder(data_dir, ...)` without `split_folders`."""
    call = values.get("data")
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
        return
    reader, keywords = call.func.attr, {keyword.arg: keyword.value for keyword in call.keywords}
    if ast.unparse(call.func.value) != "data" or reader not in _DATA_PATHS or "split_folders" in keywords:
        return
    argument = _DATA_PATHS[reader]
    path = call.args[0] if argument.is_first and call.args else keywords.get(argument.name)
    if isinstance(path, ast.Name):
        yield reader, path.id


def _check_class_folders(folder: Path) -> None:
    """Raise DataError unless there are class folders. Of many images the listing takes long; it is left to the data."""
    if folder_kind(folder) is not FolderKind.IMAGES:
        list_images(folder)


def _check_exists(path: Path) -> None:
    """Raise DataError if there is no such file or folder."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder.")


def _check_shards(pattern: Path) -> None:
    """Raise DataError unless files match a pattern, or are in a folder."""
    if not matching_shards(pattern):
        raise DataError(f"{pattern}: no file matches.")


@dataclasses.dataclass(frozen=True)
class _PathArgument:
    """The argument of a data function that is a path.

    Attributes:
        name: Its name.
        is_first: Whether it may be the first positional argument.
        check: Function that raises DataError if there are no data at the path; it needs no TensorFlow.
    """

    name: str
    is_first: bool
    check: Callable[[Path], Any]


_DATA_PATHS = {
    "image_folder": _PathArgument("directory", True, _check_class_folders),
    "imagenet_records": _PathArgument("directory", True, split_shards),
    "tfrecords": _PathArgument("train", True, _check_shards),
    "tfds": _PathArgument("data_dir", False, _check_exists),
    "table": _PathArgument("path", True, _check_exists),
    "hf": _PathArgument("path", True, _check_exists),
    "npz": _PathArgument("path", True, _check_exists),
    "cifar10": _PathArgument("directory", False, _check_exists),
    "cifar100": _PathArgument("directory", False, _check_exists),
}


def _is_recipe_class(tree: ast.Module, expression: ast.expr) -> bool:
    """Return whether an expression is `Recipe`, imported from this package, or `keras_committee.Recipe`."""
    if isinstance(expression, ast.Attribute):
        return ast.unparse(expression) == "keras_committee.Recipe"
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "keras_committee"]
    names = {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
    defined = {getattr(node, "name", getattr(node, "id", None)) for node in ast.walk(tree) if _defines(node)}
    return isinstance(expression, ast.Name) and names.get(expression.id) == "Recipe" and expression.id not in defined


def _defines(node: ast.AST) -> bool:
    """Return whether a node gives a name to something else than an import does."""
    return isinstance(node, (*_FUNCTIONS, ast.ClassDef)) or (
        isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    )


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
