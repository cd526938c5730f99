"""What training costs, and what is left of a budget."""

import json
from pathlib import Path

import pytest

from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.search.budget import Budget, MemberCost, training_gflops, training_minutes

TINY = RecipeFile.read(Path(__file__).parents[1] / "recipes" / "tiny.py")


def test_training_costs_three_forward_passes_for_each_image_of_each_epoch():
    recipe = TINY.build(TINY.resolve(["epochs=5"]))
    forward = 2 * 8 * 8 * 3 * 10
    assert training_gflops(recipe, num_images=700) == pytest.approx(3 * forward * 700 * 5 / 1e9)


def test_a_budget_allows_what_fits_into_what_is_left():
    spent = [MemberCost(gflops=2.0, minutes=6.0), MemberCost(gflops=3.0, minutes=9.0)]
    assert Budget(gflops=7.0).allows(spent, 2.0)
    assert not Budget(gflops=7.0).allows(spent, 2.1)
    assert Budget(minutes=22.0).allows(spent, 2.0)
    assert not Budget(minutes=20.0).allows(spent, 2.0)  # it would take 6 minutes
    assert Budget(minutes=1.0).allows([], 2.0)
    assert str(Budget(gflops=7.0, minutes=20.0)) == "7 GFLOPs and 20 minutes"


def test_minutes_are_counted_over_all_starts_and_end_with_the_last_word_of_a_killed_one(tmp_path):
    events = [
        ("10:00:00", "training_started"),
        ("10:02:00", "member_saved"),  # and killed
        ("11:00:00", "training_started"),
        ("11:01:30", "training_finished"),
        ("19:00:00", "evaluated"),
    ]
    lines = [json.dumps({"time": f"2026-01-02T{time}.000+00:00", "event": event}) + "\n" for time, event in events]
    (tmp_path / "journal.jsonl").write_text("".join(lines))
    assert training_minutes(Run(tmp_path)) == pytest.approx(3.5)
