"""Leases of member folders on storage that several machines share.

If a node loses its network, the driver considers it dead and restarts its member elsewhere; but its process may still
run and reach the shared folder. So each attempt has a lease: a file in the member's folder with a token, which the next
attempt replaces. A process whose token is no longer the one in the file stops before it saves. Through the same file
the driver requests an attempt to save and end, as signals do not cross machines.
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
from keras_committee.member_dir import MemberDir
from keras_committee.signals import GracefulShutdown

_POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Lease:
    """The right of one attempt to train a member."""

    member_dir: MemberDir
    token: str

    @classmethod
    def acquire(cls, member_dir: MemberDir) -> Self:
        """Return a new lease; every earlier one is lost. Raises ResourceError."""
        lease = cls(member_dir, uuid.uuid4().hex)
        lease._write(stop=False)
        return lease

    def revoke(self) -> None:
        """Request the holder to save and end. Raises ResourceError."""
        self._write(stop=True)

    @property
    def is_held(self) -> bool:
        """Whether no later attempt was made."""
        return self._read().get("token") == self.token

    @property
    def is_active(self) -> bool:
        """Whether the lease is held and not revoked."""
        return self._read() == {"token": self.token, "stop": False}

    def require_held(self) -> None:
        """Raise RunError if the lease is lost."""
        if not self.is_held:
            raise RunError(
                f"member {self.member_dir.index} of {self.member_dir.run} was given to another process, or its "
                f"{_lease_path(self.member_dir).name} is lost.\n"
                "  This process saves nothing more. To resume from the last checkpoint, run the same command again."
            )

    def require_shared_folder(self) -> None:
        """Raise RunError if this machine does not see the lease that the driver has just acquired."""
        if not self.is_held:
            raise RunError(
                f"{self.member_dir.run} on {socket.gethostname()} is not the run folder that the driver writes.\n"
                "  All nodes must see one folder under one path: a --run folder on a shared file system (NFS, Lustre)."
            )

    def _write(self, stop: bool) -> None:
        write_json(_lease_path(self.member_dir), {"token": self.token, "stop": stop})

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(_lease_path(self.member_dir).read_bytes())
        except FileNotFoundError:
            return {}


def release(member_dir: MemberDir) -> None:
    """End every lease of a member."""
    _lease_path(member_dir).unlink(missing_ok=True)


class LeaseShutdown(GracefulShutdown):
    """Stops training once its lease is revoked or lost, and forbids saving without it. It handles no signals.

    Args:
        lease: The lease that this process was started with.
    """

    def __init__(self, lease: Lease):
        super().__init__()
        self._lease, self._last_check = lease, time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self._last_check > _POLL_SECONDS:
            self._last_check = time.monotonic()
            if not self._lease.is_active:
                self.requested = signal.SIGTERM
        super().check()

    def check_before_saving(self) -> None:
        self._lease.require_held()


def _lease_path(member_dir: MemberDir) -> Path:
    return member_dir.path / "claim.json"
