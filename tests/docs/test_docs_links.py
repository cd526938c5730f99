"""Files, options, parameters and names in the documentation exist."""

import importlib
import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, in_backticks, prose

from keras_committee.cli import cli
from keras_committee.recipe_file import RecipeFile

PACKAGES = ("data", "flops", "layers", "metrics", "models", "schedules")
# Folders and files in a user's workspace, not in the repository.
MADE = re.compile(
    r"(/|~|theirs/|\.\.|runs/|saved_models/\w|data/\w|members/|predictions/|logs/|tensorboard/|train/|test/|val/|report/"
    r"|\.venv|\d+|state/|variables/|assets\.extra/|\.staging)"
)
MADE_FILES = {
    "cat.jpg", "frog.png", "chosen.json", "efficientnetb0.h5", "evaluation.json", "selection.json", "calibration.json",
    "robustness.json", "committee.json", "journal.jsonl", "models.config", "batching.config", "monitoring.config",
    "models.labels.config", "recipe.py", "parameters.json", "environment.json", "recipes/flowers.py", "recipes/mine.py",
    "recipes/my_images.py", "recipe_modules/", "keras.json", "notes.txt",
}  # fmt: skip
# Files of other libraries, in the sources of docs/comparison.md.
THEIRS = re.compile(r"(keras_cv|src/torch_uncertainty|official|orbit|timm|torchensemble)/|drop_path\.py|train\.py")
# Options of other programs.
OTHERS = {
    "--allow_version_labels_for_unavailable_models", "--model_config_file_poll_wait_seconds", "--from-file", "--help",
    "--tensorflow_inter_op_parallelism", "--tensorflow_intra_op_parallelism", "--tensorflow_session_parallelism",
    "--bfloat16", "--cnn-images", "--images", "--mixed_precision", "--ours", "--quick", "--resume", "--signature_def",
    "--target", "--test", "--trained", "--width",
}  # fmt: skip


def links(page: Path) -> list[str]:
    """Targets of a page's links and images, without web addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not target.startswith(("http://", "https://", "#"))]


def paths(page: Path) -> list[str]:
    """Words in backticks that look like files or folders of the repository."""
    words = [word for code in in_backticks(page) for word in code.split()[:2]]
    looks = r"[\w.*-]+(/[\w.*-]+)*(/|\.(py|md|json|jsonl|ya?ml|html|png|jpg|h5|toml|lock|config|txt))"
    found = [word for word in words if re.fullmatch(looks, word)]
    return [word for word in found if not MADE.match(word) and word not in MADE_FILES and not THEIRS.match(word)]


def options(page: Path) -> set[str]:
    words = [word.partition("=")[0] for code in in_backticks(page) for word in code.split()]
    return {word for word in words if re.match(r"--[a-z]", word)} - OTHERS


def known_options() -> set[str]:
    return {name for command in cli.commands.values() for option in command.params for name in option.opts}


def by_page(check) -> dict[str, list]:
    """What a check finds on each page, without empty results."""
    found = {page.relative_to(ROOT).as_posix(): sorted(check(page)) for page in PAGES}
    return {page: problems for page, problems in found.items() if problems}


def missing_links(page):
    return [target for target in links(page) if not (page.parent / target.partition("#")[0]).exists()]


def missing_files(page):
    roots = (ROOT, page.parent, ROOT / "deploy", ROOT / "keras_committee", ROOT / "tests")
    return [path for path in paths(page) if not any(list(root.glob(path)) for root in roots)]


def missing_names(page):
    code = " ".join(word for code in in_backticks(page) for word in code.split() if word not in MADE_FILES)
    named = set(re.findall(rf"\b({'|'.join(PACKAGES)})\.(?!py\b)([a-zA-Z]\w+)", code))
    return [name for name in named if not hasattr(importlib.import_module(f"keras_committee.{name[0]}"), name[1])]


def missing_parameters(page):
    recipes = [RecipeFile.read(file) for file in sorted((ROOT / "recipes").glob("*.py"))]
    known = {name for recipe in recipes for name in recipe.resolve([])} | {"images_per_second"}  # benchmarks/scale.py
    return set(re.findall(r"--set \"?([a-z_]+)=", page.read_text())) - known


def test_links_lead_to_files():
    assert by_page(missing_links) == {}


def test_named_files_exist():
    assert by_page(missing_files) == {}


def test_named_options_exist():
    known = known_options()
    assert by_page(lambda page: options(page) - known) == {}


def test_named_functions_and_classes_exist():
    assert by_page(missing_names) == {}


def test_recipe_parameters_exist():
    assert by_page(missing_parameters) == {}


def test_missing_things_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[there](page.md) [not](other.md#there), `recipes/none.py`, `--set width=1 --no-option`, `tests/`")
    assert links(page) == ["page.md", "other.md#there"]
    assert paths(page) == ["recipes/none.py", "tests/"]
    assert options(page) - known_options() == {"--no-option"}


@pytest.mark.parametrize("name", ["cifar_stochastic_depth", "cifar_wrn", "digits_wrn"])
def test_accuracies_in_recipe_docstrings_are_in_the_results(name):
    expected = (
        RecipeFile.read(ROOT / "recipes" / f"{name}.py").docstring.partition("Expected:")[2].partition("Source:")[0]
    )
    promised = {float(number) for number in re.findall(r"(\d+\.\d) %", expected)}
    measured = re.findall(r"(\d+\.\d+) (?:± [\d.]+ )?%", (ROOT / "docs/results.md").read_text())
    assert promised
    assert promised - {round(float(number), 1) for number in measured} == set()


def test_measured_numbers_of_the_papers_page_are_in_the_results():
    rows = [row.split("|") for row in (ROOT / "docs/papers.md").read_text().splitlines() if row.startswith("|")]
    measured = [row[2] for row in rows if "`benchmarks" in row[3] or "epochs" in row[3]]
    numbers = {number for text in measured for number in re.findall(r"\d+\.\d+", text)}
    assert len(numbers) >= 15
    assert numbers - set(re.findall(r"\d+\.\d+", (ROOT / "docs/results.md").read_text())) == set()
