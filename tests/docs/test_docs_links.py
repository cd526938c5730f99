"""Is everything that README, the guides and the operator's pages name really there?"""

import importlib
import re
from pathlib import Path

import pytest
from shown import PAGES, ROOT, in_backticks, prose

from keras_committee.cli import cli
from keras_committee.recipe_file import RecipeFile

EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
PACKAGES = ("data", "flops", "layers", "metrics", "models", "schedules")
# Folders and files that appear where a user works, not in the repository.
MADE = re.compile(
    r"(/|~|theirs/|\.\.|runs/|saved_models/\w|data/\w|members/|votes/|logs/|tensorboard/|train/|test/|val/|report/"
    r"|\.venv|\d+|state/|variables/|assets\.extra/|\.staging)"
)
MADE_FILES = {
    "cat.jpg", "frog.png", "chosen.json", "efficientnetb0.h5", "evaluation.json", "selection.json", "calibration.json",
    "robustness.json", "committee.json", "journal.jsonl", "models.config", "batching.config", "monitoring.config",
    "models.labels.config", "recipe.py", "recipes/flowers.py", "recipes/mine.py",
}  # fmt: skip
# Files of other libraries, in the sources of docs/comparison.md.
THEIRS = re.compile(r"(keras_cv|official|orbit|timm|torchensemble)/|drop_path\.py|train\.py")
# Options of other programs.
OTHERS = {
    "--allow_version_labels_for_unavailable_models", "--model_config_file_poll_wait_seconds", "--from-file", "--help",
    "--tensorflow_inter_op_parallelism", "--tensorflow_intra_op_parallelism", "--tensorflow_session_parallelism",
    "--quick", "--resume", "--target",
}  # fmt: skip


def links(page: Path) -> list[str]:
    """The targets of the links and pictures of a page that are no web addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("http://", "https://", "#"))]


def paths(page: Path) -> list[str]:
    """What looks like a file or folder of the repository, in backticks."""
    words = [word for code in in_backticks(page) for word in code.split()[:2]]
    looks = r"[\w.*-]+(/[\w.*-]+)*(/|\.(py|md|json|jsonl|ya?ml|html|png|jpg|h5|toml|lock|config|txt))"
    found = [word for word in words if re.fullmatch(looks, word)]
    return [word for word in found if not MADE.match(word) and word not in MADE_FILES and not THEIRS.match(word)]


def options(page: Path) -> set[str]:
    words = [word.partition("=")[0] for code in in_backticks(page) for word in code.split()]
    return {word for word in words if re.match(r"--[a-z]", word)} - OTHERS


def known_options() -> set[str]:
    return {name for command in cli.commands.values() for option in command.params for name in option.opts}


@EACH_PAGE
def test_every_link_leads_to_a_file(page):
    assert [target for target in links(page) if not (page.parent / target.partition("#")[0]).exists()] == []


@EACH_PAGE
def test_every_file_that_is_named_exists(page):
    places = (ROOT, page.parent, ROOT / "deploy", ROOT / "keras_committee", ROOT / "tests")
    assert [path for path in paths(page) if not any(list(place.glob(path)) for place in places)] == []


@EACH_PAGE
def test_every_option_that_is_named_exists(page):
    assert options(page) - known_options() == set()


@EACH_PAGE
def test_every_name_of_the_package_exists(page):
    code = " ".join(word for code in in_backticks(page) for word in code.split() if word not in MADE_FILES)
    named = sorted(set(re.findall(rf"\b({'|'.join(PACKAGES)})\.(?!py\b)([a-zA-Z]\w+)", code)))
    missing = [each for each in named if not hasattr(importlib.import_module(f"keras_committee.{each[0]}"), each[1])]
    assert missing == []


@EACH_PAGE
def test_every_knob_that_is_set_is_one_of_some_recipe(page):
    recipes = [RecipeFile.read(file) for file in sorted((ROOT / "recipes").glob("*.py"))]
    knobs = {knob for recipe in recipes for knob in recipe.resolve([])} | {
        "knob",
        "images_per_second",
    }  # of benchmarks/scale.py
    assert set(re.findall(r"--set \"?(\w+)=", page.read_text())) - knobs == set()


def test_what_is_missing_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[there](page.md) [not](other.md#there), `recipes/none.py`, `--set width=1 --no-option`, `tests/`")
    assert links(page) == ["page.md", "other.md#there"]
    assert paths(page) == ["recipes/none.py", "tests/"]
    assert options(page) - known_options() == {"--no-option"}


@pytest.mark.parametrize("name", ["cifar_stochastic_depth", "cifar_wrn", "digits_wrn"])
def test_every_accuracy_that_a_recipe_promises_is_one_of_readme(name):
    expected = (
        RecipeFile.read(ROOT / "recipes" / f"{name}.py").docstring.partition("Expected:")[2].partition("Source:")[0]
    )
    promised = {float(number) for number in re.findall(r"(\d+\.\d) %", expected)}
    measured = re.findall(r"(\d+\.\d+) (?:± [\d.]+ )?%", (ROOT / "README.md").read_text())
    assert promised
    assert promised - {round(float(number), 1) for number in measured} == set()


def test_every_measured_number_of_the_papers_page_stands_in_readme():
    rows = [row.split("|") for row in (ROOT / "docs/papers.md").read_text().splitlines() if row.startswith("|")]
    measured = [row[2] for row in rows if "`benchmarks" in row[3] or "epochs" in row[3]]
    numbers = {number for text in measured for number in re.findall(r"\d+\.\d+", text)}
    assert len(numbers) >= 15
    assert numbers - set(re.findall(r"\d+\.\d+", (ROOT / "README.md").read_text())) == set()
