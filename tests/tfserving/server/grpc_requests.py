"""Raw calls of a gRPC server: bytes in, bytes and status out."""

import resource
import time
from pathlib import Path

import grpc
from google.protobuf import text_format
from grpc_cases import CASES
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

PREDICTION, MODEL = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
KINDS = {
    "Predict": (PREDICTION, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
    "Classify": (PREDICTION, classification_pb2.ClassificationRequest, classification_pb2.ClassificationResponse),
    "Regress": (PREDICTION, regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
    "MultiInference": (PREDICTION, inference_pb2.MultiInferenceRequest, inference_pb2.MultiInferenceResponse),
    "GetModelMetadata": (
        PREDICTION,
        get_model_metadata_pb2.GetModelMetadataRequest,
        get_model_metadata_pb2.GetModelMetadataResponse,
    ),
    "GetModelStatus": (MODEL, get_model_status_pb2.GetModelStatusRequest, get_model_status_pb2.GetModelStatusResponse),
    "HandleReloadConfigRequest": (
        MODEL,
        model_management_pb2.ReloadConfigRequest,
        model_management_pb2.ReloadConfigResponse,
    ),
}
THREE = CASES["predict"]


def resident():
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def send(channel, method, content, timeout=10):
    """Send bytes; return the bytes of the response, the status code and the message."""
    try:
        return channel.unary_unary(KINDS[method][0] + method)(content, timeout=timeout), "OK", ""
    except grpc.RpcError as error:
        return b"", error.code().name, error.details()


def wait_done(calls, count):
    """Wait until `count` of `calls` are done, at most 10 seconds, and return those that are."""
    deadline = time.monotonic() + 10
    while sum(rpc.done() for rpc in calls) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return [rpc for rpc in calls if rpc.done()]


def encoded(case):
    return text_format.Parse(case.request, KINDS[case.method][1]()).SerializeToString()


def call(channel, case):
    return send(channel, case.method, encoded(case))
