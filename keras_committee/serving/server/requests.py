"""What is the answer to a REST request, once its body is here?"""

import contextlib
import json
from typing import Any

from keras_committee.serving.server import examples, json_answers
from keras_committee.serving.server.gate import NAME
from keras_committee.serving.server.json_examples import read_examples
from keras_committee.serving.server.json_tensors import read_predict
from keras_committee.serving.server.limits import Limits
from keras_committee.serving.server.manager import Manager
from keras_committee.serving.server.metrics import Metrics
from keras_committee.serving.server.urls import Target
from keras_committee.serving.server.work import remaining, timed
from keras_committee.tfserving.tf_protocol import DEFAULT, StatusError


class Requests:
    """The REST API without its HTTP: `answer` runs in a worker's thread."""

    def __init__(self, manager: Manager, limits: Limits, metrics: Metrics):
        self._manager, self._limits, self._metrics = manager, limits, metrics

    def answer(self, target: Target, body: bytes, deadline: float) -> str:
        """The JSON text for a POST with `body`; `deadline` is on the monotonic clock. Raises StatusError."""
        remaining(deadline)
        call = {"predict": self._predict, "classify": self._classify, "regress": self._regress}[target.verb]
        status = "OK"
        with timed(lambda seconds: self._record(target, status, seconds)):
            try:
                return call(target, body, deadline)
            except StatusError as error:
                status = error.code
                raise

    def metadata(self, target: Target) -> str:
        """The JSON text for GET .../metadata. Raises StatusError."""
        from google.protobuf.json_format import MessageToDict

        with self._manager.borrow(target.name, target.version, target.label) as servable:
            signatures = {
                name: MessageToDict(
                    each.proto, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                for name, each in servable.session.signatures.items()
            }
            spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
        metadata = {"signature_def": {"signature_def": signatures}}
        return json.dumps({"model_spec": spec, "metadata": metadata, "server": NAME}, indent=1, ensure_ascii=False)

    def status(self, target: Target) -> str:
        """The JSON text for GET of a model or version; a label is ignored, as in TF Serving. Raises StatusError."""
        listed = [
            {
                "version": str(each.version),
                "state": each.state,
                "status": {"error_code": each.code, "error_message": each.message},
            }
            for each in self._manager.statuses(target.name, target.version)
        ]
        return json.dumps({"model_version_status": listed}, indent=1, ensure_ascii=False)

    def _predict(self, target: Target, body: bytes, deadline: float) -> str:
        with contextlib.ExitStack() as stack:
            borrowed: list[Any] = []

            def find_inputs(signature: str) -> Any:
                servable = stack.enter_context(self._manager.borrow(target.name, target.version, target.label))
                borrowed.append(servable.session)
                return _inputs(servable.session, signature)

            request = read_predict(body, find_inputs, self._limits)
            (session,) = borrowed
            with timed(lambda seconds: self._ran(target, "Predict", seconds)):
                outputs = session.run(request.signature, request.inputs, timeout=remaining(deadline))
        return json_answers.predictions(outputs, request.row)

    def _classify(self, target: Target, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with (
            self._manager.borrow(target.name, target.version, target.label) as servable,
            timed(lambda seconds: self._ran(target, "Classify", seconds)),
        ):
            labels, scores = examples.classify(servable.session, signature, rows, remaining(deadline))
        return json_answers.classifications(labels, scores)

    def _regress(self, target: Target, body: bytes, deadline: float) -> str:
        signature, rows = read_examples(body, self._limits)
        with (
            self._manager.borrow(target.name, target.version, target.label) as servable,
            timed(lambda seconds: self._ran(target, "Regress", seconds)),
        ):
            values = examples.regress(servable.session, signature, rows, remaining(deadline))
        return json_answers.regressions(values)

    def _record(self, target: Target, status: str, seconds: float) -> None:
        if target.name not in self._manager.names():  # a stranger must not make up labels
            return
        self._metrics.count(target.name, status)
        if status == "OK":
            self._metrics.latency("request_latency", (target.name, target.verb, "REST"), seconds)

    def _ran(self, target: Target, api: str, seconds: float) -> None:
        self._metrics.latency("runtime_latency", (target.name, api, "TF1"), seconds)


def _inputs(session: Any, signature: str) -> Any:
    name = signature or DEFAULT
    if name not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f'Serving signature name: "{name}" not found in signature def')
    if not session.signatures[name].inputs:
        raise StatusError("INVALID_ARGUMENT", f"Failed to get input map for signature: {signature or 'DEFAULT'}")
    return session.signatures[name].inputs
