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

from keras_committee.data.preprocessing import Framing
from keras_committee.errors import ExportError, RecipeError, ResourceError, RunError
from keras_committee.export import export_members, publish, verification_cases, verify
from keras_committee.export.committee_graph import Committee, make_endpoints
from keras_committee.export.inference_model import Network
from keras_committee.export.verification_cases import BATCH_SIZES
from keras_committee.files import now, write_json, writing
from keras_committee.run import Run
from keras_committee.selection import Selection

_ENCODED = ("predict_bytes", "classify")  # the signatures that take image files
_LARGEST_REQUEST = 4 * 1024**2  # bytes of a warm-up request of pixels: at 224x224 the batches come as JPEGs only


def export(
    runs: str | Path | Run | Sequence[str | Path | Run],
    to: str | Path | None = None,
    selection: Selection | str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    *,
    min_members: int | None = None,
) -> Path:
    """Publishes a committee or cascade as the next version of a model for TF Serving.

    Args:
        runs: One run folder, or several whose members form one committee.
        to: The model's folder, `saved_models/NAME`; NAME is that of the first run folder where None.
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
    opened = [each if isinstance(each, Run) else Run.open(each) for each in _as_list(runs)]
    base = Path(to) if to is not None else Path("saved_models") / opened[0].path.resolve().name
    publish.check_name(base)
    _require_tensorflow_serving()
    with contextlib.ExitStack() as held:
        for run in {run.path.resolve(): run for run in opened}.values():
            held.enter_context(run.lock(shared=True))
        chosen, models, recorded = _committee(opened, selection, min_members)
        framings = export_members.framings_of(models, recorded, image_size)
        version = publish_committee(chosen, models, base, framings=framings, runs=opened)
        for run in opened:
            run.journal("exported", version=str(version.resolve()), members=len(chosen.members))
    return version


def publish_committee(
    selection: Selection,
    models: Sequence[keras.Model],
    base: Path,
    *,
    framings: Sequence[Framing] | None = None,
    runs: Sequence[Run] = (),
) -> Path:
    """Saves, verifies and publishes the committee of `models`, one for each member of the selection, below `base`.

    `framings` say what each member sees of an encoded image: the whole of it, at the member's size, where None.
    Returns the folder of the new version. Raises ExportError and ResourceError, as `export` does.
    """
    framings = framings or export_members.framings_of(models, [None] * len(models))
    shape = export_members.image_shape(models, framings)
    with publish.staging(base) as folder:
        version = folder / "version"
        with _disk(version):
            signatures = save_committee(selection, models, version, framings)
            check_operations(version)
            verified = _verify(selection, models, framings, signatures, version, folder / "golden.npz")
            record = committee_record(selection, shape, framings, signatures, runs, verified)
            write_json(version / "committee.json", record)
        return publish.publish(base, version)


def save_committee(
    selection: Selection, models: Sequence[keras.Model], folder: Path, framings: Sequence[Framing] | None = None
) -> list[str]:
    """Writes the SavedModel, each variable once, and returns the names of its signatures. Raises ExportError."""
    framings = framings or export_members.framings_of(models, [None] * len(models))
    try:
        committee = Committee(_networks(models), selection, export_members.image_shape(models, framings), framings)
    except ValueError as error:
        raise ExportError(f"the committee cannot be exported: {error}") from error
    module = _Saved(name="committee")
    module.members = committee.variables
    endpoints = make_endpoints(committee, selection.classes)
    # Functions stay out of the module: only what the signatures need is written.
    tf.saved_model.save(module, str(folder), signatures=endpoints)
    return list(endpoints)


class _Saved(tf.Module):
    """What is written to the checkpoint."""

    members: list[dict[str, tf.Variable]]


def _as_list(runs):
    return [runs] if isinstance(runs, str | Path | Run) else list(runs)


def _require_tensorflow_serving():
    if importlib.util.find_spec("tensorflow_serving") is None:
        raise RecipeError('warm-up requests need TF Serving\'s API: pip install "keras-committee[serving]"')


def _committee(runs, selection, min_members):
    if selection is None:
        return export_members.whole_committee(runs, min_members)
    if isinstance(selection, Selection):
        return selection, *export_members.selected_models(selection, runs[0].path)
    chosen = Selection.read(selection)
    return chosen, *export_members.selected_models(chosen, Path(selection).parent)


def _networks(models):
    """One for each model, and the same for the same model."""
    made: dict[int, Network] = {}
    for model in models:
        if id(model) not in made:
            made[id(model)] = Network(model, f"member_{len(made):02d}")
    return [made[id(model)] for model in models]


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """TensorFlow tells a full disk in its own words."""
    try:
        with writing(path):
            yield
    except tf.errors.OpError as error:
        message = f"cannot write {path}: {error.message}\n  Make room, or name another folder. Nothing was published."
        raise ResourceError(message) from error


def _verify(selection, models, framings, signatures, version, golden_file) -> dict[str, Any]:
    examples = verification_cases.golden(
        models, selection, framings, export_members.image_shape(models, framings)
    ).clear(selection)
    if not len(examples.images):
        raise ExportError("the members are undecided about every golden image: nothing can be verified.")
    requests = _warmup_requests(_inputs(examples.images, signatures), examples, selection)
    verification_cases.write_warmup(version, [each for each in requests if _bytes(each) <= _LARGEST_REQUEST])
    outputs = verification_cases.expected_outputs(examples, selection, signatures)
    inputs = _inputs(examples.images, signatures, lossless=True)
    verify.write_golden(golden_file, _with_no_image(inputs), outputs)
    return verify.check_answers(version, golden_file)


def _warmup_requests(inputs, examples, selection) -> list[verification_cases.Request]:
    requests = []
    for signature, arrays in inputs.items():
        votes = examples.framed if signature in _ENCODED else examples.votes
        batches = _batches(verification_cases.cascade_answers(votes, selection)["members_used"])
        requests += verification_cases.requests_for({signature: arrays}, batches)
    return requests


def _inputs(
    images: np.ndarray, signatures: Sequence[str], *, lossless: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """The images as inputs of each signature; where they may change a little, every other one is a JPEG."""
    inputs = {name: {"image": images.astype(np.float32)} for name in ("serving_default", "predict_members")}
    if "predict_bytes" in signatures:
        encoders = [tf.io.encode_png if lossless or i % 2 else tf.io.encode_jpeg for i in range(len(images))]
        contents = [encode(image).numpy() for encode, image in zip(encoders, images, strict=True)]
        inputs["predict_bytes"] = {"image_bytes": np.array(contents, object)}
        inputs["classify"] = {"inputs": np.array([_example(content) for content in contents], object)}
    return {name: inputs[name] for name in signatures}


def _with_no_image(inputs):
    last = {"image_bytes": verification_cases.NO_IMAGE, "inputs": _example(verification_cases.NO_IMAGE)}
    return {
        signature: {
            name: np.append(array, np.array([last[name]], object)) if name in last else array
            for name, array in arrays.items()
        }
        for signature, arrays in inputs.items()
    }


def _example(content: bytes) -> bytes:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()


def _batches(members_used: np.ndarray) -> list[np.ndarray]:
    """Indices of examples: for each batch size one that no member more is asked about, and one that all are."""
    kinds = [np.flatnonzero(members_used == used) for used in sorted({members_used.min(), members_used.max()})]
    return [np.resize(kind, size) for size in verification_cases.BATCH_SIZES for kind in kinds]


def _bytes(request):
    return sum(array.nbytes for array in request[1].values())


FORMAT = 1


def committee_record(
    selection: Selection,
    shape: tuple[int, int, int],
    framings: Sequence[Framing],
    signatures: Sequence[str],
    runs: Sequence[Run],
    verified: dict[str, Any],
) -> dict[str, Any]:
    """The content of `committee.json`.

    `image` is what `serving_default` takes, `framings` what each member sees of an encoded image: its size, the padding
    of its centre crop, or null, and how it is resized. `metrics` is what `evaluate` measured of each run, or null;
    `report` what the selection measured.
    """
    return {
        "format": FORMAT,
        "created": now(),
        "kind": selection.kind,
        "labels": list(selection.classes),
        "image": dict(zip(("height", "width", "channels"), shape, strict=True)),
        **selection_fields(selection),
        "framings": [dataclasses.asdict(each) for each in framings],
        "recipes": [_recipe(run) for run in runs],
        "metrics": [_metrics(run) for run in runs],
        "versions": _versions(),
        "signatures": sorted(signatures),
        "warmup": {"requests": verified["warmup"], "batch_sizes": list(BATCH_SIZES)},
        "verified": {"largest_difference": verified["difference"], "outputs": verified["outputs"]},
    }


def selection_fields(selection: Selection) -> dict[str, Any]:
    """Members (run, index, SHA-256 of the weights, temperature, ...), head, weights, stages, confidence, report."""
    fields = dataclasses.asdict(selection)
    del fields["classes"]
    return fields


def _recipe(run):
    return {"run": run.path.resolve().name, "recipe": run.environment()["recipe"], "knobs": run.knobs()}


def _metrics(run):
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        measured = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Run `keras-committee evaluate {run.path}` again.") from error
    return {name: measured[name] for name in ("split", "examples", "head", "members", "committees") if name in measured}


def _versions():
    packages = ("keras-committee", "keras", "tensorflow")
    return {package: importlib.metadata.version(package) for package in packages}


# What a server cannot or must not run, and why.
_REFUSED = {
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


def check_operations(folder: Path) -> None:
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
        for each in [*functions, *nodes]:
            if "_XlaMustCompile" in each.attr and each.attr["_XlaMustCompile"].b:
                yield "a function with jit_compile=True: XLA is off in the server"
        for node in nodes:
            yield from _node_problems(node)
        for op in sorted({node.op for node in nodes} - names - set(_REFUSED)):
            if not _has_cpu_kernel(op):
                yield f"{op}: there is no such operation for a CPU in TensorFlow itself"


def _node_problems(node):
    if re.search(r"(GPU|TPU|XLA)", node.device, re.IGNORECASE):
        yield f"{node.name} is pinned to {node.device}"
    if node.op in _REFUSED:
        yield f"{node.op}: {_REFUSED[node.op]}"
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
