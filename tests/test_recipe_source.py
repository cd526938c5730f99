"""Modules beside a recipe: found without execution, recorded with a run, and imported from what was recorded."""

import sys

import pytest

from keras_committee.checkpoints import Checkpoints
from keras_committee.errors import RecipeError, RunError
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run, open_run

RECIPE = """
import dataclasses

from keras_committee import Recipe
from rates import SCALE


@dataclasses.dataclass(frozen=True)
class Digits:
    batch_size: int = 32
    limit: int | None = None

    def load(self):
        import blocks.wide

        return blocks.wide.WIDTH


def recipe(members=3):
    def member(index):
        import blocks.wide

        return [SCALE * index, blocks.wide.WIDTH, blocks.wide.__file__]

    return Recipe(data=Digits(), member=member, members=members, optimizer=abs, epochs=5, loss=max)
"""
MODULES = {
    "rates.py": "from deeper import TWO\nSCALE = 5 * TWO\n",
    "deeper.py": "TWO = 2\n",
    "blocks/__init__.py": "",
    "blocks/wide.py": "from .sizes import WIDTH\n",
    "blocks/sizes.py": "WIDTH = 7\n",
    "unused.py": "raise SystemExit('it was executed')\n",
}
RECORDED = ["blocks/__init__.py", "blocks/sizes.py", "blocks/wide.py", "deeper.py", "rates.py"]


@pytest.fixture(autouse=True)
def fresh_imports(monkeypatch):
    """Restore the import system after each test."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def write(tmp_path):
    def write(files, folder="recipes"):
        for name, source in files.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / folder / "wrn.py"

    return write


@pytest.fixture
def recipe(write):
    return write({"wrn.py": RECIPE, **MODULES})


def test_the_modules_that_the_recipe_imports_are_found_through_each_other_without_executing_them(recipe):
    modules = RecipeFile.read(recipe).modules
    assert modules.contents == {name: MODULES[name].encode() for name in RECORDED}
    assert modules.folder == recipe.parent


def test_the_recipe_imports_them_now_and_later_in_its_functions_and_methods(recipe):
    built = RecipeFile.read(recipe).build({})
    assert built.member(3) == [30, 7, str(recipe.parent / "blocks/wide.py")]
    assert built.data.load() == 7
    assert not list(recipe.parent.rglob("__pycache__"))


def test_a_run_records_them_and_builds_the_recipe_from_its_copies(recipe, tmp_path):
    with open_run(recipe, path=tmp_path / "run", command="train"):
        pass
    for name in MODULES:
        (recipe.parent / name).unlink()
    run = Run.open(tmp_path / "run")
    assert list(run.recipe_file().files()) == ["recipe.py", *(f"recipe_modules/{name}" for name in RECORDED)]
    assert run.recipe().member(3) == [30, 7, str(tmp_path / "run/recipe_modules/blocks/wide.py")]


def test_the_recorded_recipe_can_be_trained_as_a_recipe_of_its_own(recipe, tmp_path):
    with open_run(recipe, path=tmp_path / "run", command="train"):
        pass
    with open_run(tmp_path / "run/recipe.py", path=tmp_path / "again", command="train") as (_, built):
        assert built.member(3)[:2] == [30, 7]


def test_a_changed_module_is_another_configuration_and_a_changed_comment_is_not(recipe, tmp_path, write):
    def train(**options):
        with open_run(recipe, path=tmp_path / "run", command="train", **options) as (_, built):
            return built.member(1)[:2]

    assert train() == [10, 7]
    write({"deeper.py": "# The number of hands.\nTWO = 2\n"})
    assert train() == [10, 7]
    assert (tmp_path / "run/recipe_modules/deeper.py").read_text().startswith("# The number")
    Checkpoints(Run.open(tmp_path / "run").member(0).state).save(1, {}, {})  # a folder without members takes anything
    write({"deeper.py": "TWO = 3\n"})
    with pytest.raises(RunError, match=r"deeper\.py -TWO = 2\n.*deeper\.py \+TWO = 3\n"):
        train()
    assert Run.open(tmp_path / "run").recipe().member(1)[0] == 10
    assert train(allow_config_change=True) == [15, 7]
    assert Run.open(tmp_path / "run").recipe().member(1)[0] == 15


def test_a_module_that_is_no_longer_imported_is_no_longer_recorded(recipe, tmp_path, write):
    with open_run(recipe, path=tmp_path / "run", command="train"):
        pass
    write({"rates.py": "SCALE = 10\n"})
    with open_run(recipe, path=tmp_path / "run", command="train", allow_config_change=True):
        pass
    assert not (tmp_path / "run/recipe_modules/deeper.py").exists()
    assert sorted(Run.open(tmp_path / "run").recipe_file().modules.contents) == sorted({*RECORDED} - {"deeper.py"})


def test_two_recipes_of_one_process_import_their_own_modules_of_the_same_name(recipe, write):
    other = write({"wrn.py": RECIPE, **MODULES, "deeper.py": "TWO = 4\n", "blocks/sizes.py": "WIDTH = 9\n"}, "other")
    first, second = RecipeFile.read(recipe).build({}), RecipeFile.read(other).build({})
    assert [built.member(1)[:2] for built in (first, second, first)] == [[10, 7], [20, 9], [10, 7]]


def test_a_recipe_without_modules_does_not_see_those_of_the_last_recipe(recipe, write):
    RecipeFile.read(recipe).build({})
    alone = write({"wrn.py": "import deeper\ndef recipe(): ...\n"}, "alone")
    with pytest.raises(RecipeError, match=r"wrn\.py:1: ModuleNotFoundError: No module named 'deeper'"):
        RecipeFile.read(alone).build({})


def test_a_module_that_the_program_imported_before_from_the_same_file_is_read_again(recipe, monkeypatch, write):
    sys.path.insert(0, str(recipe.parent))
    import deeper  # pyright: ignore[reportMissingImports]

    write({"deeper.py": "TWO = 6\n"})
    assert RecipeFile.read(recipe).build({}).member(1)[0] == 30
    assert deeper.TWO == 2


@pytest.mark.parametrize("name", ["json", "numpy", "pytest"])
def test_a_module_with_the_name_of_an_installed_one_is_an_error(write, name):
    recipe = write({"wrn.py": f"import {name}\ndef recipe(): ...\n", f"{name}.py": "x = 1\n"})
    with pytest.raises(RecipeError, match=rf"{name}\.py has the name of an installed module, '{name}' \(.*Rename it"):
        RecipeFile.read(recipe)


def test_a_folder_of_images_with_the_name_of_an_installed_module_is_no_module(write):
    recipe = write({"wrn.py": "import numpy, keras_committee\ndef recipe(): ...\n", "numpy/cat/a.txt": ""})
    write({"keras_committee/__init__.py": "raise SystemExit('a copy')"})
    assert RecipeFile.read(recipe).modules.contents == {}


def test_a_package_without_init_is_a_package(write):
    source = "def recipe():\n    import nets.tall.deep\n    raise KeyError(nets.tall.deep.DEPTH)\n"
    recipe = write({"wrn.py": source, "nets/tall/deep.py": "DEPTH = 34\n"})
    with pytest.raises(RecipeError, match="KeyError: 34"):
        RecipeFile.read(recipe).build({})


def test_a_recipe_that_imports_its_own_name_gets_the_installed_module(write):
    recipe = write({"pytest.py": "import pytest\ndef recipe():\n    raise KeyError(pytest.__name__)\n"}).parent
    with pytest.raises(RecipeError, match="KeyError: 'pytest'"):
        RecipeFile.read(recipe / "pytest.py").build({})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = (\n", r"rates\.py:1: syntax error: "),
        ("\nSCALE = 1 // 0\n", r"rates\.py:2: ZeroDivisionError: "),
        ("TWO = 2\n", r"wrn\.py:5: ImportError: cannot import name 'SCALE'"),
    ],
)
def test_an_error_in_a_module_names_its_file_and_line(write, source, message):
    recipe = write({"wrn.py": RECIPE, **MODULES, "rates.py": source})
    with pytest.raises(RecipeError, match=message):
        RecipeFile.read(recipe).build({})


def test_a_module_that_cannot_be_read_is_an_error(write):
    recipe = write({"wrn.py": "import rates\ndef recipe(): ...\n"})
    (recipe.parent / "rates").mkdir()
    (recipe.parent / "rates/loop.py").symlink_to("loop.py")
    assert RecipeFile.read(recipe).modules.contents == {}
    (recipe.parent / "rates.py").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"rates\.py: not a Python file: "):
        RecipeFile.read(recipe)
