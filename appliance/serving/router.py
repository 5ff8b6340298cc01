"""From a model's name to an engine that has it loaded.

Loads on demand, keeps at most so many engines and no more than the memory that is granted, and unloads the
one unused for longest. An engine that died is started again without being asked for, at once or, where that
happens again and again, ever later (`backoff`); no other is unloaded for it unless somebody asks. Knows
nothing of HTTP, jobs or the database: what a name means is asked of the function handed in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from appliance.engine.client import Engine
from appliance.engine.protocol import Load
from appliance.errors import ChildFailed, NoMemory
from appliance.serving.admission import Admission, stopping
from appliance.serving.backoff import SERVED_SECONDS, Backoff
from appliance.serving.model import Model
from appliance.serving.names import Target
from appliance.serving.pending_load import PendingLoad
from appliance.serving.restoring import Restoring
from appliance.serving.slots import Slot, Slots

logger = logging.getLogger(__name__)

Launch = Callable[[str, Path], Awaitable[Engine]]
Resolve = Callable[[str], Awaitable[Target]]
T = TypeVar("T")


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
        self._admission = Admission(max_waiting)
        self._idle_seconds = idle_seconds
        self._slots = Slots(max_loaded, self._ended)
        self._backoff = Backoff()
        self._loads: dict[Path, PendingLoad] = {}
        # One load at a time: two would fight for the same memory and cores.
        self._loading = asyncio.Lock()
        self._closed = False
        self._restoring = Restoring(self._load_if_room, idle_seconds)

    @asynccontextmanager
    async def model(self, name: str, *, client: str = "", answers: int = 1) -> AsyncIterator[Model]:
        """The model behind a name, kept loaded while the block runs.

        `client` is who asks, and for how many answers, which is limited. Raises NotFound, or as `engine`.
        """
        target = await self._resolve(name)
        entered = self.engine(target.engine_name, target.gguf, client=client, answers=answers)
        async with entered as engine:
            yield Model(engine, target.adapter, client)

    @asynccontextmanager
    async def engine(
        self, name: str, path: Path, *, client: str = "", answers: int = 1
    ) -> AsyncIterator[Engine]:
        """An engine with a file loaded, kept loaded while the block runs; it need not be in the catalogue.

        Raises ChildFailed if it does not load, Busy if too many wait, Unavailable if its engines die again
        and again, or if the router takes nobody new.
        """
        if self._closed:
            raise stopping()
        with self._admission.place(name, path, client, answers):
            slot = self._enter_loaded(path) or await self._await_load(name, path)
            try:
                yield slot.engine
            finally:
                self._slots.leave(slot)

    async def unload(self, path: Path) -> None:
        """Stop the engine of this file, whoever uses or awaits it; not an error if there is none."""
        self._restoring.forget(path)
        self._backoff.forget(path)
        load = self._loads.get(path)
        if load is not None:
            load.task.cancel()
            await asyncio.wait({load.task})
        await self._slots.drop(path)

    async def make_way(self, take: Callable[[], Awaitable[T]]) -> tuple[T, list[str]]:
        """Unload models until `take` gets its memory; gives that, and the names of what was unloaded.

        Answers under way are finished first. Raises NoMemory where no unloading would be enough.
        """
        # Else they would come back between two stages of a job.
        await self._restoring.stop()
        async with self._loading:
            before = {slot.name: slot.path for slot in self._slots.alive()}
            try:
                taken = await self._slots.with_room(take, self._slots.evict)
            finally:
                left = self._slots.paths()
                gone = {name: path for name, path in before.items() if path not in left}
                self._restoring.note(gone)
        return taken, sorted(gone)

    def restore(self) -> None:
        """Load again what was unloaded for others; nothing is unloaded for it."""
        if not self._closed:
            self._restoring.begin()

    async def _load_if_room(self, name: str, path: Path) -> bool:
        """Whether the model is loaded now, without any other having been unloaded for it."""
        async with self._loading:
            if self._slots.get(path) is not None:
                return True
            await self._slots.drop(path)
            if self._closed or self._slots.full or self._backoff.seconds_left(path):
                return False
            try:
                self._slots.keep(name, path, await self._start(name, path))
            except NoMemory:
                return False
            return True

    async def load_beside(self, name: str, path: Path, kept: Path) -> bool:
        """Whether the model is loaded now; others that nobody uses were unloaded for it, but not `kept`.

        Raises ChildFailed if it does not load, Unavailable if it did not, again and again.
        """
        self._backoff.refuse_if_far(name, path)
        await self._backoff.wait(path)
        while not await self._load_if_room(name, path):
            if not await self._slots.drop_unused(kept):
                return False
        return True

    def is_served(self, path: Path) -> bool:
        """Whether this file is loaded, or about to be."""
        return self._slots.get(path) is not None or path in self._loads

    def refuse(self) -> None:
        """Take nobody new; who is here already is served."""
        self._closed = True

    async def wait_unused(self) -> None:
        """Return when nobody uses or awaits an engine."""
        await self._admission.wait_empty()

    async def close(self) -> None:
        """Stop every engine and load no other."""
        self.refuse()
        await self._restoring.stop()
        await asyncio.gather(*(self.unload(path) for path in {*self._slots.paths(), *self._loads}))

    async def unload_idle(self) -> None:
        """Unload what nobody has used for the idle time; to be called now and then."""
        now = asyncio.get_running_loop().time()
        await self._slots.drop_unused_since(now - self._idle_seconds)

    def loaded(self) -> dict[str, int]:
        """Names of the loaded models, each with the number of its requests now; for any thread."""
        return {slot.name: slot.users for slot in self._slots.alive()}

    def loads(self) -> dict[str, Load]:
        """What the engine of each loaded model is doing; for any thread."""
        return {slot.name: slot.engine.load for slot in self._slots.alive()}

    def _enter_loaded(self, path: Path) -> Slot | None:
        slot = self._slots.get(path)
        if slot is None or slot.draining:
            return None
        slot.users += 1
        return slot

    async def _await_load(self, name: str, path: Path) -> Slot:
        """The slot once it is loaded, entered. A load that has begun goes on when a client gives up."""
        await self._slots.see_off_dead(path)
        self._backoff.refuse_if_far(name, path)
        load = self._loads.get(path) or self._begin_load(name, path)
        load.waiting += 1
        try:
            await asyncio.shield(load.task)
        except BaseException:
            if load.slot is not None:
                # Loaded in this very moment, for somebody who has just gone.
                self._slots.leave(load.slot)
            else:
                load.waiting -= 1
                if not load.waiting and not load.goes_on:
                    self._forget(path, load)
                    load.task.cancel()
            current = asyncio.current_task()
            if load.task.cancelled() and not (current and current.cancelling()):
                raise ChildFailed(
                    "engine_stopped",
                    f"{name} should load and answer, but it was stopped",
                    next_step="send the request again",
                ) from None
            raise
        assert load.slot is not None
        return load.slot

    def _begin_load(self, name: str, path: Path, used_at: float | None = None) -> PendingLoad:
        task = asyncio.create_task(self._load(name, path))
        load = self._loads[path] = PendingLoad(task, used_at=used_at)

        def ended(task: asyncio.Task[None]) -> None:
            # A task that is cancelled before it begins never reaches its own clean-up.
            self._forget(path, load)
            failure = None if task.cancelled() else task.exception()
            # For want of memory it is asked for again and again; whoever asks is told.
            if failure is not None and not isinstance(failure, NoMemory):
                logger.warning("model not loaded", extra={"model": name, "reason": str(failure)})
            if failure is not None and load.used_at is not None:
                self._try_again(name, path, load.used_at, failure)

        load.task.add_done_callback(ended)
        return load

    def _forget(self, path: Path, load: PendingLoad) -> None:
        if self._loads.get(path) is load:
            del self._loads[path]

    async def _load(self, name: str, path: Path) -> None:
        load = self._loads[path]
        try:
            await self._backoff.wait(path)
            async with self._loading:
                if self._closed:
                    raise stopping()
                load.begun = True
                # It may be there: one that was to make room, and then did not have to.
                slot = self._slots.get(path) or await self._launch_slot(name, path, load)
                slot.users += load.waiting
                load.slot = slot
        finally:
            self._forget(path, load)

    async def _launch_slot(self, name: str, path: Path, load: PendingLoad) -> Slot:
        async def evict() -> None:
            if load.used_at is not None and not load.waiting:
                raise NoMemory("no_memory", f"others have taken the place of {name} meanwhile")
            await self._slots.evict()

        await self._slots.drop(path)
        while self._slots.full:
            await evict()
        engine = await self._slots.with_room(lambda: self._start(name, path), evict)
        return self._slots.keep(name, path, engine, None if load.waiting else load.used_at)

    async def _start(self, name: str, path: Path) -> Engine:
        try:
            return await self._launch(name, path)
        except ChildFailed as exc:
            self._backoff.died(path, exc.message)
            raise

    # --- engines that died ---

    def _ended(self, slot: Slot, died: bool) -> None:
        """Start a new engine for one that died, unless it would be idle by now."""
        now = asyncio.get_running_loop().time()
        served = slot.engine.answered > 0 or now - slot.loaded_at >= SERVED_SECONDS
        if not died:
            if served:
                self._backoff.forget(slot.path)
            return
        wait_seconds = self._backoff.died(slot.path, slot.engine.last_words, served=served)
        logger.warning("engine died", extra={"model": slot.name, "wait_seconds": wait_seconds})
        self._load_by_itself(slot.name, slot.path, now if slot.users else slot.used_at)

    def _try_again(self, name: str, path: Path, used_at: float, failure: BaseException) -> None:
        if isinstance(failure, ChildFailed):
            self._load_by_itself(name, path, used_at)
        else:
            # Like one that was unloaded for others: it comes back when a job gives its memory back.
            self._restoring.note({name: path})

    def _load_by_itself(self, name: str, path: Path, used_at: float) -> None:
        idle_seconds = asyncio.get_running_loop().time() - used_at
        if self._closed or idle_seconds > self._idle_seconds:
            return
        load = self._loads.get(path)
        if load is None:
            self._begin_load(name, path, used_at)
        else:
            load.used_at = used_at
