"""How does a committee become a version that TF Serving loads?

Folded, traced and saved; its warm-up requests replayed and its answers compared with those of Keras in a process that
has no Keras; and only then published, by one rename.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import ImageTransform
from keras_committee.errors import ExportError, RecipeError, ResourceError, RunError
from keras_committee.export import export_members, publish, verification_cases, verify
from keras_committee.export.committee_graph import ServingCommittee, build_signatures
from keras_committee.export.inference_model import InferenceModel
from keras_committee.export.verification_cases import BATCH_SIZES
from keras_committee.files import translate_os_errors, utc_timestamp, write_json
from keras_committee.run import Run
from keras_committee.selection import Selection

_ENCODED_SIGNATURES = ("predict_bytes", "classify")  # the signatures that take image files
_MAX_REQUEST_BYTES = 4 * 1024**2  # bytes of a warm-up request of pixels: at 224x224 the batches come as JPEGs only


def export(
    runs: str | Path | Run | Sequence[str | Path | Run],
    out: str | Path | None = None,
    selection: Selection | str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    *,
    min_members: int | None = None,
) -> Path:
    """Publishes a committee or cascade as the next version of a model for TF Serving.

    Args:
        runs: One run folder, or several whose members form one committee.
        out: The model's folder, `saved_models/NAME`; NAME is that of the first run folder where None.
        selection: Which members, how combined; the path of a `selection.json`, or one whose `run` paths start from the
            first run folder. None is the committee of all members under the head of their recipe.
        image_size: Height and width, for members that take any; those of the run's data where None.
        min_members: With so many members or more a run is taken as it is; None wants all of them.

    Returns:
        The folder of the new version.

    Raises:
        ExportError: If a member cannot be exported, or the export does not answer like Keras. Nothing is published.
        ResourceError: If the disk is full or not writable. Nothing is published.
        RunError, RecipeError, IncompleteError: If a run is no committee that can be exported.
    """
    opened = [run_or_path if isinstance(run_or_path, Run) else Run.open(run_or_path) for run_or_path in _as_list(runs)]
    model_dir = Path(out) if out is not None else Path("saved_models") / opened[0].path.resolve().name
    publish.check_name(model_dir)
    _require_tensorflow_serving()
    with contextlib.ExitStack() as locks:
        for run in {run.path.resolve(): run for run in opened}.values():
            locks.enter_context(run.lock(shared=True))
        chosen, models, transform_configs = _load_committee(opened, selection, min_members)
        transforms = export_members.resolve_transforms(models, transform_configs, image_size)
        version = publish_committee(chosen, models, model_dir, transforms=transforms, runs=opened)
        for run in opened:
            run.append_event("exported", version=str(version.resolve()), members=len(chosen.members))
    return version


def publish_committee(
    selection: Selection,
    models: Sequence[keras.Model],
    model_dir: Path,
    *,
    transforms: Sequence[ImageTransform] | None = None,
    runs: Sequence[Run] = (),
) -> Path:
    """Saves, verifies and publishes the committee of `models`, one for each member of the selection, below `model_dir`.

    `transforms` say what each member sees of an encoded image: the whole of it, at the member's size, where None.
    Returns the folder of the new version. Raises ExportError and ResourceError, as `export` does.
    """
    transforms = transforms or export_members.resolve_transforms(models, [None] * len(models))
    shape = export_members.image_shape(models, transforms)
    with publish.staging(model_dir) as staging_dir:
        version_dir = staging_dir / "version"
        with _translate_write_errors(version_dir):
            signatures = save_committee(selection, models, version_dir, transforms)
            check_ops(version_dir)
            verification = _verify(selection, models, transforms, signatures, version_dir, staging_dir / "golden.npz")
            manifest = build_manifest(selection, shape, transforms, signatures, runs, verification)
            write_json(version_dir / "committee.json", manifest)
        return publish.publish(model_dir, version_dir)


def save_committee(
    selection: Selection,
    models: Sequence[keras.Model],
    folder: Path,
    transforms: Sequence[ImageTransform] | None = None,
) -> list[str]:
    """Writes the SavedModel, each variable once, and returns the names of its signatures. Raises ExportError."""
    transforms = transforms or export_members.resolve_transforms(models, [None] * len(models))
    try:
        committee = ServingCommittee(
            _inference_models(models), selection, export_members.image_shape(models, transforms), transforms
        )
    except ValueError as error:
        raise ExportError(f"the committee cannot be exported: {error}") from error
    root = _CheckpointRoot(name="committee")
    root.members = committee.variables
    signatures = build_signatures(committee, selection.classes)
    # Functions stay out of the module: only what the signatures need is written.
    tf.saved_model.save(root, str(folder), signatures=signatures)
    return list(signatures)


class _CheckpointRoot(tf.Module):
    """What is written to the checkpoint."""

    members: list[dict[str, tf.Variable]]


def _as_list(runs):
    return [runs] if isinstance(runs, str | Path | Run) else list(runs)


def _require_tensorflow_serving():
    if importlib.util.find_spec("tensorflow_serving") is None:
        raise RecipeError('warm-up requests need TF Serving\'s API: pip install "keras-committee[serving]"')


def _load_committee(runs, selection, min_members):
    if selection is None:
        return export_members.all_members(runs, min_members)
    if isinstance(selection, Selection):
        return selection, *export_members.selected_models(selection, runs[0].path)
    loaded_selection = Selection.read(selection)
    return loaded_selection, *export_members.selected_models(loaded_selection, Path(selection).parent)


def _inference_models(models):
    """One for each model, and the same for the same model."""
    inference_models: dict[int, InferenceModel] = {}
    for model in models:
        if id(model) not in inference_models:
            inference_models[id(model)] = InferenceModel(model, f"member_{len(inference_models):02d}")
    return [inference_models[id(model)] for model in models]


@contextlib.contextmanager
def _translate_write_errors(path: Path) -> Iterator[None]:
    """TensorFlow tells a full disk in its own words."""
    try:
        with translate_os_errors(path):
            yield
    except tf.errors.OpError as error:
        message = f"cannot write {path}: {error.message}\n  Make room, or name another folder. Nothing was published."
        raise ResourceError(message) from error


def _verify(selection, models, transforms, signatures, version_dir, cases_file) -> dict[str, Any]:
    cases = verification_cases.compute_verification_cases(
        models, selection, transforms, export_members.image_shape(models, transforms)
    ).unambiguous(selection)
    if not len(cases.images):
        raise ExportError("the members are undecided about every golden image: nothing can be verified.")
    requests = _warmup_requests(_signature_inputs(cases.images, signatures), cases, selection)
    verification_cases.write_warmup(
        version_dir, [request for request in requests if _request_bytes(request) <= _MAX_REQUEST_BYTES]
    )
    outputs = verification_cases.expected_outputs(cases, selection, signatures)
    inputs = _signature_inputs(cases.images, signatures, lossless=True)
    verify.write_cases(cases_file, _append_invalid_image(inputs), outputs)
    return verify.check_outputs(version_dir, cases_file)


def _warmup_requests(inputs, cases, selection) -> list[verification_cases.WarmupRequest]:
    requests = []
    for signature, arrays in inputs.items():
        predictions = cases.preprocessed_predictions if signature in _ENCODED_SIGNATURES else cases.predictions
        batches = _batch_indices(verification_cases.cascade_outputs(predictions, selection)["members_used"])
        requests += verification_cases.build_requests({signature: arrays}, batches)
    return requests


def _signature_inputs(
    images: np.ndarray, signatures: Sequence[str], *, lossless: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """The images as inputs of each signature; where they may change a little, every other one is a JPEG."""
    inputs = {name: {"image": images.astype(np.float32)} for name in ("serving_default", "predict_members")}
    if "predict_bytes" in signatures:
        encoders = [tf.io.encode_png if lossless or i % 2 else tf.io.encode_jpeg for i in range(len(images))]
        contents = [encode(image).numpy() for encode, image in zip(encoders, images, strict=True)]
        inputs["predict_bytes"] = {"image_bytes": np.array(contents, object)}
        inputs["classify"] = {"inputs": np.array([_serialize_example(content) for content in contents], object)}
    return {name: inputs[name] for name in signatures}


def _append_invalid_image(inputs):
    invalid_inputs = {
        "image_bytes": verification_cases.INVALID_IMAGE,
        "inputs": _serialize_example(verification_cases.INVALID_IMAGE),
    }
    return {
        signature: {
            name: np.append(array, np.array([invalid_inputs[name]], object)) if name in invalid_inputs else array
            for name, array in arrays.items()
        }
        for signature, arrays in inputs.items()
    }


def _serialize_example(content: bytes) -> bytes:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()


def _batch_indices(members_used: np.ndarray) -> list[np.ndarray]:
    """Indices of examples: for each batch size one that no member more is asked about, and one that all are."""
    groups = [np.flatnonzero(members_used == used) for used in sorted({members_used.min(), members_used.max()})]
    return [np.resize(group, size) for size in verification_cases.BATCH_SIZES for group in groups]


def _request_bytes(request):
    return sum(array.nbytes for array in request[1].values())


FORMAT_VERSION = 1


def build_manifest(
    selection: Selection,
    shape: tuple[int, int, int],
    transforms: Sequence[ImageTransform],
    signatures: Sequence[str],
    runs: Sequence[Run],
    verification: dict[str, Any],
) -> dict[str, Any]:
    """The content of `committee.json`.

    `image` is what `serving_default` takes, `transforms` what each member sees of an encoded image: its size, the padding
    of its centre crop, or null, and how it is resized. `metrics` is what `evaluate` measured of each run, or null;
    `report` what the selection measured.
    """
    return {
        "format": FORMAT_VERSION,
        "created": utc_timestamp(),
        "kind": selection.kind,
        "labels": list(selection.classes),
        "image": dict(zip(("height", "width", "channels"), shape, strict=True)),
        **selection_fields(selection),
        "framings": [dataclasses.asdict(transform) for transform in transforms],
        "recipes": [_recipe(run) for run in runs],
        "metrics": [_metrics(run) for run in runs],
        "versions": _versions(),
        "signatures": sorted(signatures),
        "warmup": {"requests": verification["warmup"], "batch_sizes": list(BATCH_SIZES)},
        "verified": {"largest_difference": verification["difference"], "outputs": verification["outputs"]},
    }


def selection_fields(selection: Selection) -> dict[str, Any]:
    """Members (run, index, SHA-256 of the weights, temperature, ...), head, weights, stages, confidence, report."""
    fields = dataclasses.asdict(selection)
    del fields["classes"]
    return fields


def _recipe(run):
    return {"run": run.path.resolve().name, "recipe": run.environment()["recipe"], "knobs": run.parameters()}


def _metrics(run):
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        evaluation = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Run `keras-committee evaluate {run.path}` again.") from error
    return {
        name: evaluation[name] for name in ("split", "examples", "head", "members", "committees") if name in evaluation
    }


def _versions():
    packages = ("keras-committee", "keras", "tensorflow")
    return {package: importlib.metadata.version(package) for package in packages}


# What a server cannot or must not run, and why.
_UNSUPPORTED_OPS = {
    "PyFunc": "Python runs only in the process that exported it",
    "PyFuncStateless": "Python runs only in the process that exported it",
    "EagerPyFunc": "Python runs only in the process that exported it",
    "XlaCallModule": "XLA is off in the server",
    "XlaLaunch": "XLA is off in the server",
    "ReadFile": "a request could read the server's files",
    "WriteFile": "a request could write the server's files",
    "Print": "requests would be printed to the server's log",
    "PrintV2": "requests would be printed to the server's log",
}


def check_ops(folder: Path) -> None:
    """Raises ExportError, which names every problem, unless a stock server can run the SavedModel in `folder`."""
    problems = sorted(set(find_problems(read_saved_model(folder))))
    if problems:
        listing = "\n  ".join(problems)
        raise ExportError(f"TF Serving could not run this model. Nothing was published.\n  {listing}")


def read_saved_model(folder: Path) -> Any:
    """The SavedModel message of `folder`."""
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def find_problems(saved_model: Any) -> Iterator[str]:
    """One sentence for each thing that a stock TF Serving would not run."""
    tags = [sorted(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    if tags != [["serve"]]:
        yield f"it must have one graph, with the tag serve; it has {tags}"
    for graph in saved_model.meta_graphs:
        functions = graph.graph_def.library.function
        nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
        names = {function.signature.name for function in functions}
        for definition in [*functions, *nodes]:
            if "_XlaMustCompile" in definition.attr and definition.attr["_XlaMustCompile"].b:
                yield "a function with jit_compile=True: XLA is off in the server"
        for node in nodes:
            yield from _node_problems(node)
        for op in sorted({node.op for node in nodes} - names - set(_UNSUPPORTED_OPS)):
            if not _has_cpu_kernel(op):
                yield f"{op}: there is no such operation for a CPU in TensorFlow itself"


def _node_problems(node):
    if re.search(r"(GPU|TPU|XLA)", node.device, re.IGNORECASE):
        yield f"{node.name} is pinned to {node.device}"
    if node.op in _UNSUPPORTED_OPS:
        yield f"{node.op}: {_UNSUPPORTED_OPS[node.op]}"
    if "data_format" in node.attr and node.attr["data_format"].s.startswith(b"NC"):
        yield f"{node.op} with channels first has no kernel on a CPU"


def _has_cpu_kernel(op):
    from tensorflow.python.framework import (  # pyright: ignore[reportAttributeAccessIssue]
        kernels,
        op_def_registry,
    )

    if op_def_registry.get(op) is None:
        return False
    if op in ("Placeholder", "PlaceholderWithDefault", "_Arg", "_Retval"):
        return True
    devices = {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(op).kernel}
    return bool(devices & {"CPU", "DEFAULT"})
