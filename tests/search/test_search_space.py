"""Search spaces: values with the types of the recipe, and errors of invalid ranges."""

from pathlib import Path

import pytest

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.search import ParameterRange, parse_ranges

TINY = RecipeFile.read(Path(__file__).parents[1] / "recipes" / "tiny.py")


def test_a_range_has_the_type_of_its_parameter():
    assert parse_ranges(TINY, ["epochs=1:4", "batch_size=32,64", "learning_rate=0.01:0.3:log"]) == (
        ParameterRange("epochs", (1, 4), "linear"),
        ParameterRange("batch_size", (32, 64), "choice"),
        ParameterRange("learning_rate", (0.01, 0.3), "log"),
    )
    assert parse_ranges(TINY, ["learning_rate=1:2"])[0].values == (1.0, 2.0)
    assert isinstance(parse_ranges(TINY, ["learning_rate=1:2"])[0].values[0], float)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["epochs"], r"must be NAME=LOW:HIGH or NAME=A,B,C\. Received: 'epochs'"),
        (["epoch=1:2"], r"has no parameter 'epoch'\. Did you mean 'epochs'"),
        (["epochs=1:x"], r"parameter 'epochs' must be an integer"),
        (["epochs=4:1"], r"epochs must be two numbers, the lower one first .*'4:1'"),
        (["epochs=2:2"], r"epochs must be two numbers, the lower one first .*'2:2'"),
        (["learning_rate=0:4:log"], r"for log, above 0\)"),
        (["epochs=1:2:3"], r"two numbers"),
        (["seed=1:2"], r"--search-space cannot vary seed"),
        (["epochs=1:2", "epochs=3:4"], r"--search-space epochs must be given only once\."),
        ([], r"a search requires at least one --search-space"),
    ],
)
def test_an_invalid_range_is_an_error(texts, message):
    with pytest.raises(RecipeError, match=message):
        parse_ranges(TINY, texts)


def test_a_recipe_without_a_seed_cannot_be_searched(tmp_path):
    file = tmp_path / "seedless.py"
    file.write_text("def recipe(members=2, width=1): pass")
    with pytest.raises(RecipeError, match=r"seedless\.py has no parameter 'seed'"):
        parse_ranges(RecipeFile.read(file), ["width=1:2"])


class Trial:
    """A trial that suggests the highest value, or the last choice."""

    def __init__(self):
        self.params = {}

    def suggest_int(self, name, low, high, log=False):
        return self.params.setdefault(name, high)

    def suggest_float(self, name, low, high, log=False):
        return self.params.setdefault(name, high - log)

    def suggest_categorical(self, name, choices):
        return self.params.setdefault(name, choices[-1])


def test_a_suggested_value_is_found_again_in_the_trial():
    ranges = parse_ranges(TINY, ["epochs=1:4", "batch_size=32,64", "learning_rate=0.01:3:log"])
    trial = Trial()
    assert [item.suggest(trial) for item in ranges] == [4, 64, 2.0]
    assert [item.suggested(trial) for item in ranges] == [4, 64, 2.0]
    assert trial.params["batch_size"] == 1
