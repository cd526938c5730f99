"""Which versions of a model lie on disk, and which of them should be served?"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from keras_committee.tfserving.tf_protocol import StatusError

_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,128}")
_NUMBER = re.compile(r"\d{1,19}", re.A)
_LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which of the versions on disk to serve: `latest(n)`, `everything()` or `specific(...)`."""

    kind: str
    count: int = 1
    versions: tuple[int, ...] = ()

    @classmethod
    def latest(cls, count: int = 1) -> "Policy":
        """The `count` versions with the largest numbers."""
        if count < 1:
            raise StatusError("INVALID_ARGUMENT", f"num_versions is {count}; a policy keeps at least one version")
        return cls("latest", count=count)

    @classmethod
    def everything(cls) -> "Policy":
        """All versions."""
        return cls("all")

    @classmethod
    def specific(cls, *versions: int) -> "Policy":
        """These versions, where they exist."""
        return cls("specific", versions=versions)

    def choose(self, present: Iterable[int]) -> set[int]:
        """Those of the versions `present` that should be served."""
        if self.kind == "all":
            return set(present)
        if self.kind == "specific":
            return set(present) & set(self.versions)
        return set(sorted(present)[-self.count :])


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model to serve: what TF Serving's models.config says of it.

    Attributes:
        name: 1 to 128 of A-Z a-z 0-9 _ . - and no dot in front.
        base_path: Absolute path of the folder with the version folders.
        policy: Which versions.
        labels: dict of label -> version.
    """

    name: str
    base_path: Path
    policy: Policy = dataclasses.field(default_factory=Policy.latest)
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"the model name {self.name!r} is not allowed: 1 to 128 of A-Z a-z 0-9 _ . - and no dot in front",
            )
        object.__setattr__(self, "base_path", Path(self.base_path))
        if not self.base_path.is_absolute():
            raise StatusError(
                "INVALID_ARGUMENT", f"Expected model {self.name} to have an absolute path, but got: {self.base_path}"
            )


def check_configs(configs: Iterable[ModelConfig]) -> dict[str, ModelConfig]:
    """The configs by name. Raises INVALID_ARGUMENT where two have one name."""
    named: dict[str, ModelConfig] = {}
    for config in configs:
        if config.name in named:
            raise StatusError(
                "INVALID_ARGUMENT",
                f"Illegal to list model {config.name} multiple times in config list",
            )
        named[config.name] = config
    return named


def find_versions(base_path: Path) -> dict[int, Path]:
    """The version folders in `base_path`: names that are decimal int64. Raises OSError where it cannot be read.

    What is in them is not looked at, as in TF Serving: a version must appear by a rename.
    """
    found: dict[int, Path] = {}
    for path in sorted(base_path.iterdir()):
        if _NUMBER.fullmatch(path.name) and int(path.name) <= _LARGEST and (path.is_dir() or path.is_symlink()):
            found.setdefault(int(path.name), path)
    return found
