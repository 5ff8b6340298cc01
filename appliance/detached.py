"""Processes that outlive the one that starts them: a daemon started by the command line."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import ChildFailed


def start(argv: Sequence[str], log: Path) -> int:
    """Start a process that outlives this one, its output appended to `log`; returns its id."""
    # Not subprocess: a Popen object that is forgotten waits for the process behind our back.
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(argv[0], list(argv), os.environ, file_actions=actions, setsid=True)


def is_running(pid: int) -> bool:
    """Whether a process that this one started is still there."""
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


def stop(pid: int, timeout_seconds: float = 60.0) -> None:
    """Send SIGTERM and wait for the end; raises ChildFailed if it does not come."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        # A pidfd becomes readable when its process ends, be it our child or not (pidfd_open(2)).
        if not select.select([descriptor], [], [], timeout_seconds)[0]:
            raise ChildFailed(
                "process_did_not_stop",
                f"process {pid} should end within {timeout_seconds:.0f} s of SIGTERM; it runs on",
            )
    finally:
        os.close(descriptor)
