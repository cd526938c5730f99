"""Checks of the outputs of Classify and Regress, with the messages of TF Serving."""

import types

import numpy as np
import pytest

from keras_committee.tfserving.server.examples import classify, regress
from keras_committee.tfserving.tf_protocol import StatusError

EXAMPLES = np.array([b"1", b"2"], object)
LABELS = np.full((2, 3), b"a", object)
SCORES = np.float32([[0.2, 0.7, 0.1], [0.5, 0.1, 0.4]])


def session_with(**outputs):
    """A session whose signature "s" returns these outputs."""
    spec = types.SimpleNamespace(inputs={"inputs": None}, outputs=outputs, proto="PROTO")

    def run(_signature, inputs, names, timeout):
        assert inputs == {"inputs": EXAMPLES}
        return {name: outputs[name] for name in names}

    return types.SimpleNamespace(signatures={"s": spec}, run=run)


@pytest.mark.parametrize("outputs", [{"classes": LABELS, "scores": SCORES}, {"classes": LABELS}, {"scores": SCORES}])
def test_classify_returns_labels_scores_or_both(outputs):
    classes, scores = classify(session_with(**outputs), "s", EXAMPLES)
    assert (classes is outputs.get("classes"), scores is outputs.get("scores")) == (True, True)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"scores": SCORES[0]}, r"Expected Tensor shape: \[batch_size num_classes\] but got \[3\]"),
        ({"scores": SCORES.astype(np.float64)}, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
        ({"classes": SCORES}, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
        ({"scores": SCORES[:1]}, "Expected scores output batch size of 2. Got: 1"),
        ({"classes": LABELS[:, :2], "scores": SCORES}, r"should match in dim_size\(1\). Got 2 vs. 3"),
        ({"a": LABELS, "b": LABELS, "c": LABELS}, "Expected one or two output Tensors, found 3"),
    ],
)
def test_classify_rejects_other_outputs(outputs, message):
    with pytest.raises(StatusError, match=f"INVALID_ARGUMENT: .*{message}"):
        classify(session_with(**outputs), "s", EXAMPLES)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regress_returns_one_value_per_example(shape):
    values = np.float32([3.5, 2.5]).reshape(shape)
    np.testing.assert_array_equal(regress(session_with(outputs=values), "s", EXAMPLES), [3.5, 2.5])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2), np.float32), r"either \[batch_size\] or \[batch_size, 1\] but got \[2,2\]"),
        (np.zeros(3, np.float32), "Input batch size did not match output batch size: 2 vs. 3"),
        (np.zeros(2, np.float64), "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
    ],
)
def test_regress_rejects_other_outputs(values, message):
    with pytest.raises(StatusError, match=f"INVALID_ARGUMENT: .*{message}"):
        regress(session_with(outputs=values), "s", EXAMPLES)
