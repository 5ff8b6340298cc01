"""How much of the disk uploaded files and base models may take. Knows nothing of what they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from appliance.errors import OutOfDisk

GIB = 1 << 30


class Quota:
    """A limit on what lies below some directories together; 0 is none."""

    def __init__(self, directories: Sequence[Path], limit_bytes: int) -> None:
        self._directories = directories
        self._limit_bytes = limit_bytes

    def check(self, more_bytes: int) -> None:
        """Raise OutOfDisk (`quota_exceeded`) if so many bytes more would be too many."""
        if not self._limit_bytes:
            return
        used = self.used_bytes()
        if used + more_bytes > self._limit_bytes:
            raise OutOfDisk(
                "quota_exceeded",
                f"uploaded files and base models may take {self._limit_bytes / GIB:.2f} GiB; they take "
                f"{used / GIB:.2f} GiB, and {more_bytes / GIB:.2f} GiB more are asked for",
                next_step="delete files or models, or raise storage_quota_bytes",
            )

    def used_bytes(self) -> int:
        """What files take now; one with several names counts once."""
        sizes: dict[tuple[int, int], int] = {}
        for directory in self._directories:
            for parent, _, names in os.walk(directory):
                for name in names:
                    try:
                        found = Path(parent, name).lstat()
                    except FileNotFoundError:
                        continue  # deleted meanwhile
                    sizes[found.st_dev, found.st_ino] = found.st_size
        return sum(sizes.values())
