"""How is a recipe read from its file, with its knobs?

A recipe file is first only parsed: its knobs are known, and a typing mistake is reported, before anything of it runs.
"""

import ast
import dataclasses
import difflib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import CommitteeError, RecipeError
from keras_committee.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A recipe file, read but not run.

    `source` is the text of the file, `docstring` its docstring, `defaults` its knobs with their default values.
    """

    path: Path
    name: str
    source: str
    docstring: str
    defaults: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path, name: str | None = None) -> Self:
        """Reads the file at `path` without executing it; `name` is the stem of the file where None.

        Raises:
            RecipeError: If the file is missing, is not Python, or has no function `recipe` with literal defaults.
        """
        if "://" in str(path):
            raise RecipeError(
                f"{path} is an address. A recipe runs as code, so it is never fetched: download it, read it, and name "
                "the file."
            )
        path = Path(path)
        source = _read_text(path)
        try:
            tree = ast.parse(source.encode(), str(path))
        except SyntaxError as error:
            raise RecipeError(f"{path}:{error.lineno or 1}: syntax error: {error.msg}{_source_line(error)}") from error
        except ValueError as error:  # null bytes
            raise RecipeError(f"{path}: not a Python file: {error}") from error
        defaults = _literal_defaults(path, _find_recipe_function(path, tree))
        return cls(path, name or path.stem, source, ast.get_docstring(tree) or "", defaults)

    def resolve(self, overrides: list[str]) -> dict[str, Any]:
        """All knobs, the defaults changed by `overrides`, each `"knob=value"`. Of two for one knob the last counts.

        Raises:
            RecipeError: If a knob is unknown or a value does not have the type of the default.
        """
        parameters = dict(self.defaults)
        for override in overrides:
            name, separator, text = override.partition("=")
            if not separator:
                raise RecipeError(f"--set expects knob=value. Received: {override!r}\n{self._parameters_line()}")
            if name not in parameters:
                suggestion = did_you_mean(name, parameters)
                raise RecipeError(f"{self.path} has no knob {name!r}.{suggestion}\n{self._parameters_line()}")
            parameters[name] = self._convert(name, text)
        return parameters

    def same_program_as(self, other: Self) -> bool:
        """Whether this file and `other` are the same program: they differ in docstrings, comments and layout only."""
        return _ast_without_docstrings(self.source) == _ast_without_docstrings(other.source)

    def build(self, parameters: dict[str, Any], *, smoke: bool = False) -> Recipe:
        """Executes the file and calls its `recipe(**knobs)`; with `smoke` the recipe is cut down to a trial.

        Raises:
            RecipeError: If the recipe raises, now or later in its `member` or `optimizer`, or returns anything else
                than a `Recipe`. A `CommitteeError` of another kind passes through.
        """
        namespace: dict[str, Any] = {"__name__": self.name, "__file__": str(self.path)}
        self._wrap_errors(exec)(compile(self.source.encode(), str(self.path), "exec", dont_inherit=True), namespace)
        recipe = self._wrap_errors(namespace["recipe"])(**parameters)
        if not isinstance(recipe, Recipe):
            raise RecipeError(
                f"{self.path}: recipe() must return a keras_committee.Recipe. Received: {type(recipe).__name__}"
            )
        wrapped = dataclasses.replace(
            recipe,
            member=self._wrap_errors(recipe.member),
            optimizer=self._wrap_errors(recipe.optimizer),
            initial_weights=self._wrap_errors(recipe.initial_weights)
            if callable(recipe.initial_weights)
            else recipe.initial_weights,
            trainable_layers=self._wrap_errors(recipe.trainable_layers) if recipe.trainable_layers else None,
        )
        return wrapped.for_smoke_run() if smoke else wrapped

    def _wrap_errors(self, function: Callable) -> Callable:
        """`function`, whose exceptions are told as mistakes of the recipe: file, line and text."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except CommitteeError:
                raise
            except (Exception, SystemExit) as error:
                location = _recipe_location(error, str(self.path))
                raise RecipeError(f"{location}: {type(error).__name__}: {error}") from error

        return wrapper

    def _convert(self, name: str, text: str) -> Any:
        default = self.defaults[name]
        try:
            return _parse_value(text, default)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            expected = f"{_TYPE_NAMES[type(default)]}, like its default {default!r}"
            raise RecipeError(f"{self.path}: knob {name!r} expects {expected}. Received: {text!r}") from error

    def _parameters_line(self) -> str:
        listing = ", ".join(f"{name}={default!r}" for name, default in self.defaults.items())
        return f"  knobs: {listing or 'none'}"


def did_you_mean(word: str, known) -> str:
    """`" Did you mean 'members'?"` for the nearest of `known`, or the empty string where none is near."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


_TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    str: "a string",
    tuple: "a tuple",
    list: "a list",
    type(None): "any literal",
}


def _ast_without_docstrings(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        recipes = sorted(file.name for file in path.parent.glob("*.py"))
        suggestion = did_you_mean(path.name, recipes) or did_you_mean(path.name + ".py", recipes)
        listing = f"\n  recipes in {path.parent}: {', '.join(recipes)}" if recipes else ""
        raise RecipeError(f"no such recipe: {path}.{suggestion}{listing}") from error
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not a Python file: {error}") from error


def _source_line(error: SyntaxError) -> str:
    return f"\n  {error.text.strip()}" if error.text else ""


def _find_recipe_function(path: Path, tree: ast.Module) -> ast.FunctionDef:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "recipe"]
    if not functions:
        raise RecipeError(f"{path} has no function `recipe`. Its arguments are the knobs; it returns a Recipe.")
    return functions[-1]


def _literal_defaults(path: Path, function: ast.FunctionDef) -> dict[str, Any]:
    """The knobs in the order they are written, with the values of their defaults."""
    arguments = function.args
    if arguments.posonlyargs or arguments.vararg or arguments.kwarg:
        raise RecipeError(
            f"{path}:{function.lineno}: recipe() takes named knobs only: no `/`, no `*args`, no `**kwargs`."
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
            f"{path}:{argument.lineno}: knob {argument.arg!r} has no default; it gives the knob its type."
        )
    try:
        value = ast.literal_eval(default)
    except ValueError:
        value = ...
    if not _is_json_value(value):
        raise RecipeError(
            f"{path}:{default.lineno}: the default of knob {argument.arg!r} must be a literal None, bool, int, float, "
            f"str, tuple or list. Received: {ast.unparse(default)}"
        )
    return value


def _is_json_value(value: Any) -> bool:
    """Whether JSON keeps `value`: knobs are stored as JSON."""
    if isinstance(value, tuple | list):
        return all(_is_json_value(item) for item in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _parse_value(text: str, default: Any) -> Any:
    """`text` as a value of the type of `default`; raises ValueError, SyntaxError or TypeError where it is none."""
    if default is None:
        return _parse_literal_or_text(text)
    if isinstance(default, bool):
        return (
            {"true": True, "false": False}[text.lower()]
            if text.lower() in ("true", "false")
            else _raise_value_error(text)
        )
    if isinstance(default, tuple | list):
        value = ast.literal_eval(text)
        return (
            type(default)(value)
            if isinstance(value, tuple | list) and _is_json_value(value)
            else _raise_value_error(text)
        )
    value = type(default)(text)
    return value if _is_json_value(value) else _raise_value_error(text)


def _parse_literal_or_text(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    return value if _is_json_value(value) else text


def _raise_value_error(text: str):
    raise ValueError(text)


def _recipe_location(error: BaseException, path: str) -> str:
    """`path:line` of the innermost frame of `error` that lies in the recipe, or the path alone."""
    location, frame = path, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == path:
            location = f"{path}:{frame.tb_lineno}"
        frame = frame.tb_next
    return location
