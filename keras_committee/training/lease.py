"""Which process may write into the folder of a member, where several machines share it?

A node that has lost its network is dead for the driver, who starts the member elsewhere; but its process may live on
and reach the shared folder. So each attempt has a claim: a file in the member's folder with a token, written anew for
the next attempt. A process whose token is no longer the one in the file stops before it saves. In the same file
the driver asks an attempt to save and end, as signals do not cross machines.
"""

import dataclasses
import json
import signal
import socket
import time
import uuid
from pathlib import Path
from typing import Any, Self

from keras_committee.errors import RunError
from keras_committee.files import write_json
from keras_committee.member_dir import MemberFolder
from keras_committee.training.signals import Interruption

_SECONDS_BETWEEN_LOOKS = 1.0


@dataclasses.dataclass(frozen=True)
class Claim:
    """The right of one attempt to train a member."""

    folder: MemberFolder
    token: str

    @classmethod
    def take(cls, folder: MemberFolder) -> Self:
        """A new claim; every earlier one is lost. Raises ResourceError."""
        claim = cls(folder, uuid.uuid4().hex)
        claim._write(stop=False)
        return claim

    def recall(self) -> None:
        """Asks the holder to save and end. Raises ResourceError."""
        self._write(stop=True)

    @property
    def held(self) -> bool:
        """Whether no later attempt has been made."""
        return self._read().get("token") == self.token

    @property
    def wanted(self) -> bool:
        """Whether the holder is to go on."""
        return self._read() == {"token": self.token, "stop": False}

    def require(self) -> None:
        """Raises RunError where the claim is lost."""
        if not self.held:
            raise RunError(
                f"member {self.folder.index} of {self.folder.run} was given to another process, or its claim.json "
                "is lost.\n  This process saves nothing more; the same command goes on from the last checkpoint."
            )

    def require_shared(self) -> None:
        """Raises RunError where this machine does not see the claim that the driver has just made."""
        if not self.held:
            raise RunError(
                f"{self.folder.run} on {socket.gethostname()} is not the run folder that the driver writes.\n"
                "  All nodes must see one folder under one path: a --run folder on a shared file system (NFS, Lustre)."
            )

    def _write(self, stop: bool) -> None:
        write_json(_path(self.folder), {"token": self.token, "stop": stop})

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(_path(self.folder).read_bytes())
        except FileNotFoundError:
            return {}


def release(folder: MemberFolder) -> None:
    """Nobody has a claim from now on."""
    _path(folder).unlink(missing_ok=True)


class ClaimInterruption(Interruption):
    """Asks to stop once the claim is recalled or lost, and forbids to save without it. Takes over no signal.

    Args:
        claim: The claim that this process was started with.
    """

    def __init__(self, claim: Claim):
        super().__init__()
        self._claim, self._looked = claim, time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._looked = time.monotonic()
            if not self._claim.wanted:
                self.requested = signal.SIGTERM
        super().check()

    def before_saving(self) -> None:
        self._claim.require()


def _path(folder: MemberFolder) -> Path:
    return folder.path / "claim.json"
