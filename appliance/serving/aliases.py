"""What an alias means, for the requests that come, and how it is given another meaning under way.

A loaded model is replaced only by one that has just answered. Where memory and places allow, the new one is
loaded beside the old one and nobody waits. Where they do not, the alias's requests are held until the old one
has given its answers and the new one is there; should it fail, the alias means the old one still, and what
was held goes there. The old model stays loaded afterwards, as any model that nobody uses: first to go when
there is need of room. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from appliance.errors import NotFound
from appliance.serving.admission import Admission, stopping
from appliance.serving.first_answer import answer_once
from appliance.serving.names import Target, target
from appliance.serving.router import Router
from appliance.store.aliases import Alias
from appliance.store.catalog import SEPARATOR
from appliance.store.store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass
class _Hold:
    """Requests wait here until it is decided what their alias means: `gguf` as before, or another file."""

    over: asyncio.Event
    gguf: Path


class Aliases:
    """All methods belong to one event loop. `max_waiting` is for the answers that are held for one file."""

    def __init__(self, store: Store, router: Router, *, max_waiting: int) -> None:
        self._store = store
        self._router = router
        self._admission = Admission(max_waiting)
        self._changes: set[asyncio.Task[Any]] = set()
        # Kept as long as somebody changes the alias, or waits to.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._holds: dict[str, _Hold] = {}
        # How many requests have been told what a name means, and have not reached an engine with it.
        self._under_way: Counter[str] = Counter()
        self._left = asyncio.Event()

    @asynccontextmanager
    async def meaning(self, name: str, *, client: str = "", answers: int = 1) -> AsyncIterator[str]:
        """The model that a request for `name` is for; to be left when it is in an engine, or later.

        That is `name` itself unless it is an alias. `client` is who asks, and for how many answers. Raises
        Busy where too many are held already.
        """
        stem = name.partition(SEPARATOR)[0]
        while (hold := self._holds.get(stem)) is not None:
            with self._admission.place(stem, hold.gguf, client, answers):
                await hold.over.wait()
        self._under_way[stem] += 1
        try:
            yield await asyncio.to_thread(self._store.aliases.resolve, name)
        finally:
            self._under_way[stem] -= 1
            if not self._under_way[stem]:
                del self._under_way[stem]
            self._left.set()

    async def put(self, name: str, model: str) -> Alias:
        """Make an alias or change what it means; durable when this returns, and as before if it raises.

        Goes on to its end when the caller gives up. Raises what `AliasStore.put` does, NotFound for a
        variant that the model does not have, and whatever keeps a model that is to replace a loaded one
        from loading and answering.
        """
        return await self._to_its_end(self._put(name, model))

    async def delete(self, name: str) -> None:
        """Forget an alias, once changes of it that are under way have ended; NotFound if there is none."""
        async with self._lock(name):
            await asyncio.to_thread(self._store.aliases.delete, name)

    async def stop(self) -> None:
        """Give up the changes that are under way; each is either done or not. May be called again."""
        # One may begin while others end.
        while self._changes:
            for task in self._changes:
                task.cancel()
            await asyncio.wait(self._changes)

    async def _put(self, name: str, model: str) -> Alias:
        async with self._lock(name):
            old, new = await asyncio.to_thread(self._targets, name, model)
            if old is None or _same(old, new) or not self._router.is_served(old.gguf):
                return await self._store_change(name, model)
            if await self._router.load_beside(new.engine_name, new.gguf, kept=old.gguf):
                await answer_once(self._router, *new)
                return await self._store_change(name, model)
            async with self._held(name, old.gguf):
                await answer_once(self._router, *new)
                return await self._store_change(name, model)

    def _targets(self, name: str, model: str) -> tuple[Target | None, Target]:
        """What the alias means, or None, and what it is to mean."""
        before = self._store.aliases.check(name, model)
        new = self._target(model)
        if before is None:
            return None, new
        try:
            return self._target(before.model), new
        except NotFound:
            # A base that was imported again may have lost a quantization: nothing is to be replaced.
            return None, new

    def _target(self, model: str) -> Target:
        return target(self._store.directory, self._store.catalog.get, model)

    async def _store_change(self, name: str, model: str) -> Alias:
        alias = await asyncio.to_thread(self._store.aliases.put, name, model)
        logger.info("alias set", extra={"alias": name, "model": model})
        return alias

    @asynccontextmanager
    async def _held(self, alias: str, gguf: Path) -> AsyncIterator[None]:
        """Requests of the alias wait while the block runs; it begins when those before are in an engine.

        Else one of them could come too late for the old model, and have it loaded once more.
        """
        hold = self._holds[alias] = _Hold(asyncio.Event(), gguf)
        try:
            while self._under_way[alias]:
                self._left.clear()
                await self._left.wait()
            yield
        finally:
            del self._holds[alias]
            hold.over.set()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _to_its_end(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait({task})
        if task.cancelled():
            raise stopping()
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            # Whoever asked may have gone.
            logger.warning("alias not set", extra={"reason": str(failure)})


def _same(one: Target, other: Target) -> bool:
    """Whether both are the same file with the same adapter, whatever the names that led there."""
    return (one.gguf, one.adapter) == (other.gguf, other.adapter)
