"""From a model's name to an engine that has it loaded.

Loads on demand, keeps at most so many engines and no more than the memory that is granted, unloads the one
unused for longest, and replaces an engine that died at the next request. Knows nothing of HTTP, jobs or the
database: what a name means is asked of the function handed in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from appliance.engine.client import Engine
from appliance.engine.protocol import Load
from appliance.errors import Busy, ChildFailed, NoMemory
from appliance.serving.model import Model
from appliance.serving.names import Target
from appliance.serving.restoring import Restoring

logger = logging.getLogger(__name__)

Launch = Callable[[str, Path], Awaitable[Engine]]
Resolve = Callable[[str], Awaitable[Target]]
T = TypeVar("T")


@dataclasses.dataclass
class _Slot:
    """A loaded model and who uses it now; one that drains takes nobody new."""

    name: str
    engine: Engine
    users: int = 0
    used_at: float = 0.0
    draining: bool = False


@dataclasses.dataclass
class _Load:
    """A load under way, shared by everybody who waits for it; they become the users of what it gives."""

    task: asyncio.Task[None]
    waiting: int = 0
    begun: bool = False
    slot: _Slot | None = None


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
        self._loads: dict[Path, _Load] = {}
        # One load at a time: two would fight for the same memory and cores.
        self._loading = asyncio.Lock()
        self._left = asyncio.Event()
        self._closed = False
        self._restoring = Restoring(self._load_if_room, idle_seconds)

    @asynccontextmanager
    async def model(self, name: str) -> AsyncIterator[Model]:
        """The model behind a name, kept loaded while the block runs. Raises NotFound, or as `engine` does."""
        target = await self._resolve(name)
        async with self.engine(target.engine_name, target.gguf) as engine:
            yield Model(engine, target.adapter)

    @asynccontextmanager
    async def engine(self, name: str, path: Path) -> AsyncIterator[Engine]:
        """An engine with a file loaded, kept loaded while the block runs; it need not be in the catalogue.

        Raises ChildFailed if it does not load, Busy if too many wait or the router has been closed.
        """
        if self._closed:
            raise Busy("stopping", "the appliance is being stopped", next_step="try again later")
        slot = self._enter_loaded(name, path) or await self._await_load(name, path)
        try:
            yield slot.engine
        finally:
            self._leave(slot)

    async def unload(self, path: Path) -> None:
        """Stop the engine of this file, whoever uses or awaits it; not an error if there is none."""
        self._restoring.forget(path)
        load = self._loads.get(path)
        if load is not None:
            load.task.cancel()
            await asyncio.wait({load.task})
        await self._drop(path)

    async def make_way(self, take: Callable[[], Awaitable[T]]) -> tuple[T, list[str]]:
        """Unload models until `take` gets its memory; gives that, and the names of what was unloaded.

        Answers under way are finished first. Raises NoMemory where no unloading would be enough.
        """
        # Else they would come back between two stages of a job.
        await self._restoring.stop()
        async with self._loading:
            before = {slot.name: path for path, slot in self._slots.items()}
            try:
                taken = await self._with_room(take)
            finally:
                gone = {name: path for name, path in before.items() if path not in self._slots}
                self._restoring.note(gone)
        return taken, sorted(gone)

    def restore(self) -> None:
        """Load again what was unloaded for others; nothing is unloaded for it."""
        if not self._closed:
            self._restoring.begin()

    async def _load_if_room(self, name: str, path: Path) -> bool:
        """Whether the model is loaded now, without any other having been unloaded for it."""
        async with self._loading:
            slot = self._slots.get(path)
            if slot is not None and slot.engine.alive:
                return True
            await self._drop(path)
            if self._closed or len(self._slots) >= self._max_loaded:
                return False
            try:
                self._keep(name, path, await self._launch(name, path))
            except NoMemory:
                return False
            return True

    async def close(self) -> None:
        """Stop every engine and load no other."""
        self._closed = True
        await self._restoring.stop()
        await asyncio.gather(*(self.unload(path) for path in {*self._slots, *self._loads}))

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the idle time; to be called now and then."""
        oldest = asyncio.get_running_loop().time() - self._idle_seconds
        for path, slot in list(self._slots.items()):
            if slot.users == 0 and slot.used_at < oldest and self._slots.get(path) is slot:
                logger.info("model unloaded, unused", extra={"model": slot.name})
                await self._drop(path)

    def loaded(self) -> dict[str, int]:
        """Names of the loaded models, each with the number of its requests now; for any thread."""
        return {slot.name: slot.users for slot in self._alive()}

    def loads(self) -> dict[str, Load]:
        """What the engine of each loaded model is doing; for any thread."""
        return {slot.name: slot.engine.load for slot in self._alive()}

    def _alive(self) -> list[_Slot]:
        # A copy is made in one step, whatever the event loop does meanwhile.
        return [slot for slot in self._slots.copy().values() if slot.engine.alive]

    def _enter_loaded(self, name: str, path: Path) -> _Slot | None:
        slot = self._slots.get(path)
        if slot is None or slot.draining or not slot.engine.alive:
            return None
        self._refuse_if_full(name, slot.users)
        slot.users += 1
        return slot

    def _leave(self, slot: _Slot) -> None:
        slot.users -= 1
        slot.used_at = asyncio.get_running_loop().time()
        self._left.set()

    def _refuse_if_full(self, name: str, waiting: int) -> None:
        if waiting >= self._max_waiting:
            raise Busy(
                "rate_limit_exceeded",
                f"{self._max_waiting} requests are waiting for {name!r} already",
                next_step="try again in a moment",
            )

    async def _await_load(self, name: str, path: Path) -> _Slot:
        """The slot once it is loaded, entered. A load that has begun goes on when a client gives up."""
        load = self._loads.get(path)
        if load is None:
            load = self._begin_load(name, path)
        self._refuse_if_full(name, load.waiting)
        load.waiting += 1
        try:
            await asyncio.shield(load.task)
        except BaseException as exc:
            if load.slot is not None:
                # Loaded in this very moment, for somebody who has just gone.
                self._leave(load.slot)
            else:
                load.waiting -= 1
                if not load.waiting and not load.begun:
                    self._forget(path, load)
                    load.task.cancel()
            if load.task.cancelled() and _is_not_cancelled_itself(exc):
                raise ChildFailed(
                    "engine_stopped",
                    f"{name} should load and answer, but it was stopped",
                    next_step="send the request again",
                ) from None
            raise
        assert load.slot is not None
        return load.slot

    def _begin_load(self, name: str, path: Path) -> _Load:
        load = self._loads[path] = _Load(asyncio.create_task(self._load(name, path)))

        def ended(task: asyncio.Task[None]) -> None:
            # A task that is cancelled before it begins never reaches its own clean-up.
            self._forget(path, load)
            failure = None if task.cancelled() else task.exception()
            # For want of memory it is asked for again and again; whoever asks is told.
            if failure is not None and not isinstance(failure, NoMemory):
                logger.warning("model not loaded", extra={"model": name, "reason": str(failure)})

        load.task.add_done_callback(ended)
        return load

    def _forget(self, path: Path, load: _Load) -> None:
        if self._loads.get(path) is load:
            del self._loads[path]

    async def _load(self, name: str, path: Path) -> None:
        load = self._loads[path]
        try:
            async with self._loading:
                load.begun = True
                slot = self._slots.get(path)
                # It may be there: one that was to make room, and then did not have to.
                if slot is None or not slot.engine.alive:
                    slot = await self._launch_slot(name, path)
                slot.users += load.waiting
                load.slot = slot
        finally:
            self._forget(path, load)

    async def _launch_slot(self, name: str, path: Path) -> _Slot:
        await self._drop(path)
        while len(self._slots) >= self._max_loaded:
            await self._evict()
        return self._keep(name, path, await self._with_room(lambda: self._launch(name, path)))

    def _keep(self, name: str, path: Path, engine: Engine) -> _Slot:
        logger.info("model loaded", extra={"model": name, "path": str(path)})
        now = asyncio.get_running_loop().time()
        slot = self._slots[path] = _Slot(name, engine, used_at=now)
        return slot

    async def _with_room(self, take: Callable[[], Awaitable[T]]) -> T:
        """What `take` gives once it gets its memory, for which models are unloaded if that is enough."""
        while True:
            try:
                return await take()
            except NoMemory as exc:
                if exc.serving_bytes < exc.missing_bytes or not self._slots:
                    raise
            await self._evict()

    async def _evict(self) -> None:
        """Unload one model: the one unused for longest, or else the first that nobody uses any more."""
        try:
            while self._slots:
                path, slot = min(
                    self._slots.items(), key=lambda item: (item[1].users > 0, item[1].used_at)
                )
                if slot.users == 0:
                    await self._drop(path)
                    return
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


def _is_not_cancelled_itself(exc: BaseException) -> bool:
    current = asyncio.current_task()
    return (
        isinstance(exc, asyncio.CancelledError) and current is not None and not current.cancelling()
    )
