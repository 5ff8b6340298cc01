"""Fails whatever connects anywhere but loopback or a Unix socket; an audit hook sees every attempt."""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

attempts: list[str] = []


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
    attempts.append(host)
    raise PermissionError(f"a test reached for the network: {host}")
