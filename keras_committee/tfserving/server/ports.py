"""Listening sockets, the limit of open files, and the servers behind them."""

import contextlib
import errno
import os
import re
import resource
import socket
from collections.abc import Callable
from pathlib import Path

from keras_committee.errors import ResourceError

_BACKLOG = 128


class RunningServer(contextlib.AbstractContextManager):
    """A server that runs in the background until `close`.

    Args:
        port: The port that it listens on.
        stop: Finishes the requests in progress and stops the server. May be called more than once.
    """

    def __init__(self, port: int, stop: Callable[[], None]):
        self.port, self._stop = port, stop

    def close(self) -> None:
        """Finish the requests in progress, then stop. A second call has no effect."""
        self._stop()

    def __exit__(self, *_error: object) -> None:
        self.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on `host` and `port`; port 0 selects a free port.

    Raises:
        ResourceError: If the port is in use, or the address is not available.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise ResourceError(f"cannot listen on {host} port {port}: {error}. Nothing was started.") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ResourceError(_bind_error_message(host, port, error)) from error
    return listening


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to `count`, where it is lower.

    Raises:
        ResourceError: If the system does not allow as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise ResourceError(
            f"{count} open files are needed, but this process may have only {hard}. Nothing was started.\n"
            "  Allow fewer connections, or raise the limit: ulimit -n."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def owner_of(port: int) -> int | None:
    """Return the process that listens on `port`, or None where it cannot be determined.

    Linux only, and only for processes of the same user.
    """
    socket_links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if socket_links and os.readlink(link) in socket_links:
                return int(link.parts[2])
        except OSError:  # another user's process, or one that has just ended
            continue
    return None


def _bind_error_message(host: str, port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host} port {port}: {error.strerror or error}. Nothing was started."
    owner = owner_of(port)
    process = f" (pid {owner})" if owner else ""
    return (
        f"port {port} in use{process} on {host}. Nothing was started.\n"
        "  Stop the other process, or choose another port."
    )


def _listening_inodes(port: int) -> set[str]:
    """Return the sockets that listen on `port`: state 0A of /proc/net/tcp."""
    inodes: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        text = table.read_text() if table.exists() else ""
        rows = re.findall(rf"^ *\d+: [0-9A-F]+:{port:04X} \S+ 0A(?: +\S+){{5}} +(\d+)", text, re.M)
        inodes.update(rows)
    return inodes
