"""What does `committee.json` tell of an exported version? The server ignores it; people and tools read it."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

from keras_committee.data.preprocessing import Framing
from keras_committee.errors import RunError
from keras_committee.files import now
from keras_committee.run import Run
from keras_committee.selection import Selection
from keras_committee.serving.warmup import BATCH_SIZES

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
