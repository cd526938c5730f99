"""Conversion of a committee to the formats of other runtimes.

LiteRT and OpenVINO convert a cascade with its conditions. The converter to ONNX does not: it loses the shapes inside a
branch. So each stage is converted alone, and `_join_stages` puts the later ones into the branches of `If` nodes.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_committee.errors import ExportError
from keras_committee.export.committee_graph import ServingCommittee
from keras_committee.export.formats import CONVERTED_FORMATS
from keras_committee.progress import step

_OPSET = 18  # of ONNX; the newest that tf2onnx 1.17 writes
_BOOL = 9  # onnx.TensorProto.BOOL
_STAGE_OUTPUTS = ("probabilities", "confidence", "mutual_information", "members_used")


def convert(committee: ServingCommittee, name: str, folder: Path, input_dtype: str = "float32") -> None:
    """Write a committee to `folder` in a format of `CONVERTED_FORMATS`, with a batch of any size.

    Its input is `image`, raw pixels in a dtype of `INPUT_DTYPES`. Its outputs are those of `ServingCommittee.predict`
    without the members' predictions; `label` only where the runtime returns strings.

    Raises:
        ExportError: If the converter fails.
    """
    converters = {"onnx": _convert_to_onnx, "litert": _convert_to_litert, "openvino": _convert_to_openvino}
    fmt = CONVERTED_FORMATS[name]
    folder.mkdir(parents=True)
    with step(f"converting the committee to {fmt.title}"):
        try:
            converters[name](committee, input_dtype, folder / fmt.file)
        except Exception as error:  # converters raise errors of many kinds
            cause = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ExportError(
                f"the committee cannot be converted to {fmt.title}: {cause}. Nothing was published.\n"
                "  Export it as a SavedModel, without --format, or choose another format."
            ) from error


def _convert_to_litert(committee, input_dtype, file):
    with _saved_model(committee, input_dtype, has_strings=True) as folder:
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        file.write_bytes(converter.convert())


def _convert_to_openvino(committee, input_dtype, file):
    import openvino

    # `openvino.convert_model` does the same, but reports its use to Intel.
    with _saved_model(committee, input_dtype, has_strings=False) as folder:
        openvino.save_model(openvino.Core().read_model(folder), str(file), compress_to_fp16=False)


@contextlib.contextmanager
def _saved_model(committee, input_dtype, has_strings) -> Iterator[str]:
    """Write a SavedModel with the signature `serving_default` to a folder, which is deleted at the end."""
    root = tf.Module()
    root.members = [list(variables.values()) for variables in committee.variables]  # pyright: ignore
    function = tf.function(
        lambda image: _outputs(committee.predict(tf.cast(image, tf.float32)), has_strings),
        input_signature=[_image_spec(committee, input_dtype)],
        autograph=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(root, folder, signatures={"serving_default": function})
        yield folder


def _outputs(outputs, has_strings):
    left_out = {"member_probabilities"} | (set() if has_strings else {"label"})
    return {name: value for name, value in outputs.items() if name not in left_out}


def _image_spec(committee, dtype):
    return tf.TensorSpec((None, *committee.image_shape), dtype, name="image")


def _convert_to_onnx(committee, input_dtype, file):
    import onnx

    stages = [_convert_stage(committee, index, input_dtype) for index in range(committee.num_stages)]
    model = _join_stages(stages, _convert_last_outputs(committee))
    onnx.checker.check_model(model, full_check=True)
    file.write_bytes(model.SerializeToString())


def _convert_stage(committee, index, input_dtype):
    """Return the ONNX model of one stage: see `ServingCommittee.run_stage`."""
    logits_shape = committee.logits_shape(index)
    logits_specs = [tf.TensorSpec(logits_shape, tf.float32, name="logits")] if index else []
    return _tf2onnx(
        lambda image, *logits: committee.run_stage(index, tf.cast(image, tf.float32), *logits),
        [_image_spec(committee, input_dtype), *logits_specs],
    )


def _convert_last_outputs(committee):
    """Return the ONNX model of the outputs of the committee that the last stage does not have, such as `class_id`.

    Its inputs are `stage_probabilities` and `stage_confidence`.
    """
    specs = [
        tf.TensorSpec((None, len(committee.classes)), tf.float32, name="stage_probabilities"),
        tf.TensorSpec((None,), tf.float32, name="stage_confidence"),
    ]

    def last_outputs(probabilities, confidence):
        outputs = committee.finish({"probabilities": probabilities, "confidence": confidence})
        return {name: value for name, value in outputs.items() if name not in _STAGE_OUTPUTS}

    return _tf2onnx(last_outputs, specs)


def _tf2onnx(function, specs):
    import tf2onnx

    traced = tf.function(function, input_signature=specs, autograph=False)
    root_level = logging.getLogger("tf2onnx").level
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            model, _ = tf2onnx.convert.from_function(traced, input_signature=specs, opset=_OPSET)
    finally:
        logging.getLogger("tf2onnx").setLevel(root_level)
    return model


def _join_stages(stages: Sequence[Any], last: Any) -> Any:
    """Return one ONNX model of the stages of a cascade, or of the only stage of a committee, and of what follows.

    A later stage is in a branch of an `If`, and runs for the images at which no earlier one has stopped. The weights
    are initializers of the outer graph, each once.
    """
    from onnx import compose, helper

    stages = [compose.add_prefix(model, f"stage_{index}/") for index, model in enumerate(stages)]
    last = compose.add_prefix(last, "last/")
    weights = _Weights()
    nodes = _stage_nodes(stages, weights, 0, {"image": "image"})
    nodes += _identities("stage_0/final/", "last/stage_", ("probabilities", "confidence")) + weights.take(last.graph)
    nodes += _identities("last/", "", [output.name.removeprefix("last/") for output in last.graph.output])
    nodes += _identities("stage_0/final/", "", _STAGE_OUTPUTS)
    outputs = {value.name.split("/")[1]: value for value in (*stages[0].graph.output, *last.graph.output)}
    image = next(value for value in stages[0].graph.input if value.name == "stage_0/image")
    graph = helper.make_graph(
        nodes,
        "committee",
        [_with_any_batch(image, "image")],
        [_with_any_batch(value, name) for name, value in outputs.items() if name not in ("all_logits", "stops")],
        weights.initializers,
    )
    return helper.make_model(graph, opset_imports=last.opset_import, ir_version=last.ir_version)


def _stage_nodes(stages, weights, index, inputs):
    """Return the nodes of the stages from `index` on. The names of the outputs begin with `stage_INDEX/final/`.

    Args:
        stages: Models of all stages, whose names begin with `stage_INDEX/`.
        weights: `_Weights`, to which theirs are added.
        index: Index of the first of these stages.
        inputs: Names of the values that are the inputs `image` and, after the first stage, `logits`.
    """
    from onnx import helper

    def node(operation, sources, target, **attributes):
        return helper.make_node(operation, sources, [prefix + target], **attributes)

    prefix = f"stage_{index}/"
    nodes = [node("Identity", [source], name) for name, source in inputs.items()]
    nodes += weights.take(stages[index].graph)
    if index == len(stages) - 1:
        return nodes + _identities(prefix, f"{prefix}final/", _STAGE_OUTPUTS)
    nodes += [
        node("Not", [f"{prefix}stops"], "continues"),
        node("NonZero", [f"{prefix}continues"], "columns"),
        node("Transpose", [f"{prefix}columns"], "rows", perm=[1, 0]),
        node("Size", [f"{prefix}rows"], "count"),
        node("Cast", [f"{prefix}count"], "any", to=_BOOL),
    ]
    run_later_stages = [
        node("GatherND", [f"{prefix}image", f"{prefix}rows"], "later_image"),
        node("GatherND", [f"{prefix}all_logits", f"{prefix}rows"], "later_logits"),
        *_stage_nodes(stages, weights, index + 1, {"image": f"{prefix}later_image", "logits": f"{prefix}later_logits"}),
        *(
            node("ScatterND", [prefix + name, f"{prefix}rows", f"stage_{index + 1}/final/{name}"], f"later/{name}")
            for name in _STAGE_OUTPUTS
        ),
    ]
    keep_outputs = _identities(prefix, f"{prefix}kept/", _STAGE_OUTPUTS)
    values = {value.name.removeprefix(prefix): value for value in stages[index].graph.output}

    def branch(name, branch_nodes):
        outputs = [_with_any_batch(values[output], f"{prefix}{name}/{output}") for output in _STAGE_OUTPUTS]
        return helper.make_graph(branch_nodes, prefix + name, [], outputs)

    nodes.append(
        helper.make_node(
            "If",
            [f"{prefix}any"],
            [f"{prefix}final/{name}" for name in _STAGE_OUTPUTS],
            then_branch=branch("later", run_later_stages),
            else_branch=branch("kept", keep_outputs),
        )
    )
    return nodes


class _Weights:
    """The initializers of several graphs, of which equal ones are kept once.

    Attributes:
        initializers: The different ones.
    """

    def __init__(self):
        self.initializers: list[Any] = []
        self._names: dict[bytes, str] = {}  # by content

    def take(self, graph) -> list[Any]:
        """Move the initializers of a graph here, and return its nodes."""
        renamed = {}
        for initializer in graph.initializer:
            name = initializer.name
            initializer.name = ""
            content = initializer.SerializeToString(deterministic=True)
            initializer.name = name
            if content not in self._names:
                self._names[content] = name
                self.initializers.append(initializer)
            renamed[name] = self._names[content]
        _rename_inputs(graph.node, renamed)
        return list(graph.node)


def _rename_inputs(nodes, names):
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            _rename_inputs(attribute.g.node, names)


def _identities(source_prefix, target_prefix, names):
    from onnx import helper

    return [helper.make_node("Identity", [source_prefix + name], [target_prefix + name]) for name in names]


def _with_any_batch(value, name):
    """Return a copy of the description of a value, with another name and a first dimension called `batch`."""
    copy = type(value)()
    copy.CopyFrom(value)
    copy.name = name
    copy.type.tensor_type.shape.dim[0].Clear()
    copy.type.tensor_type.shape.dim[0].dim_param = "batch"
    return copy
