"""Verification of an export against the Keras committee, in a fresh process without Keras.

    python -m keras_committee.export.verify FOLDER CASES.npz

loads FOLDER as TF Serving does, replays its warm-up requests, runs every signature on the inputs in CASES.npz, compares
the outputs with those of the Keras members, and prints a JSON document `{"difference", "outputs", "warmup", "runtime",
"problems"}`. An export in another format than the SavedModel runs in its own runtime, without TensorFlow, in batches of
several sizes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.errors import ExportError
from keras_committee.export import formats
from keras_committee.folder_kinds import version_format
from keras_committee.progress import step

TOLERANCE = 1e-5  # absolute, in float32: oneDNN's kernels differ from those of Keras in the last digits
_BLOCKED_IMPORTS = ("keras", "tf_keras", "jax", "torch")
_BATCH_SIZES = (48, 1, 5)  # of the formats without warm-up requests; a converter may have lost the size of the batch


@step("verifying the export in another process")
def check_outputs(folder: Path, cases_file: Path) -> dict[str, Any]:
    """Verify the version in `folder` in a fresh process, and return the result of `verify`.

    Raises:
        ExportError: If the version cannot be loaded, fails a request, or returns other outputs.
    """
    command = [sys.executable, "-m", "keras_committee.export.verify", str(folder), str(cases_file)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        last_lines = "\n  ".join(process.stderr.strip().splitlines()[-5:])
        raise ExportError(
            f"verification of the exported model failed with exit code {process.returncode}. Nothing was published.\n"
            f"  {last_lines}"
        )
    result = json.loads(process.stdout.splitlines()[-1])
    if result["problems"]:
        listing = "\n  ".join(result["problems"][:10])
        raise ExportError(
            "outputs of the exported model differ from those of the Keras members. Nothing was published.\n"
            f"  {listing}\n"
            "  The run folder was not changed. Please report this with the recipe."
        )
    return result


def write_cases(
    path: Path,
    inputs: dict[str, dict[str, np.ndarray]],
    outputs: dict[str, dict[str, np.ndarray]],
    tolerances: dict[str, float] | None = None,
):
    """Write inputs and expected outputs to `path`, each by signature and name, and absolute tolerances by output name.

    Strings are object arrays of bytes. Outputs without a tolerance have `TOLERANCE`.
    """
    tolerance_arrays = {"any": {name: np.asarray(tolerance) for name, tolerance in (tolerances or {}).items()}}
    arrays = {
        f"{signature}/{direction}/{name}": array
        for direction, by_signature in (("in", inputs), ("out", outputs), ("tolerance", tolerance_arrays))
        for signature, by_name in by_signature.items()
        for name, array in by_name.items()
    }
    # Fixed-width bytes need no pickle. They lose trailing zero bytes, which none of these strings has.
    fixed_width = {key: array.astype("S") if array.dtype == object else array for key, array in arrays.items()}
    np.savez(path, allow_pickle=False, **fixed_width)


def read_cases(path: Path, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """Return the inputs (kind "in"), expected outputs ("out") or "tolerance"s in `path`, by signature and name.

    The signature of a tolerance is "any".
    """
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file:
            signature, direction, name = key.split("/")
            if direction == kind:
                array = file[key]
                arrays.setdefault(signature, {})[name] = array.astype(object) if array.dtype.kind == "S" else array
    return arrays


def compare(actual: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> tuple[float, str]:
    """Return the largest absolute difference of floats, and a description of the mismatch, "" if there is none."""
    if actual.shape != expected.shape:
        return 0.0, f"has shape {actual.shape} instead of {expected.shape}"
    if actual.dtype.kind != "f":
        mismatches = int((actual != expected).sum())
        return 0.0, f"differs in {mismatches} of {actual.size} values" if mismatches else ""
    if not np.isfinite(actual).all():
        return 0.0, "is not finite"
    difference = float(np.abs(actual - expected).max(initial=0.0))
    return (
        difference,
        f"differs by {difference:.1e}; the tolerance is {tolerance:.0e}" if difference > tolerance else "",
    )


def verify(folder: Path, cases_file: Path) -> dict[str, Any]:
    """Verify the version in `folder` in this process.

    Returns:
        `difference`, the largest absolute difference of floats; `outputs` and `warmup`, the numbers of compared outputs
        and of replayed requests; `runtime`, its name and version; `problems`, one line for each mismatch.

    Raises:
        StatusError: If the version cannot be loaded, or a request fails.
    """
    inputs, outputs = read_cases(cases_file, "in"), read_cases(cases_file, "out")
    tolerances = read_cases(cases_file, "tolerance").get("any", {})
    comparison = _Comparison({name: float(tolerance) for name, tolerance in tolerances.items()})
    model_format = version_format(folder) or formats.SAVED_MODEL
    num_replayed = 0
    if model_format == formats.SAVED_MODEL:
        num_replayed = _run_saved_model(folder, inputs, outputs, comparison)
    else:
        _run_converted(folder, inputs["serving_default"]["image"], outputs["serving_default"], comparison)
    return {
        "difference": max(comparison.differences),
        "outputs": sum(len(signature_outputs) for signature_outputs in outputs.values()),
        "warmup": num_replayed,
        "runtime": formats.runtime_version(model_format),
        "problems": comparison.problems,
    }


class _Comparison:
    """Comparison of several dictionaries of outputs; collects the differences of floats and the problems."""

    def __init__(self, tolerances: dict[str, float]):
        self.differences, self.problems = [0.0], []
        self._tolerances = tolerances

    def add(self, title: str, actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
        for name in sorted(set(actual) | set(expected)):
            if name not in actual or name not in expected:
                self.problems.append(f"{title}: output {name} is {'missing' if name in expected else 'unexpected'}")
                continue
            difference, problem = compare(actual[name], expected[name], self._tolerances.get(name, TOLERANCE))
            self.differences.append(difference)
            self.problems += [f"{title}: {name} {problem}"] if problem else []


def _run_saved_model(folder, inputs, outputs, comparison) -> int:
    """Compare all signatures, and return the number of replayed requests."""
    from keras_committee.tfserving.server.loading import replay
    from keras_committee.tfserving.session import Session

    with Session.load(folder) as session:
        num_replayed = replay(session, folder)
        for signature, expected in outputs.items():
            comparison.add(signature, session.run(signature, inputs[signature]), expected)
    return num_replayed


def _run_converted(folder, images, expected, comparison):
    """Compare the outputs for the images in batches of each size."""
    run = formats.load(folder)
    for batch_size in _BATCH_SIZES:
        batches = [run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        actual = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        comparison.add(f"batches of {batch_size}", actual, expected)


if __name__ == "__main__":
    for module_name in _BLOCKED_IMPORTS:
        sys.modules[module_name] = None  # type: ignore[assignment] - makes its import fail
    if version_format(Path(sys.argv[1])) in formats.CONVERTED_FORMATS:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]
    print(json.dumps(verify(Path(sys.argv[1]), Path(sys.argv[2]))))
