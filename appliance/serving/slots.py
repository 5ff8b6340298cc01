"""The models that are loaded: who uses them, which goes first, and which has died. Loads none itself."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from appliance.engine.client import Engine
from appliance.errors import NoMemory

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Slot:
    """A loaded model and who uses it now; one that drains takes nobody new. Times are the event loop's."""

    name: str
    path: Path
    engine: Engine
    loaded_at: float
    used_at: float
    users: int = 0
    draining: bool = False


class Slots:
    """By the file that an engine has loaded. All methods but `alive` belong to one event loop.

    `on_end` is told of every engine that has ended, when its slot is gone, and whether it died: ended though
    nobody had dropped it.
    """

    def __init__(self, max_loaded: int, on_end: Callable[[Slot, bool], None]) -> None:
        self._max_loaded = max_loaded
        self._on_end = on_end
        self._slots: dict[Path, Slot] = {}
        self._left = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether another model needs one of these to go."""
        return len(self._slots) >= self._max_loaded

    def paths(self) -> set[Path]:
        """The files that are loaded."""
        return set(self._slots)

    def alive(self) -> list[Slot]:
        """Those whose engines live; for any thread."""
        # A copy is made in one step, whatever the event loop does meanwhile.
        return [slot for slot in self._slots.copy().values() if slot.engine.alive]

    def get(self, path: Path) -> Slot | None:
        """The slot of a file, if its engine lives."""
        slot = self._slots.get(path)
        return slot if slot is not None and slot.engine.alive else None

    def keep(self, name: str, path: Path, engine: Engine, used_at: float | None = None) -> Slot:
        """The slot of an engine that has just loaded a file; last used now, if nothing else is said."""
        logger.info("model loaded", extra={"model": name, "path": str(path)})
        now = asyncio.get_running_loop().time()
        slot = Slot(name, path, engine, loaded_at=now, used_at=now if used_at is None else used_at)
        self._slots[path] = slot

        def ended() -> None:
            died = self._slots.get(path) is slot
            if died:
                del self._slots[path]
            self._on_end(slot, died)

        engine.when_ended(ended)
        return slot

    async def see_off_dead(self, path: Path) -> None:
        """If the engine of this file is dying, return when it has, and that has been told."""
        slot = self._slots.get(path)
        if slot is not None and not slot.engine.alive:
            await slot.engine.wait()

    def leave(self, slot: Slot) -> None:
        """One user less."""
        slot.users -= 1
        slot.used_at = asyncio.get_running_loop().time()
        self._left.set()

    async def drop(self, path: Path) -> None:
        """Stop the engine of this file, whoever uses it; not an error if there is none."""
        slot = self._slots.pop(path, None)
        if slot is not None:
            await slot.engine.stop()

    async def drop_unused_since(self, time: float) -> None:
        """Stop the engines that nobody has used since then."""
        for path, slot in list(self._slots.items()):
            if slot.users == 0 and slot.used_at < time and self._slots.get(path) is slot:
                logger.info("model unloaded, unused", extra={"model": slot.name})
                await self.drop(path)

    async def drop_unused(self, kept: Path) -> bool:
        """Stop the engine unused for longest of those that nobody uses now, not `kept`'s; False if none."""
        unused = [each for each in self._slots.values() if not each.users and each.path != kept]
        if unused:
            await self.drop(min(unused, key=lambda slot: slot.used_at).path)
        return bool(unused)

    async def with_room(
        self, take: Callable[[], Awaitable[T]], evict: Callable[[], Awaitable[None]]
    ) -> T:
        """What `take` gives once it gets its memory, for which models are evicted if that is enough."""
        while True:
            try:
                return await take()
            except NoMemory as exc:
                if exc.serving_bytes < exc.missing_bytes or not self._slots:
                    raise
                await evict()

    async def evict(self) -> None:
        """Unload one model: the one unused for longest, or else the first that nobody uses any more."""
        try:
            while self._slots:
                path, slot = min(
                    self._slots.items(), key=lambda item: (item[1].users > 0, item[1].used_at)
                )
                if slot.users == 0:
                    await self.drop(path)
                    return
                # Nobody new enters, or models that are always in use would keep all others out.
                slot.draining = True
                self._left.clear()
                await self._left.wait()
                if self._slots.get(path) is not slot:
                    # It has died, and made room itself.
                    return
        finally:
            for slot in self._slots.values():
                slot.draining = False
