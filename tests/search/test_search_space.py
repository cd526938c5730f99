"""Ranges of knobs: typed as the recipe types them, refused with the word that is wrong."""

from pathlib import Path

import pytest

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.search import ParameterRange, parse_ranges

TINY = RecipeFile.read(Path(__file__).parents[1] / "recipes" / "tiny.py")


def test_a_range_has_the_type_of_its_knob():
    assert parse_ranges(TINY, ["epochs=1:4", "batch_size=32,64", "learning_rate=0.01:0.3:log"]) == (
        ParameterRange("epochs", (1, 4), "linear"),
        ParameterRange("batch_size", (32, 64), "choice"),
        ParameterRange("learning_rate", (0.01, 0.3), "log"),
    )
    assert parse_ranges(TINY, ["learning_rate=1:2"])[0].values == (1.0, 2.0)
    assert isinstance(parse_ranges(TINY, ["learning_rate=1:2"])[0].values[0], float)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["epochs"], r"expects knob=low:high or knob=a,b,c\. Received: 'epochs'"),
        (["epoch=1:2"], r"has no knob 'epoch'\. Did you mean 'epochs'"),
        (["epochs=1:x"], r"knob 'epochs' expects an integer"),
        (["epochs=4:1"], r"epochs expects two numbers, the lower first .*'4:1'"),
        (["epochs=2:2"], r"epochs expects two numbers, the lower first .*'2:2'"),
        (["epochs=0:4:log"], r"log: above 0\)"),
        (["epochs=1:2:3"], r"two numbers"),
        (["seed=1:2"], r"--search-space seed cannot be"),
        (["epochs=1:2", "epochs=3:4"], r"--search-space epochs is given twice\."),
        ([], r"a search needs a --search-space"),
    ],
)
def test_what_is_no_range_is_told(texts, words):
    with pytest.raises(RecipeError, match=words):
        parse_ranges(TINY, texts)


def test_a_recipe_without_a_seed_cannot_be_searched(tmp_path):
    file = tmp_path / "seedless.py"
    file.write_text("def recipe(members=2, width=1): pass")
    with pytest.raises(RecipeError, match=r"seedless\.py has no parameter 'seed'"):
        parse_ranges(RecipeFile.read(file), ["width=1:2"])
