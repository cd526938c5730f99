"""The page at / of the local server: the predictions that it shows, and no markup from other sources."""

import io
import re
import time
import types
import urllib.request

import numpy as np
import pytest
from PIL import Image
from tiny_committee import NAMES, SIZE, expected

from keras_committee.tfserving.server import rest
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


def png(path):
    Image.fromarray(np.array(ORANGE)).save(path)
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


@pytest.mark.slow
def test_a_selected_image_shows_its_classes_and_each_members_prediction(browser, until, address, tmp_path):
    browser.get(address)
    until(lambda: texts(browser, "#version option") == ["4"])
    browser.find_element("id", "file").send_keys(str(png(tmp_path / "orange.png")))
    until(lambda: len(texts(browser, "#members .bar")) == 3)
    probabilities = expected(ORANGE[None])[0]
    mean = probabilities.mean(0)
    assert texts(browser, "#classes .bar span:first-child") == [NAMES[i] for i in np.argsort(-mean)]
    shown = [float(text.removesuffix(" %")) for text in texts(browser, "#classes .number")]
    np.testing.assert_allclose(shown, 100 * np.sort(mean)[::-1], atol=0.051)
    assert texts(browser, "#verdict") == [f"<b>red</b>, {100 * mean[0]:.1f} %"]  # text, not markup
    assert "The committee used 2 of 3 members." in texts(browser, "#members-note")[0]
    assert texts(browser, "#members .faint") == ["used", "used", "not used"]
    assert texts(browser, "#members span:nth-child(2)") == [NAMES[i] for i in probabilities.argmax(1)]
    shown = [float(text.removesuffix(" %")) for text in texts(browser, "#members .number")]
    np.testing.assert_allclose(shown, 100 * probabilities.max(1), atol=0.051)
    widths = [
        float(rect.get_attribute("width")[:-1]) for rect in browser.find_elements("css selector", "#classes rect")
    ]
    np.testing.assert_allclose(widths, 100 * np.sort(mean)[::-1], atol=0.051)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


DROP = """
const [content, name] = arguments;
const file = new File([Uint8Array.from(content)], name, {type: 'image/png'});
const data = new DataTransfer(); data.items.add(file);
const event = new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true});
document.getElementById('drop').dispatchEvent(event);
"""


@pytest.mark.slow
def test_a_dropped_image_is_shown_and_a_dropped_text_is_an_error(browser, until, address):
    browser.get(address)
    until(lambda: texts(browser, "#version option") == ["4"])
    buffer = io.BytesIO()
    Image.fromarray(np.array(ORANGE)).save(buffer, "PNG")
    browser.execute_script(DROP, list(buffer.getvalue()), "orange.png")
    until(lambda: len(texts(browser, "#members .bar")) == 3)
    browser.execute_script(DROP, list(b"<script>alert(1)</script>"), "<img src=x onerror=alert(1)>.png")
    until(lambda: texts(browser, "#error") != [""])
    assert texts(browser, "#error") == ["The server could not decode this file. Select a JPEG or PNG image."]
    assert texts(browser, "#hint") == ["<img src=x onerror=alert(1)>.png"]
    assert not browser.find_element("id", "result").is_displayed()
