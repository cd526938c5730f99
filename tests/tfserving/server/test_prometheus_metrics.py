"""Prometheus metrics under the names of TF Serving."""

import re

from keras_committee.tfserving.server.metrics import Metrics


def test_counts_and_latencies_are_rendered_with_their_labels_in_microseconds():
    metrics = Metrics()
    metrics.count_request('a"b', "OK")
    for seconds in (9e-6, 17e-6, 0.5, 0.2):
        metrics.record_latency("request_latency", ("m", "Predict", "REST"), seconds)
    text = metrics.render()
    assert ':tensorflow:serving:request_count{model_name="a\\"b",status="OK"} 1' in text
    labels = 'model_name="m",API="Predict",entrypoint="REST"'
    assert f":tensorflow:serving:request_latency_sum{{{labels}}} 700026\n" in text
    assert f":tensorflow:serving:request_latency_count{{{labels}}} 4\n" in text
    buckets = re.findall(rf'request_latency_bucket{{{labels},le="(.+)"}} (\d+)', text)
    assert buckets[:3] == [("10", "1"), ("18", "2"), ("32.4", "2")]  # scale 10, power 1.8
    assert (len(buckets), buckets[-1]) == (34, ("+Inf", "4"))


def test_a_latency_on_the_bound_of_a_bucket_is_in_the_next_one():
    metrics = Metrics()
    metrics.record_latency("runtime_latency", ("m", "Predict", "TF1"), 10e-6)
    counts = re.findall(r'runtime_latency_bucket{.*le="(?:10|18)"} (\d)', metrics.render())
    assert counts == ["0", "1"]
