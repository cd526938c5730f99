"""Is the page what a reader sees? It is opened in a headless Chromium, wide and as on a phone."""

import json

import pytest
from panels import source

from keras_committee.evaluation.report import report as writing
from keras_committee.evaluation.report.run_data import load_report_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def panel():
    runs = [source("<b>first</b>", ["small"] * 3, [10.0] * 3), source("second", ["large"], [25.0], depth=6.5)]
    return load_report_data(runs, "test", [])


@pytest.fixture(scope="module")
def page(panel, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "index.html"
    file.write_text(writing.render_page(panel, *writing.build_sections(panel)))
    return file


@pytest.fixture(params=[1100, 390], ids=["wide", "phone"])
def opened(request, browser, page):
    """The browser with the page, at a width in pixels."""
    screen = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": request.param < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get("about:blank")
    browser.get_log("performance")  # what the browser's own first page asked for
    browser.get(page.as_uri())
    return browser


def test_the_console_stays_silent_and_no_request_leaves_the_file(opened, page):
    assert opened.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in sent
    assert [url for url in sent if url != page.as_uri() and not url.startswith("data:")] == []


def test_every_picture_has_a_size_and_stays_within_the_page(opened, panel):
    sizes = opened.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [...f.querySelectorAll('svg')]"
        ".map(s => s.getBoundingClientRect()).filter(r => r.width > 0).map(r => [r.width, r.height, r.right]))"
    )
    pictures = writing.collect_pictures(writing.build_sections(panel)[0])
    assert len(sizes) == len(pictures) - 1  # the disputed images stand there as images
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


def test_the_tables_are_the_evaluation(opened, panel):
    rows = opened.execute_script(
        "return [...document.querySelectorAll('#cost tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    committees = [(one.name, each) for one in panel.series for each in one.committees]
    expected = [
        [f"{each['size']} x {name}", f"{each['mflops']:.2f}", *(f"{each[s]['mean']:.4f}" for s in ("accuracy", "nll"))]
        for name, each in committees
    ]
    assert [[row[0], row[2], row[3].split(" ± ")[0], row[4].split(" ± ")[0]] for row in rows] == expected


def test_a_dark_screen_turns_page_and_pictures_dark(browser, page):
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
