"""What do Classify, Regress and MultiInference make of a list of tf.Examples?

Source: tensorflow/serving, servables/tensorflow/classifier.cc, regressor.cc, multi_inference.cc and util.cc, with
`--enable_signature_method_name_check=false`, its default: the keys of a signature count, not its method.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_committee.serving.signatures import DEFAULT, Signature
from keras_committee.serving.status import StatusError

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


class Classifier:
    """Classify, Regress and MultiInference. `lend(request)` is a context with the version that a request asks for."""

    def __init__(self, lend: Callable[[Any], Any], limits: Any):
        self._lend, self._limits = lend, limits

    def classify(self, request: Any, seconds: float) -> Any:
        """The ClassificationResponse to a ClassificationRequest. Raises StatusError."""
        from tensorflow_serving.apis import classification_pb2

        with self._lend(request) as lent:
            name, signature = _signature(lent.session, request.model_spec, "No signature was found with the name: ")
            _check_classification(signature)
            result = self._classified(lent.session, name, request.input, seconds)
            return classification_pb2.ClassificationResponse(result=result, model_spec=_spec(request, lent, name))

    def regress(self, request: Any, seconds: float) -> Any:
        """The RegressionResponse to a RegressionRequest. Raises StatusError."""
        from tensorflow_serving.apis import regression_pb2

        with self._lend(request) as lent:
            name, signature = _signature(lent.session, request.model_spec, "No signature was found with the name: ")
            _check_regression(signature)
            result = self._regressed(lent.session, name, request.input, seconds)
            return regression_pb2.RegressionResponse(result=result, model_spec=_spec(request, lent, name))

    def multi_inference(self, request: Any, seconds: float) -> Any:
        """The MultiInferenceResponse to a MultiInferenceRequest. Raises StatusError."""
        from tensorflow_serving.apis import inference_pb2

        if not request.tasks:
            raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")
        response = inference_pb2.MultiInferenceResponse()
        with self._lend(request.tasks[0]) as lent:
            for task, name in zip(request.tasks, _check_tasks(request.tasks, lent.session), strict=True):
                result = response.results.add(model_spec=_spec(task, lent, name))
                if task.method_name == CLASSIFY:
                    answer = self._classified(lent.session, name, request.input, seconds)
                    result.classification_result.CopyFrom(answer)
                else:
                    answer = self._regressed(lent.session, name, request.input, seconds)
                    result.regression_result.CopyFrom(answer)
        return response

    def _classified(self, session: Any, name: str, examples: Any, seconds: float) -> Any:
        from tensorflow_serving.apis import classification_pb2

        inputs = _serialized(examples, self._limits.batch)
        wanted = [key for key in ("classes", "scores") if key in session.signatures[name].outputs]
        outputs = session.run(name, {"inputs": inputs}, wanted, timeout=seconds)
        classes, scores = (_matrix(outputs, key, len(inputs)) for key in ("classes", "scores"))
        result = classification_pb2.ClassificationResult()
        for i in range(len(inputs)):
            row = result.classifications.add()
            for j in range(_width(classes, scores)):
                label = None if classes is None else _text(classes[i, j])
                row.classes.add(label=label, score=None if scores is None else scores[i, j])
        return result

    def _regressed(self, session: Any, name: str, examples: Any, seconds: float) -> Any:
        from tensorflow_serving.apis import regression_pb2

        inputs = _serialized(examples, self._limits.batch)
        values = session.run(name, {"inputs": inputs}, ["outputs"], timeout=seconds)["outputs"]
        if values.ndim not in (1, 2) or values.shape[1:] not in ((), (1,)):
            raise StatusError(
                "INVALID_ARGUMENT",
                "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
                f"{list(values.shape)}",
            )
        _check_output(values, np.dtype(np.float32), "output", len(inputs))
        result = regression_pb2.RegressionResult()
        for value in values.reshape(-1).tolist():
            result.regressions.add(value=value)
        return result


def _spec(request: Any, lent: Any, signature: str) -> Any:
    from keras_committee.serving.server.grpc_answers import model_spec

    return model_spec(request.model_spec.name, lent.version, signature)


def _signature(session: Any, spec: Any, missing: str) -> tuple[str, Signature]:
    name = spec.signature_name or DEFAULT
    if name not in session.signatures:
        raise StatusError("INVALID_ARGUMENT", f"{missing}{name}")
    return name, session.signatures[name]


def _check_tasks(tasks: Any, session: Any) -> list[str]:
    """The signatures of `tasks`, all of which must read one tensor."""
    names: list[str] = []
    for task in tasks:
        if not task.model_spec.name:
            raise StatusError("INVALID_ARGUMENT", "Found ModelSpec with an empty model name.")
        if task.model_spec.name != tasks[0].model_spec.name:
            raise StatusError(
                "INVALID_ARGUMENT", "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        if (task.model_spec.signature_name or DEFAULT) in names:
            raise StatusError("INVALID_ARGUMENT", f"Duplicate evaluation of signature: {names[-1]}")
        missing = "Requested signature not found in model graph: "
        name, signature = _signature(session, task.model_spec, missing)
        _check_task(task, signature)
        names.append(name)
    if len({session.signatures[name].inputs["inputs"].tensor_name for name in names}) > 1:
        raise StatusError("INVALID_ARGUMENT", "Input tensor must be the same for all Signatures.")
    return names


def _check_task(task: Any, signature: Signature) -> None:
    if task.method_name == CLASSIFY:
        return _check_classification(signature)
    if task.method_name == REGRESS:
        return _check_regression(signature)
    raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")


def _check_classification(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise StatusError("INVALID_ARGUMENT", f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise StatusError("FAILED_PRECONDITION", f"No classification inputs found in SignatureDef: {signature.proto}")
    if not {"classes", "scores"} & set(signature.outputs):
        raise StatusError(
            "FAILED_PRECONDITION",
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {signature.proto}",
        )


def _check_regression(signature: Signature) -> None:
    if len(signature.inputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise StatusError("INVALID_ARGUMENT", "Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise StatusError("FAILED_PRECONDITION", f"No regression inputs found in SignatureDef: {signature.proto}")
    if "outputs" not in signature.outputs:
        raise StatusError("FAILED_PRECONDITION", f"No regression outputs found in SignatureDef: {signature.proto}")


def _serialized(given: Any, most: int) -> np.ndarray:
    """The examples as strings `(batch,)`. A context goes before each of them, as a merge of protos is written."""
    kind = given.WhichOneof("kind")
    examples = list(getattr(given, kind).examples) if kind else []
    if not examples:
        raise StatusError("INVALID_ARGUMENT", "Input is empty.")
    if len(examples) > most:
        raise StatusError("INVALID_ARGUMENT", f"a batch may have {most} examples. This one has {len(examples)}")
    context = (
        given.example_list_with_context.context.SerializeToString() if kind == "example_list_with_context" else b""
    )
    return np.array([context + example.SerializeToString() for example in examples], object)


def _matrix(outputs: dict[str, np.ndarray], key: str, examples: int) -> np.ndarray | None:
    """The output `(batch, classes)`, or None where the signature has no such."""
    if key not in outputs:
        return None
    if outputs[key].ndim != 2:
        raise StatusError(
            "INVALID_ARGUMENT",
            f"Expected Tensor shape: [batch_size num_classes] but got {list(outputs[key].shape)}",
        )
    _check_output(outputs[key], np.dtype(object if key == "classes" else np.float32), key, examples)
    return outputs[key]


def _check_output(array: np.ndarray, dtype: np.dtype, what: str, examples: int) -> None:
    if array.dtype != dtype:
        wanted = "DT_STRING" if dtype == object else "DT_FLOAT"
        raise StatusError("INVALID_ARGUMENT", f"Expected {what} Tensor of {wanted}. Got: {array.dtype}")
    if len(array) != examples:
        raise StatusError("INVALID_ARGUMENT", f"Expected {what} output batch size of {examples}. Got: {len(array)}")


def _width(classes: np.ndarray | None, scores: np.ndarray | None) -> int:
    widths = {array.shape[1] for array in (classes, scores) if array is not None}
    if len(widths) > 1:
        raise StatusError("INVALID_ARGUMENT", "Tensors class and score should match in dim_size(1).")
    return widths.pop()


def _text(value: bytes) -> str:
    return value.decode(errors="replace")
