"""TensorBoard's own pages show a run, in a headless Chromium."""

import gzip
import json
import pathlib
import re
import subprocess
import sys
import urllib.request

import pytest

from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import TrainingOptions, tensorboard, train_committee

pytestmark = pytest.mark.slow
GATED = pathlib.Path(__file__).parents[1] / "recipes" / "gated.py"
SEEN = """
const words = [];
const read = node => {
  if (['SCRIPT', 'STYLE', 'TEMPLATE'].includes(node.nodeName)) return;
  if (node.nodeType === Node.TEXT_NODE) words.push(node.textContent.trim());
  [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].forEach(read);
};
read(document.body);
return words.filter(word => word);
"""
IMAGES = """
const found = [];
const look = node => {
  if (node.nodeName === 'IMG' && node.naturalWidth > 300) found.push(node.naturalWidth);
  [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].forEach(look);
};
look(document.body);
return found;
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run: two members of stochastic depth, profiled, with plots although it is short."""
    folder = tmp_path_factory.mktemp("runs")
    file = RecipeFile.read(GATED)
    parameters = file.resolve(["epochs=2", "members=2"])
    run = Run.create(folder / "gated", file, parameters, command="test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "_MIN_SECONDS_BEFORE_PLOTS", 0.0)
        train_committee(run, file.build(parameters), options=TrainingOptions(profile_steps=(3, 4)))
    return folder


@pytest.fixture(scope="module")
def address(runs, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "tensorboard.log"
    words = ["-m", "tensorboard.main", "--logdir", str(runs), "--port", "0", "--host", "127.0.0.1"]
    with log.open("w") as file, subprocess.Popen([sys.executable, *words], stderr=file) as server:
        try:
            yield lambda: re.search(r"http://127\.0\.0\.1:\d+/", log.read_text())
        finally:
            server.terminate()


@pytest.fixture
def shown(browser, until, address):
    """Opens a page of TensorBoard and waits for some words on it; returns all its words."""

    def show(page, *words):
        where = until(address).group()
        browser.get("about:blank")
        browser.get(f"{where}#{page}")

        def seen():
            found = browser.execute_script(SEEN)
            return found if all(any(word in each for each in found) for word in words) else None

        return until(seen)

    return show


def test_members_and_committee_have_their_curves_for_each_epoch_and_block(shown):
    words = shown("timeseries", "validation_accuracy", "mean_abs_gradient", "run_fraction", "loss")
    for run in ("gated/members/00", "gated/members/01", "gated/tensorboard/committee_of_2"):
        assert any(run in word for word in words)


def test_blocks_have_histograms(shown):
    shown("histograms", "run_fraction/blocks", "mean_abs_gradient/blocks", "gated/members/01/tensorboard")


def test_the_committee_has_a_confusion_matrix_and_a_reliability_diagram(shown, browser, until):
    shown("images", "confusion_matrix", "reliability_diagram", "gated/tensorboard/committee_of_2")
    assert until(lambda: len(browser.execute_script(IMAGES)) == 2)


def test_the_network_is_drawn_with_its_blocks(shown):
    shown("graphs", "image", "rescaling", "stochastic_depth", "dense")


def test_the_run_is_a_row_of_the_hparams_table(shown):
    words = shown("hparams", "epochs", "seed", "validation_accuracy", "7.0000")  # the last is the seed, in the table
    assert "gated" in words


def test_the_profile_page_lists_the_members(until, address):
    """The page loads its scripts from the internet, so only its data is requested."""
    where = f"{until(address).group()}data/plugin/profile/runs"

    def listed():
        with urllib.request.urlopen(where, timeout=30) as answer:
            return {run.split("/tensorboard")[0] for run in json.loads(gzip.decompress(answer.read()))}

    assert until(lambda: listed() == {"gated/members/00", "gated/members/01"})
