"""Install the packages of a lock file, and this package as an editable installation, into .venv.

    python tools/install_packages.py requirements-demo.lock

`make` runs it with the Python that .venv gets, so it uses the standard library only. uv is several times faster than
pip; its version and hashes are in the lock, too. Where uv cannot be installed, or fails, pip installs the packages.
Every few seconds a line states what is being installed; .venv/install.log has the whole output of both.
"""

import os
import re
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
SECONDS_BETWEEN_LINES = 5
COPYING = "copying packages into .venv"
START = time.monotonic()
PIP = (str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar", "off")
UV = (str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON))
EDITABLE = ("--no-deps", "--no-build-isolation", "--editable", ".")


class InstallError(Exception):
    """An installation failed; the argument is its exit code."""


class Progress:
    """What pip or uv does now, from the lines that it prints."""

    def __init__(self, step: str):
        self.step = step
        self._active: dict[str, str] = {}  # name to what happens to it; several at a time with uv
        self._rules: list[tuple[str, Callable[[re.Match], None]]] = [
            # pip
            (r"Collecting ([\w.-]+)", lambda found: self._enter(f"collecting {found[1]}")),
            (r"Downloading (\S+)-\d\S*\.(?:whl|gz|zip)( \(.*\))", self._download),
            (r"Downloading \S+\.metadata", lambda found: None),
            (r"Building wheels? for collected packages: (.*)", lambda found: self._enter(f"building {found[1]}")),
            (r"Installing collected packages: ", lambda found: self._enter(COPYING)),
            # uv
            (r"Resolved (\d+) packages?", lambda found: self._enter(f"downloading {found[1]} packages")),
            (r"(Download|Build)ing (\S+)( \(.*\))?$", self._start),
            (r"(?:Downloaded|Built) (\S+)", lambda found: self._active.pop(found[1], None)),
            (r"Prepared \d+ packages?", lambda found: self._enter(COPYING)),
        ]

    def __str__(self) -> str:
        largest = sorted(self._active.values(), key=_megabytes, reverse=True)
        more = f" and {len(largest) - 3} more" if len(largest) > 3 else ""
        return ", ".join(largest[:3]).replace(", downloading", ",") + more or self.step

    def read(self, line: str) -> None:
        """Follow one line of output."""
        for pattern, act in self._rules:
            if found := re.match(pattern, line.strip()):
                act(found)
                return

    def _start(self, found: re.Match) -> None:
        self._active[found[2]] = f"{found[1].lower()}ing {found[2]}{found[3] or ''}"

    def _enter(self, step: str) -> None:
        self.step = step

    def _download(self, found: re.Match) -> None:
        self._enter(f"downloading {found[1]}{found[2]}")


def main(lock: Path) -> None:
    """Create .venv if it is not one of this version of Python, and install the packages of the lock into it."""
    packages = VENV / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    if not (packages / "pip").exists():
        _print(f"creating .venv with Python {sys.version.split()[0]}")
        venv.create(VENV, clear=not packages.exists(), symlinks=True, with_pip=True)
    LOG.write_text("")
    _install(lock)
    _print(f".venv has the packages of {lock.name}")


def split_lock(text: str) -> tuple[str, str]:
    """Divide a lock file into the entry of uv and the other entries."""
    entry = re.search(r"^uv==.*\n(?:[ ].*\n)*", text, re.MULTILINE)
    return (entry[0], text.replace(entry[0], "")) if entry else ("", text)


def _install(lock: Path) -> None:
    for name, entries in zip(("uv.lock", "others.lock"), split_lock(lock.read_text()), strict=True):
        (VENV / name).write_text(entries)
    try:
        _run([*PIP, "--require-hashes", "-r", str(VENV / "uv.lock")], "installing uv")
        _run([*UV, "--require-hashes", "-r", str(lock)], "resolving", environment=_index_of_pip())
        _run([*UV, *EDITABLE], "installing keras-committee")
    except InstallError as error:
        _print(f"uv could not be used (exit code {error}, see {LOG}); pip installs the packages, which takes longer")
        # pip before 23.1 can build packages without a wheel only in isolation.
        _run([*PIP, "--use-pep517", "--require-hashes", "-r", str(VENV / "others.lock")], "resolving")
        _run([*PIP, *EDITABLE], "installing keras-committee")


def _index_of_pip() -> dict[str, str]:
    """Return the environment variable with which uv uses the index that is configured for pip, such as a mirror."""
    result = subprocess.run([*PIP[:4], "config", "list"], capture_output=True, text=True)
    index = re.search(r"^(?:global|install|:env:)\.index-url='(.*)'$", result.stdout, re.MULTILINE)
    return {"UV_DEFAULT_INDEX": index[1]} if index and "UV_DEFAULT_INDEX" not in os.environ else {}


def _run(command: list[str], step: str, environment: dict[str, str] | None = None) -> None:
    """Run pip or uv; print every few seconds what it does, and its last lines if it fails.

    Raises:
        InstallError: If the exit code is not 0.
    """
    progress = Progress(step)
    _print(step)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        reader = threading.Thread(target=_follow, args=(process.stdout, progress), daemon=True)
        reader.start()
        while reader.is_alive():
            reader.join(SECONDS_BETWEEN_LINES)
            if reader.is_alive():
                _print(f"{progress}{_installed() if progress.step == COPYING else ''}")
    if process.returncode:
        print(*LOG.read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
        raise InstallError(process.returncode)


def _follow(lines, progress: Progress) -> None:
    with LOG.open("a") as log:
        for line in lines:
            log.write(line)
            progress.read(line)


def _installed() -> str:
    return f", which has {len(list(VENV.glob('lib/*/site-packages/*.dist-info')))} now"


def _megabytes(text: str) -> float:
    size = re.search(r"\(([\d.]+) ?([KMG])i?B\)", text)
    return float(size[1]) * {"K": 1e-3, "M": 1, "G": 1e3}[size[2]] if size else 0.0


def _print(text: str) -> None:
    print(f"[{time.monotonic() - START:3.0f} s] {text}", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except InstallError as error:
        sys.exit(f"error: the packages could not be installed (exit code {error}); the whole output is in {LOG}")
    except KeyboardInterrupt:
        sys.exit(130)
