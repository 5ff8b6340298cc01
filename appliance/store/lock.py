"""One daemon a state directory: two would run the same jobs twice."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from appliance.errors import ConfigurationError

LOCK = "daemon.lock"


def lock_state_dir(state_dir: Path) -> IO[str]:
    """The lock, held until it is closed, with this process's id in it; raises ConfigurationError if taken."""
    lock = (state_dir / LOCK).open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigurationError(
            "already_running",
            f"another daemon works on {state_dir}",
            next_step="stop it first, or give this one another --state-dir",
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def holder(state_dir: Path) -> int | None:
    """The process id of the daemon that works on `state_dir`, or None.

    The file alone says too little: after a kill it names a process that may by now be another's.
    """
    try:
        with (state_dir / LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    return None
