"""Conformance of the gRPC API with TF Serving.

To test another server with the models and the label of `zoo.py` (see test_conformance.py):

    python -m pytest tests/tfserving/server/test_grpc_conformance.py --target grpc://127.0.0.1:8500
"""

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from grpc_cases import CASES
from grpc_requests import KINDS, call, send
from grpc_upstream_cases import CASES as UPSTREAM_CASES
from grpc_upstream_cases import COUNTER, spec
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from keras_committee.tfserving.tf_protocol import typed_proto

ALL_CASES = CASES | UPSTREAM_CASES


@pytest.fixture(scope="module")
def channel(request):
    """A channel to the target, or to the local server."""
    target = request.config.getoption("--target") or ""
    if target.startswith("grpc://"):
        with grpc.insecure_channel(target.removeprefix("grpc://")) as channel:
            yield channel
    else:
        yield request.getfixturevalue("grpc_channel")


@pytest.fixture(params=ALL_CASES)
def case(request):
    if ALL_CASES[request.param].ours and request.config.getoption("--target"):
        pytest.skip("a limit of the local server")
    return ALL_CASES[request.param]


def expected(case, content):
    """Return the expected response, or the one in `content` if any is accepted."""
    response = KINDS[case.method][2]
    return text_format.Parse(case.answer, response()) if case.answer else response.FromString(content)


def test_D08_D09_D11_D14_D15_each_response_is_that_of_tf_serving(channel, case):
    content, code, message = call(channel, case)
    assert (code, case.message in message) == (case.code, True), f"{message} [{case.source}]"
    assert KINDS[case.method][2].FromString(content) == expected(case, content)


def test_metadata_holds_every_signature_of_the_model(channel):
    content, _, _ = call(channel, CASES["metadata"])
    response = get_model_metadata_pb2.GetModelMetadataResponse.FromString(content)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "classify", "regress"} <= set(signatures.signature_def)
    assert signatures.signature_def["serving_default"].inputs["x"].tensor_shape.dim[0].size == -1
    assert (response.model_spec.name, response.model_spec.version.value) == ("half_plus_two", 123)


def test_signatures_without_inputs_change_a_variable_as_in_the_test_of_predict_impl(channel):
    outputs = []
    for signature, delta, _ in COUNTER:
        request = text_format.Parse(spec(signature), predict_pb2.PredictRequest())
        if delta is not None:
            request.inputs["delta"].CopyFrom(typed_proto(np.array(delta, np.float32)))
        content, _, message = send(channel, "Predict", request.SerializeToString())
        outputs.append(message or predict_pb2.PredictResponse.FromString(content).outputs["output"].float_val[0])
    assert outputs == [output for _, _, output in COUNTER]
