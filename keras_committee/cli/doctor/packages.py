"""Which packages are installed, in versions that go together?

All of it is read from the metadata of the installed packages: nothing is imported. What they should be says the
package's own metadata, which is pyproject.toml.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from keras_committee.cli.doctor.finding import Finding

OURS = "keras-committee"
INSTALL = f"pip install {OURS}"
PURPOSES = {
    "cv": "keras-cv's models as members",
    "model-garden": "the Model Garden's models as members",
    "serving": "`serve`, and `predict --url`",
    "ray": "`train --ray`",
    "search": "`search`",
    "datasets": "recipes that read TensorFlow Datasets",
    "profile": "the profile page of TensorBoard",
}
WHY = {
    "setuptools": "TensorBoard imports pkg_resources, which setuptools 81 dropped",
    "keras": "older versions load files that run code (CVE-2025-1550, 8747, 9905)",
}
# Distributions that install the same `tensorflow` folder, one over the other.
TWINS = ("tensorflow-cpu", "tensorflow-gpu", "tensorflow-intel", "intel-tensorflow", "tf-nightly", "tf-nightly-cpu")

Version = Callable[[str], str | None]


def installed(package: str) -> str | None:
    """The version of a distribution, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements(package: str) -> list[Requirement]:
    """What an installed distribution asks for, extras included; nothing where it is not installed."""
    try:
        return [Requirement(text) for text in importlib.metadata.requires(package) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def package_findings(version: Version = installed) -> Iterator[Finding]:
    """Python, what the package needs, what conflicts, and the extras."""
    asked = requirements(OURS)
    if not asked:
        yield Finding(OURS, "wrong", "its metadata is missing: it was not installed", INSTALL, needed=True)
        return
    yield _python(importlib.metadata.metadata(OURS)["Requires-Python"])
    for requirement in asked:
        if _extra(requirement) is None:
            yield _core(requirement, version)
    yield from _conflicts(version)
    for extra, purpose in PURPOSES.items():
        yield _extra_finding(extra, purpose, [each for each in asked if _extra(each) == extra], version)


def _python(wanted: str) -> Finding:
    found = platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        return Finding("Python", "ok", found)
    mend = f"python3.11 -m venv .venv && .venv/bin/{INSTALL}"
    return Finding("Python", "wrong", f"{found}; {wanted} is needed", mend, needed=True)


def _core(requirement: Requirement, version: Version) -> Finding:
    name, found = requirement.name, version(requirement.name)
    if _fits(requirement, found):
        return Finding(name, "ok", str(found), needed=True)
    twin = next((each for each in TWINS if name == "tensorflow" and _fits(requirement, version(each))), None)
    if twin:
        return Finding(name, "ok", f"{version(twin)}, as {twin}", needed=True)
    state, what = ("wrong", f"{found}; {requirement.specifier} is needed") if found else ("missing", "not installed")
    why = f". {WHY[name]}" if found and name in WHY else ""
    return Finding(name, state, what + why, _install(requirement), needed=True)


def _conflicts(version: Version) -> Iterator[Finding]:
    twins = [name for name in ("tensorflow", *TWINS) if version(name)]
    if len(twins) > 1:
        mend = f"pip uninstall -y {' '.join(twins)} && pip install {twins[0]}=={version(twins[0])}"
        text = f"{' and '.join(twins)} write into the same folder"
        yield Finding("TensorFlow twice", "wrong", text, mend, needed=True)
    for owner in ("tensorflow", "tensorboard", "tensorflow-serving-api"):
        for requirement in requirements(owner):
            found = version(requirement.name)
            if _applies(requirement) and found and not _fits(requirement, found):
                text = f"{owner} needs {requirement.specifier}, {found} is installed"
                yield Finding(requirement.name, "wrong", text, _install(requirement), needed=owner == "tensorflow")


def _extra_finding(extra: str, purpose: str, asked: list[Requirement], version: Version) -> Finding:
    found = {each.name: version(each.name) for each in asked}
    lacking = [each.name for each in asked if not found[each.name]]
    unfit = [
        f"{each.name} {found[each.name]} ({each.specifier})" for each in asked if not _fits(each, found[each.name])
    ]
    mend = f"pip install '{OURS}[{extra}]'"
    if lacking:
        return Finding(f"extra {extra}", "missing", f"{', '.join(lacking)}; for {purpose}", mend)
    if unfit:
        return Finding(f"extra {extra}", "wrong", f"{', '.join(unfit)} is needed; for {purpose}", mend)
    return Finding(f"extra {extra}", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _fits(requirement: Requirement, found: str | None) -> bool:
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _extra(requirement: Requirement) -> str | None:
    """The extra that a requirement belongs to, None for one of the package itself."""
    if _applies(requirement):
        return None
    return next((extra for extra in PURPOSES if requirement.marker.evaluate({"extra": extra})), "")  # pyright: ignore[reportOptionalMemberAccess]


def _install(requirement: Requirement) -> str:
    return f"pip install '{requirement.name}{requirement.specifier}'"
