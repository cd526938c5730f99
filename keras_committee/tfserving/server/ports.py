"""Is this port free, and who has it otherwise?"""

import errno
import os
import re
import socket
from pathlib import Path

from keras_committee.errors import ResourceError

_BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`; port 0 takes a free one.

    Raises:
        ResourceError: If the port is in use, or the address cannot be had.
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


def _bind_error_message(host: str, port: int, error: OSError) -> str:
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host} port {port}: {error.strerror or error}. Nothing was started."
    owner = owner_of(port)
    who = f" (pid {owner})" if owner else ""
    return f"port {port} in use{who} on {host}. Nothing was started.\n  Stop the other one, or name another port."


def owner_of(port: int) -> int | None:
    """The process that listens on `port`, where the system tells: on Linux, and to its owner only."""
    socket_links = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if socket_links and os.readlink(link) in socket_links:
                return int(link.parts[2])
        except OSError:  # another user's process, or one that has just ended
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    """The sockets that listen on `port`: state 0A of /proc/net/tcp."""
    inodes: set[str] = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        text = table.read_text() if table.exists() else ""
        rows = re.findall(rf"^ *\d+: [0-9A-F]+:{port:04X} \S+ 0A(?: +\S+){{5}} +(\d+)", text, re.M)
        inodes.update(rows)
    return inodes
