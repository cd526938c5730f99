"""Python source of a recipe: its file and the modules beside it, parsed, recorded and imported.

A recipe may import modules of its own folder, as a Python script may. They are found without executing anything, and
executed from the bytes that were found, so that the program that runs is the program that a run records.
"""

import ast
import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Self

from keras_committee.errors import RecipeError

MODULES_FOLDER = "recipe_modules"  # beside a recorded recipe, in place of the modules in its original folder


def decode(path: Path, content: bytes) -> str:
    """Return the text of a Python file: UTF-8, or the encoding that it declares (PEP 263), with `\\n` line ends.

    Args:
        path: The file, for the message.
        content: Its bytes. A byte order mark is dropped.

    Raises:
        RecipeError: If the bytes are not text in that encoding.
    """
    try:
        return importlib.util.decode_source(content)
    except (SyntaxError, UnicodeError) as error:  # SyntaxError: an unknown encoding is declared
        raise RecipeError(f"{path}: not a Python file: {error}. Save it as UTF-8.") from error


def parse(path: Path, content: bytes) -> ast.Module:
    """Return the syntax tree of a Python file.

    Raises:
        RecipeError: If the bytes are not Python source.
    """
    decode(path, content)
    try:
        return ast.parse(content, str(path))
    except SyntaxError as error:
        line = f"\n  {error.text.strip()}" if error.text else ""
        raise RecipeError(f"{path}:{error.lineno or 1}: syntax error: {error.msg}{line}") from error
    except ValueError as error:  # null bytes
        raise RecipeError(f"{path}: not a Python file: {error}") from error


@dataclasses.dataclass(frozen=True)
class RecipeModules:
    """The modules beside a recipe that it imports, directly or through each other.

    Attributes:
        folder: The folder that they are imported from.
        contents: Bytes by path relative to `folder`, such as `"augment.py"` or `"blocks/__init__.py"`.
    """

    folder: Path
    contents: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

    @classmethod
    def find(cls, recipe: Path, tree: ast.Module) -> Self:
        """Find the modules that the `import` statements of a recipe name, wherever these stand, without executing any.

        Of a package all Python files are taken. The modules are looked up in `recipe_modules/` beside the recipe, where
        a run records them, if there is such a folder, else in the folder of the recipe.

        Args:
            recipe: The recipe file.
            tree: Its syntax tree.

        Raises:
            RecipeError: If a module cannot be read, is not Python source, or has the name of an installed one.
        """
        parent = recipe.resolve().parent
        recorded = (parent / MODULES_FOLDER).is_dir()
        folder = parent / MODULES_FOLDER if recorded else parent
        contents: dict[str, bytes] = {}
        seen = {"keras_committee", recipe.resolve().stem}  # a recipe `keras.py` imports the package, not itself
        pending = set(_imported_names(tree))
        while names := pending - seen:
            seen |= names
            for file in [file for name in sorted(names) for file in _module_files(folder, name, recorded)]:
                content = contents[file.relative_to(folder).as_posix()] = _read_module(file)
                pending.update(_imported_names(parse(file, content)))
        return cls(folder, dict(sorted(contents.items())))


class RecipeImporter(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports a recipe and the modules beside it from their contents.

    Two recipes of one process may import different modules of one name: only those of the recipe that was activated
    last are in `sys.modules`. Bytecode is neither read nor written.

    Args:
        name: Name of the recipe.
        path: The recipe file.
        content: Its bytes.
        modules: The modules beside it.
    """

    def __init__(self, name: str, path: Path, content: bytes, modules: RecipeModules):
        # No import statement can name it. `dataclasses` looks for the module of a class in `sys.modules`.
        self._recipe_name = f"recipe:{name}"
        self._paths = {_module_name(file): str(modules.folder / file) for file in modules.contents}
        self._paths[self._recipe_name] = str(path)
        self._contents = {str(modules.folder / file): source for file, source in modules.contents.items()}
        self._contents[str(path)] = content
        self._inactive_modules: dict[str, ModuleType] = {}

    @property
    def paths(self) -> Collection[str]:
        """Paths of the recipe and of its modules, as in tracebacks."""
        return self._contents.keys()

    def load_recipe(self) -> ModuleType:
        """Execute the recipe file and return its module."""
        self.activate()
        spec = self.find_spec(self._recipe_name)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[self._recipe_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def activate(self) -> None:
        """Make the modules importable, in place of those of another recipe."""
        if self in sys.meta_path:
            return
        for importer in [finder for finder in sys.meta_path if isinstance(finder, RecipeImporter)]:
            sys.meta_path.remove(importer)
            importer._inactive_modules = importer._remove_modules()
        self._remove_modules()  # imported earlier by another program, perhaps from other content
        sys.modules.update(self._inactive_modules)
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname, path=None, target=None):
        if fullname in self._paths:
            return importlib.util.spec_from_file_location(fullname, self._paths[fullname], loader=self)
        if any(name.startswith(f"{fullname}.") for name in self._paths):  # a folder without __init__.py
            return importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        return None

    def get_filename(self, fullname):
        return self._paths[fullname]

    def get_data(self, path):
        return self._contents[path]

    def _remove_modules(self) -> dict[str, ModuleType]:
        """Remove the modules with the names of this recipe's from `sys.modules`, and return them."""
        names = {name.partition(".")[0] for name in self._paths} | {self._recipe_name}
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}


def _imported_names(tree: ast.Module) -> Iterator[str]:
    """Yield the top-level names that the absolute imports of a file import from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _module_files(folder: Path, name: str, recorded: bool) -> list[Path]:
    """Return the files of the module or package `name` in `folder`; none if Python imports it from elsewhere.

    Raises:
        RecipeError: If it is not certain which module is meant: one in `folder`, or an installed one.
    """
    package, module = folder / name, folder / f"{name}.py"
    installed = None if recorded else _installed_location(name, folder)
    regular = next((file for file in (package / "__init__.py", module) if file.is_file()), None)
    if regular and installed:
        raise RecipeError(f"{regular} has the name of an installed module, {name!r} ({installed}). Rename it.")
    if regular == module:
        return [module]
    return [] if installed else sorted(file for file in package.rglob("*.py") if file.is_file())


def _installed_location(name: str, folder: Path) -> str | None:
    """Return where Python imports the module `name` from, if not from `folder`; None if it does not find it."""
    if name in sys.stdlib_module_names:
        return "Python's standard library"
    search_path = [entry for entry in sys.path if Path(entry).resolve() != folder]
    spec = importlib.machinery.PathFinder.find_spec(name, search_path)
    return spec.origin if spec is not None and spec.loader is not None else None  # no loader: a plain folder


def _read_module(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read {file}, which the recipe imports: {error.strerror}") from error


def _module_name(file: str) -> str:
    """Return `"package.module"` for `package/module.py`, and `"package"` for `package/__init__.py`."""
    return file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
