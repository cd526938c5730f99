"""Export of a committee or cascade as a version that TensorFlow Serving loads.

The members are folded for inference, traced into one graph and saved. A fresh process without Keras replays the warm-up
requests and compares the outputs of every signature with those of the Keras members. In bfloat16, the accuracy is also
compared with that in float32. Only then does the version appear in the model folder, by one rename.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import ImageTransform
from keras_committee.errors import ExportError, RecipeError, ResourceError, RunError
from keras_committee.export import export_members, formats, publish, verification_cases, verify
from keras_committee.export.accuracy_loss import AccuracyCheck, AccuracyLossError, check_accuracy
from keras_committee.export.committee_graph import ServingCommittee, build_signatures
from keras_committee.export.conversion import convert
from keras_committee.export.inference_model import InferenceModel, InferenceView
from keras_committee.files import expand_home, file_hash, read_record, translate_os_errors, utc_timestamp, write_record
from keras_committee.models.views import ViewModel
from keras_committee.precision import BFLOAT16_HARDWARE, EXPORT_PRECISIONS, training_device
from keras_committee.progress import step
from keras_committee.run import Run
from keras_committee.selection import Selection
from keras_committee.split_sizes import divide_for_promise
from keras_committee.tfserving.versions import MANIFEST_FILE

DEFAULT_MAX_ACCURACY_DROP = 0.2  # percentage points

_MANIFEST_FORMAT = 1

# Operations that TF Serving cannot or must not run, and why.
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


def export(
    runs: str | Path | Run | Sequence[str | Path | Run],
    out: str | Path | None = None,
    selection: Selection | str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    *,
    member: int | None = None,
    min_members: int | None = None,
    precision: str = "float32",
    max_accuracy_drop: float = DEFAULT_MAX_ACCURACY_DROP,
    format: str = formats.SAVED_MODEL,  # noqa: A002 - as in `keras.Model.export`
    input_dtype: str = "float32",
) -> Path:
    """Publish a committee or cascade as the next version of a model for TF Serving or for another runtime.

    Args:
        runs: One run folder, or several whose members form one committee.
        out: Model folder. None is `saved_models/NAME`, with the name of the first run folder; in another format such
            as `onnx_models/NAME`; of one member `saved_models/NAME_member_0`.
        selection: Which members to combine and how: the path of a `selection.json`, or a `Selection` whose `run` paths
            are relative to the first run folder. None combines all members with the head of their recipe.
        image_size: Height and width for members that accept any size. None uses the size in the run's data.
        member: Index of the only member to export, of one run without a selection.
        min_members: Accept incomplete runs with at least this many members; None requires all.
        precision: `"float32"`; `"bfloat16"`, in which convolutions and matrix products compute; or `"auto"`: bfloat16
            if this machine multiplies matrices in it and the accuracy permits it.
        max_accuracy_drop: In bfloat16, the largest loss of accuracy against float32 in percentage points: the upper end
            of its 95 % interval on the validation images must be below.
        format: One of `formats.FORMATS`. Formats other than `"saved-model"` compute in float32.
        input_dtype: One of `formats.INPUT_DTYPES`, of the pixels that the function of another format than
            `"saved-model"` takes. A SavedModel has a signature for each.

    Returns:
        The folder of the new version.

    Raises:
        ExportError: If a member cannot be exported, the exported model differs from Keras, or it loses more accuracy.
            Nothing is published.
        ResourceError: If the disk is full or not writable. Nothing is published.
        RunError, RecipeError, IncompleteError: If the runs do not form a committee.
    """
    items = [runs] if isinstance(runs, str | Path | Run) else runs
    opened = [item if isinstance(item, Run) else Run.open(item) for item in items]
    if member is not None and (selection is not None or len(opened) > 1):
        raise RecipeError("a member alone is exported from one run, without a selection.")
    model_dir = expand_home(out) if out is not None else publish.default_model_dir(opened[0].path, format, member)
    _check_precision(precision, max_accuracy_drop)
    publish.check_target(model_dir, format, precision, input_dtype)
    with contextlib.ExitStack() as locks:
        for run in {run.path.resolve(): run for run in opened}.values():
            locks.enter_context(run.lock(shared=True))
        exported, models, transform_configs = _load_members(opened, selection, member, min_members)
        transforms = export_members.resolve_transforms(models, transform_configs, image_size)
        shape = export_members.image_shape(models, transforms)
        version_dir = _publish_in_precision(
            precision,
            lambda: _accuracy_check(opened, shape, max_accuracy_drop),
            functools.partial(
                *(publish_committee, exported, models, model_dir),
                transforms=transforms,
                runs=opened,
                model_format=format,
                input_dtype=input_dtype,
            ),
            format,
        )
        for run in opened:
            run.append_event("exported", version=str(version_dir.resolve()), members=len(exported.members))
    return version_dir


def publish_committee(
    selection: Selection,
    models: Sequence[keras.Model],
    model_dir: Path,
    *,
    transforms: Sequence[ImageTransform] | None = None,
    runs: Sequence[Run] = (),
    accuracy_check: AccuracyCheck | None = None,
    precision_reason: str = "the default",
    model_format: str = formats.SAVED_MODEL,
    input_dtype: str = "float32",
) -> Path:
    """Save, verify and publish a committee of models as the next version in `model_dir`.

    Args:
        selection: The selection.
        models: One model for each of its members.
        model_dir: Model folder.
        transforms: How each member preprocesses an encoded image. None resizes the whole image to the member's size.
        runs: Runs whose parameters and metrics the manifest records.
        accuracy_check: Compute in bfloat16, and require that it loses no more accuracy. None computes in float32.
        precision_reason: Why the committee computes in this precision, for the manifest.
        model_format: One of `formats.FORMATS`.
        input_dtype: As for `export`.

    Returns:
        The folder of the new version.

    Raises:
        ExportError, ResourceError: As for `export`.
    """
    transforms = transforms or export_members.resolve_transforms(models, [None] * len(models))
    precision = "float32" if accuracy_check is None else "bfloat16"
    with publish.staging(model_dir) as staging_dir:
        version_dir = staging_dir / "version"
        with _translate_write_errors(version_dir):
            if model_format == formats.SAVED_MODEL:
                signatures = save_committee(selection, models, version_dir, transforms, precision)
                check_ops(version_dir)
            else:
                committee = _serving_committee(selection, models, transforms, precision)
                convert(committee, model_format, version_dir, input_dtype)
                signatures = ["serving_default"]
            cases_file = staging_dir / "cases.npz"
            verification = _verify(
                selection, models, transforms, signatures, version_dir, cases_file, precision, model_format
            )
            shape = export_members.image_shape(models, transforms)
            hashed = [version_dir / "saved_model.pb"] if model_format == formats.SAVED_MODEL else version_dir.iterdir()
            manifest = {
                **_selection_manifest(selection, transforms, runs),
                "model_format": model_format,
                "image": {**dict(zip(("height", "width", "channels"), shape, strict=True)), "dtype": input_dtype},
                "precision": {
                    "compute": precision,
                    "reason": precision_reason,
                    "hardware": BFLOAT16_HARDWARE if accuracy_check else None,
                    "accuracy": accuracy_check
                    and check_accuracy(version_dir, selection, models, transforms, shape[:2], accuracy_check),
                },
                "signatures": sorted(signatures),
                "warmup": {"requests": verification["warmup"], "batch_sizes": list(verification_cases.BATCH_SIZES)},
                "verified": {
                    "largest_difference": verification["difference"],
                    "outputs": verification["outputs"],
                    "runtime": verification["runtime"],
                },
                # The graph contains the class names and has no checksum of its own.
                "files": {file.name: file_hash(file) for file in sorted(hashed)},
            }
            write_record(version_dir / MANIFEST_FILE, manifest)
        return publish.publish(model_dir, version_dir)


@step("tracing and saving the committee")
def save_committee(
    selection: Selection,
    models: Sequence[keras.Model],
    folder: Path,
    transforms: Sequence[ImageTransform] | None = None,
    precision: str = "float32",
) -> list[str]:
    """Write the SavedModel, with each variable once, and return the names of its signatures.

    Args:
        selection: The selection.
        models: One model for each of its members.
        folder: Folder of the SavedModel.
        transforms: As in `publish_committee`.
        precision: `"float32"` or `"bfloat16"`; see `layer_precision`.

    Raises:
        ExportError: If a model cannot be exported.
    """
    transforms = transforms or export_members.resolve_transforms(models, [None] * len(models))
    committee = _serving_committee(selection, models, transforms, precision)
    root = _CheckpointRoot(name="committee")
    root.members = committee.variables
    signatures = build_signatures(committee)
    # Functions are not attributes of the module, so that only what the signatures use is written.
    tf.saved_model.save(root, str(folder), signatures=signatures)
    return list(signatures)


def check_ops(folder: Path) -> None:
    """Raise ExportError, which lists every problem, unless a stock TF Serving can run the SavedModel in `folder`."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    problems = sorted(set(find_problems(saved_model)))
    if problems:
        listing = "\n  ".join(problems)
        raise ExportError(f"TF Serving cannot run this model. Nothing was published.\n  {listing}")


def find_problems(saved_model: Any) -> Iterator[str]:
    """Yield one sentence for each part of a SavedModel message that a stock TF Serving cannot run."""
    tags = [sorted(graph.meta_info_def.tags) for graph in saved_model.meta_graphs]
    if tags != [["serve"]]:
        yield f"it must have exactly one graph, with the tag serve. Received: {tags}"
    for graph in saved_model.meta_graphs:
        functions = graph.graph_def.library.function
        nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
        names = {function.signature.name for function in functions}
        for definition in [*functions, *nodes]:
            if "_XlaMustCompile" in definition.attr and definition.attr["_XlaMustCompile"].b:
                yield "a function has jit_compile=True: XLA is off in the server"
        for node in nodes:
            yield from _node_problems(node)
        for op in sorted({node.op for node in nodes} - names - set(_UNSUPPORTED_OPS)):
            if not _has_cpu_kernel(op):
                yield f"{op}: TensorFlow has no such operation for CPUs"


class _CheckpointRoot(tf.Module):
    """The object whose variables are written to the checkpoint."""

    members: list[dict[str, tf.Variable]]


def _serving_committee(selection, models, transforms, precision) -> ServingCommittee:
    """Trace the committee. Raises ExportError if a model cannot be exported."""
    try:
        return ServingCommittee(
            _inference_models(models, precision), selection, export_members.image_shape(models, transforms), transforms
        )
    except ValueError as error:
        raise ExportError(f"the committee cannot be exported: {error}") from error


@step("loading the members")
def _load_members(runs, selection, member, min_members):
    """Return the selection, its models and their recorded image transforms."""
    if member is not None:
        return export_members.single_member(runs[0], member)
    if selection is None:
        return export_members.all_members(runs, min_members)
    if isinstance(selection, Selection):
        return selection, *export_members.selected_models(selection, runs[0].path)
    loaded_selection = Selection.read(selection)
    return loaded_selection, *export_members.selected_models(loaded_selection, expand_home(selection).parent)


def _check_precision(precision, max_accuracy_drop):
    if precision not in EXPORT_PRECISIONS:
        raise RecipeError(f"precision must be one of {', '.join(EXPORT_PRECISIONS)}. Received: {precision!r}")
    if not 0 < max_accuracy_drop <= 100:
        raise RecipeError(f"max_accuracy_drop must be above 0 and at most 100 points. Received: {max_accuracy_drop}")


def _publish_in_precision(precision, make_check, publish_fn, model_format=formats.SAVED_MODEL):
    """Call `publish_fn` for the precision; `"auto"` that loses too much accuracy, or cannot be checked, is float32."""
    if precision == "float32":
        return publish_fn()
    if model_format != formats.SAVED_MODEL:
        return publish_fn(precision_reason=f"the format {model_format} has no other precision")
    if precision == "bfloat16":
        return publish_fn(accuracy_check=make_check(), precision_reason="requested")
    device = training_device()
    if not device.has_bfloat16:
        return publish_fn(precision_reason=device.reason)
    try:
        return publish_fn(accuracy_check=make_check(), precision_reason=device.reason)
    except (AccuracyLossError, _NoValidationError) as error:
        reason = str(error).splitlines()[0].removesuffix(". Nothing was published.")
        return publish_fn(precision_reason=reason)


class _NoValidationError(RecipeError):
    """The runs have no validation images."""


def _accuracy_check(runs, shape, max_drop) -> AccuracyCheck:
    """Return the check on the validation images of the run whose images have this shape, or else of the first run."""
    splits = []
    for run in runs:
        loaded = run.recipe().data.load()
        run.require_classes(loaded.classes)
        splits.append((run, _part_to_choose_with(run, loaded.validation)))
    run, split = next((pair for pair in splits if tuple(pair[1].image_shape) == tuple(shape)), splits[0])
    if not len(split):
        raise _NoValidationError(
            f"the data of {run.path} have no validation images, on which bfloat16 is compared with float32. "
            "Nothing was published.\n"
            "  Use --precision float32, or set `validation` of the recipe's data to a number or fraction, in a new run."
        )
    return AccuracyCheck(split=split, source=str(run.path), max_drop=max_drop)


def _part_to_choose_with(run, validation):
    """Return the validation images that a precision may be chosen with; see `Run.divide`."""
    if not run.is_divided():
        return validation
    return validation.subset(np.array(divide_for_promise(validation.source_id(), len(validation))[0]))


@contextlib.contextmanager
def _translate_write_errors(path: Path) -> Iterator[None]:
    """Raise ResourceError for a full disk, which TensorFlow reports as an OpError."""
    try:
        with translate_os_errors(path):
            yield
    except tf.errors.OpError as error:
        raise ResourceError(
            f"cannot write {path}: {error.message}\n  Free disk space, or choose another folder. Nothing was published."
        ) from error


def _inference_models(models, precision):
    """Return one `InferenceModel` for each model; a repeated model has the same one, views share their network's."""
    networks: dict[int, InferenceModel] = {}
    by_model: dict[int, InferenceModel | InferenceView] = {}
    for model in models:
        network = model.network if isinstance(model, ViewModel) else model
        if id(network) not in networks:
            networks[id(network)] = InferenceModel(network, f"member_{len(networks):02d}", precision)
        if id(model) not in by_model:
            shared = networks[id(network)]
            by_model[id(model)] = InferenceView(shared, model.view) if isinstance(model, ViewModel) else shared
    return [by_model[id(model)] for model in models]


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


@step("predicting verification images with the members")
def _verify(
    selection, models, transforms, signatures, version_dir, cases_file, precision, model_format
) -> dict[str, Any]:
    """Write the warm-up requests of a SavedModel and compare the outputs with Keras; see `verify.verify`."""
    shape = export_members.image_shape(models, transforms)
    all_cases = verification_cases.compute_verification_cases(models, selection, transforms, shape, precision)
    cases = all_cases.unambiguous(selection)
    if not len(cases.images) and precision == "bfloat16":
        raise AccuracyLossError(
            "the rounding of bfloat16 may change the predictions on all verification images. Nothing was published.\n"
            "  Use --precision float32."
        )
    if not len(cases.images):
        raise ExportError(
            "verification failed: predictions on all test images are too close to ties. Nothing was published."
        )
    if model_format == formats.SAVED_MODEL:
        verification_cases.write_warmup(version_dir, cases, selection, signatures)
    inputs = verification_cases.verification_inputs(cases.images, signatures)
    tolerances = verification_cases.output_tolerances(all_cases, selection)
    outputs = verification_cases.expected_outputs(cases, selection, signatures)
    if model_format != formats.SAVED_MODEL and not formats.CONVERTED_FORMATS[model_format].has_strings:
        del outputs["serving_default"]["label"]
    verify.write_cases(cases_file, inputs, outputs, tolerances)
    return verify.check_outputs(version_dir, cases_file)


def _selection_manifest(selection, transforms, runs) -> dict[str, Any]:
    """Return the part of `committee.json` that is known before the export.

    - `transforms`: the image transform of each member for encoded images.
    - `metrics`: what `evaluate` measured for each run, or null.
    - `report`: what `select` measured.
    """
    selection_fields = dataclasses.asdict(selection)
    labels = list(selection_fields.pop("classes"))
    return {
        "format": _MANIFEST_FORMAT,
        "created": utc_timestamp(),
        "kind": selection.kind,
        "labels": labels,
        **selection_fields,
        "transforms": [dataclasses.asdict(transform) for transform in transforms],
        "recipes": [
            {"run": run.path.resolve().name, "recipe": run.environment()["recipe"], "parameters": run.parameters()}
            for run in runs
        ],
        "metrics": [_metrics(run) for run in runs],
        "versions": {name: importlib.metadata.version(name) for name in ("keras-committee", "keras", "tensorflow")},
    }


def _metrics(run):
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        evaluation = read_record(path)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is damaged: {error}. Nothing was published.\n"
            f"  To write it again, run: keras-committee evaluate {run.path}"
        ) from error
    names = ("split", "examples", "head", "members", "committees")
    return {name: evaluation[name] for name in names if name in evaluation}
