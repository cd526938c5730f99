"""How is a gRPC server asked with bytes that nobody has checked?"""

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
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def send(channel, method, content, timeout=10):
    """Sends bytes as they are; the answer's bytes, its code and message."""
    try:
        return channel.unary_unary(KINDS[method][0] + method)(content, timeout=timeout), "OK", ""
    except grpc.RpcError as error:
        return b"", error.code().name, error.details()


def done(calls, count):
    """Those of `calls` that have ended, once these are `count`, or 10 seconds have passed."""
    until = time.monotonic() + 10
    while len([call for call in calls if call.done()]) < count and time.monotonic() < until:
        time.sleep(0.01)
    return [call for call in calls if call.done()]


def encoded(case):
    return text_format.Parse(case.request, KINDS[case.method][1]()).SerializeToString()


def ask(channel, case):
    return send(channel, case.method, encoded(case))
