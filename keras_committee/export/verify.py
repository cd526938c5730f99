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
_BLOCKED = ("keras", "tf_keras", "jax", "torch")


def check_answers(folder: Path, golden: Path) -> dict[str, Any]:
    """Verifies the version in `folder` in a fresh process. Returns what that one found.

    Raises:
        ExportError: If it cannot be loaded, fails a request, or gives other answers.
    """
    command = [sys.executable, "-m", "keras_committee.export.verify", str(folder), str(golden)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        last = "\n  ".join(answer.stderr.strip().splitlines()[-5:])
        raise ExportError(f"the exported model could not be verified (exit {answer.returncode}):\n  {last}")
    found = json.loads(answer.stdout.splitlines()[-1])
    if found["problems"]:
        listing = "\n  ".join(found["problems"][:10])
        raise ExportError(
            f"the exported model does not answer like the committee. Nothing was published.\n  {listing}\n"
            "  The run folder is as it was. Please report this with the recipe."
        )
    return found


def write_golden(path: Path, inputs: dict[str, dict[str, np.ndarray]], outputs: dict[str, dict[str, np.ndarray]]):
    """Writes inputs and expected outputs, each by signature and name. Strings are object arrays of bytes."""
    arrays = {f"{signature}/in/{name}": each for signature in inputs for name, each in inputs[signature].items()}
    arrays |= {f"{signature}/out/{name}": each for signature in outputs for name, each in outputs[signature].items()}
    flat = {name: each.astype("S") if each.dtype == object else each for name, each in arrays.items()}
    np.savez(path, allow_pickle=False, **flat)  # as fixed-width bytes; none of ours ends in a NUL, which those lose


def read_golden(path: Path, kind: str) -> dict[str, dict[str, np.ndarray]]:
    """The inputs (kind "in") or outputs ("out") that were written."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file:
            signature, of, name = key.split("/")
            if of == kind:
                array = file[key]
                found.setdefault(signature, {})[name] = array.astype(object) if array.dtype.kind == "S" else array
    return found


def compare(got: np.ndarray, expected: np.ndarray) -> tuple[float, str]:
    """The largest difference of floats, and what is wrong in a few words, or ""."""
    if got.shape != expected.shape:
        return 0.0, f"has shape {got.shape} instead of {expected.shape}"
    if got.dtype.kind != "f":
        wrong = int((got != expected).sum())
        return 0.0, f"differs in {wrong} of {got.size} values" if wrong else ""
    if not np.isfinite(got).all():
        return 0.0, "is not finite"
    difference = float(np.abs(got - expected).max(initial=0.0))
    return difference, f"differs by {difference:.1e}; {TOLERANCE:.0e} is allowed" if difference > TOLERANCE else ""


def verify(folder: Path, golden: Path) -> dict[str, Any]:
    """What `check_answers` returns, found in this process."""
    from keras_committee.tfserving.server.loading import replay
    from keras_committee.tfserving.session import Session

    differences, problems = [0.0], []
    with Session.load(folder) as session:
        replayed = replay(session, folder)
        inputs, outputs = read_golden(golden, "in"), read_golden(golden, "out")
        for signature, expected in outputs.items():
            got = session.run(signature, inputs[signature])
            for name in sorted(set(got) | set(expected)):
                if name not in got or name not in expected:
                    problems.append(f"{signature}: output {name} is {'missing' if name in expected else 'unknown'}")
                    continue
                difference, wrong = compare(got[name], expected[name])
                differences.append(difference)
                problems += [f"{signature}: {name} {wrong}"] if wrong else []
    outputs_compared = sum(len(each) for each in outputs.values())
    return {
        "difference": max(differences), "outputs": outputs_compared, "warmup": replayed, "problems": problems,
    }  # fmt: skip


if __name__ == "__main__":
    for each in _BLOCKED:
        sys.modules[each] = None  # type: ignore[assignment] - importing it fails now
    print(json.dumps(verify(Path(sys.argv[1]), Path(sys.argv[2]))))
