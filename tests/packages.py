"""Does the package, installed into an empty environment with one extra alone, run something that the extra is for?

    python tests/packages.py core serving search      # `make packages` takes all; minutes and gigabytes for each
    python tests/packages.py --uv                     # uv installs them, which is sooner done

The wheel is the one that is built from the source distribution; `sdist` leaves the building to pip. Each environment is
made with the Python that runs this, in `$TMPDIR`, and removed when it has answered.
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
SEARCH = "keras-committee search {recipes}/digits_wrn.py --search-space width=1:2 --budget-minutes 0.1 --set epochs=1 --out out"
INSTALLERS = {
    "pip": "python -m pip install --quiet --disable-pip-version-check",
    "uv": "uv pip install --quiet --python env/bin/python",
}
RUNS = {  # what each is for
    "core": [
        TRAIN,
        "keras-committee evaluate run",
        "keras-committee report run",
    ],
    "sdist": ["keras-committee describe {recipes}/digits_wrn.py", "keras-committee doctor"],
    "serving": [TRAIN, "keras-committee export run --out model", "python {extras}/served_answer.py model"],
    "search": [SEARCH],
    "ray": ["keras-committee train {recipes}/digits_wrn.py --smoke --run other --ray-address local"],
    "cv": [
        "python {extras}/cv_member.py",
        "keras-committee import {recipes}/digits_wrn.py member.keras --run adopted",
        "keras-committee evaluate adopted",
    ],
    "model-garden": ["python {extras}/garden_policy.py"],
    "datasets": ["python {extras}/prepared_folder.py"],
    "profile": ["python {extras}/profile_page.py"],
}


def main(extras: list[str], installer: str) -> int:
    """Tries each extra, prints one JSON line for it, and returns how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        answers = [attempt(Path(folder), extra, installer) for extra in extras or RUNS]
    return sum(not answer["works"] for answer in answers)


def attempt(built: Path, extra: str, installer: str) -> dict:
    """Installs the package with one extra and runs its commands: seconds of both, and the end of what failed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = {"extra": extra, "python": sys.version.split()[0], "installer": installer, "works": True}
        recipes, started = _unpacked(built, folder), time.monotonic()
        venv.create(Path(folder, "env"), with_pip=True)
        failed = _run(folder, f"{INSTALLERS[installer]} '{_package(built, extra)}'")
        answer["install_seconds"] = round(time.monotonic() - started)
        for command in RUNS[extra]:
            failed = failed or _run(folder, command.format(recipes=recipes, extras=EXTRAS))
        answer["seconds"] = round(time.monotonic() - started)
        answer["gigabytes"] = _gigabytes(Path(folder, "env"))
        answer |= {"works": not failed, **({"failed": failed} if failed else {})}
    print(json.dumps(answer), flush=True)
    return answer


def _unpacked(built: Path, folder: str) -> Path:
    """The recipes of the source distribution, which are those that users have."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(Path(folder).glob("keras_committee-*/recipes"))


def _package(built: Path, extra: str) -> str:
    """What pip is told to install."""
    if extra == "sdist":
        return str(next(built.glob("*.tar.gz")))
    wheel = str(next(built.glob("*.whl")))
    return wheel if extra == "core" else f"{wheel}[{extra}]"


def _gigabytes(folder: Path) -> float:
    return round(sum(path.lstat().st_size for path in folder.rglob("*")) / 1e9, 1)


def _run(folder: str, command: str) -> str:
    """Nothing, or the command and the end of what it printed where it failed."""
    script = f"PATH={folder}/env/bin:$PATH; {command}"
    ended = subprocess.run(["sh", "-c", script], cwd=folder, capture_output=True, text=True)
    return "" if ended.returncode == 0 else f"{command}: {(ended.stdout + ended.stderr)[-600:]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"{', '.join(RUNS)}; all where none is named")
    parser.add_argument("--uv", action="store_const", const="uv", default="pip", dest="installer")
    arguments = parser.parse_args()
    if unknown := set(arguments.extras) - set(RUNS):
        parser.error(f"no such extra: {', '.join(unknown)}")
    sys.exit(main(arguments.extras, arguments.installer))
