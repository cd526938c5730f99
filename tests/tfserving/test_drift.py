"""Drift: the indices by their definitions and SciPy, the window, the manifest, and the metrics of the server."""

import json
import math
import urllib.request

import numpy as np
import pytest
from scipy import stats
from tiny_committee import SIZE

from keras_committee.errors import DataError
from keras_committee.tfserving.drift import (
    DriftMonitor,
    population_stability_index,
    reference_distribution,
    render_drift,
)
from keras_committee.tfserving.server.local_server import LocalServer, ServerOptions, config_from_folder


def outputs(seed, examples, shift=0.0):
    rng = np.random.default_rng(seed)
    return {
        "confidence": rng.beta(5 - shift, 2, examples).astype(np.float32),
        "members_used": rng.choice([1, 3], examples, p=[0.7, 0.3]),
        "class_id": rng.integers(0, 4, examples),
    }


def reference(seed=0, examples=800, **fields):
    document = reference_distribution(
        outputs(seed, examples), ["confidence"], {"members_used": True, "class_id": False, "set_size": True}
    )
    return json.loads(json.dumps(document)) | fields


def test_the_stability_index_is_that_of_the_slow_loop():
    shares, counts = np.array([0.5, 0.3, 0.2, 0.0]), np.array([10, 40, 45, 5])
    total = 0.0
    for share, count in zip(shares, counts, strict=True):
        p, q = (share * 200 + 0.5) / 202, (count + 0.5) / 102
        total += (q - p) * math.log(q / p)
    assert population_stability_index(shares, counts, 200) == pytest.approx(total)
    assert population_stability_index(shares, 1000 * shares, 1000) == pytest.approx(0)


def test_the_p_values_are_those_of_scipy():
    monitor = DriftMonitor(reference())
    served = outputs(1, 500, shift=0.6)
    monitor.add(served)
    result = monitor.compare()
    for name in ("confidence", "members_used"):
        expected = stats.ks_2samp(outputs(0, 800)[name], served[name], method="asymp").pvalue
        assert result[name]["ks_p_value"] == pytest.approx(expected, rel=1e-6)
    assert "ks_p_value" not in result["class_id"]
    assert result["confidence"]["psi"] > 0.04 > result["class_id"]["psi"]
    monitor = DriftMonitor(reference(examples=5000))  # of more than 1,000 values, a thousand are kept
    monitor.add(served)
    expected = stats.ks_2samp(outputs(0, 5000)["confidence"], served["confidence"]).statistic
    p_value = stats.kstwo.sf(expected, round(5000 * 500 / 5500))
    assert monitor.compare()["confidence"]["ks_p_value"] == pytest.approx(p_value, rel=0.25)


def test_answers_of_the_same_distribution_are_stable_and_a_new_value_counts():
    monitor = DriftMonitor(reference())
    monitor.add(outputs(2, 3000))
    result = monitor.compare()
    assert all(values["psi"] < 0.02 for values in result.values())
    assert all(values.get("ks_p_value", 1) > 0.01 for values in result.values())
    monitor.add({"members_used": np.full(1500, 2)})
    assert monitor.compare()["members_used"]["psi"] > 0.25


def test_many_classes_are_counted_in_groups():
    rng = np.random.default_rng(3)
    document = reference_distribution({"class_id": rng.integers(0, 1000, 5000)}, [], {"class_id": False})
    monitor = DriftMonitor(document)
    monitor.add({"class_id": rng.integers(0, 1000, 500)})
    assert monitor.compare()["class_id"]["psi"] < 0.1
    monitor.add({"class_id": rng.integers(0, 500, 2000)})
    assert monitor.compare()["class_id"]["psi"] > 0.25


def test_only_the_latest_valid_answers_of_the_signatures_count():
    monitor = DriftMonitor(reference(signatures=["serving_default"]), window=200)
    monitor.add(outputs(1, 500, shift=4.0), "serving_default")
    monitor.add({**outputs(2, 300), "valid": np.arange(300) < 250}, "serving_default")
    monitor.add(outputs(3, 700, shift=4.0), "predict_members")
    result = monitor.compare()
    assert {values["images"] for values in result.values()} == {200}
    assert result["confidence"]["psi"] < 0.25


def test_few_answers_publish_nothing():
    monitor = DriftMonitor(reference())
    monitor.add(outputs(1, 99))
    assert render_drift([("m", 3, monitor)]) == ""
    monitor.add(outputs(2, 1))
    text = render_drift([("m", 3, monitor)])
    assert "# TYPE keras_committee_drift_psi gauge\n" in text
    assert 'keras_committee_drift_images{model="m",version="3",output="class_id"} 100\n' in text


def test_a_version_without_or_with_a_damaged_reference_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"committee\.json has no reference distribution\.\n  Export a selection"):
        DriftMonitor.from_version(tmp_path)
    (tmp_path / "committee.json").write_text("{")
    with pytest.raises(DataError, match=r"committee\.json is damaged: .*\n  Export again"):
        DriftMonitor.from_version(tmp_path)


def test_the_local_server_publishes_the_drift_of_its_answers(tiny_committee, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, SIZE, SIZE, 3)).tolist()
    manifest = {"reference": reference(signatures=["serving_default"])}
    copy = tmp_path / "copied" / "1"
    copy.mkdir(parents=True)
    for item in (tiny_committee / "4").iterdir():
        (copy / item.name).symlink_to(item)
    (copy / "committee.json").write_text(json.dumps(manifest))
    options = ServerOptions(rest_port=0, grpc_port=None)
    with LocalServer(config_from_folder(copy.parent), options) as server:
        url = f"http://127.0.0.1:{server.rest_port}"
        for signature in ("serving_default", "predict_members"):
            body = json.dumps({"signature_name": signature, "instances": images}).encode()
            urllib.request.urlopen(f"{url}/v1/models/copied:predict", body, timeout=30).read()
        with urllib.request.urlopen(f"{url}/monitoring/prometheus/metrics", timeout=10) as response:
            text = response.read().decode()
    labels = 'model="copied",version="1",output="members_used"'
    assert f"keras_committee_drift_images{{{labels}}} 120\n" in text
    assert f"keras_committee_drift_ks_p_value{{{labels}}} " in text
