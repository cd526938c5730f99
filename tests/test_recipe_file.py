"""Recipe files: parsing without execution, overrides, and errors with file and line."""

import codecs
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee.errors import DataError, RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.recipe_source import RecipeModules

PARAMETERS = '''"""Two of something.

More of it.
"""


def recipe(members=8, learning_rate=0.1, name="wrn", flip=False, data_dir=None, widths=(1, 2), drops=[0.2, 0.7]):
    raise SystemExit("the recipe was executed")
'''

WORKING = """
from dataclasses import dataclass
from keras_committee import Recipe

@dataclass(frozen=True)
class Digits:
    batch_size: int = 32
    limit: int | None = None
    def load(self): ...

def recipe(members=3, seed=7):
    def member(index):
        return {"quotient": 10 // (2 - index), "name": __name__, "file": __file__}
    def optimizer(steps):
        return steps + 1
    return Recipe(data=Digits(), member=member, members=members, optimizer=optimizer, epochs=5, loss=max, seed=seed)
"""


@pytest.fixture
def write(tmp_path):
    def write(source, name="wrn.py"):
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


def test_reading_returns_docstring_name_and_parameters_in_order_without_executing_the_file(write):
    path = write(PARAMETERS)
    file = RecipeFile.read(path)
    assert file.docstring == "Two of something.\n\nMore of it."
    assert file.name == "wrn"
    assert file.sources()["recipe.py"] == PARAMETERS
    assert list(file.defaults.items()) == [
        ("members", 8),
        ("learning_rate", 0.1),
        ("name", "wrn"),
        ("flip", False),
        ("data_dir", None),
        ("widths", (1, 2)),
        ("drops", [0.2, 0.7]),
    ]


def test_a_recipe_without_docstring_has_an_empty_one(write):
    assert RecipeFile.read(write("def recipe(): ...")).docstring == ""


def test_a_copied_file_can_keep_the_name_of_the_recipe(write):
    assert RecipeFile.read(write(PARAMETERS, "recipe.py"), name="digits_wrn").name == "digits_wrn"


def test_keyword_only_arguments_are_parameters(write):
    assert RecipeFile.read(write("def recipe(a=1, *, b=2): ...")).defaults == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("members=3", "members", 3),
        ("members=50_000", "members", 50_000),
        ("learning_rate=1e-3", "learning_rate", 0.001),
        ("learning_rate=2", "learning_rate", 2.0),
        ("name=7", "name", "7"),
        ("name=", "name", ""),
        ("name=a=b", "name", "a=b"),
        ("flip=true", "flip", True),
        ("flip=False", "flip", False),
        ("data_dir=/data/cifar 10", "data_dir", "/data/cifar 10"),
        ("data_dir=12", "data_dir", 12),
        ("data_dir={'a': 1}", "data_dir", "{'a': 1}"),
        ("data_dir=(1, 'b')", "data_dir", (1, "b")),
        ("widths=(4,)", "widths", (4,)),
        ("widths=[4, 5]", "widths", (4, 5)),
        ("drops=0.3,0.6", "drops", [0.3, 0.6]),
    ],
)
def test_an_override_has_the_type_of_the_default(write, override, name, value):
    parameters = RecipeFile.read(write(PARAMETERS)).resolve([override])
    assert parameters[name] == value
    assert type(parameters[name]) is type(value)


def test_other_parameters_keep_their_defaults_and_the_last_of_two_overrides_wins(write):
    file = RecipeFile.read(write(PARAMETERS))
    assert file.resolve(["members=3", "name=b", "members=4"]) == {**file.defaults, "members": 4, "name": "b"}
    assert file.defaults["members"] == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("members=abc", r"'members' must be an integer, like its default 8\. Received: 'abc'"),
        ("members=1.5", "'members' must be an integer"),
        ("learning_rate=fast", r"'learning_rate' must be a finite number, like its default 0\.1\. Received: 'fast'"),
        ("learning_rate=nan", "'learning_rate' must be a finite number"),
        ("flip=1", r"'flip' must be true or false, like its default False\. Received: '1'"),
        ("widths=3", "'widths' must be a tuple"),
        ("widths=(", "'widths' must be a tuple"),
        ("drops={1}", "'drops' must be a list"),
    ],
)
def test_E04_a_value_of_another_type_is_an_error_with_the_type(write, override, message):
    with pytest.raises(RecipeError, match=message):
        RecipeFile.read(write(PARAMETERS)).resolve([override])


def test_an_unknown_parameter_is_an_error_with_the_nearest_name_and_all_parameters(write):
    path = write("def recipe(members=8, depth=16, data_dir=None): ...")
    with pytest.raises(RecipeError) as caught:
        RecipeFile.read(path).resolve(["member=3"])
    assert str(caught.value) == (
        f"{path} has no parameter 'member'. Did you mean 'members'?\n  parameters: members=8, depth=16, data_dir=None"
    )


def test_an_override_without_a_value_is_an_error(write):
    with pytest.raises(RecipeError, match=r"--set must be NAME=VALUE\. Received: 'members'"):
        RecipeFile.read(write(PARAMETERS)).resolve(["members"])


@settings(deadline=None)
@given(st.data())
def test_E03_every_typo_of_one_letter_suggests_the_parameter(data):
    names = ["members", "depth", "width", "epochs", "batch_size", "learning_rate", "data_dir", "seed"]
    name = data.draw(st.sampled_from(names))
    index = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from("aqz_"))
    typos = [
        name[:index] + name[index + 1 :],
        name[:index] + letter + name[index:],
        name[:index] + "Q" + name[index + 1 :],
    ]
    typo = data.draw(st.sampled_from([typo for typo in typos if typo not in names]))
    file = RecipeFile(Path("x.py"), "x", b"", "", dict.fromkeys(names, 1), RecipeModules(Path()))
    with pytest.raises(RecipeError, match=f"Did you mean '{name}'"):
        file.resolve([f"{typo}=1"])


def test_E01_a_missing_recipe_is_an_error_with_the_nearest_and_all_recipes_of_the_folder(write, tmp_path):
    write(PARAMETERS, "digits_wrn.py")
    write(PARAMETERS, "imagenet.py")
    with pytest.raises(
        RecipeError, match=r"no such recipe: .*digit_wrn\.py\. Did you mean 'digits_wrn\.py'\?"
    ) as caught:
        RecipeFile.read(tmp_path / "digit_wrn.py")
    assert str(caught.value).endswith("digits_wrn.py, imagenet.py")


def test_a_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"is not a recipe, which is a Python file: it is a folder\. To write"):
        RecipeFile.read(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = 1\ndef recipe(:\n", r"wrn\.py:2: syntax error: .*\n  def recipe\(:"),
        ("a = 1", r"wrn\.py has no function `recipe`"),
        ("class A:\n    def recipe(): ...", r"wrn\.py has no function `recipe`"),
        ("import os\n\ndef recipe(\n    a=1,\n    b=os.cpu_count(),\n): ...", r"wrn\.py:5: .* 'b' must be a literal"),
        ("def recipe(a={1: 2}): ...", r"wrn\.py:1: .* 'a' must be a literal .* Received: \{1: 2\}"),
        ("def recipe(a=1e999): ...", "'a' must be a literal"),
        ("def recipe(a, b=2): ...", "parameter 'a' must have a default"),
        ("def recipe(*, a, b=2): ...", "parameter 'a' must have a default"),
        ("def recipe(**values): ...", "must have named arguments only"),
        ("def recipe(*values): ...", "must have named arguments only"),
        ("def recipe(a=1, /): ...", "must have named arguments only"),
        ("a = '\0'", "not a Python file|syntax error"),
    ],
)
def test_E01_an_invalid_file_is_an_error_with_its_line(write, source, message):
    with pytest.raises(RecipeError, match=message):
        RecipeFile.read(write(source))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\xff\xfe", "invalid or missing encoding"),
        ("def recipe(): ...".encode("utf-16"), "invalid or missing encoding"),
        (b"# coding: klingon\ndef recipe(): ...", "unknown encoding: klingon"),
        ("# Caf\xe9\ndef recipe(): ...".encode("latin-1"), "invalid or missing encoding"),
    ],
)
def test_a_file_that_is_not_text_is_an_error(tmp_path, content, reason):
    path = tmp_path / "model.py"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"model\.py: not a Python file: .*{reason}.* Save it as UTF-8\."):
        RecipeFile.read(path)


CAFE = WORKING.replace("__name__", "'Caf\xe9'")
ENCODED = {
    "byte order mark": codecs.BOM_UTF8 + CAFE.encode(),
    "carriage returns": CAFE.replace("\n", "\r\n").encode(),
    "byte order mark and carriage returns": codecs.BOM_UTF8 + CAFE.replace("\n", "\r\n").encode(),
    "latin-1": ("# -*- coding: latin-1 -*-" + CAFE).encode("latin-1"),
    "utf-8 with a declaration": ("# coding: utf-8" + CAFE).encode(),
}


@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED)
def test_every_encoding_of_python_source_is_read_recorded_and_built(tmp_path, content):
    path = tmp_path / "wrn.py"
    path.write_bytes(content)
    file = RecipeFile.read(path)
    (tmp_path / "recipe.py").write_bytes(file.files()["recipe.py"])
    recorded = RecipeFile.read(tmp_path / "recipe.py", name="wrn")
    assert recorded.content == content
    assert recorded.same_program_as(file)
    assert recorded.sources() == file.sources()
    assert file.build({}).member(0)["name"] == recorded.build({}).member(0)["name"] == "Caf\xe9"


def test_a_byte_order_mark_and_line_ends_leave_the_program_and_its_text_the_same(tmp_path):
    files = []
    for name in ("byte order mark", "carriage returns", "byte order mark and carriage returns"):
        (tmp_path / "wrn.py").write_bytes(ENCODED[name])
        files.append(RecipeFile.read(tmp_path / "wrn.py"))
    assert all(file.same_program_as(files[0]) for file in files)
    assert [file.sources() for file in files] == [{"recipe.py": CAFE}] * 3


def test_a_dataclass_of_a_recipe_may_have_annotations_that_are_not_evaluated(write):
    path = write("from __future__ import annotations\n" + WORKING)
    assert RecipeFile.read(path).build({}).data.batch_size == 32


def test_building_calls_the_recipe_with_the_parameters(write):
    path = write(WORKING)
    file = RecipeFile.read(path)
    recipe = file.build(file.resolve(["members=4"]))
    assert (recipe.members, recipe.epochs, recipe.seed, recipe.head) == (4, 5, 7, None)
    assert recipe.optimizer(41) == 42
    assert recipe.member(0) == {"quotient": 5, "name": "recipe:wrn", "file": str(path)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def recipe():\n    return {}['lr']", r"wrn\.py:2: KeyError: 'lr'$"),
        ("import nonexistent_module\ndef recipe(): ...", r"wrn\.py:1: ModuleNotFoundError: No module named"),
        ("import json\ndef recipe():\n    return json.loads('{')", r"wrn\.py:3: JSONDecodeError: "),
        ("import sys\nsys.exit('stop')\ndef recipe(): ...", r"wrn\.py:2: SystemExit: stop"),
        ("def recipe():\n    return 3", r"recipe\(\) must return a keras_committee\.Recipe\. Received: int"),
        (
            WORKING.replace("epochs=5", "epochs=0"),
            r"Recipe\(epochs=\.\.\.\) must be an integer of 1 or more\. Received: 0",
        ),
        ("recipe = 3\ndef recipe(): ...\nrecipe = 4", r"TypeError: 'int' object is not callable"),
    ],
)
def test_E01_an_exception_in_the_recipe_is_an_error_with_its_line(write, source, message):
    with pytest.raises(RecipeError, match=message):
        RecipeFile.read(write(source)).build({})


def test_the_cause_of_an_error_in_the_recipe_is_kept(write):
    with pytest.raises(RecipeError, match="KeyError") as caught:
        RecipeFile.read(write("def recipe():\n    return {}['lr']")).build({})
    assert isinstance(caught.value.__cause__, KeyError)


def test_other_committee_errors_pass_through_the_recipe(write):
    source = "from keras_committee.errors import DataError\ndef recipe():\n    raise DataError('no such folder')"
    with pytest.raises(DataError, match=r"^no such folder$"):
        RecipeFile.read(write(source)).build({})


@pytest.mark.parametrize("field", ["member", "optimizer", "initial_weights", "trainable_layers", "survival"])
def test_an_exception_in_a_function_of_the_recipe_is_an_error_with_its_line_when_it_is_called(write, field):
    source = """
        def fail(argument):
            return 1 // 0
        return Recipe(
            data=Digits(), member=fail, members=members, optimizer=fail, epochs=5, loss=max, seed=seed,
            initial_weights=fail, trainable_layers=fail, survival=fail,
        )
    """
    before, _, _ = WORKING.partition("    return Recipe(")
    recipe = RecipeFile.read(write(before + textwrap.indent(textwrap.dedent(source), "    "))).build({})
    with pytest.raises(RecipeError, match=r"wrn\.py:18: ZeroDivisionError"):
        getattr(recipe, field)(0)


def test_overrides_can_be_a_mapping_of_values(write):
    file = RecipeFile.read(write(PARAMETERS))
    assert file.resolve({"widths": (4,), "members": 2}) == {**file.defaults, "widths": (4,), "members": 2}
    with pytest.raises(RecipeError, match=r"has no parameter 'member'\. Did you mean 'members'"):
        file.resolve({"member": 2})


def test_a_url_is_an_error():
    with pytest.raises(RecipeError, match=r"https://a/b\.py is a URL\. .* never fetched: download the file"):
        RecipeFile.read("https://a/b.py")


def test_building_twice_shares_nothing(write):
    file = RecipeFile.read(write(WORKING))
    assert file.build({}).member is not file.build({}).member
    assert type(file.build({}).data) is not type(file.build({}).data)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ("", {"members": "members", "epochs": "epochs"}),
        ("    epochs = epochs or 3\n", {"members": "members"}),
        ("    if members == 7:\n        return None\n", {}),
        ("    Recipe = print\n", {}),
    ],
)
def test_fields_that_are_parameters_as_given_are_checked_without_executing_the_file(tmp_path, change, fields):
    file = tmp_path / "made.py"
    file.write_text(
        "from keras_committee import Recipe\n\n\n"
        f"def recipe(members=2, epochs=5, width=1):\n{change}"
        "    def member(index):\n        return width\n\n"
        "    return Recipe(members=members, epochs=epochs, seed=width + 1, member=member)\n"
    )
    read = RecipeFile.read(file)
    assert read.fields == fields
    assert read.resolve(["members=0"] if "members" not in fields else ["epochs=4"])["width"] == 1
    for name in fields:
        with pytest.raises(
            RecipeError, match=rf"Recipe\({name}=\.\.\.\) must be an integer of 1 or more\. Received: 0"
        ):
            read.resolve([f"{name}=0"])
