"""Check that an untrained member can be exported."""

import keras
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from keras_committee.export.export import find_problems
from keras_committee.export.inference_model import InferenceModel
from keras_committee.export.layer_precision import compute_in_float32
from keras_committee.models.member_check import MemberCheck


def make_member_check() -> MemberCheck:
    """Return a check of untrained members that traces them as `export` does, too."""
    return MemberCheck(_check_exportable, unrelated_errors=(tf.errors.ResourceExhaustedError,))


def _check_exportable(model: keras.Model) -> None:
    """Raise ValueError unless the model, which is changed, can be traced and run by TF Serving."""
    compute_in_float32(model)
    spec = tf.TensorSpec((None, *model.inputs[0].shape[1:]), tf.float32)
    inference_model = InferenceModel(model, "member")
    function = tf.function(inference_model.__call__, input_signature=[spec], autograph=False).get_concrete_function()
    inference_model.variables(function.graph.variables)
    saved_model = SavedModel()
    graph = saved_model.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    graph.graph_def.CopyFrom(function.graph.as_graph_def())
    if problems := sorted(set(find_problems(saved_model))):
        raise ValueError("; ".join(problems))
