"""A temporary directory for work that only one process at a time may do. Knows nothing of the work.

What a killed process left is removed by the next one that does the same work.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from appliance import durable
from appliance.errors import Busy
from appliance.store.store import Store


@contextlib.contextmanager
def one_at_a_time(store: Store, work: str) -> Iterator[Path]:
    """An empty directory while the block runs; raises Busy if another process does the same `work`."""
    path = store.temporary_directory / f"{work}.lock"
    with path.open("w") as lock:
        durable.give_to_owner_of_parent(path)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"{work}_running",
                f"another {work} is under way",
                next_step="wait for its end, and try again",
            ) from None
        # What a killed one left behind; nobody else may be using it while the lock is held.
        for leftover in store.temporary_directory.glob(f"{work}-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(
            prefix=f"{work}-", dir=store.temporary_directory
        ) as temporary:
            yield Path(temporary)
