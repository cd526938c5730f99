"""Does a recipe file give its knobs without being run, and its mistakes with their place?"""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_committee.errors import DataError, RecipeError
from keras_committee.recipe import Recipe
from keras_committee.recipe_file import RecipeFile

KNOBS = '''"""Two of something.

More of it.
"""


def recipe(members=8, learning_rate=0.1, name="wrn", flip=False, data_dir=None, widths=(1, 2), drops=[0.2, 0.7]):
    raise SystemExit("it was run")
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
        return {"seen": 10 // (2 - index), "name": __name__, "file": __file__}
    def optimizer(steps):
        return steps + 1
    return Recipe(data=Digits(), member=member, members=members, optimizer=optimizer, epochs=5, loss=max, seed=seed)
"""


@dataclasses.dataclass(frozen=True)
class FakeData:
    batch_size: int = 32
    limit: int | None = None

    def load(self):
        return None


class KerasObject:
    def get_config(self):
        return {}

    def __call__(self, x):
        return x


def fields(**changed):
    return {
        "data": FakeData(),
        "member": lambda index: index,
        "members": 3,
        "optimizer": lambda steps: steps,
        "epochs": 5,
        "loss": max,
        **changed,
    }


@pytest.fixture
def write(tmp_path):
    def write(source, name="wrn.py"):
        path = tmp_path / name
        path.write_text(source)
        return path

    return write


def test_reading_gives_docstring_name_and_knobs_in_order_without_running_the_file(write):
    path = write(KNOBS)
    file = RecipeFile.read(path)
    assert file.docstring == "Two of something.\n\nMore of it."
    assert file.name == "wrn"
    assert file.source == KNOBS
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


def test_a_name_can_be_given_to_a_copied_file(write):
    assert RecipeFile.read(write(KNOBS, "recipe.py"), name="digits_wrn").name == "digits_wrn"


def test_keyword_only_knobs_are_knobs_too(write):
    assert RecipeFile.read(write("def recipe(a=1, *, b=2): ...")).defaults == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("override", "knob", "value"),
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
def test_an_override_has_the_type_of_the_default(write, override, knob, value):
    knobs = RecipeFile.read(write(KNOBS)).resolve([override])
    assert knobs[knob] == value
    assert type(knobs[knob]) is type(value)


def test_the_knobs_not_overridden_keep_their_defaults_and_the_last_of_two_overrides_counts(write):
    file = RecipeFile.read(write(KNOBS))
    assert file.resolve(["members=3", "name=b", "members=4"]) == {**file.defaults, "members": 4, "name": "b"}
    assert file.defaults["members"] == 8


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("members=abc", r"'members' expects an integer, like its default 8\. Received: 'abc'"),
        ("members=1.5", "'members' expects an integer"),
        ("learning_rate=fast", r"'learning_rate' expects a finite number, like its default 0\.1\. Received: 'fast'"),
        ("learning_rate=nan", "'learning_rate' expects a finite number"),
        ("flip=1", r"'flip' expects true or false, like its default False\. Received: '1'"),
        ("widths=3", "'widths' expects a tuple"),
        ("widths=(", "'widths' expects a tuple"),
        ("drops={1}", "'drops' expects a list"),
    ],
)
def test_E04_a_value_of_another_type_is_an_error_with_the_type(write, override, wanted):
    with pytest.raises(RecipeError, match=wanted):
        RecipeFile.read(write(KNOBS)).resolve([override])


def test_an_unknown_knob_is_an_error_with_the_nearest_one_and_all_of_them(write):
    path = write("def recipe(members=8, depth=16, data_dir=None): ...")
    with pytest.raises(RecipeError) as caught:
        RecipeFile.read(path).resolve(["member=3"])
    assert str(caught.value) == (
        f"{path} has no knob 'member'. Did you mean 'members'?\n  knobs: members=8, depth=16, data_dir=None"
    )


def test_an_override_without_a_value_is_an_error(write):
    with pytest.raises(RecipeError, match=r"expects knob=value\. Received: 'members'"):
        RecipeFile.read(write(KNOBS)).resolve(["members"])


@settings(deadline=None)
@given(st.data())
def test_E03_every_single_slip_in_a_knob_is_met_with_that_knob(data):
    knobs = ["members", "depth", "width", "epochs", "batch_size", "learning_rate", "data_dir", "seed"]
    knob = data.draw(st.sampled_from(knobs))
    place = data.draw(st.integers(0, len(knob) - 1))
    letter = data.draw(st.sampled_from("aqz_"))
    slips = [
        knob[:place] + knob[place + 1 :],
        knob[:place] + letter + knob[place:],
        knob[:place] + "Q" + knob[place + 1 :],
    ]
    slip = data.draw(st.sampled_from([slip for slip in slips if slip not in knobs]))
    file = RecipeFile("x.py", "x", "", "", dict.fromkeys(knobs, 1))
    with pytest.raises(RecipeError, match=f"Did you mean '{knob}'"):
        file.resolve([f"{slip}=1"])


def test_E01_a_missing_recipe_names_the_nearest_and_all_recipes_of_the_folder(write, tmp_path):
    write(KNOBS, "digits_wrn.py")
    write(KNOBS, "imagenet.py")
    with pytest.raises(
        RecipeError, match=r"no such recipe: .*digit_wrn\.py\. Did you mean 'digits_wrn\.py'\?"
    ) as caught:
        RecipeFile.read(tmp_path / "digit_wrn.py")
    assert str(caught.value).endswith("digits_wrn.py, imagenet.py")


def test_a_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*: Is a directory"):
        RecipeFile.read(tmp_path)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a = 1\ndef recipe(:\n", r"wrn\.py:2: syntax error: .*\n  def recipe\(:"),
        ("a = 1", r"wrn\.py has no function `recipe`"),
        ("class A:\n    def recipe(): ...", r"wrn\.py has no function `recipe`"),
        ("import os\n\ndef recipe(\n    a=1,\n    b=os.cpu_count(),\n): ...", r"wrn\.py:5: .* 'b' must be a literal"),
        ("def recipe(a={1: 2}): ...", r"wrn\.py:1: .* 'a' must be a literal .* Received: \{1: 2\}"),
        ("def recipe(a=1e999): ...", "'a' must be a literal"),
        ("def recipe(a, b=2): ...", "knob 'a' has no default"),
        ("def recipe(*, a, b=2): ...", "knob 'a' has no default"),
        ("def recipe(**knobs): ...", "takes named knobs only"),
        ("def recipe(*knobs): ...", "takes named knobs only"),
        ("def recipe(a=1, /): ...", "takes named knobs only"),
        ("a = '\0'", "not a Python file|syntax error"),
    ],
)
def test_E01_a_file_that_is_no_recipe_is_an_error_with_its_line(write, source, wanted):
    with pytest.raises(RecipeError, match=wanted):
        RecipeFile.read(write(source))


def test_a_file_that_is_no_text_is_an_error(tmp_path):
    path = tmp_path / "model.py"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RecipeError, match=r"model\.py: not a Python file"):
        RecipeFile.read(path)


def test_building_calls_the_recipe_with_the_knobs(write):
    path = write(WORKING)
    file = RecipeFile.read(path)
    recipe = file.build(file.resolve(["members=4"]))
    assert (recipe.members, recipe.epochs, recipe.seed, recipe.head) == (4, 5, 7, None)
    assert recipe.optimizer(41) == 42
    assert recipe.member(0) == {"seen": 5, "name": "wrn", "file": str(path)}


@pytest.mark.parametrize(
    ("source", "wanted"),
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
def test_E01_what_goes_wrong_inside_the_recipe_is_told_with_its_line_there(write, source, wanted):
    with pytest.raises(RecipeError, match=wanted):
        RecipeFile.read(write(source)).build({})


def test_the_cause_of_an_error_in_the_recipe_is_kept(write):
    with pytest.raises(RecipeError, match="KeyError") as caught:
        RecipeFile.read(write("def recipe():\n    return {}['lr']")).build({})
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_of_another_kind_passes_through_a_recipe_unchanged(write):
    source = "from keras_committee.errors import DataError\ndef recipe():\n    raise DataError('no such folder')"
    with pytest.raises(DataError, match=r"^no such folder$"):
        RecipeFile.read(write(source)).build({})


def test_an_error_in_a_member_is_told_with_its_line_when_the_member_is_built(write):
    file = RecipeFile.read(write(WORKING))
    recipe = file.build(file.defaults)
    with pytest.raises(RecipeError, match=r"wrn\.py:13: ZeroDivisionError"):
        recipe.member(2)


def test_building_twice_shares_nothing(write):
    file = RecipeFile.read(write(WORKING))
    assert file.build({}).member is not file.build({}).member
    assert type(file.build({}).data) is not type(file.build({}).data)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("data", "digits", r"Recipe\(data=\.\.\.\) must be .*`data.digits\(64\)`\. Received: 'digits'"),
        ("member", KerasObject(), r"Recipe\(member=\.\.\.\) must be a function of the member's index"),
        ("member", None, r"Recipe\(member=\.\.\.\)"),
        ("members", 0, r"Recipe\(members=\.\.\.\) must be an integer of 1 or more\. Received: 0"),
        ("members", True, r"Recipe\(members=\.\.\.\)"),
        ("members", 2.0, r"Recipe\(members=\.\.\.\)"),
        ("optimizer", KerasObject(), r"Recipe\(optimizer=\.\.\.\) must be a function of the steps"),
        ("epochs", -1, r"Recipe\(epochs=\.\.\.\) .* Received: -1"),
        ("loss", "mse", r"Recipe\(loss=\.\.\.\) must be a Keras loss .* Received: 'mse'"),
        ("head", "mean", r"Recipe\(head=\.\.\.\) must be a layer"),
        ("seed", -1, r"Recipe\(seed=\.\.\.\) must be an integer of 0 or more\. Received: -1"),
        ("survival", 0.7, r"Recipe\(survival=\.\.\.\) must be a function of the epoch, or None\. Received: 0\.7"),
    ],
)
def test_E02_a_field_of_the_wrong_kind_is_an_error_with_field_value_and_wish(field, value, wanted):
    with pytest.raises(RecipeError, match=wanted):
        Recipe(**fields(**{field: value}))


def test_a_recipe_cannot_be_changed_nor_made_by_position():
    recipe = Recipe(**fields(head=KerasObject(), seed=0))
    with pytest.raises(dataclasses.FrozenInstanceError, match="members"):
        recipe.members = 4
    with pytest.raises(TypeError, match="positional"):
        Recipe(*fields().values())


def test_a_smoke_recipe_has_two_members_one_epoch_and_four_batches():
    smoke = Recipe(**fields(seed=3)).for_smoke_run()
    assert (smoke.members, smoke.epochs, smoke.data.limit, smoke.data.batch_size, smoke.seed) == (2, 1, 128, 32, 3)
    assert Recipe(**fields(members=1)).for_smoke_run().members == 1
