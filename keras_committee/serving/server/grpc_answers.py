"""What does TF Serving answer to each gRPC request?

Source: tensorflow/serving, servables/tensorflow/predict_util.cc and get_model_metadata_impl.cc,
model_servers/get_model_status_impl.cc and model_service_impl.cc.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_committee.serving.server.configs import read_configs
from keras_committee.serving.server.grpc_examples import ExampleAnswers, answering_spec
from keras_committee.serving.server.images import check_strings
from keras_committee.serving.server.limits import Limits, check_shape
from keras_committee.serving.server.manager import Manager
from keras_committee.serving.server.metrics import Metrics
from keras_committee.serving.server.work import timed
from keras_committee.tfserving.tf_protocol import (
    DEFAULT,
    StatusError,
    check_inputs,
    checked_shape,
    find_signature,
    to_array,
    typed_proto,
)

Method = Callable[[bytes, float], bytes]
_Answer = Callable[[Any, float], Any]


class Answers:
    """The methods of PredictionService and ModelService, from bytes to bytes. `methods` names them all."""

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics, *, reload: bool = False):
        self._manager, self._limits, self._metrics, self._reload = manager, limits, metrics, reload

    def methods(self) -> dict[str, dict[str, Method]]:
        """dict of service -> method -> `answer(content, seconds)`, which raises StatusError."""
        from tensorflow_serving.apis import (
            classification_pb2,
            get_model_metadata_pb2,
            get_model_status_pb2,
            inference_pb2,
            model_management_pb2,
            predict_pb2,
            regression_pb2,
        )

        examples = ExampleAnswers(self._lent, self._limits)
        return {
            "tensorflow.serving.PredictionService": {
                "Predict": _parsed(predict_pb2.PredictRequest, self._counted("Predict", self.predict)),
                "Classify": _parsed(
                    classification_pb2.ClassificationRequest, self._counted("Classify", examples.classify)
                ),
                "Regress": _parsed(regression_pb2.RegressionRequest, self._counted("Regress", examples.regress)),
                "MultiInference": _parsed(inference_pb2.MultiInferenceRequest, examples.multi_inference),
                "GetModelMetadata": _parsed(get_model_metadata_pb2.GetModelMetadataRequest, self.metadata),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": _parsed(get_model_status_pb2.GetModelStatusRequest, self.status),
                "HandleReloadConfigRequest": _parsed(model_management_pb2.ReloadConfigRequest, self.reload),
            },
        }

    def predict(self, request: Any, seconds: float) -> Any:
        """The PredictResponse to a PredictRequest. Raises StatusError."""
        from tensorflow_serving.apis import predict_pb2

        with self._lent(request) as lent:
            name = request.model_spec.signature_name or DEFAULT
            check_inputs(find_signature(lent.session.signatures, name), request.inputs)
            inputs = {alias: self._array(proto, alias) for alias, proto in request.inputs.items()}
            with timed(lambda took: self._metrics.latency("runtime_latency", (lent.name, "Predict", "TF1"), took)):
                outputs = lent.session.run(name, inputs, list(request.output_filter), timeout=seconds)
            response = predict_pb2.PredictResponse(model_spec=answering_spec(request, lent))
        for alias, array in outputs.items():
            response.outputs[alias].CopyFrom(typed_proto(array))
        return response

    def metadata(self, request: Any, _seconds: float) -> Any:
        """The GetModelMetadataResponse to a GetModelMetadataRequest. Raises StatusError."""
        from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2

        _check_spec(request)
        if not request.metadata_field:
            raise StatusError("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise StatusError("INVALID_ARGUMENT", f"Metadata field {field} is not supported")
        with self._lent(request) as lent:
            signatures = metadata_pb2.SignatureDefMap(signature_def=lent.session.meta_graph.signature_def)
            spec = answering_spec(request, lent, "")
        response = metadata_pb2.GetModelMetadataResponse(model_spec=spec)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request: Any, _seconds: float) -> Any:
        """The GetModelStatusResponse to a GetModelStatusRequest; a label is ignored. Raises StatusError."""
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        _check_spec(request)
        response = status_pb2.GetModelStatusResponse()
        for each in self._manager.statuses(request.model_spec.name, _version(request.model_spec)):
            status = response.model_version_status.add(version=each.version)
            status.state = status_pb2.ModelVersionStatus.State.Value(each.state)
            status.status.error_code, status.status.error_message = _code(each.code), each.message
        return response

    def reload(self, request: Any, _seconds: float) -> Any:
        """The ReloadConfigResponse to a ReloadConfigRequest, where it is switched on. Raises StatusError."""
        from tensorflow_serving.apis import model_management_pb2

        if not self._reload:
            raise StatusError("PERMISSION_DENIED", "HandleReloadConfigRequest is switched off in this stand-in")
        if request.config.WhichOneof("config") != "model_config_list":
            raise StatusError(
                "INVALID_ARGUMENT",
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported",
            )
        self._manager.reload(read_configs(request.config))
        return model_management_pb2.ReloadConfigResponse(status={})

    def _counted(self, api: str, answer: _Answer) -> _Answer:
        def answer_and_count(request: Any, seconds: float) -> Any:
            name, start, status = request.model_spec.name, time.perf_counter(), "OK"
            try:
                return answer(request, seconds)
            except StatusError as error:
                status = error.code
                raise
            finally:
                if name in self._manager.names():  # a stranger must not make up labels
                    self._metrics.count(name, status)
                    if status == "OK":
                        self._metrics.latency("request_latency", (name, api, "GRPC"), time.perf_counter() - start)

        return answer_and_count

    @contextlib.contextmanager
    def _lent(self, request: Any) -> Iterator[Any]:
        """The version that `request` asks for, kept loaded meanwhile."""
        _check_spec(request)
        spec = request.model_spec
        with self._manager.borrow(spec.name, _version(spec), spec.version_label or None) as lent:
            yield lent

    def _array(self, proto: Any, alias: str) -> np.ndarray:
        try:
            shape = checked_shape(proto, self._limits.elements)
            check_shape(alias, shape, self._limits)
            array = to_array(proto, self._limits.elements)
        except StatusError as error:
            raise StatusError(error.code, f"tensor parsing error: {alias}: {error.message}") from error
        if array.dtype == object:
            check_strings(array, self._limits, alias)
        return array


def _parsed(kind: Any, answer: _Answer) -> Method:
    from google.protobuf.message import DecodeError

    def parse_and_answer(content: bytes, seconds: float) -> bytes:
        try:
            request = kind.FromString(content)
        except DecodeError as error:
            raise StatusError("INVALID_ARGUMENT", f"this is no {kind.DESCRIPTOR.name}: {error}") from error
        return answer(request, seconds).SerializeToString()

    return parse_and_answer


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")


def _code(name: str) -> int:
    from tensorflow.core.protobuf import error_codes_pb2

    return error_codes_pb2.Code.Value(name)


def _version(spec: Any) -> int | None:
    return spec.version.value if spec.HasField("version") else None
