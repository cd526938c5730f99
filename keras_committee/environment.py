"""In what environment does this process run?"""

import importlib.metadata
import os
import platform
import subprocess
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, commit, platform and cores, as a run folder records them."""
    return {"versions": versions(), "commit": _commit(), "platform": platform.platform(), "cpus": os.cpu_count()}


def versions() -> dict[str, str | None]:
    """Of Python and of the packages that results depend on; None for one that is not installed."""
    packages = ("keras-committee", "keras", "tensorflow", "numpy")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit checked out in the current folder, or None where there is none."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
