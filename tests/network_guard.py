"""Fails whatever connects anywhere but loopback or a Unix socket; an audit hook sees every attempt.

In children, too, if they get CHILD_ENVIRONMENT: they note their attempts in a file, since a library may
swallow the error that stopped it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

LOG_VARIABLE = "NETWORK_GUARD_LOG"
_HERE = Path(__file__).parent
LOG = Path(os.environ.get(LOG_VARIABLE) or f"{tempfile.gettempdir()}/network-guard-{os.getpid()}")
CHILD_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(_HERE / "guard"), str(_HERE.parent)]),
    LOG_VARIABLE: str(LOG),
}
attempts: list[str] = []


def take_attempts() -> list[str]:
    """What this process and its children reached for since the last call."""
    found = [*attempts, *(LOG.read_text().splitlines() if LOG.exists() else [])]
    attempts.clear()
    LOG.unlink(missing_ok=True)
    return found


def install() -> None:
    """For the rest of this process's life: audit hooks cannot be removed."""
    sys.addaudithook(_look)


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        connection, address = arguments[0], arguments[1]
        if connection.family != socket.AF_UNIX:
            _judge(str(address[0]))
    elif event == "socket.getaddrinfo" and arguments[0] is not None:
        host = arguments[0]
        _judge(host.decode() if isinstance(host, bytes) else str(host))


def _judge(host: str) -> None:
    if host in ("localhost", ""):
        return
    try:
        # The unspecified address is this machine, too.
        if ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified:
            return
    except ValueError:
        pass
    if LOG_VARIABLE in os.environ:
        with LOG.open("a") as log:
            log.write(host + "\n")
    attempts.append(host)
    raise PermissionError(f"a test reached for the network: {host}")
