"""One daemon a state directory: two would run the same jobs twice."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import IO

from appliance.errors import ConfigurationError

LOCK = "daemon.lock"
# struct flock of 64-bit Linux: type, whence, start, length, process id (fcntl(2)).
_FLOCK = "hhqqi0q"


def lock_state_dir(state_dir: Path) -> IO[str]:
    """The lock, held until it is closed, with this process's id in it; raises ConfigurationError if taken."""
    lock = (state_dir / LOCK).open("a+")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, says fcntl(2)
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

    It comes from the kernel: what a killed daemon left in the file may by now be another process's number.
    """
    try:
        with (state_dir / LOCK).open("r+b") as lock:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(lock, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    return None if kind == fcntl.F_UNLCK else pid
