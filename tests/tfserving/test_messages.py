"""The client's messages have the bytes of those that TensorFlow and TensorFlow Serving generate."""

import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from keras_committee.tfserving import messages
from keras_committee.tfserving.client import _STATES

TENSOR = tf.make_tensor_proto([[2.5, 3.5]])
TYPED_TENSOR = {
    "dtype": 3,
    "tensor_shape": {"dim": [{"size": 2}, {"size": -1}]},
    "int_val": [-7, 9],
    "half_val": [15360],
    "uint64_val": [2**64 - 1],
    "string_val": [b"\xff"],
}
GENERATED = [
    predict_pb2.PredictRequest(
        model_spec={"name": "m", "version": {"value": 2**40}, "signature_name": "s"},
        inputs={"x": TENSOR},
        output_filter=["a", "b"],
    ),
    predict_pb2.PredictRequest(model_spec={"name": "m", "version_label": "stable"}, inputs={"x": TYPED_TENSOR}),
    predict_pb2.PredictResponse(model_spec={"name": "m", "version": {"value": 0}}, outputs={"y": TENSOR}),
    get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "m"}),
    get_model_status_pb2.GetModelStatusResponse(
        model_version_status=[
            {"version": 3, "state": 30},
            {"version": 2, "state": 50, "status": {"error_code": 3, "error_message": "damaged"}},
        ]
    ),
    tf.train.Example(features={"feature": {"image/encoded": {"bytes_list": {"value": [b"\x89PNG"]}}}}),
]


@pytest.mark.parametrize("generated", GENERATED, ids=lambda message: message.DESCRIPTOR.name)
def test_a_message_has_the_same_bytes_and_no_unknown_field(generated):
    content = generated.SerializeToString(deterministic=True)
    own = getattr(messages, generated.DESCRIPTOR.name).FromString(content)
    assert own.SerializeToString(deterministic=True) == content
    own.DiscardUnknownFields()
    assert own.SerializeToString(deterministic=True) == content


def test_the_states_have_their_names():
    assert {number: name for name, number in get_model_status_pb2.ModelVersionStatus.State.items()} == _STATES
