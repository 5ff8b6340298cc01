"""Models that were unloaded for others come back by themselves once there is room. Knows no engines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from appliance import durable
from appliance.errors import ApplianceError, Busy, OutOfDisk

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class Restoring:
    """Belongs to one event loop. `load` says whether the model is loaded now; it makes no room."""

    def __init__(self, load: Callable[[str, Path], Awaitable[bool]], idle_seconds: float) -> None:
        self._load = load
        self._idle_seconds = idle_seconds
        # By name, and when they were unloaded.
        self._gone: dict[str, tuple[Path, float]] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, gone: Mapping[str, Path]) -> None:
        """These have been unloaded for others, and are to come back."""
        now = asyncio.get_running_loop().time()
        self._gone |= {name: (path, now) for name, path in gone.items()}

    def begin(self) -> None:
        """Load them, one after the other; what finds no room is tried again until it would be idle by now."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="restore models")

    def forget(self, path: Path) -> None:
        """This file is not to come back."""
        self._gone = {name: each for name, each in self._gone.items() if each[0] != path}

    async def stop(self) -> None:
        """Load no more, until the next beginning."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while self._gone:
            for name, (path, since) in list(self._gone.items()):
                idle_seconds = asyncio.get_running_loop().time() - since
                if idle_seconds > self._idle_seconds or await self._is_settled(name, path):
                    self._gone.pop(name, None)
            await asyncio.sleep(RETRY_SECONDS if self._gone else 0)

    async def _is_settled(self, name: str, path: Path) -> bool:
        try:
            with durable.full_disk_as_error():
                return await self._load(name, path)
        except (Busy, OutOfDisk):
            # That passes.
            return False
        except (ApplianceError, OSError) as exc:
            logger.warning("not restored", extra={"model": name, "reason": str(exc)})
            return True
