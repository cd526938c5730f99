"""Checks and warm-up requests of a version, which keep it from being served if they fail."""

import contextlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from keras_committee.tfserving.server.loading import check_no_xla, load_version
from keras_committee.tfserving.session import Session
from keras_committee.tfserving.tf_protocol import WARMUP_FILE, StatusError

ONE = {"x": np.float32([1.0])}
PASSES = contextlib.nullcontext()


def fails(message):
    return pytest.raises(StatusError, match=message)


def write_warmup(folder, *requests):
    from tensorflow_serving.apis import prediction_log_pb2

    path = folder / WARMUP_FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictionLog()  # a record without a request counts, too
            for signature, array in filter(None, [request]):
                log.predict_log.request.model_spec.signature_name = signature
                log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
            writer.write(log.SerializeToString())


def load_warm(half_plus_two, tmp_path, *requests):
    folder = shutil.copytree(half_plus_two / "123", tmp_path / "warm")
    write_warmup(folder, *requests)
    load_version(folder).close()


def test_a_thousand_warm_up_requests_pass_and_one_more_does_not(half_plus_two, tmp_path):
    load_warm(half_plus_two, tmp_path, ("", ONE["x"]), *[None] * 999)
    shutil.rmtree(tmp_path / "warm")
    with pytest.raises(StatusError, match=r"Number of warmup records exceeds the maximum \(1000\)"):
        load_warm(half_plus_two, tmp_path, *[None] * 1001)


@pytest.mark.parametrize(
    ("signature", "array", "message"),
    [
        ("nope", ONE["x"], 'Serving signature key "nope" not found.'),
        ("", np.float64([1]), "Expects arg"),
        ("", np.zeros([2000], np.float32), "a batch of 2000; at most 1024"),
    ],
)
def test_a_warm_up_request_that_fails_keeps_its_version_from_being_served(
    half_plus_two, tmp_path, signature, array, message
):
    with pytest.raises(StatusError, match=message):
        load_warm(half_plus_two, tmp_path, (signature, array))


EXAMPLE = 'input { example_list { examples { features { feature { key: "x" value { float_list { value: 3 } } } } } } }'
TASK = 'tasks { model_spec { signature_name: "%s" } method_name: "tensorflow/serving/regress" }'


@pytest.mark.parametrize(
    ("log", "outcome"),
    [
        (f'classify_log {{ request {{ model_spec {{ signature_name: "classify" }} {EXAMPLE} }} }}', PASSES),
        (f'classify_log {{ request {{ model_spec {{ signature_name: "regress" }} {EXAMPLE} }} }}', fails("classes")),
        (f'regress_log {{ request {{ model_spec {{ signature_name: "regress" }} {EXAMPLE} }} }}', PASSES),
        (f'regress_log {{ request {{ model_spec {{ signature_name: "classify" }} {EXAMPLE} }} }}', fails("one output")),
        (f"multi_inference_log {{ request {{ {TASK % 'regress'} {EXAMPLE} }} }}", PASSES),
        (f"multi_inference_log {{ request {{ {TASK % 'classify'} {EXAMPLE} }} }}", fails("one output")),
        ("session_run_log { }", fails("UNIMPLEMENTED: Unsupported log_type for warmup: session_run_log")),
    ],
)
def test_each_kind_of_warm_up_request_runs_its_method(half_plus_two, tmp_path, log, outcome):
    from tensorflow_serving.apis import prediction_log_pb2

    record = text_format.Parse(log, prediction_log_pb2.PredictionLog()).SerializeToString()
    folder = shutil.copytree(half_plus_two / "123", tmp_path / "warm")
    (folder / WARMUP_FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
        writer.write(record)
    with outcome:
        load_version(folder).close()


def test_a_warm_up_file_that_is_no_tfrecord_is_data_loss(half_plus_two, tmp_path):
    folder = shutil.copytree(half_plus_two / "123", tmp_path / "warm")
    (folder / WARMUP_FILE).parent.mkdir()
    (folder / WARMUP_FILE).write_bytes(b"this is text, not records of requests")
    with pytest.raises(StatusError, match=r"DATA_LOSS: .*Please verify your warmup data is in TFRecord format\."):
        load_version(folder)


def test_a_model_without_the_values_of_its_variables_is_rejected(half_plus_two, tmp_path):
    folder = shutil.copytree(half_plus_two / "123", tmp_path / "1")
    shutil.rmtree(folder / "variables")
    with pytest.raises(StatusError, match=r"NOT_FOUND: the model has variables, but there is no file .*/variables"):
        load_version(folder)


def test_a_function_that_must_be_compiled_is_rejected(half_plus_two):
    with Session.load(half_plus_two / "123") as session:
        check_no_xla(session.meta_graph)
        session.meta_graph.graph_def.library.function[0].attr["_XlaMustCompile"].b = True
        with pytest.raises(StatusError, match="XLA compilation disabled"):
            check_no_xla(session.meta_graph)
