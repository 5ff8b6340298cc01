"""From a model's name to an engine that has it loaded.

Loads on demand, keeps at most so many engines, unloads the one unused for longest, and replaces an engine
that died at the next request. Knows nothing of HTTP, jobs or the database: what a name means is asked of
the function handed in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.engine.client import Engine
from appliance.errors import Busy

logger = logging.getLogger(__name__)

Launch = Callable[[str, Path], Awaitable[Engine]]
Resolve = Callable[[str], Awaitable[Path]]


@dataclasses.dataclass
class _Slot:
    """A loaded model and who uses it now."""

    engine: Engine
    users: int = 0
    used_at: float = 0.0


class Router:
    """Names to engines. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        resolve: Resolve,
        launch: Launch,
        max_loaded: int,
        max_waiting: int,
        idle_seconds: float,
    ) -> None:
        self._resolve = resolve
        self._launch = launch
        self._max_loaded = max_loaded
        self._max_waiting = max_waiting
        self._idle_seconds = idle_seconds
        self._slots: dict[str, _Slot] = {}
        # One load at a time: two would fight for the same memory and cores.
        self._loading = asyncio.Lock()
        self._released = asyncio.Condition()

    @asynccontextmanager
    async def engine(self, name: str) -> AsyncIterator[Engine]:
        """An engine with the model loaded, kept loaded while the block runs.

        Raises NotFound for an unknown name, ChildFailed if it does not load, Busy if too many wait.
        """
        slot = self._live_slot(name) or await self._load(name)
        if slot.users >= self._max_waiting:
            raise Busy(
                "rate_limit_exceeded",
                f"{self._max_waiting} requests are waiting for {name!r} already",
                next_step="try again in a moment",
            )
        slot.users += 1
        try:
            yield slot.engine
        finally:
            slot.users -= 1
            slot.used_at = asyncio.get_running_loop().time()
            async with self._released:
                self._released.notify_all()

    async def load(self, name: str, path: Path) -> None:
        """Load a model that `resolve` does not know yet; fails as `engine` does."""
        await self._load(name, path)

    async def unload(self, name: str) -> None:
        """Stop the engine of this name, whoever uses it; not an error if there is none."""
        slot = self._slots.pop(name, None)
        if slot is not None:
            await slot.engine.stop()

    async def close(self) -> None:
        """Stop every engine."""
        await asyncio.gather(*(self.unload(name) for name in list(self._slots)))

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the idle time; to be called now and then."""
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        for name, slot in list(self._slots.items()):
            if slot.users == 0 and slot.used_at < oldest:
                logger.info("model unloaded, unused", extra={"model": name})
                await self.unload(name)

    def loaded(self) -> dict[str, int]:
        """Names of the loaded models, each with the number of its requests now."""
        return {name: slot.users for name, slot in self._slots.items() if slot.engine.alive}

    def _live_slot(self, name: str) -> _Slot | None:
        slot = self._slots.get(name)
        return slot if slot is not None and slot.engine.alive else None

    async def _load(self, name: str, path: Path | None = None) -> _Slot:
        path = path or await self._resolve(name)
        async with self._loading:
            slot = self._live_slot(name)
            if slot is not None:
                return slot
            await self.unload(name)
            await self._make_room()
            engine = await self._launch(name, path)
            logger.info("model loaded", extra={"model": name, "path": str(path)})
            slot = _Slot(engine, used_at=asyncio.get_running_loop().time())
            self._slots[name] = slot
            return slot

    async def _make_room(self) -> None:
        while len(self._slots) >= self._max_loaded:
            idle = [name for name, slot in self._slots.items() if slot.users == 0]
            if idle:
                await self.unload(min(idle, key=lambda name: self._slots[name].used_at))
                continue
            async with self._released:
                await self._released.wait()
