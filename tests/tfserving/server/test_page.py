"""The page at / of the local server: the predictions that it shows, and no markup from other sources."""

import io
import re
import time
import types
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny_committee import NAMES, SIZE, expected

from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.server.manager import Manager, ManagerOptions, ModelConfig, VersionPolicy
from keras_committee.tfserving.server.page import content_security_policy, list_models
from keras_committee.tfserving.tf_protocol import StatusError

ORANGE = np.broadcast_to(np.array([230, 120, 20], np.uint8), (SIZE, SIZE, 3))


@pytest.fixture(scope="module")
def manager(tiny_committee):
    with Manager([ModelConfig("tiny", tiny_committee, VersionPolicy.specific(4))], ManagerOptions(0.2)) as manager:
        manager.wait_until_available()
        yield manager


@pytest.fixture(scope="module")
def address(manager):
    with rest.start(manager, ("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.port}/"


def png(path, image):
    Image.fromarray(np.array(image)).save(path)
    return path


def test_the_page_needs_no_network_and_names_the_local_server(address):
    with urllib.request.urlopen(address, timeout=10) as response:
        html, headers = response.read().decode(), response.headers
    assert "It is not TensorFlow Serving." in html
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html) == []
    assert re.findall(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", html) == []
    assert headers["Content-Security-Policy"] == content_security_policy(html)
    assert "default-src 'none'" in content_security_policy(html)
    assert content_security_policy(html).count("'sha256-") == 2
    assert "unsafe" not in content_security_policy(html)


def test_the_page_lists_the_available_versions(manager, address):
    with urllib.request.urlopen(f"{address}page/models", timeout=10) as response:
        assert response.headers["Content-Type"] == "application/json"
    assert list_models(manager) == [{"name": "tiny", "versions": ["4"], "labels": {}}]


def test_only_available_versions_are_listed_newest_first(tmp_path):
    def load(folder):
        if folder.name == "4":
            raise StatusError("INTERNAL", "broken")
        return types.SimpleNamespace(close=lambda: None)

    for version in ("3", "4", "10"):
        (tmp_path / version).mkdir()
    config = ModelConfig("H", tmp_path, VersionPolicy.all_versions(), {"stable": 3})
    options = ManagerOptions(0.02, max_retries=0, allow_labels_for_unavailable=True)
    with Manager([config], options, load) as manager:
        deadline = time.monotonic() + 10
        while list_models(manager)[0]["versions"] != ["10", "3"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list_models(manager) == [{"name": "H", "versions": ["10", "3"], "labels": {"stable": "3"}}]


def texts(browser, selector):
    return [element.text for element in browser.find_elements("css selector", selector)]


DROP = """
const data = new DataTransfer();
for (const [name, content] of arguments)
  data.items.add(new File([Uint8Array.from(content)], name, {type: 'image/png'}));
const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
document.getElementById('drop').dispatchEvent(event);
"""


@pytest.mark.slow
def test_each_of_several_images_shows_the_answers_of_committee_and_members(browser, until, address, tmp_path):
    teal = np.broadcast_to(np.array([10, 120, 140], np.uint8), (SIZE, SIZE, 3))
    # Scaled by 8, to pixels that depend on the antialiasing, which a browser does differently.
    striped = np.zeros((SIZE * 8, SIZE * 8, 3), np.uint8)
    striped[:, ::8] = striped[:, 1::8] = [250, 80, 30]
    files = [png(tmp_path / f"{index}.png", image) for index, image in enumerate([ORANGE, teal, striped])]
    text = tmp_path / "<img src=x onerror=alert(1)>.png"
    text.write_text("<script>alert(1)</script>")
    browser.get(address)
    until(lambda: texts(browser, "#version option") == ["4"])
    browser.find_element("id", "file").send_keys("\n".join(map(str, [files[0], text, *files[1:]])))
    until(lambda: texts(browser, "#status") == ["3 of 4 images classified"])
    assert texts(browser, ".card .name") == ["0.png", "<img src=x onerror=alert(1)>.png", "1.png", "2.png"]
    assert texts(browser, ".card .error") == ["The server could not decode this file. Select a JPEG or PNG image."]
    decoded = [tf.image.resize(image, [SIZE, SIZE], antialias=True).numpy() for image in (ORANGE, teal, striped)]
    for position, probabilities in zip((1, 3, 4), expected(np.stack(decoded)), strict=True):
        card = f".card:nth-child({position})"
        mean = probabilities.mean(0)
        assert texts(browser, f"{card} .classes th") == [NAMES[i] for i in np.argsort(-mean)]
        assert_percentages(texts(browser, f"{card} .classes .number"), np.sort(mean)[::-1])
        verdict = f"{NAMES[mean.argmax()]}, {100 * mean.max():.1f} %"  # text, not markup
        assert texts(browser, f"{card} .verdict") == [verdict]
        assert texts(browser, f"{card} .facts")[0].startswith("2 of 3 members used · ")
        assert texts(browser, f"{card} .members th") == ["member 0", "member 1", "member 2 (not used)"]
        best = probabilities.argmax(1)
        assert texts(browser, f"{card} .members th + td") == [NAMES[i] for i in best]
        assert texts(browser, f"{card} .differs") == [NAMES[i] for i in best if i != mean.argmax()]
        assert_percentages(texts(browser, f"{card} .members .number"), probabilities.max(1))
        bars = browser.find_elements("css selector", f"{card} .classes rect")
        assert_percentages([bar.get_attribute("width") for bar in bars], np.sort(mean)[::-1])
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    browser.find_element("id", "clear").click()
    until(lambda: not texts(browser, ".card"))
    assert browser.switch_to.active_element.get_attribute("id") == "file"


def assert_percentages(shown, fractions):
    shown = [float(text.rstrip(" \u00a0%")) for text in shown]
    np.testing.assert_allclose(shown, 100 * np.array(fractions), atol=0.051)


@pytest.mark.slow
def test_dropped_images_too_large_a_file_and_a_stopped_server(browser, until, manager):
    buffer = io.BytesIO()
    Image.fromarray(np.array(ORANGE)).save(buffer, "PNG")
    content, limits = list(buffer.getvalue()), Limits(max_body_bytes=9 * 1024)
    with rest.start(manager, ("127.0.0.1", 0), limits) as server:
        browser.get(f"http://127.0.0.1:{server.port}/")
        until(lambda: texts(browser, "#version option") == ["4"])
        browser.execute_script(DROP, ["orange.png", content], ["large.png", content + [0] * 8000])
        until(lambda: texts(browser, "#status") == ["1 of 2 images classified"])
        assert texts(browser, ".error") == ["", "This file has 7.9 KiB; the server accepts at most 6.0 KiB."]
    browser.execute_script(DROP, ["a.png", content], ["b.png", content])
    until(lambda: texts(browser, "#error") != [""])
    assert texts(browser, "#error")[0].startswith("The server does not respond.")
    assert texts(browser, "#status") == ["0 of 2 images classified"]
    with rest.start(manager, ("127.0.0.1", server.port)):
        browser.find_element("id", "retry").click()
        until(lambda: texts(browser, "#status") == ["2 images"])
    assert not browser.find_element("id", "error").is_displayed()
