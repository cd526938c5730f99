"""The training cost of a member, and the remaining budget."""

from pathlib import Path

import pytest

from keras_committee.errors import RecipeError
from keras_committee.recipe_file import RecipeFile
from keras_committee.search.budget import Budget, MemberCost, training_gflops

TINY = RecipeFile.read(Path(__file__).parents[1] / "recipes" / "tiny.py")


def test_training_costs_three_forward_passes_per_image_and_epoch():
    recipe = TINY.build(TINY.resolve(["epochs=5"]))
    forward = 2 * 8 * 8 * 3 * 10
    assert training_gflops(recipe, num_images=700) == pytest.approx(3 * forward * 700 * 5 / 1e9)


def test_a_budget_allows_a_member_that_fits_into_the_rest():
    spent = [MemberCost(gflops=2.0, minutes=6.0), MemberCost(gflops=3.0, minutes=9.0)]
    assert Budget(gflops=7.0).allows(spent, 2.0)
    assert not Budget(gflops=7.0).allows(spent, 2.1)
    assert Budget(minutes=22.0).allows(spent, 2.0)
    assert not Budget(minutes=20.0).allows(spent, 2.0)  # it would take 6 more minutes
    assert Budget(minutes=1.0).allows([], 2.0)
    assert Budget(trials=3).allows(spent, None)
    assert not Budget(trials=2, minutes=99.0).allows(spent, None)
    assert str(Budget(gflops=7.0, minutes=20.0)) == "7 GFLOPs and 20 minutes"
    assert str(Budget(trials=1, gflops=7.0, minutes=20.0)) == "1 trial, 7 GFLOPs and 20 minutes"


def test_a_budget_in_minutes_needs_no_known_cost_and_one_in_gflops_does():
    spent = [MemberCost(gflops=None, minutes=6.0), MemberCost(gflops=3.0, minutes=10.0)]
    assert Budget(minutes=25.0).allows(spent, None)
    assert not Budget(minutes=24.0).allows(spent, 2.0)  # another 8 minutes, the mean
    assert Budget(minutes=1.0).allows([], None)
    for costs, gflops in (([], None), (spent, 2.0)):
        with pytest.raises(RecipeError, match=r"a budget in GFLOPs needs the cost of .*\n  Use --budget-minutes"):
            Budget(gflops=7.0).allows(costs, gflops)
