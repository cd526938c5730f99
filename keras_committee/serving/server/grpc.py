"""Who answers gRPC in the stand-in, and how does a failure leave as a status?

PredictionService and ModelService of tensorflow-serving-api, and the standard health service. Requests come as bytes
and are parsed here: gRPC's own parsing would answer a malformed one with INTERNAL.
"""

import concurrent.futures
import logging
import time
from typing import Any

from keras_committee.errors import RecipeError, ResourceError
from keras_committee.serving.server.grpc_answers import Answers, Method
from keras_committee.serving.server.limits import Limits
from keras_committee.serving.server.manager import Manager
from keras_committee.serving.server.metrics import Metrics
from keras_committee.serving.server.ports import listen
from keras_committee.serving.server.work import Work, remaining
from keras_committee.tfserving.tf_protocol import StatusError, truncated

_SERVICES = ("ModelService", "PredictionService")
_log = logging.getLogger(__name__)


class GrpcServer:
    """A gRPC server that runs. `port` is the one that it listens on; `close` ends it."""

    def __init__(self, server: Any, port: int, work: Work):
        self._server, self.port, self._work = server, port, work

    def close(self, grace: float = 5.0) -> None:
        """Takes no new requests and waits for those under way, `grace` seconds at most. A second call does nothing."""
        self._server.stop(grace).wait()
        self._work.close()

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
    reload: bool = False,
) -> GrpcServer:
    """Answers gRPC at `address`, (host, port); port 0 takes a free one.

    Args:
        manager: Where the models come from; it outlives the server.
        address: Host and port.
        limits: What a request may ask for.
        metrics: Where requests are counted.
        reload: Whether clients may change which models are served.

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
    waiting = concurrent.futures.ThreadPoolExecutor(limits.queue + 8, "grpc")
    server = grpc.server(waiting, options=_options(limits), maximum_concurrent_rpcs=2 * limits.queue + 8)
    answers, work = Answers(manager, limits, metrics or Metrics(), reload=reload), Work(limits)
    for service, methods in answers.methods().items():
        handlers = {name: _handler(answer, limits, work) for name, answer in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    _add_health(server)
    port = _bind(server, address)
    server.start()
    return GrpcServer(server, port, work)


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.body),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.header),
        ("grpc.so_reuseport", 0),  # or two servers share a port, and each gets half of the requests
    ]


def _bind(server: Any, address: tuple[str, int]) -> int:
    host, wanted = address
    if wanted:
        listen(host, wanted).close()  # knows what is in the way; gRPC only says that something is
    try:
        return server.add_insecure_port(f"[{host}]:{wanted}" if ":" in host else f"{host}:{wanted}")
    except RuntimeError as error:
        raise ResourceError(f"cannot listen on {host} port {wanted}: {error}. Nothing was started.") from error


def _handler(answer: Method, limits: Limits, work: Work) -> Any:
    import grpc

    def handle(content: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        deadline = time.monotonic() + min(limits.deadline, limits.deadline if left is None else left)
        try:
            return work.submit(lambda until: answer(content, remaining(until)), deadline).result()
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
