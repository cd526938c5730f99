"""Who answers gRPC in the stand-in, and how does a failure leave as a status?

PredictionService and ModelService of tensorflow-serving-api, and the standard health service. Requests come as bytes
and are parsed here: gRPC's own parsing would answer a malformed one with INTERNAL.
"""

import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_committee.errors import RecipeError, ResourceError
from keras_committee.tfserving.server.examples import classify, regress, serialize_examples
from keras_committee.tfserving.server.limits import Limits, check_image_sizes, check_shape
from keras_committee.tfserving.server.manager import Manager, configs_from_proto
from keras_committee.tfserving.server.metrics import Metrics
from keras_committee.tfserving.server.ports import listen
from keras_committee.tfserving.server.worker_pool import BoundedExecutor, seconds_until, timed
from keras_committee.tfserving.tf_protocol import (
    DEFAULT_SIGNATURE,
    Signature,
    StatusError,
    check_inputs,
    find_signature,
    proto_shape,
    proto_to_array,
    truncated,
    typed_proto,
)

RpcMethod = Callable[[bytes, float], bytes]
_RpcHandler = Callable[[Any, float], Any]


class PredictionServicer:
    """The methods of PredictionService and ModelService, from bytes to bytes. `methods` names them all."""

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics, *, allow_reload: bool = False):
        self._manager, self._limits, self._metrics, self._allow_reload = manager, limits, metrics, allow_reload

    def methods(self) -> dict[str, dict[str, RpcMethod]]:
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

        example_servicer = ExampleServicer(self._borrowed, self._limits)
        return {
            "tensorflow.serving.PredictionService": {
                "Predict": _with_parsing(predict_pb2.PredictRequest, self._with_metrics("Predict", self.predict)),
                "Classify": _with_parsing(
                    classification_pb2.ClassificationRequest, self._with_metrics("Classify", example_servicer.classify)
                ),
                "Regress": _with_parsing(
                    regression_pb2.RegressionRequest, self._with_metrics("Regress", example_servicer.regress)
                ),
                "MultiInference": _with_parsing(inference_pb2.MultiInferenceRequest, example_servicer.multi_inference),
                "GetModelMetadata": _with_parsing(get_model_metadata_pb2.GetModelMetadataRequest, self.metadata),
            },
            "tensorflow.serving.ModelService": {
                "GetModelStatus": _with_parsing(get_model_status_pb2.GetModelStatusRequest, self.status),
                "HandleReloadConfigRequest": _with_parsing(model_management_pb2.ReloadConfigRequest, self.reload),
            },
        }

    def predict(self, request: Any, timeout: float) -> Any:
        """The PredictResponse to a PredictRequest. Raises StatusError."""
        from tensorflow_serving.apis import predict_pb2

        with self._borrowed(request) as servable:
            name = request.model_spec.signature_name or DEFAULT_SIGNATURE
            check_inputs(find_signature(servable.session.signatures, name), request.inputs)
            inputs = {alias: self._input_array(proto, alias) for alias, proto in request.inputs.items()}
            with timed(
                lambda elapsed: self._metrics.record_latency(
                    "runtime_latency", (servable.name, "Predict", "TF1"), elapsed
                )
            ):
                outputs = servable.session.run(name, inputs, list(request.output_filter), timeout=timeout)
            response = predict_pb2.PredictResponse(model_spec=response_model_spec(request, servable))
        for alias, array in outputs.items():
            response.outputs[alias].CopyFrom(typed_proto(array))
        return response

    def metadata(self, request: Any, _timeout: float) -> Any:
        """The GetModelMetadataResponse to a GetModelMetadataRequest. Raises StatusError."""
        from tensorflow_serving.apis import get_model_metadata_pb2 as metadata_pb2

        _check_spec(request)
        if not request.metadata_field:
            raise StatusError("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise StatusError("INVALID_ARGUMENT", f"Metadata field {field} is not supported")
        with self._borrowed(request) as servable:
            signatures = metadata_pb2.SignatureDefMap(signature_def=servable.session.meta_graph.signature_def)
            spec = response_model_spec(request, servable, "")
        response = metadata_pb2.GetModelMetadataResponse(model_spec=spec)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request: Any, _timeout: float) -> Any:
        """The GetModelStatusResponse to a GetModelStatusRequest; a label is ignored. Raises StatusError."""
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        _check_spec(request)
        response = status_pb2.GetModelStatusResponse()
        for version_status in self._manager.statuses(request.model_spec.name, _requested_version(request.model_spec)):
            status = response.model_version_status.add(version=version_status.version)
            status.state = status_pb2.ModelVersionStatus.State.Value(version_status.state)
            status.status.error_code, status.status.error_message = (
                _code_number(version_status.code),
                version_status.message,
            )
        return response

    def reload(self, request: Any, _timeout: float) -> Any:
        """The ReloadConfigResponse to a ReloadConfigRequest, where it is switched on. Raises StatusError."""
        from tensorflow_serving.apis import model_management_pb2

        if not self._allow_reload:
            raise StatusError("PERMISSION_DENIED", "HandleReloadConfigRequest is switched off in this stand-in")
        if request.config.WhichOneof("config") != "model_config_list":
            raise StatusError(
                "INVALID_ARGUMENT",
                "ServerModelConfig type not supported by HandleReloadConfigRequest."
                " Only ModelConfigList is currently supported",
            )
        self._manager.reload(configs_from_proto(request.config))
        return model_management_pb2.ReloadConfigResponse(status={})

    def _with_metrics(self, api: str, handler: _RpcHandler) -> _RpcHandler:
        def handle_and_record(request: Any, timeout: float) -> Any:
            name, start, status = request.model_spec.name, time.perf_counter(), "OK"
            try:
                return handler(request, timeout)
            except StatusError as error:
                status = error.code
                raise
            finally:
                if name in self._manager.names():  # a stranger must not make up labels
                    self._metrics.count_request(name, status)
                    if status == "OK":
                        self._metrics.record_latency(
                            "request_latency", (name, api, "GRPC"), time.perf_counter() - start
                        )

        return handle_and_record

    @contextlib.contextmanager
    def _borrowed(self, request: Any) -> Iterator[Any]:
        """The version that `request` asks for, kept loaded meanwhile."""
        _check_spec(request)
        spec = request.model_spec
        with self._manager.borrow(spec.name, _requested_version(spec), spec.version_label or None) as servable:
            yield servable

    def _input_array(self, proto: Any, alias: str) -> np.ndarray:
        try:
            shape = proto_shape(proto, self._limits.max_elements)
            check_shape(alias, shape, self._limits)
            array = proto_to_array(proto, self._limits.max_elements)
        except StatusError as error:
            raise StatusError(error.code, f"tensor parsing error: {alias}: {error.message}") from error
        if array.dtype == object:
            check_image_sizes(array, self._limits, alias)
        return array


def _with_parsing(message_class: Any, handler: _RpcHandler) -> RpcMethod:
    from google.protobuf.message import DecodeError

    def parse_and_handle(content: bytes, timeout: float) -> bytes:
        try:
            request = message_class.FromString(content)
        except DecodeError as error:
            raise StatusError("INVALID_ARGUMENT", f"this is no {message_class.DESCRIPTOR.name}: {error}") from error
        return handler(request, timeout).SerializeToString()

    return parse_and_handle


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")


def _code_number(name: str) -> int:
    from tensorflow.core.protobuf import error_codes_pb2

    return error_codes_pb2.Code.Value(name)


def _requested_version(spec: Any) -> int | None:
    return spec.version.value if spec.HasField("version") else None


_SERVICES = ("ModelService", "PredictionService")
_log = logging.getLogger(__name__)


class GrpcServer:
    """A gRPC server that runs. `port` is the one that it listens on; `close` ends it."""

    def __init__(self, server: Any, port: int, executor: BoundedExecutor):
        self._server, self.port, self._executor = server, port, executor

    def close(self, grace: float = 5.0) -> None:
        """Takes no new requests and waits for those under way, `grace` seconds at most. A second call does nothing."""
        self._server.stop(grace).wait()
        self._executor.close()

    def __enter__(self) -> "GrpcServer":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def start(
    manager: Manager,
    address: tuple[str, int],
    limits: Limits | None = None,
    metrics: Metrics | None = None,
    *,
    allow_reload: bool = False,
) -> GrpcServer:
    """Answers gRPC at `address`, (host, port); port 0 takes a free one.

    Args:
        manager: Where the models come from; it outlives the server.
        address: Host and port.
        limits: What a request may ask for.
        metrics: Where requests are counted.
        allow_reload: Whether clients may change which models are served.

    Raises:
        ResourceError: If the port is in use, or may not be taken.
        RecipeError: If gRPC is not installed.
    """
    try:
        import grpc
    except ImportError as error:
        raise RecipeError(f'the stand-in needs pip install "keras-committee[serving]": {error}') from error
    limits = limits or Limits()
    # Its threads only wait for those of `work`, which refuses what is too much with the status that clients retry.
    thread_pool = concurrent.futures.ThreadPoolExecutor(limits.max_queue_size + 8, "grpc")
    server = grpc.server(
        thread_pool, options=_server_options(limits), maximum_concurrent_rpcs=2 * limits.max_queue_size + 8
    )
    servicer, executor = (
        PredictionServicer(manager, limits, metrics or Metrics(), allow_reload=allow_reload),
        BoundedExecutor(limits),
    )
    for service, methods in servicer.methods().items():
        handlers = {name: _make_handler(method, limits, executor) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    _add_health(server)
    port = _bind(server, address)
    server.start()
    return GrpcServer(server, port, executor)


def _server_options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.so_reuseport", 0),  # or two servers share a port, and each gets half of the requests
    ]


def _bind(server: Any, address: tuple[str, int]) -> int:
    host, requested_port = address
    if requested_port:
        listen(host, requested_port).close()  # knows what is in the way; gRPC only says that something is
    try:
        return server.add_insecure_port(f"[{host}]:{requested_port}" if ":" in host else f"{host}:{requested_port}")
    except RuntimeError as error:
        raise ResourceError(f"cannot listen on {host} port {requested_port}: {error}. Nothing was started.") from error


def _make_handler(method: RpcMethod, limits: Limits, executor: BoundedExecutor) -> Any:
    import grpc

    def handle(content: bytes, context: Any) -> bytes:
        time_left = context.time_remaining()
        deadline = time.monotonic() + min(
            limits.response_timeout, limits.response_timeout if time_left is None else time_left
        )
        try:
            return executor.submit(lambda job_deadline: method(content, seconds_until(job_deadline)), deadline).result()
        except StatusError as error:
            code, message = error.code, error.message
        except MemoryError:
            code, message = "RESOURCE_EXHAUSTED", "the stand-in is out of memory"
        except Exception:  # a mistake of ours: told in the log, and the server goes on
            _log.exception("a gRPC request failed")
            code, message = "INTERNAL", "a mistake of the stand-in; its log has the traceback"
        return context.abort(getattr(grpc.StatusCode, code), truncated(message))

    return grpc.unary_unary_rpc_method_handler(handle)


def _add_health(server: Any) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer = health.HealthServicer()
    for service in ("", *_SERVICES):
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


CLASSIFY_METHOD, REGRESS_METHOD = "tensorflow/serving/classify", "tensorflow/serving/regress"


class ExampleServicer:
    """The three methods that take tf.Examples. `lend(request)` is a context with the version that a request names."""

    def __init__(self, borrow: Callable[[Any], Any], limits: Limits):
        self._borrow, self._limits = borrow, limits

    def classify(self, request: Any, timeout: float) -> Any:
        """The ClassificationResponse to a ClassificationRequest. Raises StatusError."""
        from tensorflow_serving.apis import classification_pb2

        with self._borrow(request) as servable:
            examples = serialize_examples(request.input, self._limits)
            result = classification_result(
                *classify(servable.session, request.model_spec.signature_name, examples, timeout)
            )
            return classification_pb2.ClassificationResponse(
                result=result, model_spec=response_model_spec(request, servable)
            )

    def regress(self, request: Any, timeout: float) -> Any:
        """The RegressionResponse to a RegressionRequest. Raises StatusError."""
        from tensorflow_serving.apis import regression_pb2

        with self._borrow(request) as servable:
            examples = serialize_examples(request.input, self._limits)
            result = regression_result(regress(servable.session, request.model_spec.signature_name, examples, timeout))
            return regression_pb2.RegressionResponse(result=result, model_spec=response_model_spec(request, servable))

    def multi_inference(self, request: Any, timeout: float) -> Any:
        """The MultiInferenceResponse to a MultiInferenceRequest. Raises StatusError."""
        from tensorflow_serving.apis import inference_pb2

        if not request.tasks:
            raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")
        response = inference_pb2.MultiInferenceResponse()
        with self._borrow(request.tasks[0]) as servable:
            check_tasks(request.tasks, servable.session.signatures)
            examples = serialize_examples(request.input, self._limits)
            for task in request.tasks:
                result = response.results.add(model_spec=response_model_spec(task, servable))
                name = task.model_spec.signature_name
                if task.method_name == CLASSIFY_METHOD:
                    classification = classification_result(*classify(servable.session, name, examples, timeout))
                    result.classification_result.CopyFrom(classification)
                else:
                    result.regression_result.CopyFrom(
                        regression_result(regress(servable.session, name, examples, timeout))
                    )
        return response


def response_model_spec(request: Any, servable: Any, signature: str | None = None) -> Any:
    """The ModelSpec of an answer: the version that answered, and the signature by which it did."""
    from tensorflow_serving.apis import model_pb2

    requested = request.model_spec
    signature = (requested.signature_name or DEFAULT_SIGNATURE) if signature is None else signature
    spec = model_pb2.ModelSpec(name=requested.name, signature_name=signature)
    spec.version.value = servable.version
    return spec


def classification_result(classes: np.ndarray | None, scores: np.ndarray | None) -> Any:
    """The ClassificationResult of labels and scores `(examples, classes)`, one of which may be None."""
    from tensorflow_serving.apis import classification_pb2

    result = classification_pb2.ClassificationResult()
    shape = next(array.shape for array in (classes, scores) if array is not None)
    for i in range(shape[0]):
        row = result.classifications.add()
        for j in range(shape[1]):
            label = None if classes is None else classes[i, j].decode(errors="replace")
            row.classes.add(label=label, score=None if scores is None else scores[i, j])
    return result


def regression_result(values: np.ndarray) -> Any:
    """The RegressionResult of values `(examples,)`."""
    from tensorflow_serving.apis import regression_pb2

    result = regression_pb2.RegressionResult()
    for value in values.tolist():
        result.regressions.add(value=value)
    return result


def check_tasks(tasks: Sequence[Any], signatures: dict[str, Signature]) -> None:
    """Raises StatusError unless all tasks have one model, different signatures, and these read one tensor."""
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
        if task.method_name not in (CLASSIFY_METHOD, REGRESS_METHOD):
            raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
    tensors = {info.tensor_name for name in names for info in signatures[name].inputs.values()}
    if len(tensors) > 1:
        raise StatusError("INVALID_ARGUMENT", "Input tensor must be the same for all Signatures.")
