"""What must be true before the server listens."""

from __future__ import annotations

import ipaddress
import resource
import socket

from appliance.errors import ConfigurationError
from appliance.settings import Settings


def raise_file_limit() -> None:
    """A connection is a file; the customary soft limit is no more than the server's connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_address(settings: Settings) -> None:
    """Refuse a port that is taken: granian would share it, and each of two daemons get some requests."""
    try:
        address = ipaddress.ip_address(settings.host)
        with socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except (OSError, ValueError) as exc:
        raise ConfigurationError(
            "cannot_listen",
            f"host and port should be an IP address of this machine and a free port; "
            f"{settings.host} port {settings.port}: {exc}",
            next_step="give another --host or --port",
        ) from exc
