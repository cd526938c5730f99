"""What is known of one version of a model?"""

import dataclasses
import time
from pathlib import Path
from typing import Any

from keras_committee.tfserving.tf_protocol import StatusError


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What GetModelStatus tells of a version: `code` and `message` say why it cannot be served."""

    version: int
    state: str
    code: str = "OK"
    message: str = ""


@dataclasses.dataclass(eq=False)
class Servable:
    """One version. Who borrows it from the manager reads `name`, `version` and `session`; the rest is the manager's.

    `state` goes from START over LOADING, AVAILABLE and UNLOADING to END.
    """

    name: str
    version: int
    path: Path
    session: Any = None
    state: str = "START"
    error: StatusError | None = None
    aspired: bool = True
    users: int = 0
    tries: int = 0
    next_try: float = 0.0  # monotonic seconds

    def status(self) -> VersionStatus:
        failed = self.error if self.state in ("LOADING", "END") else None
        words = (failed.code, failed.message) if failed else ("OK", "")
        return VersionStatus(self.version, self.state, *words)

    def due(self) -> bool:
        """Whether it is time to load it, for the first time or once more."""
        return self.state in ("START", "LOADING") and time.monotonic() >= self.next_try

    def may_unload(self) -> bool:
        return self.state == "UNLOADING" and not self.users
