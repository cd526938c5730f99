"""What do Classify, Regress and MultiInference answer over gRPC?

Source: tensorflow/serving, servables/tensorflow/classifier.cc, regressor.cc and multi_inference.cc.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_committee.serving.server.examples import classify, regress, serialized
from keras_committee.serving.server.limits import Limits
from keras_committee.tfserving.tf_protocol import DEFAULT, Signature, StatusError

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


class ExampleAnswers:
    """The three methods that take tf.Examples. `lend(request)` is a context with the version that a request names."""

    def __init__(self, lend: Callable[[Any], Any], limits: Limits):
        self._lend, self._limits = lend, limits

    def classify(self, request: Any, seconds: float) -> Any:
        """The ClassificationResponse to a ClassificationRequest. Raises StatusError."""
        from tensorflow_serving.apis import classification_pb2

        with self._lend(request) as lent:
            examples = serialized(request.input, self._limits)
            result = classified(*classify(lent.session, request.model_spec.signature_name, examples, seconds))
            return classification_pb2.ClassificationResponse(result=result, model_spec=answering_spec(request, lent))

    def regress(self, request: Any, seconds: float) -> Any:
        """The RegressionResponse to a RegressionRequest. Raises StatusError."""
        from tensorflow_serving.apis import regression_pb2

        with self._lend(request) as lent:
            examples = serialized(request.input, self._limits)
            result = regressed(regress(lent.session, request.model_spec.signature_name, examples, seconds))
            return regression_pb2.RegressionResponse(result=result, model_spec=answering_spec(request, lent))

    def multi_inference(self, request: Any, seconds: float) -> Any:
        """The MultiInferenceResponse to a MultiInferenceRequest. Raises StatusError."""
        from tensorflow_serving.apis import inference_pb2

        if not request.tasks:
            raise StatusError("INVALID_ARGUMENT", "Missing ModelSpec")
        response = inference_pb2.MultiInferenceResponse()
        with self._lend(request.tasks[0]) as lent:
            check_tasks(request.tasks, lent.session.signatures)
            examples = serialized(request.input, self._limits)
            for task in request.tasks:
                result = response.results.add(model_spec=answering_spec(task, lent))
                name = task.model_spec.signature_name
                if task.method_name == CLASSIFY:
                    answer = classified(*classify(lent.session, name, examples, seconds))
                    result.classification_result.CopyFrom(answer)
                else:
                    result.regression_result.CopyFrom(regressed(regress(lent.session, name, examples, seconds)))
        return response


def answering_spec(request: Any, lent: Any, signature: str | None = None) -> Any:
    """The ModelSpec of an answer: the version that answered, and the signature by which it did."""
    from tensorflow_serving.apis import model_pb2

    asked = request.model_spec
    signature = (asked.signature_name or DEFAULT) if signature is None else signature
    spec = model_pb2.ModelSpec(name=asked.name, signature_name=signature)
    spec.version.value = lent.version
    return spec


def classified(classes: np.ndarray | None, scores: np.ndarray | None) -> Any:
    """The ClassificationResult of labels and scores `(examples, classes)`, one of which may be None."""
    from tensorflow_serving.apis import classification_pb2

    result = classification_pb2.ClassificationResult()
    rows = next(array.shape for array in (classes, scores) if array is not None)
    for i in range(rows[0]):
        row = result.classifications.add()
        for j in range(rows[1]):
            label = None if classes is None else classes[i, j].decode(errors="replace")
            row.classes.add(label=label, score=None if scores is None else scores[i, j])
    return result


def regressed(values: np.ndarray) -> Any:
    """The RegressionResult of values `(examples,)`."""
    from tensorflow_serving.apis import regression_pb2

    result = regression_pb2.RegressionResult()
    for value in values.tolist():
        result.regressions.add(value=value)
    return result


def check_tasks(tasks: Sequence[Any], signatures: dict[str, Signature]) -> None:
    """Raises StatusError unless all tasks have one model, different signatures, and these read one tensor."""
    names = [task.model_spec.signature_name or DEFAULT for task in tasks]
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
        if task.method_name not in (CLASSIFY, REGRESS):
            raise StatusError("UNIMPLEMENTED", f"Unsupported signature method_name: {task.method_name}")
    tensors = {info.tensor_name for name in names for info in signatures[name].inputs.values()}
    if len(tensors) > 1:
        raise StatusError("INVALID_ARGUMENT", "Input tensor must be the same for all Signatures.")
