"""How is a server asked over gRPC?"""

from typing import Any

import numpy as np

from keras_committee.errors import RecipeError
from keras_committee.serving.status import StatusError
from keras_committee.serving.tensors import packed_proto, to_array

_MOST = 2**31  # elements of an answer; its message is bounded anyway


class GrpcTransport:
    """One channel to `place`, "host:port", for one model."""

    def __init__(self, place: str, model: str, max_message_bytes: int):
        try:
            import grpc
            from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
        except ImportError as error:
            raise RecipeError(f'grpc:// needs pip install "keras-committee[serving]": {error}') from error
        self._channel = grpc.insecure_channel(place, _options(max_message_bytes))
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._model = model

    def predict(
        self,
        inputs: dict[str, np.ndarray],
        signature: str,
        version: int | None,
        label: str | None,
        outputs: tuple[str, ...],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec(version, label), output_filter=outputs)
        request.model_spec.signature_name = signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(packed_proto(array))
        answer = _called(self._predictions.Predict, request, timeout)
        return {name: to_array(proto, _MOST) for name, proto in sorted(answer.outputs.items())}

    def status(self, version: int | None, timeout: float) -> list[tuple[int, str, str]]:
        from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

        request = status_pb2.GetModelStatusRequest(model_spec=self._spec(version, None))
        answer = _called(self._models.GetModelStatus, request, timeout)
        state = status_pb2.ModelVersionStatus.State.Name
        return [(each.version, state(each.state), each.status.error_message) for each in answer.model_version_status]

    def close(self) -> None:
        self._channel.close()

    def _spec(self, version: int | None, label: str | None) -> Any:
        from tensorflow_serving.apis import model_pb2

        spec = model_pb2.ModelSpec(name=self._model)
        if version is not None:
            spec.version.value = version
        if label is not None:
            spec.version_label = label
        return spec


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.enable_retries", 0),  # the client has its own, with one deadline for all
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
    ]


def _called(method: Any, request: Any, timeout: float) -> Any:
    import grpc

    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise StatusError(error.code().name, error.details() or "") from error
