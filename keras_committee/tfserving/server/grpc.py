"""gRPC API of TF Serving: PredictionService, ModelService and the standard health service.

The request and response classes are those of tensorflow-serving-api. Requests arrive as bytes and are parsed here,
because gRPC's own parsing responds to malformed ones with INTERNAL.
"""

import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_committee.errors import RecipeError, ResourceError
from keras_committee.tfserving.server.examples import (
    check_classification,
    check_regression,
    classify,
    regress,
    serialize_input,
)
from keras_committee.tfserving.server.examples import find_signature as find_example_signature
from keras_committee.tfserving.server.limits import Limits, proto_to_checked_array
from keras_committee.tfserving.server.manager import Manager, configs_from_proto
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import RunningServer, listen
from keras_committee.tfserving.server.worker_pool import BoundedExecutor, seconds_until, timed
from keras_committee.tfserving.tf_protocol import (
    DEFAULT_SIGNATURE,
    Signature,
    StatusError,
    check_inputs,
    find_signature,
    truncated,
    typed_proto,
)

_HEALTH_SERVICES = ("", "ModelService", "PredictionService")  # names of TF Serving's health service
_CLASSIFY_METHOD, _REGRESS_METHOD = "tensorflow/serving/classify", "tensorflow/serving/regress"
_SIGNATURE_CHECKS = {_CLASSIFY_METHOD: check_classification, _REGRESS_METHOD: check_regression}
_GRACE_SECONDS = 5.0  # for the requests in progress when the server stops

_log = logging.getLogger(__name__)

RpcMethod = Callable[[bytes, float], bytes]
_RpcHandler = Callable[[Any, float], Any]


def start(
    manager: Manager,
    address: tuple[str, int],
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    enable_reload_config: bool = False,
) -> RunningServer:
    """Start a gRPC server.

    Args:
        manager: Lends the models; it outlives the server.
        address: Host and port; port 0 selects a free port.
        limits: Limits of a request.
        metrics: Counts the requests.
        enable_reload_config: Whether clients may replace the models.

    Raises:
        ResourceError: If the port is in use or not available.
        RecipeError: If gRPC is not installed.
    """
    try:
        import grpc
    except ImportError as error:
        raise RecipeError(f'the local server needs pip install "keras-committee[serving]": {error}') from error
    limits = limits or Limits()
    # gRPC's threads only wait for those of the executor, which rejects excess requests with UNAVAILABLE, so that
    # clients retry.
    max_rpcs = limits.max_queue_size + 8
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(max_rpcs, "grpc"),
        options=_server_options(limits),
        maximum_concurrent_rpcs=limits.max_queue_size + max_rpcs,
    )
    executor = BoundedExecutor(limits)
    servicer = PredictionServicer(manager, limits, metrics or Metrics(), enable_reload_config)
    for service, methods in servicer.methods().items():
        handlers = {name: _make_handler(method, limits, executor) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    _add_health(server)
    port = _bind(server, address)
    server.start()

    def stop() -> None:
        server.stop(_GRACE_SECONDS).wait()
        executor.close()

    return RunningServer(port, stop)


class PredictionServicer:
    """The methods of PredictionService and ModelService.

    Args:
        manager: Lends the models.
        limits: Limits of a request.
        metrics: Counts the requests.
        enable_reload_config: Whether HandleReloadConfigRequest may replace the models.
    """

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics, enable_reload_config: bool = False):
        self._manager, self._limits, self._metrics = manager, limits, metrics
        self._enable_reload_config = enable_reload_config

    def methods(self) -> dict[str, dict[str, RpcMethod]]:
        """Return dict of service -> method -> function.

        A function maps (request bytes, timeout in seconds) to response bytes, and raises StatusError.
        """
        from tensorflow_serving.apis import (
            classification_pb2,
            get_model_metadata_pb2,
            get_model_status_pb2,
            inference_pb2,
            model_management_pb2,
            predict_pb2,
            regression_pb2,
        )

        return {
            "tensorflow.serving.PredictionService": {
                "Predict": _with_parsing(predict_pb2.PredictRequest, self._with_metrics("Predict", self._predict)),
                "Classify": _with_parsing(
                    classification_pb2.ClassificationRequest, self._with_metrics("Classify", self._classify)
                ),
                "Regress": _with_parsing(
                    regression_pb2.RegressionRequest, self._with_metrics("Regress", self._regress)
                ),
                "MultiInference": _with_parsing(inference_pb2.MultiInferenceRequest, self._multi_inference),
                "GetModelMetadata": _with_parsing(get_model_metadata_pb2.GetModelMetadataRequest, self._metadata),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": _with_parsing(get_model_status_pb2.GetModelStatusRequest, self._status),
                "HandleReloadConfigRequest": _with_parsing(model_management_pb2.ReloadConfigRequest, self._reload),
            },
        }

    def _predict(self, request: Any, timeout: float) -> Any:
        from tensorflow_serving.apis import predict_pb2

        with self._borrow(request) as servable:
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            check_inputs(find_signature(servable.session.signatures, name), request.inputs)
            inputs = {
                alias: proto_to_checked_array(proto, alias, self._limits) for alias, proto in request.inputs.items()
            }
            labels = (servable.name, "Predict", "TF1")
            with timed(lambda seconds: self._metrics.record_latency("runtime_latency", labels, seconds)):
                outputs = servable.session.run(name, inputs, list(request.output_filter), timeout=timeout)
            response = predict_pb2.PredictResponse(model_spec=_response_model_spec(request, servable))
        for alias, array in outputs.items():
            response.outputs[alias].CopyFrom(typed_proto(array))
        return response

    def _classify(self, request: Any, timeout: float) -> Any:
        from tensorflow_serving.apis import classification_pb2

        with self._borrow(request) as servable:
            check_classification(find_example_signature(servable.session, request.model_spec.signature_name))
            examples = serialize_input(request.input, self._limits)
            outputs = classify(servable.session, request.model_spec.signature_name, examples, timeout)
            spec = _response_model_spec(request, servable)
        return classification_pb2.ClassificationResponse(result=_classification_result(*outputs), model_spec=spec)

    def _regress(self, request: Any, timeout: float) -> Any:
        from tensorflow_serving.apis import regression_pb2

        with self._borrow(request) as servable:
            check_regression(find_example_signature(servable.session, request.model_spec.signature_name))
            examples = serialize_input(request.input, self._limits)
            values = regress(servable.session, request.model_spec.signature_name, examples, timeout)
            spec = _response_model_spec(request, servable)
        return regression_pb2.RegressionResponse(result=_regression_result(values), model_spec=spec)

    def _multi_inference(self, request: Any, timeout: float) -> Any:
        from tensorflow_serving.apis import inference_pb2

        if not request.tasks or not request.tasks[0].HasField("model_spec"):
            raise StatusError("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        response = inference_pb2.MultiInferenceResponse()
        with self._borrow(request.tasks[0]) as servable:
            _check_tasks(request.tasks, servable.session.signatures)
            examples = serialize_input(request.input, self._limits)
            for task in request.tasks:
                result = response.results.add(model_spec=_response_model_spec(task, servable))
                name = task.model_spec.signature_name
                if task.method_name == _CLASSIFY_METHOD:
                    outputs = classify(servable.session, name, examples, timeout)
                    result.classification_result.CopyFrom(_classification_result(*outputs))
                else:
                    values = regress(servable.session, name, examples, timeout)
                    result.regression_result.CopyFrom(_regression_result(values))
            self._metrics.record_examples(servable.name, len(examples))
        return response

    def _metadata(self, request: Any, _timeout: float) -> Any:
        from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2

        _check_spec(request)
        if not request.metadata_field:
            raise StatusError("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise StatusError("INVALID_ARGUMENT", f"Metadata field {field} is not supported")
        with self._borrow(request) as servable:
            signatures = metadata_pb2.SignatureDefMap(signature_def=servable.session.meta_graph.signature_def)
            spec = _response_model_spec(request, servable, "")
        response = metadata_pb2.GetModelMetadataResponse(model_spec=spec)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def _status(self, request: Any, _timeout: float) -> Any:
        from tensorflow.core.protobuf import error_codes_pb2
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        _check_spec(request)
        response = status_pb2.GetModelStatusResponse()
        # A label is ignored, as in TF Serving.
        for version_status in self._manager.statuses(request.model_spec.name, _requested_version(request.model_spec)):
            response.model_version_status.add(
                version=version_status.version,
                state=status_pb2.ModelVersionStatus.State.Value(version_status.state),
                status={
                    "error_code": error_codes_pb2.Code.Value(version_status.code),
                    "error_message": version_status.message,
                },
            )
        return response

    def _reload(self, request: Any, timeout: float) -> Any:
        from tensorflow_serving.apis import model_management_pb2

        if not self._enable_reload_config:
            # A client that may load a model from any path can run any program: a model is one.
            raise StatusError(
                "PERMISSION_DENIED",
                "HandleReloadConfigRequest is disabled in the local server; --enable-reload-config enables it",
            )
        if request.config.WhichOneof("config") != "model_config_list":
            raise StatusError(
                "INVALID_ARGUMENT",
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported",
            )
        self._manager.reload(configs_from_proto(request.config), timeout)
        response = model_management_pb2.ReloadConfigResponse(status={})
        for name in request.metric_names:  # the metrics of this server do not change by a reload
            response.metric.add(name=name, int64_value_increase=0)
        return response

    def _with_metrics(self, api: str, handler: _RpcHandler) -> _RpcHandler:
        def handle_and_record(request: Any, timeout: float) -> Any:
            name, start, status = request.model_spec.name, time.perf_counter(), "OK"
            try:
                return handler(request, timeout)
            except StatusError as error:
                status = error.code
                raise
            finally:
                if name in self._manager.names():  # otherwise clients could create any number of labels
                    self._metrics.count_request(name, status)
                    if status == "OK":
                        seconds = time.perf_counter() - start
                        self._metrics.record_latency("request_latency", (name, api, "GRPC"), seconds)

        return handle_and_record

    @contextlib.contextmanager
    def _borrow(self, request: Any) -> Iterator[Any]:
        """Lend the version that the request specifies, which stays loaded meanwhile."""
        _check_spec(request)
        spec = request.model_spec
        label = spec.version_label if spec.HasField("version_label") else None  # a label that is set may be ""
        with self._manager.borrow(spec.name, _requested_version(spec), label) as servable:
            yield servable


def _with_parsing(message_class: Any, handler: _RpcHandler) -> RpcMethod:
    from google.protobuf.message import DecodeError

    def parse_and_handle(content: bytes, timeout: float) -> bytes:
        try:
            request = message_class.FromString(content)
        except DecodeError as error:
            raise StatusError("INVALID_ARGUMENT", f"not a valid {message_class.DESCRIPTOR.name}: {error}") from error
        return handler(request, timeout).SerializeToString()

    return parse_and_handle


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")


def _requested_version(spec: Any) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _response_model_spec(request: Any, servable: Any, signature: str | None = None) -> Any:
    """Return a response's ModelSpec: the version that was used, and the signature (None for the requested one)."""
    from tensorflow_serving.apis import model_pb2

    requested = request.model_spec
    signature = (requested.signature_name or DEFAULT_SIGNATURE) if signature is None else signature
    spec = model_pb2.ModelSpec(name=requested.name, signature_name=signature)
    spec.version.value = servable.version
    return spec


def _classification_result(classes: np.ndarray | None, scores: np.ndarray | None) -> Any:
    """Return the ClassificationResult of labels and scores, both (examples, classes); one of them may be None."""
    from tensorflow_serving.apis import classification_pb2

    result = classification_pb2.ClassificationResult()
    shape = next(array.shape for array in (classes, scores) if array is not None)
    for i in range(shape[0]):
        row = result.classifications.add()
        for j in range(shape[1]):
            label = None if classes is None else classes[i, j].decode(errors="replace")
            row.classes.add(label=label, score=None if scores is None else scores[i, j])
    return result


def _regression_result(values: np.ndarray) -> Any:
    """Return the RegressionResult of values (examples,)."""
    from tensorflow_serving.apis import regression_pb2

    return regression_pb2.RegressionResult(regressions=[{"value": value} for value in values.tolist()])


def _check_tasks(tasks: Sequence[Any], signatures: dict[str, Signature]) -> None:
    """Raise StatusError unless the tasks have one model, and different signatures of it that fit their methods."""
    names = [task.model_spec.signature_name or DEFAULT_SIGNATURE for task in tasks]
    for i, (task, name) in enumerate(zip(tasks, names, strict=True)):
        if not task.model_spec.name:
            raise StatusError("INVALID_ARGUMENT", "Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise StatusError(
                "INVALID_ARGUMENT", "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if name in names[:i]:
            raise StatusError("INVALID_ARGUMENT", f"Duplicate evaluation of signature: {name}")
        if name not in signatures:
            raise StatusError("INVALID_ARGUMENT", f"Requested signature not found in model graph: {name}")
        if task.method_name not in _SIGNATURE_CHECKS:
            raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
        _SIGNATURE_CHECKS[task.method_name](signatures[name])


def _server_options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.so_reuseport", 0),  # otherwise two servers could share a port, and each would get half of the requests
    ]


def _bind(server: Any, address: tuple[str, int]) -> int:
    host, requested_port = address
    if requested_port:
        listen(host, requested_port).close()  # its error names the cause; gRPC's does not
    try:
        return server.add_insecure_port(f"[{host}]:{requested_port}" if ":" in host else f"{host}:{requested_port}")
    except RuntimeError as error:
        raise ResourceError(f"cannot listen on {host} port {requested_port}: {error}. Nothing was started.") from error


def _make_handler(method: RpcMethod, limits: Limits, executor: BoundedExecutor) -> Any:
    import grpc

    def handle(content: bytes, context: Any) -> bytes:
        time_left = context.time_remaining()
        timeout = limits.response_timeout if time_left is None else min(limits.response_timeout, time_left)

        def job(deadline: float) -> bytes:
            return method(content, seconds_until(deadline))

        try:
            return executor.submit(job, time.monotonic() + timeout).result()
        except StatusError as error:
            code, message = error.code, error.message
        except MemoryError:
            code, message = "RESOURCE_EXHAUSTED", "the local server is out of memory"
        except Exception:  # a bug in this server must not stop it
            _log.exception("a gRPC request failed")
            code, message = "INTERNAL", "internal error; see the server's log"
        return context.abort(getattr(grpc.StatusCode, code), truncated(message))

    return grpc.unary_unary_rpc_method_handler(handle)


def _add_health(server: Any) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer = health.HealthServicer()
    for service in _HEALTH_SERVICES:
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
