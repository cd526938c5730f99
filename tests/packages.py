"""Does the wheel, installed into an empty environment with one extra alone, run something of that extra?

    python tests/packages.py core serving search      # `make packages` takes all; minutes and gigabytes for each

Each environment is made with the Python that runs this, and removed when it has answered.
"""

import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = "keras-committee train {root}/recipes/digits_wrn.py --smoke --run run --workers 1"
RUNS = {  # what each extra is for, after the smoke run that all of them train
    "core": ["keras-committee evaluate run", "keras-committee report run"],
    "serving": ["keras-committee export run --to model", "python -c 'from keras_committee.serving import Client'"],
    "search": [
        "keras-committee search {root}/recipes/digits_wrn.py --range width=1:2 --budget-minutes 0.1 --smoke --out out"
    ],
    "ray": ["keras-committee train {root}/recipes/digits_wrn.py --smoke --run other --ray local"],
    "cv": ["python -c 'import keras_cv'"],
    "model-garden": ["python -c 'import official.vision'"],
    "datasets": ["python -c 'import tensorflow_datasets'"],
    "profile": ["python -c 'import xprof'"],
}


def main(extras: list[str]) -> int:
    """Tries each extra, prints one JSON line for it, and returns how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, str(ROOT)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        wheel = next(Path(folder).glob("*.whl"))
        answers = [attempt(wheel, extra) for extra in extras or RUNS]
    return sum(not answer["works"] for answer in answers)


def attempt(wheel: Path, extra: str) -> dict:
    """Installs the wheel with one extra and runs its commands: seconds of both, and the end of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = {"extra": extra, "python": sys.version.split()[0], "works": True}
        started = time.monotonic()
        venv.create(Path(folder, "env"), with_pip=True)
        what = str(wheel) if extra == "core" else f"{wheel}[{extra}]"
        failed = _run(folder, f"python -m pip install --quiet --disable-pip-version-check '{what}'")
        answer["install_seconds"] = round(time.monotonic() - started)
        for command in [TRAIN, *RUNS[extra]] if not failed else []:
            failed = failed or _run(folder, command.format(root=ROOT))
        answer["seconds"] = round(time.monotonic() - started)
        answer |= {"works": not failed, **({"failed": failed} if failed else {})}
    print(json.dumps(answer), flush=True)
    return answer


def _run(folder: str, command: str) -> str:
    """Nothing, or the command and the end of what it printed where it failed."""
    script = f"PATH={folder}/env/bin:$PATH; {command}"
    ended = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    return "" if ended.returncode == 0 else f"{command}: {(ended.stdout + ended.stderr)[-600:]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
