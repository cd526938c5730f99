"""A recipe that is given as a function is recorded as a file that defines the same."""

import ast
import linecache
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile

DEFINITIONS = '''
import os.path
import collections.abc, os.path
import numpy as np
from dataclasses import dataclass as make_dataclass
from keras_committee import Recipe

RATE = 0.25
SIDES = (3, 5)


def halved(value):
    return np.float64(value / SIDES[0])


@make_dataclass(frozen=True)
class Numbers:
    batch_size: int = 32
    limit: int | None = None

    def load(self):
        return os.path.join("a", "b")


def three(members=3, width=2.5):
    """Three of them."""

    def member(index):
        return halved(RATE), collections.abc.Mapping

    return Recipe(data=Numbers(), member=member, members=members, optimizer=lambda steps: steps, epochs=5, loss=max)
'''


@pytest.fixture
def module(tmp_path):
    """Function of source that returns the module of a file with it."""

    def module(source, name="sources_of_a_test"):
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        made = sys.modules[name] = types.ModuleType(name)
        made.__file__ = str(path)
        exec(compile(path.read_text(), str(path), "exec"), vars(made))
        names.append(name)
        return made

    names = []
    yield module
    for name in names:
        del sys.modules[name]


def cell(source, index, namespace):
    """Execute a cell of a notebook as IPython does."""
    name = f"<ipython-input-{index}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace["In"].append(source)
    exec(compile(source, name, "exec"), namespace)


def content(function):
    return RecipeFile.from_function(function).content.decode()


def test_the_file_of_a_function_builds_the_same_recipe_without_its_module(module):
    made = module(DEFINITIONS)
    file = RecipeFile.from_function(made.three)
    del sys.modules["sources_of_a_test"]
    sys.modules["sources_of_a_test"] = made
    recipe = file.build(file.resolve({"members": 4}))
    assert (file.name, file.defaults) == ("three", {"members": 3, "width": 2.5})
    assert (recipe.members, recipe.data.load()) == (4, "a/b")
    assert recipe.member(0) == made.three().member(0)
    assert type(recipe.data) is not made.Numbers


def test_the_file_has_what_the_function_uses_and_nothing_else(module):
    made = module(f"import json\nUNUSED = json.dumps(1)\n{DEFINITIONS}")
    tree = ast.parse(content(made.three))
    assert [ast.unparse(node).splitlines()[0] for node in tree.body] == [
        "from dataclasses import dataclass as make_dataclass",
        "from keras_committee import Recipe",
        "import collections.abc",
        "import numpy as np",
        "import os.path",
        "RATE = 0.25",
        "SIDES = (3, 5)",
        "@make_dataclass(frozen=True)",
        "def halved(value):",
        "def recipe(members=3, width=2.5):",
    ]


def test_the_functions_and_classes_of_a_notebook_are_found_in_its_cells(monkeypatch):
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    vars(notebook)["In"] = [""]
    cell("%matplotlib inline".replace("%", "pass  # %"), 1, vars(notebook))
    vars(notebook)["In"].append("%timeit 1")  # is not Python
    cell(DEFINITIONS.partition("def three")[0], 2, vars(notebook))
    cell("def three" + DEFINITIONS.partition("def three")[2], 3, vars(notebook))
    file = RecipeFile.from_function(notebook.three)
    monkeypatch.undo()
    assert file.build(file.resolve({})).data.load() == "a/b"
    assert str(file.path) == "<function three>"


def test_a_function_named_recipe_has_the_name_of_its_file(module):
    made = module(DEFINITIONS.replace("def three", "def recipe"), "trees")
    assert RecipeFile.from_function(made.recipe).name == "trees"


def test_the_modules_beside_the_file_of_the_function_are_recorded(module, tmp_path):
    (tmp_path / "beside_it.py").write_text("LIMIT = 7\n")
    sys.path.insert(0, str(tmp_path))
    try:
        made = module(
            "import beside_it\nfrom keras_committee import Recipe\n\ndef r(a=1):\n    return beside_it.LIMIT\n"
        )
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("beside_it", None)
    assert sorted(RecipeFile.from_function(made.r).files()) == ["recipe.py", "recipe_modules/beside_it.py"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("f = lambda members=2: None", "a lambda cannot be recorded"),
        ("def f():\n    return images", r"recipe function 'f' uses 'images', a value of type ndarray.*inside the fun"),
        ("def g():\n    x = 1\n    def f():\n        return x\n    return f\nf = g()", "around it.*cannot be rec.*: x"),
        ("f = 7", "a function that returns a Recipe. Received: int"),
        ("def f(members=len('ab')):\n    pass", r"<function f>:1: the default of parameter 'members' must be a lite"),
    ],
)
def test_what_cannot_be_recorded_is_an_error(module, source, message):
    made = module(f"import numpy\n{source}")
    made.images = np.zeros(2)
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        RecipeFile.from_function(made.f)


def test_a_function_without_source_is_an_error():
    namespace = {"__name__": "nowhere"}
    exec("def f(members=2): pass", namespace)
    with pytest.raises(RecipeError, match="source of 'f', which the run folder would record, is not available"):
        RecipeFile.from_function(namespace["f"])


def test_values_of_parameters_are_checked_against_their_defaults(tmp_path):
    path = tmp_path / "r.py"
    path.write_text("def recipe(epochs=3, rate=0.1, folder=None, name='a', sides=(1, 2), flip=False): pass")
    file = RecipeFile.read(path)
    given = {"epochs": np.int64(4), "rate": 2, "folder": Path("x"), "name": Path("y"), "sides": [3]}
    resolved = file.resolve(given)
    assert resolved == {"epochs": 4, "rate": 2.0, "folder": "x", "name": "y", "sides": (3,), "flip": False}
    assert [type(resolved[name]) for name in given] == [int, float, str, str, tuple]
    for name, value in {"epochs": "4", "rate": "0.1", "folder": object(), "flip": 1, "sides": 3}.items():
        with pytest.raises(RecipeError, match=rf"parameter '{name}' must be .*, like its default .* Received: "):
            file.resolve({name: value})
