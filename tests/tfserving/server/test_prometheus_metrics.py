"""Prometheus metrics under the names of TF Serving."""

import contextlib
import http.client
import re

from google.protobuf import text_format

from keras_committee.tfserving.server import rest
from keras_committee.tfserving.server.grpc import PredictionServicer
from keras_committee.tfserving.server.limits import Limits
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


def test_examples_are_counted_in_total_and_per_request():
    metrics = Metrics()
    for count in (1, 3, 4, 40_000):
        metrics.record_examples("m", count)
    text = metrics.render()
    assert "# TYPE :tensorflow:serving:request_example_count_total counter\n" in text
    assert ':tensorflow:serving:request_example_count_total{model="m"} 40008\n' in text
    assert "# TYPE :tensorflow:serving:request_example_counts histogram\n" in text
    buckets = dict(re.findall(r'request_example_counts_bucket{model="m",le="(.+)"} (\d+)', text))
    assert (len(buckets), list(buckets)[:4], list(buckets)[-2:]) == (16, ["1", "2", "4", "8"], ["16384", "+Inf"])
    assert [buckets[bound] for bound in ("1", "2", "4", "8", "16384", "+Inf")] == ["0", "1", "2", "3", "3", "4"]
    assert ':tensorflow:serving:request_example_counts_sum{model="m"} 40008\n' in text


TASK = 'tasks {{ model_spec {{ name: "half_plus_two" signature_name: "{0}" }} method_name: "tensorflow/serving/{0}" }}'
EXAMPLE = 'examples { features { feature { key: "x" value { float_list { value: 3 } } } } }'


def test_the_examples_of_multi_inference_are_counted_once(grpc_manager):
    from tensorflow_serving.apis import inference_pb2

    metrics = Metrics()
    method = PredictionServicer(grpc_manager, Limits(), metrics).methods()["tensorflow.serving.PredictionService"]
    request = text_format.Parse(
        f"{TASK.format('regress')} {TASK.format('classify')} input {{ example_list {{ {EXAMPLE * 3} }} }}",
        inference_pb2.MultiInferenceRequest(),
    )
    method["MultiInference"](request.SerializeToString(), 20)
    assert ':tensorflow:serving:request_example_count_total{model="half_plus_two"} 3\n' in metrics.render()


def test_requests_over_http_are_counted_as_in_tf_serving(grpc_manager):
    metrics, predict = Metrics(), "/v1/models/half_plus_two:predict"
    requests = [
        ("GET", "/v1/models/half_plus_two", None),
        ("GET", "/v1/models/half_plus_two/versions/123", None),
        ("GET", "/v1/models/half_plus_two/metadata", None),
        ("GET", "/v1/models/half_plus_two/versions/9", None),
        ("POST", predict, '{"instances": [3]}'),
        ("POST", predict, "{"),
        ("GET", "/v1/models/unknown", None),
        ("GET", "/v1/nothing", None),
        ("OPTIONS", "/v1/models/half_plus_two", None),
        ("GET", "/elsewhere", None),
    ]
    with (
        rest.start(grpc_manager, ("127.0.0.1", 0), metrics=metrics) as server,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection,
    ):
        for request in requests:
            connection.request(*request)
            connection.getresponse().read()
    counts = re.findall(r'request_count{model_name="(.*)",status="(.*)"} (\d+)', metrics.render())
    assert counts == [
        ("", "FAILED_PRECONDITION", "1"),
        ("", "INVALID_ARGUMENT", "1"),
        ("half_plus_two", "INVALID_ARGUMENT", "1"),
        ("half_plus_two", "NOT_FOUND", "1"),
        ("half_plus_two", "OK", "4"),
    ]
    latencies = re.findall(r'request_latency_count{model_name="half_plus_two",API="(.*)",.*} (\d+)', metrics.render())
    assert latencies == [("", "3"), ("predict", "1")]
