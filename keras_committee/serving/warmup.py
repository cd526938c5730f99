"""Which requests does a server replay before a version counts as loaded?

They make the first real request as fast as the others, and no version that fails one of them is ever served.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH_SIZES = (1, 8, 32)
FILE = Path("assets.extra") / "tf_serving_warmup_requests"

Request = tuple[str, dict[str, np.ndarray]]  # signature, and arrays by input; strings are object arrays of bytes


def requests_for(inputs: Mapping[str, Mapping[str, np.ndarray]], batches: Sequence[np.ndarray]) -> list[Request]:
    """One request for each signature and each of `batches`, which holds the indices of examples.

    Args:
        inputs: For each signature its inputs, by name, for all examples.
        batches: int arrays.
    """
    return [
        (signature, {name: array[batch] for name, array in arrays.items()})
        for signature, arrays in inputs.items()
        for batch in batches
    ]


def write_warmup(folder: Path, requests: Sequence[Request]) -> None:
    """Writes the requests into the version in `folder`, as TFRecords of `PredictionLog`s."""
    import tensorflow as tf

    (folder / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / FILE)) as file:
        for signature, arrays in requests:
            file.write(_log(signature, arrays).SerializeToString())


def _log(signature, arrays):
    """As a server logs it: `classify` takes examples, every other signature tensors."""
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    spec: Any = model_pb2.ModelSpec(signature_name=signature)
    if signature == "classify":
        request: Any = classification_pb2.ClassificationRequest(model_spec=spec)
        request.input.example_list.examples.extend(tf.train.Example.FromString(each) for each in arrays["inputs"])
        log = prediction_log_pb2.ClassifyLog(request=request)
        return prediction_log_pb2.PredictionLog(classify_log=log)
    tensors = {name: tf.make_tensor_proto(array) for name, array in arrays.items()}
    request = predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
