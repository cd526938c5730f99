"""Install the package into an empty environment with one extra at a time, and run commands that use the extra.

    python tests/packages.py core serving search      # `make packages` tests all; minutes and gigabytes for each
    python tests/packages.py --uv                     # install with uv, which is faster

The wheel is built from the source distribution; `sdist` lets pip build it. Each environment uses the Python that runs
this script, and is created in `$TMPDIR` and removed afterwards. Prints one JSON line per extra.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

EXTRAS = Path(__file__).parent / "extras"
ROOT = EXTRAS.parents[1]
TRAIN = "keras-committee train {recipes}/digits_wrn.py --smoke --run run --workers 1"
SEARCH = (
    "keras-committee search {recipes}/digits_wrn.py --search-space width=1:2 --budget-minutes 0.1 "
    "--set epochs=1 --out out"
)
INSTALLERS = {
    "pip": "python -m pip install --quiet --disable-pip-version-check",
    "uv": f"{sys.executable} -m uv pip install --quiet --python env/bin/python",
}
COMMANDS = {
    "core": [
        TRAIN,
        "keras-committee evaluate run",
        "keras-committee report run",
    ],
    "sdist": ["keras-committee describe {recipes}/digits_wrn.py", "keras-committee doctor"],
    "serving": [TRAIN, "keras-committee export run --out model", "python {extras}/serve_export.py model"],
    "search": [SEARCH],
    "ray": ["keras-committee train {recipes}/digits_wrn.py --smoke --run run --ray-address local"],
    "cv": [
        "python {extras}/build_keras_cv_member.py",
        "keras-committee import {recipes}/digits_wrn.py member.keras --run imported",
        "keras-committee evaluate imported",
    ],
    "kerashub": [
        "python {extras}/build_keras_hub_member.py",
        "keras-committee import {recipes}/digits_wrn.py member.keras --run imported",
        "keras-committee evaluate imported",
    ],
    "model-garden": ["python {extras}/model_garden_autoaugment.py"],
    **{
        name: [
            TRAIN,
            f"keras-committee export run --format {name} --out model",
            "python {extras}/predict_export.py model",
        ]
        for name in ("onnx", "litert", "openvino")
    },
    "datasets": ["python {extras}/tfds_folder.py"],
    "parquet": ["python {extras}/parquet_table.py"],
    "hf": ["python {extras}/hf_folder.py"],
    "mlflow": [
        f"{TRAIN} --track mlflow:mlflow.db",
        "keras-committee evaluate run",
        "python {extras}/mlflow_run.py run mlflow.db",
    ],
    "wandb": [f"WANDB_MODE=offline {TRAIN} --track wandb:digits", "python {extras}/wandb_run.py run"],
    "profile": ["python {extras}/profiler_page.py"],
}


def main(extras: list[str], installer: str) -> int:
    """Test each extra, print its result as a JSON line, and return the number of failures."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = [check_extra(Path(folder), extra, installer) for extra in extras or COMMANDS]
    return sum(not result["works"] for result in results)


def check_extra(dist: Path, extra: str, installer: str) -> dict:
    """Install the package with one extra and run its commands; return the seconds of both and the error, if any."""
    with tempfile.TemporaryDirectory() as folder:
        result = {"extra": extra, "python": sys.version.split()[0], "installer": installer, "works": True}
        recipes, start = _unpack_recipes(dist, folder), time.monotonic()
        venv.create(Path(folder, "env"), with_pip=True)
        error = _run(folder, f"{INSTALLERS[installer]} '{_requirement(dist, extra)}'")
        result["install_seconds"] = round(time.monotonic() - start)
        for command in COMMANDS[extra]:
            error = error or _run(folder, command.format(recipes=recipes, extras=EXTRAS))
        result["seconds"] = round(time.monotonic() - start)
        result["gigabytes"] = _gigabytes(Path(folder, "env"))
        result |= {"works": not error, **({"failed": error} if error else {})}
    print(json.dumps(result), flush=True)
    return result


def _unpack_recipes(dist: Path, folder: str) -> Path:
    """Unpack the source distribution and return its recipe folder."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(Path(folder).glob("keras_committee-*/recipes"))


def _requirement(dist: Path, extra: str) -> str:
    """Return the requirement to install."""
    if extra == "sdist":
        return str(next(dist.glob("*.tar.gz")))
    wheel = str(next(dist.glob("*.whl")))
    return wheel if extra == "core" else f"{wheel}[{extra}]"


def _run(folder: str, command: str) -> str:
    """Run a shell command; return "", or the command and the end of its output if it failed."""
    script = f"PATH={folder}/env/bin:$PATH; {command}"
    result = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    return "" if result.returncode == 0 else f"{command}: {(result.stdout + result.stderr)[-600:]}"


def _gigabytes(folder: Path) -> float:
    return round(sum(path.lstat().st_size for path in folder.rglob("*")) / 1e9, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"{', '.join(COMMANDS)} [default: all]")
    parser.add_argument(
        "--uv", action="store_const", const="uv", default="pip", dest="installer", help="install with uv"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.extras) - set(COMMANDS):
        parser.error(f"unknown extra: {', '.join(sorted(unknown))}")
    sys.exit(main(arguments.extras, arguments.installer))
