"""A session returns the results of the model, and the errors of TensorFlow."""

import ctypes
import pathlib
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from keras_committee.tfserving.python_session import PythonSession, load_session
from keras_committee.tfserving.session import Library, Session, find_library
from keras_committee.tfserving.tf_protocol import StatusError, truncated

X = np.array([1.0, 2.0, 5.0], np.float32)


@pytest.fixture(scope="module", params=[Session, PythonSession])
def session(request, half_plus_two):
    with request.param.load(half_plus_two / "123") as session:
        yield session


def example(x):
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=[x]))
    return tf.train.Example(features=tf.train.Features(feature={"x": feature})).SerializeToString()


def test_it_computes_the_definition(session):
    np.testing.assert_array_equal(session.run("serving_default", {"x": X})["y"], X / 2 + 2)


@pytest.mark.parametrize("shape", [(0,), (1,), (7,)])
def test_shapes_are_kept(session, shape):
    outputs = session.run("", {"x": np.full(shape, 0.2, np.float32)})["y"]
    assert outputs.shape == shape
    assert outputs.dtype == np.float32


def test_strings_go_in_and_out(session):
    outputs = session.run("classify", {"inputs": np.array([example(3.0), example(-1.0)], object)})
    assert outputs["classes"].tolist() == [[b"up", b"down"]] * 2
    np.testing.assert_array_equal(outputs["scores"], [[3.5, -3.5], [1.5, -1.5]])


def test_only_the_requested_outputs_are_returned(session):
    assert list(session.run("classify", {"inputs": np.array([example(3.0)], object)}, ["scores"])) == ["scores"]


def test_signatures_describe_inputs_and_outputs(session):
    assert set(session.signatures) == {"classify", "regress", "serving_default"}
    x = session.signatures["serving_default"].inputs["x"]
    assert (x.dtype, x.shape, x.tensor_name) == ("float32", (None,), "serving_default_x:0")
    assert session.signatures["classify"].outputs["classes"].dtype == "string"
    assert session.signatures["regress"].method_name == "tensorflow/serving/predict"
    assert "serving_default" in session.meta_graph.signature_def


@pytest.mark.parametrize(
    ("code", "message", "call"),
    [
        ("FAILED_PRECONDITION", 'Serving signature key "nope" not found.', ("nope", {"x": X})),
        ("INVALID_ARGUMENT", "Expects arg[0] to be float but double is provided", ("", {"x": X.astype(np.float64)})),
        ("INVALID_ARGUMENT", "Expects arg[0] to be float but string is provided", ("", {"x": np.array(["a"])})),
        (
            "INVALID_ARGUMENT",
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
            "Missing but required: {}.",
            ("", {"x": X, "z": X}),
        ),
        (
            "INVALID_ARGUMENT",
            "input tensor alias not found in signature: z. Inputs expected to be in the set {x}.",
            ("", {"z": X}),
        ),
        (
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: nope Outputs expected to be in the set {y}.",
            ("", {"x": X}, ["nope"]),
        ),
        ("INVALID_ARGUMENT", "duplicate output tensor alias: y", ("", {"x": X}, ["y", "y"])),
    ],
)
def test_D08_a_wrong_call_has_the_message_of_tf_serving(session, code, message, call):
    with pytest.raises(StatusError) as caught:
        session.run(*call)
    assert (caught.value.code, caught.value.message) == (code, message)


def test_an_input_that_an_operation_rejects_is_an_invalid_argument(session):
    with pytest.raises(StatusError, match=r"^INVALID_ARGUMENT: Could not parse example input, value: 'q'"):
        session.run("regress", {"inputs": np.array([b"q"], object)})


def test_a_folder_without_a_model_is_not_found(tmp_path):
    with pytest.raises(StatusError, match=r"^NOT_FOUND: Could not find SavedModel .pb or .pbtxt"):
        Session.load(tmp_path)


def test_a_truncated_model_has_the_message_of_tensorflow(half_plus_two, tmp_path):
    content = (half_plus_two / "123" / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(content[: len(content) // 2])
    with pytest.raises(StatusError, match="OUT_OF_RANGE: Read less bytes than requested"):
        Session.load(tmp_path)


def test_many_threads_share_a_session(half_plus_two):
    with Session.load(half_plus_two / "123") as session, ThreadPoolExecutor(8) as threads:
        results = threads.map(lambda i: session.run("", {"x": np.float32([i, i + 0.2])})["y"], range(200))
        expected = [np.float32([i, i + 0.2]) / 2 + 2 for i in range(200)]
        np.testing.assert_allclose(list(results), expected, rtol=1e-6)


def test_a_closed_session_is_unavailable(half_plus_two):
    session = Session.load(half_plus_two / "123")
    session.close()
    session.close()
    with pytest.raises(StatusError, match="UNAVAILABLE: the session is closed"):
        session.run("", {"x": X})


class Loop(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([], tf.int64, "steps")])
    def count(self, steps):
        return {"y": tf.while_loop(lambda i: i < steps, lambda i: [i + 1], [tf.constant(0, tf.int64)])[0]}


def test_a_call_ends_at_its_timeout_in_seconds(tmp_path):
    tf.saved_model.save(Loop(), str(tmp_path), signatures=Loop().count)
    with Session.load(tmp_path) as session:
        assert session.run("", {"steps": np.int64(100_000)}, timeout=60.0)["y"] == 100_000  # takes more than 60 ms
        with pytest.raises(StatusError, match=r"^DEADLINE_EXCEEDED: "):
            session.run("", {"steps": np.int64(10**12)}, timeout=0.1)


class Rank(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec(None, tf.complex64, "x"), tf.TensorSpec([None], tf.int32, "shape")])
    def reshape(self, x, shape):
        return {"y": tf.reshape(tf.math.conj(x), shape)}


@pytest.mark.parametrize("kind", [Session, PythonSession])
def test_complex_arrays_have_as_many_dimensions_as_numpy_allows(kind, tmp_path):
    tf.saved_model.save(Rank(), str(tmp_path), signatures=Rank().reshape)
    x = np.array([[0.2 + 0.7j, 3]], np.complex64)
    with kind.load(tmp_path) as session:
        outputs = session.run("", {"x": x.reshape([1] * 32 + [2]), "shape": np.int32([1] * 63 + [2])})
        np.testing.assert_array_equal(outputs["y"], np.conj(x).reshape([1] * 63 + [2]))
        with pytest.raises(StatusError, match="a tensor of 65 dimensions; at most 64 are supported"):
            session.run("", {"x": x, "shape": np.int32([1] * 64 + [2])})


def test_strings_of_any_length_leave_no_memory_behind(half_plus_two):
    ignored = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"q" * 1_000_000]))
    long = tf.train.Example.FromString(example(3.0))
    long.features.feature["ignored"].CopyFrom(ignored)
    request = {"inputs": np.array([long.SerializeToString()], object)}
    with Session.load(half_plus_two / "123") as session:
        session.run("regress", request)
        before = resident()
        results = [session.run("regress", request)["outputs"].item() for _ in range(100)]
        assert resident() - before < 50e6  # a leak of each string is 100 MB
        assert results == [3.5] * 100


def resident():
    """Return the memory of this process in bytes."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_python_takes_over_without_a_c_api(half_plus_two, monkeypatch):
    monkeypatch.setattr("keras_committee.tfserving.session.importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("keras_committee.tfserving.session.load_library", uncached_library)
    with load_session(half_plus_two / "123") as session:
        assert isinstance(session, PythonSession)


def uncached_library():
    from keras_committee.tfserving import session

    return session.Library(session.find_library())


def test_a_long_message_is_marked_where_it_was_cut():
    assert truncated("é" * 600) == "é" * 512 + "...TRUNCATED"
    assert truncated("é" * 512) == "é" * 512


def test_the_log_of_tensorflow_follows_its_environment_variable(monkeypatch):
    path = find_library()
    minimum = ctypes.CDLL(str(path))["_ZN4absl12lts_2025012711MinLogLevelEv"]
    before = minimum()
    for level in (2, before):
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", str(level))
        Library(path)
        assert minimum() == level
