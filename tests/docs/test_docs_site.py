"""The documentation site builds without warnings, is complete, and loads nothing from other hosts."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from pages import ROOT

import keras_committee
from keras_committee import api, data, flops, layers, metrics, models, schedules
from keras_committee.cli import cli

PACKAGES = {"data": data, "flops": flops, "layers": layers, "metrics": metrics, "models": models}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    return folder


def public_names():
    names = {
        f"keras_committee.{package_name}.{name}"
        for package_name, package in PACKAGES.items()
        for name in package.__all__
    }
    return names | {
        "keras_committee.schedules.WarmUp",
        "keras_committee.Recipe",
        "keras_committee.tfserving.client.Client",
        *(f"keras_committee.api.{name}" for name in api.__all__),
    }


@pytest.mark.slow
def test_every_public_name_has_an_entry(site):
    text = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    entries = set(re.findall(r'id="(keras_committee[\w.]+)"', text))
    entries |= {entry.rpartition(".")[0] for entry in entries}  # models.resnet.resnet: a module and its function
    assert {name for name in public_names() - entries if not name.rpartition(".")[2].isupper()} == set()
    assert {f'id="{name}"' for name in cli.commands} <= set(re.findall(r'id="[\w-]+"', text))


@pytest.mark.slow
def test_pages_load_nothing_from_other_hosts(site):
    pages = [page for page in site.rglob("*.html") if page.name != "cifar10-report.html"]
    fetched = (
        r'<(script|img|iframe)[^>]*\ssrc="(https?:)?//|<link[^>]*rel="(stylesheet|preconnect)"[^>]*href="(https?:)?//'
    )
    assert len(pages) > 20
    assert [page.name for page in pages if re.search(fetched, page.read_text())] == []
    assert [sheet.name for sheet in site.rglob("*.css") if re.search(r"url\(.?https?:", sheet.read_text())] == []


@pytest.mark.slow
def test_a_link_to_a_test_opens_its_source(site):
    assert 'href="source/tests/layers/test_heads.py.html"' in (site / "comparison.html").read_text()
    assert "test_the_geometric_mean_is_the_mth_root" in (site / "source/tests/layers/test_heads.py.html").read_text()


@pytest.mark.slow
def test_a_notebook_is_a_page_with_its_outputs(site):
    page = (site / "notebooks/digits.html").read_text()
    assert page.count("<table>") >= 8
    assert page.count('src="data:image/png;base64,') >= 4
    assert 'href="../notebooks/digits.html"' in (site / "guides/python.html").read_text()


@pytest.mark.slow
def test_the_search_covers_the_guides(site):
    index = (site / "search/search_index.json").read_text()
    assert "guides/cascade.html" in index
    assert "source/tests" not in index


def test_every_page_and_every_recipe_is_in_the_navigation():
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    pages |= {f"notebooks/{page.stem}.md" for page in (ROOT / "docs/notebooks").glob("*.ipynb")}
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)
    assert set(re.findall(r"[\w/-]+\.md", str(settings["nav"]))) == pages
    shown = (ROOT / "docs/reference/recipes.md").read_text()
    assert [file.stem for file in (ROOT / "recipes").glob("*.py") if f"::: {file.stem}\n" not in shown + "\n"] == []


def test_the_site_uses_local_fonts_and_an_ignored_folder():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.SafeLoader)
    assert settings["theme"]["font"] is False
    assert settings["site_dir"].split("/")[0] + "/" in (ROOT / ".gitignore").read_text().splitlines()
    assert set(keras_committee.__all__) >= set(PACKAGES)
    assert schedules.__doc__
