"""The device's memory for one job: its stages take it, wait for it, or have models unloaded for it.

Knows nothing of what the stages do. The lease itself is the child's: it ends with the process that has it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from appliance import durable
from appliance.child_records import Progress
from appliance.errors import ApplianceError, NoMemory, OutOfDisk
from appliance.hardware.lease import Lease, Ledger, Purpose, grant
from appliance.records import Job

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Serving:
    """What jobs may ask of what serves models; the daemon hands it in.

    `serve` loads a release under its name and makes it answer once; `withdraw` stops whatever serves that
    file. `make_way` unloads models until a lease is granted and tells what was unloaded; `restore` loads
    that again.
    """

    serve: Callable[[str, Path], Awaitable[None]]
    withdraw: Callable[[Path], Awaitable[None]]
    make_way: Callable[[Callable[[], Awaitable[Lease]]], Awaitable[tuple[Lease, list[str]]]]
    restore: Callable[[], None]


async def waited_for(take: Callable[[], Awaitable[T]], say: Callable[[str], Awaitable[None]]) -> T:
    """What `take` gives once there is memory, and disk, for it; what it waits for first is said once."""
    waiting = False
    while True:
        try:
            with durable.full_disk_as_error():
                return await take()
        except (NoMemory, OutOfDisk) as exc:
            if not waiting:
                what = "memory" if isinstance(exc, NoMemory) else "room on disk"
                await say(f"Waiting for {what}: {exc.message}")
            waiting = True
            await asyncio.sleep(RETRY_SECONDS)


class JobMemory:
    """Takes leases for one job."""

    def __init__(
        self, job: Job, ledger: Ledger, serving: Serving, report: Callable[[Progress], None]
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._serving = serving
        self._report = report

    @asynccontextmanager
    async def held(self, purpose: Purpose, size_bytes: int | None) -> AsyncIterator[Lease]:
        """A lease over so many bytes, waited for as long as it takes; none is counted where it is not
        known."""

        async def take() -> Lease:
            return await grant(self._ledger, self._job.id, purpose, size_bytes or 0)

        lease, unloaded = await self.waited_for(purpose, lambda: self._take(take))
        with lease:
            if unloaded:
                names = ", ".join(unloaded)
                await self._say(f"unloaded:{names}", f"Unloaded to make room: {names}", "info")
            yield lease

    async def waited_for(self, purpose: Purpose, take: Callable[[], Awaitable[T]]) -> T:
        """What `take` gives once there is memory, and disk, for it."""

        async def say(message: str) -> None:
            await self._say(f"waiting:{purpose}", message, "warn")

        return await waited_for(take, say)

    async def _take(self, take: Callable[[], Awaitable[Lease]]) -> tuple[Lease, list[str]]:
        if self._job.plan.policy == "serve_first":
            return await take(), []
        return await self._serving.make_way(take)

    async def _say(self, key: str, message: str, level: Any) -> None:
        try:
            await asyncio.to_thread(self._report, Progress(key=key, message=message, level=level))
        except ApplianceError as exc:
            logger.warning("event not stored", extra={"job": self._job.id, "reason": str(exc)})
