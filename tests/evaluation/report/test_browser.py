"""The report in a headless Chromium, on a wide screen and on a phone."""

import json

import pytest
from synthetic_runs import run_data

from keras_committee.evaluation.report import report as writing
from keras_committee.evaluation.report.run_data import load_report_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report_data():
    runs = [run_data("<b>first</b>", ["small"] * 3, [10.0] * 3), run_data("second", ["large"], [25.0], depth=6.5)]
    return load_report_data(runs, "test", [])


@pytest.fixture(scope="module")
def page(report_data, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(writing.render_page(report_data, *writing.build_sections(report_data)))
    return file


@pytest.fixture(params=[1100, 390], ids=["wide", "phone"])
def opened(request, browser, page):
    """The browser with the page, at a width in pixels."""
    screen = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": request.param < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get("about:blank")
    browser.get_log("performance")  # drop requests of the browser's own first page
    browser.get(page.as_uri())
    return browser


def test_nothing_is_logged_and_nothing_is_requested(opened, page):
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in sent
    assert [url for url in sent if url != page.as_uri() and not url.startswith("data:")] == []


def test_every_figure_has_a_size_and_fits_the_page(opened, report_data):
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('svg')]"
        ".map(s => s.getBoundingClientRect()).filter(r => r.width > 0).map(r => [r.width, r.height, r.right]))"
    )
    pictures = writing.collect_pictures(writing.build_sections(report_data)[0])
    assert len(sizes) == len(pictures) - 1  # the section on disagreements shows images instead
    for [(width, height, right)] in sizes:  # one of the two widths is shown
        assert (width > 150, height > 80, right <= opened.execute_script("return innerWidth")) == (True, True, True)
    images = opened.execute_script("return [...document.images].map(i => [i.naturalWidth, i.clientWidth])")
    assert len(images) == 12
    assert [(own, shown) for own, shown in images if own != 8 or shown < 80] == []


def test_the_page_does_not_scroll_sideways(opened):
    wide, seen = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen


def test_markup_in_names_is_shown_as_text(opened):
    text = opened.execute_script("return document.body.innerText")
    assert "<script>alert(1)</script>" in text
    assert "<b>first</b>" in text
    assert opened.execute_script("return document.scripts.length") == 0
    drawn = opened.execute_script("return [...document.querySelectorAll('svg text')].map(t => t.textContent)")
    assert "<script>alert(1)</script>" in drawn


def test_the_table_shows_the_evaluation(opened, report_data):
    rows = opened.execute_script(
        "return [...document.querySelectorAll('#cost tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    committees = [(one.name, each) for one in report_data.series for each in one.committees]
    expected = [
        [f"{each['size']} x {name}", f"{each['mflops']:.2f}", *(f"{each[s]['mean']:.4f}" for s in ("accuracy", "nll"))]
        for name, each in committees
    ]
    assert [[row[0], row[2], row[3].split(" ± ")[0], row[5].split(" ± ")[0]] for row in rows] == expected


def test_dark_mode_changes_page_and_figures(browser, page):
    browser.get(page.as_uri())
    look = "return ['body', '.wide svg path'].map(s => getComputedStyle(document.querySelector(s)))"
    look += ".map((s, n) => n ? s.fill : s.backgroundColor)"
    light = browser.execute_script(look)
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    dark = browser.execute_script(look)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert light == ["rgb(255, 255, 254)"] * 2
    assert dark == ["rgb(20, 25, 30)"] * 2
