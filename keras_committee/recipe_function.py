"""Source of a recipe that is given as a function: its definition, with the imports and definitions that it uses.

A run records its recipe as a file, so that worker processes and later commands can build it again. The file of a
function is made of its source; what the function refers to in its module or notebook is imported, copied or, for plain
values, written out.
"""

import ast
import builtins
import contextlib
import dataclasses
import inspect
import linecache
import re
import symtable
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from keras_committee.errors import RecipeError

_REMEDY = "Or write the recipe to a Python file, and pass its path."


@dataclasses.dataclass(frozen=True)
class FunctionSource:
    """The recipe file of a function.

    Attributes:
        path: Name for messages, `<function NAME>`, in the folder of the modules that it may import.
        name: Name of the recipe: that of the function, or of its file for a function named `recipe`.
        content: The source, in which the function is named `recipe`.
    """

    path: Path
    name: str
    content: bytes


def function_source(function: Callable[..., Any]) -> FunctionSource:
    """Return the recipe file of a function.

    Args:
        function: A function that returns a `Recipe`, defined in a module, a script or a notebook.

    Raises:
        RecipeError: If its source is not available, or it uses a value that cannot be written to a file.
    """
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        raise RecipeError(
            "a recipe is the path of a Python file, or a function that returns a Recipe. Received: "
            f"{type(function).__name__}"
        )
    name = function.__name__
    if name == "<lambda>":
        raise RecipeError(
            "a lambda cannot be recorded in the run folder. Define the recipe with `def recipe(...)`. " + _REMEDY
        )
    if function.__closure__:
        variables = ", ".join(function.__code__.co_freevars)
        raise RecipeError(
            f"the recipe function {name!r} uses variables of the function around it, which cannot be recorded in the "
            f"run folder: {variables}. Make them parameters with literal defaults. {_REMEDY}"
        )
    collector = _Collector(function)
    source = collector.source_of(function)
    collector.add_names(source, name)
    definition = re.sub(rf"^def {re.escape(name)}\b", "def recipe", source, count=1, flags=re.MULTILINE)
    file = Path(function.__code__.co_filename)
    is_file = file.suffix == ".py" and file.is_file() and not _is_notebook_cell(function)
    is_elsewhere = is_file and file.resolve().parent != Path.cwd().resolve()
    path = Path(file.parent if is_elsewhere else "", f"<function {name}>")
    recipe_name = file.stem if is_file and name == "recipe" else name
    return FunctionSource(path, recipe_name, "\n".join([*collector.lines(), definition]).lstrip().encode())


def _is_notebook_cell(function: FunctionType) -> bool:
    """Return whether a function was defined in a cell, which IPython may keep in a temporary file."""
    return function.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")


class _Collector:
    """Collects what a function uses: imports, values and definitions, each after those that it uses itself."""

    def __init__(self, function: FunctionType):
        self._function, self._globals = function, function.__globals__
        self._modules = _module_trees(function)
        self._imports: dict[str, None] = {}
        self._values: dict[str, None] = {}
        self._definitions: dict[str, str] = {}
        self._seen = {function.__name__}

    def lines(self) -> list[str]:
        """Return the parts of the file before the recipe function."""
        values = [*self._values, ""] if self._values else []
        definitions = [part for definition in self._definitions.values() for part in ("", definition)]
        return [*sorted(self._imports), "", *values, *definitions, ""]

    def source_of(self, definition: Any) -> str:
        """Return the source of a function or class. Raises RecipeError if it is not available."""
        try:
            source = textwrap.dedent(inspect.getsource(definition))
        except (OSError, TypeError):
            source = _class_source(definition) if isinstance(definition, type) else None
        if not source:
            raise RecipeError(
                f"the source of {definition.__qualname__!r}, which the run folder would record, is not available. "
                "Define it in a module, a script or a notebook. " + _REMEDY
            )
        return source

    def add_names(self, source: str, owner: str) -> None:
        """Add the global names that the source refers to."""
        for name in sorted(_global_names(symtable.symtable(source, owner, "exec")) - self._seen):
            if name not in self._globals or (name.startswith("__") and name.endswith("__")):
                continue  # a builtin, or an error that executing the recipe will report
            self._seen.add(name)
            self._add(name, self._globals[name])

    def _add(self, name: str, value: Any) -> None:
        is_own = isinstance(value, FunctionType | type) and value.__module__ == self._function.__module__
        if not is_own and (statements := _written_imports(self._modules, name)):
            self._imports |= dict.fromkeys(statements)
        elif isinstance(value, ModuleType):
            self._imports[_import_module(name, value)] = None
        elif is_own:
            source = self.source_of(value)
            self.add_names(source, name)
            self._definitions[name] = source if value.__name__ == name else f"{source}\n{name} = {value.__name__}\n"
        elif statement := _import_object(name, value):
            self._imports[statement] = None
        elif _is_literal(value):
            self._values[f"{name} = {value!r}"] = None
        else:
            raise RecipeError(
                f"the recipe function {self._function.__name__!r} uses {name!r}, a value of type "
                f"{type(value).__name__}, which cannot be recorded in the run folder. Compute it inside the function, "
                f"or make its path a parameter. {_REMEDY}"
            )


def _global_names(table: symtable.SymbolTable) -> set[str]:
    """Return the names that a source reads and does not define."""
    is_top = table.get_type() == "module"
    names = {
        symbol.get_name()
        for symbol in table.get_symbols()
        if (symbol.is_referenced() and not symbol.is_assigned() and not symbol.is_imported() if is_top
            else symbol.is_global())
    }  # fmt: skip
    return names.union(*map(_global_names, table.get_children()))


def _module_trees(function: FunctionType) -> list[ast.Module]:
    """Return the syntax trees of the module of a function, or of the cells of its notebook."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None)
    cells = function.__globals__.get("In", [])  # of IPython
    trees = []
    for source in ["".join(linecache.getlines(file))] if file else map(str, cells):
        with contextlib.suppress(SyntaxError):  # a cell with a command of IPython
            trees.append(ast.parse(source))
    return trees


def _written_imports(trees: Sequence[ast.Module], name: str) -> list[str]:
    """Return the `import` statements that define a name: the last one, or all of `import a.b` and `import a.c`."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in [node for tree in trees for node in tree.body]:
        if isinstance(node, ast.Import):
            found += [ast.Import([alias]) for alias in node.names if _bound_name(alias) == name]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases = [alias for alias in node.names if _bound_name(alias) == name]
            found += [ast.ImportFrom(node.module, [alias], 0) for alias in aliases]
    is_dotted = [isinstance(node, ast.Import) and not node.names[0].asname for node in found]
    if not any(is_dotted[-1:]):
        return [ast.unparse(node) for node in found[-1:]]
    return [ast.unparse(node) for node, dotted in zip(found, is_dotted, strict=True) if dotted]


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def _import_module(name: str, module: ModuleType) -> str:
    parent, _, child = module.__name__.rpartition(".")
    if parent:
        return f"from {parent} import {child}" + ("" if child == name else f" as {name}")
    return f"import {module.__name__}" + ("" if module.__name__ == name else f" as {name}")


def _import_object(name: str, value: Any) -> str:
    """Return the statement that imports a function, a class or another object of a module; "" if there is none."""
    own = getattr(value, "__name__", name)
    for module_name in ("keras_committee", getattr(value, "__module__", None)):
        module = sys.modules.get(module_name or "")
        if module is None or module_name in ("__main__", "builtins"):
            continue
        for candidate in dict.fromkeys((own, name)):
            if isinstance(candidate, str) and candidate.isidentifier() and _attribute(module, candidate) is value:
                return f"from {module_name} import {candidate}" + ("" if candidate == name else f" as {name}")
    return f"{name} = {own}" if getattr(builtins, own, None) is value else ""


def _attribute(module: ModuleType, name: str) -> Any:
    # Only names that are public or loaded: the attributes of this package are imported on first use.
    return getattr(module, name, None) if name in vars(module) or name in getattr(module, "__all__", ()) else None


def _is_literal(value: Any) -> bool:
    try:
        return type(ast.literal_eval(repr(value))) is type(value) and ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False


def _class_source(definition: type) -> str | None:
    """Return the source of a class of a notebook, whose module has no file, from the cell of one of its methods."""
    for code in _method_codes(definition):
        source = "".join(linecache.getlines(code.co_filename))
        try:
            nodes = ast.parse(source).body
        except SyntaxError:  # a cell with a command of IPython
            continue
        for node in reversed(nodes):
            if isinstance(node, ast.ClassDef) and node.name == definition.__name__:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                return "\n".join(source.splitlines()[first - 1 : node.end_lineno]) + "\n"
    return None


def _method_codes(definition: type) -> Iterator[CodeType]:
    for value in vars(definition).values():
        function = getattr(value, "__func__", value)
        if isinstance(function, FunctionType) and function.__module__ == definition.__module__:
            yield function.__code__
