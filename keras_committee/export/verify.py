"""Does a SavedModel answer like the committee it came from? Asked in a process of its own that has no Keras.

    python -m keras_committee.export.verify FOLDER GOLDEN.npz

loads FOLDER as TF Serving does, replays its warm-up requests, runs every signature on the golden inputs, compares the
outputs with the golden ones, and prints a JSON document `{"difference", "outputs", "warmup", "problems"}`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.errors import ExportError

TOLERANCE = 1e-5  # of a probability; oneDNN's kernels differ in the last digits from those that Keras ran on
_BLOCKED_IMPORTS = ("keras", "tf_keras", "jax", "torch")


def check_outputs(folder: Path, cases_file: Path) -> dict[str, Any]:
    """Verifies the version in `folder` in a fresh process. Returns what that one found.

    Raises:
        ExportError: If it cannot be loaded, fails a request, or gives other answers.
    """
    command = [sys.executable, "-m", "keras_committee.export.verify", str(folder), str(cases_file)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        last_lines = "\n  ".join(process.stderr.strip().splitlines()[-5:])
        raise ExportError(f"the exported model could not be verified (exit {process.returncode}):\n  {last_lines}")
    result = json.loads(process.stdout.splitlines()[-1])
    if result["problems"]:
        listing = "\n  ".join(result["problems"][:10])
        raise ExportError(
            f"the exported model does not answer like the committee. Nothing was published.\n  {listing}\n"
            "  The run folder is as it was. Please report this with the recipe."
        )
    return result


def write_cases(path: Path, inputs: dict[str, dict[str, np.ndarray]], outputs: dict[str, dict[str, np.ndarray]]):
    """Writes inputs and expected outputs, each by signature and name. Strings are object arrays of bytes."""
    arrays = {f"{signature}/in/{name}": array for signature in inputs for name, array in inputs[signature].items()}
    arrays |= {f"{signature}/out/{name}": each for signature in outputs for name, each in outputs[signature].items()}
    fixed_width_arrays = {name: each.astype("S") if each.dtype == object else each for name, each in arrays.items()}
    np.savez(
        path, allow_pickle=False, **fixed_width_arrays
    )  # as fixed-width bytes; none of ours ends in a NUL, which those lose


def read_cases(path: Path, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The inputs (kind "in") or outputs ("out") that were written."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file:
            signature, direction, name = key.split("/")
            if direction == kind:
                array = file[key]
                arrays.setdefault(signature, {})[name] = array.astype(object) if array.dtype.kind == "S" else array
    return arrays


def compare(actual: np.ndarray, expected: np.ndarray) -> tuple[float, str]:
    """The largest difference of floats, and what is wrong in a few words, or ""."""
    if actual.shape != expected.shape:
        return 0.0, f"has shape {actual.shape} instead of {expected.shape}"
    if actual.dtype.kind != "f":
        mismatches = int((actual != expected).sum())
        return 0.0, f"differs in {mismatches} of {actual.size} values" if mismatches else ""
    if not np.isfinite(actual).all():
        return 0.0, "is not finite"
    difference = float(np.abs(actual - expected).max(initial=0.0))
    return difference, f"differs by {difference:.1e}; {TOLERANCE:.0e} is allowed" if difference > TOLERANCE else ""


def verify(folder: Path, cases_file: Path) -> dict[str, Any]:
    """What `check_outputs` returns, found in this process."""
    from keras_committee.tfserving.server.loading import replay
    from keras_committee.tfserving.session import Session

    differences, problems = [0.0], []
    with Session.load(folder) as session:
        num_replayed = replay(session, folder)
        inputs, outputs = read_cases(cases_file, "in"), read_cases(cases_file, "out")
        for signature, expected in outputs.items():
            actual = session.run(signature, inputs[signature])
            for name in sorted(set(actual) | set(expected)):
                if name not in actual or name not in expected:
                    problems.append(f"{signature}: output {name} is {'missing' if name in expected else 'unknown'}")
                    continue
                difference, problem = compare(actual[name], expected[name])
                differences.append(difference)
                problems += [f"{signature}: {name} {problem}"] if problem else []
    num_outputs = sum(len(signature_outputs) for signature_outputs in outputs.values())
    return {
        "difference": max(differences), "outputs": num_outputs, "warmup": num_replayed, "problems": problems,
    }  # fmt: skip


if __name__ == "__main__":
    for module_name in _BLOCKED_IMPORTS:
        sys.modules[module_name] = None  # type: ignore[assignment] - importing it fails now
    print(json.dumps(verify(Path(sys.argv[1]), Path(sys.argv[2]))))
