"""From a model's name to an engine that has it loaded.

Loads on demand, keeps at most so many engines, unloads the one unused for longest, and replaces an engine
that died at the next request. Knows nothing of HTTP, jobs or the database: what a name means is asked of
the function handed in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.engine.client import Engine
from appliance.errors import Busy, ChildFailed

logger = logging.getLogger(__name__)

Launch = Callable[[str, Path], Awaitable[Engine]]
Resolve = Callable[[str], Awaitable[Path]]


@dataclasses.dataclass
class _Slot:
    """A loaded model and who uses it now; one that drains takes nobody new."""

    name: str
    engine: Engine
    users: int = 0
    used_at: float = 0.0
    draining: bool = False


class Router:
    """Names to engines. All methods but `loaded` belong to one event loop.

    Engines are kept by the file that they have loaded, so that two names of one file share an engine.
    """

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
        self._slots: dict[Path, _Slot] = {}
        # Requests that wait or are answered, from before the load on.
        self._requests: Counter[Path] = Counter()
        # One load at a time: two would fight for the same memory and cores.
        self._loading = asyncio.Lock()
        self._claims: dict[asyncio.Task[_Slot], Path] = {}
        self._left = asyncio.Event()

    @asynccontextmanager
    async def engine(self, name: str, path: Path | None = None) -> AsyncIterator[Engine]:
        """An engine with the model loaded, kept loaded while the block runs.

        `path` is for a model that `resolve` does not know yet. Raises NotFound for an unknown name,
        ChildFailed if it does not load, Busy if too many wait.
        """
        path = path or await self._resolve(name)
        if self._requests[path] >= self._max_waiting:
            raise Busy(
                "rate_limit_exceeded",
                f"{self._max_waiting} requests are waiting for {name!r} already",
                next_step="try again in a moment",
            )
        self._requests[path] += 1
        try:
            slot = self._enter_loaded(path) or await self._load_and_enter(name, path)
            try:
                yield slot.engine
            finally:
                self._leave(slot)
        finally:
            self._requests[path] -= 1
            if not self._requests[path]:
                del self._requests[path]

    async def unload(self, path: Path) -> None:
        """Stop the engine of this file, whoever uses or awaits it; not an error if there is none."""
        claims = [claim for claim, claimed in self._claims.items() if claimed == path]
        for claim in claims:
            claim.cancel()
        if claims:
            await asyncio.wait(claims)
        await self._drop(path)

    async def close(self) -> None:
        """Stop every engine."""
        paths = {*self._slots, *self._claims.values()}
        await asyncio.gather(*(self.unload(path) for path in paths))

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the idle time; to be called now and then."""
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        for path, slot in list(self._slots.items()):
            if slot.users == 0 and slot.used_at < oldest and self._slots.get(path) is slot:
                logger.info("model unloaded, unused", extra={"model": slot.name})
                await self._drop(path)

    def loaded(self) -> dict[str, int]:
        """Names of the loaded models, each with the number of its requests now; for any thread."""
        # A copy is made in one step, whatever the event loop does meanwhile.
        slots = self._slots.copy().values()
        return {slot.name: slot.users for slot in slots if slot.engine.alive}

    def _enter_loaded(self, path: Path) -> _Slot | None:
        slot = self._slots.get(path)
        if slot is None or slot.draining or not slot.engine.alive:
            return None
        slot.users += 1
        return slot

    async def _load_and_enter(self, name: str, path: Path) -> _Slot:
        """Wait for the load in a task of its own: a client that goes away does not undo it."""
        claim = asyncio.create_task(self._claim(name, path), name=f"load of {name}")
        self._claims[claim] = path
        claim.add_done_callback(self._claims.pop)
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            claim.add_done_callback(self._give_back)
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise ChildFailed(
                "engine_stopped",
                f"{name} should load and answer, but it was stopped",
                next_step="send the request again",
            ) from None

    def _give_back(self, claim: asyncio.Task[_Slot]) -> None:
        """Of a claim that nobody waits for any more."""
        if claim.cancelled():
            return
        if (failure := claim.exception()) is not None:
            logger.warning("a load failed that nobody awaits", exc_info=failure)
            return
        self._leave(claim.result())

    def _leave(self, slot: _Slot) -> None:
        slot.users -= 1
        slot.used_at = asyncio.get_running_loop().time()
        self._left.set()

    async def _claim(self, name: str, path: Path) -> _Slot:
        async with self._loading:
            slot = self._enter_loaded(path)
            if slot is not None:
                return slot
            await self._drop(path)
            await self._make_room()
            engine = await self._launch(name, path)
            logger.info("model loaded", extra={"model": name, "path": str(path)})
            now = asyncio.get_running_loop().time()
            slot = self._slots[path] = _Slot(name, engine, users=1, used_at=now)
            return slot

    async def _make_room(self) -> None:
        try:
            while len(self._slots) >= self._max_loaded:
                path, slot = min(
                    self._slots.items(), key=lambda item: (item[1].users > 0, item[1].used_at)
                )
                if slot.users == 0:
                    await self._drop(path)
                    continue
                # Nobody new enters, or models that are always in use would keep all others out.
                slot.draining = True
                self._left.clear()
                await self._left.wait()
        finally:
            for slot in self._slots.values():
                slot.draining = False

    async def _drop(self, path: Path) -> None:
        slot = self._slots.pop(path, None)
        if slot is not None:
            await slot.engine.stop()
