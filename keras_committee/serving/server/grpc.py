"""Who answers gRPC in the stand-in, and how does a failure leave as a status?

PredictionService and ModelService of tensorflow-serving-api, and the standard health service. Requests come as bytes
and are parsed here: gRPC's own parsing would answer a malformed one with INTERNAL.
"""

import concurrent.futures
import logging
from collections.abc import Callable
from typing import Any

from keras_committee.errors import RecipeError, ResourceError
from keras_committee.serving.server.grpc_answers import Answers
from keras_committee.serving.server.limits import Limits
from keras_committee.serving.server.manager import Manager
from keras_committee.serving.status import StatusError, truncated

_THREADS = 16
_SERVICES = ("ModelService", "PredictionService")
_log = logging.getLogger(__name__)


class GrpcServer:
    """A gRPC server that runs; `port` is the one that it took where it was asked for 0."""

    def __init__(self, server: Any, port: int):
        self._server, self.port = server, port

    def stop(self, grace: float = 5.0) -> None:
        """Takes no new requests, waits `grace` seconds for those under way, and returns when all is over."""
        self._server.stop(grace).wait()


def start(manager: Manager, address: str, limits: Limits, *, reload: bool = False) -> GrpcServer:
    """Answers gRPC at `address`, "host:port".

    Args:
        manager: Lends versions of models.
        address: Where to listen; port 0 takes a free one.
        limits: What a request may cost.
        reload: Whether clients may change which models are served.

    Raises:
        ResourceError: If the address cannot be had.
        RecipeError: If gRPC is not installed.
    """
    try:
        import grpc
    except ImportError as error:
        raise RecipeError(f'the stand-in needs pip install "keras-committee[serving]": {error}') from error
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(_THREADS, "grpc"),
        options=_options(limits),
        maximum_concurrent_rpcs=limits.connections + limits.queue,
    )
    answers = Answers(manager, limits, reload=reload)
    for service, methods in answers.methods().items():
        handlers = {name: _handler(answer, limits) for name, answer in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    _add_health(server)
    port = _bind(server, address)
    server.start()
    return GrpcServer(server, port)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.body),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.header),
        ("grpc.so_reuseport", 0),  # or two servers share a port, and each gets half of the requests
    ]


def _bind(server: Any, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ResourceError(
            f"cannot listen at {address}: {error}.\n  Is another server there? Name another port."
        ) from error
    if port == 0:
        raise ResourceError(f"cannot listen at {address}: the port is in use. Name another one.")
    return port


def _handler(answer: Callable[[bytes, float], bytes], limits: Limits) -> Any:
    import grpc

    def handle(content: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        seconds = limits.deadline if left is None else min(left, limits.deadline)
        try:
            return answer(content, seconds)
        except StatusError as error:
            code, message = error.code, error.message
        except MemoryError:
            code, message = "RESOURCE_EXHAUSTED", "the stand-in is out of memory"
        except Exception:
            _log.exception("a request failed by a mistake of the stand-in")
            code, message = "INTERNAL", "a mistake of the stand-in; its log has the traceback"
        return context.abort(getattr(grpc.StatusCode, code), truncated(message))

    return grpc.unary_unary_rpc_method_handler(handle)


def _add_health(server: Any) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer = health.HealthServicer()
    for service in ("", *_SERVICES):
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
