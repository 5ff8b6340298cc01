"""Imports that were asked for over the API, one after the other.

Stopping the daemon leaves them where they are; at the next start the one that was under way begins anew,
which gives the same model.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import shutil
from collections.abc import Awaitable, Callable

from appliance import durable
from appliance.child_records import ImportSpec, Progress
from appliance.errors import ApplianceError, Busy, WrongState
from appliance.records import BaseModel, JobError
from appliance.store.store import Store
from appliance.upload_records import BaseImport, ImportStatus

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
# Imports a model, telling how far it is.
Run = Callable[[ImportSpec, Callable[[list[Progress]], None]], Awaitable[BaseModel]]


class ImportQueue:
    """Owns the queue; every method belongs to the daemon's event loop."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store = store
        self._run_import = run
        self._woken = asyncio.Event()
        self._queue: asyncio.Task[None] | None = None
        self._current: tuple[str, asyncio.Task[None]] | None = None
        self._cancelling: set[str] = set()
        self._said = ""

    def start(self) -> None:
        """Begin to work through the queue."""
        self._queue = asyncio.create_task(self._work(), name="import queue")

    async def stop(self) -> None:
        """Stop; the children are gone when this returns, and imports wait for the next start."""
        if self._queue is not None:
            self._queue.cancel()
            await _until_done(self._queue)

    def wake(self) -> None:
        """Say that there may be a new import."""
        self._woken.set()

    def progress_of(self, import_id: str) -> str | None:
        """The last words of the import that is under way."""
        under_way = self._current is not None and self._current[0] == import_id
        return self._said or None if under_way else None

    async def cancel(self, import_id: str) -> BaseImport:
        """Cancel an import; its processes are gone when this returns. Raises WrongState if it has ended."""
        move = functools.partial(self._store.imports.move, import_id, ImportStatus.CANCELLED)
        self._cancelling.add(import_id)
        try:
            # It may have been too late: then it has succeeded by now.
            await self._end(import_id)
            wanted = await asyncio.to_thread(move)
            # The queue may have taken it up in between.
            await self._end(import_id)
        finally:
            self._cancelling.discard(import_id)
            # If it could not be stored as cancelled, the queue has passed over it.
            self.wake()
        await asyncio.to_thread(self._remove_files, import_id)
        return wanted

    async def _end(self, import_id: str) -> None:
        if self._current is not None and self._current[0] == import_id:
            task = self._current[1]
            task.cancel()
            await _until_done(task)

    async def _work(self) -> None:
        while True:
            try:
                await self._run_next()
            except Busy as exc:
                # Another process imports at this moment.
                logger.info("the import waits", extra={"reason": str(exc)})
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                logger.exception("imports cannot go on; they try again")
                await asyncio.sleep(RETRY_SECONDS)

    async def _run_next(self) -> None:
        self._woken.clear()
        unfinished = await asyncio.to_thread(self._store.imports.unfinished)
        waiting = [each for each in unfinished if each.id not in self._cancelling]
        if not waiting:
            await self._woken.wait()
            return
        task = asyncio.create_task(self._to_its_end(waiting[0]), name=f"import {waiting[0].id}")
        self._current, self._said = (waiting[0].id, task), ""
        try:
            await asyncio.wait({task})
        finally:
            # Cancelled itself: the daemon stops, and the import's children with it.
            task.cancel()
            await _until_done(task)
            self._current = None
        if not task.cancelled():
            task.result()

    async def _to_its_end(self, wanted: BaseImport) -> None:
        # Cancelled meanwhile, it moves no more.
        with contextlib.suppress(WrongState):
            await self._move(wanted, ImportStatus.RUNNING)
            error = await self._error_of(wanted)
            if error is None:
                await self._move(wanted, ImportStatus.SUCCEEDED)
            else:
                logger.error("import failed", extra={"import": wanted.id, "code": error.code})
                await self._move(wanted, ImportStatus.FAILED, error)
            await asyncio.to_thread(self._remove_files, wanted.id)

    async def _move(
        self, wanted: BaseImport, status: ImportStatus, error: JobError | None = None
    ) -> None:
        await asyncio.to_thread(self._store.imports.move, wanted.id, status, error)

    async def _error_of(self, wanted: BaseImport) -> JobError | None:
        try:
            with durable.full_disk_as_error():
                base = await self._run_import(self._spec(wanted), self._listen)
        except Busy:
            raise
        except ApplianceError as exc:
            return JobError(code=exc.code, message=str(exc), param=exc.param)
        except Exception:
            logger.exception("import failed unexpectedly", extra={"import": wanted.id})
            return JobError(
                code="internal_error", message="an internal error; see the daemon's log"
            )
        logger.info("base model imported", extra={"import": wanted.id, "model": base.name})
        return None

    def _spec(self, wanted: BaseImport) -> ImportSpec:
        source = self._store.imports_directory / wanted.id
        if len(wanted.filenames) == 1:
            source /= wanted.filenames[0]
        return ImportSpec(
            name=wanted.name,
            source=str(source),
            licence=wanted.licence,
            origin=wanted.origin,
            chat_template=wanted.chat_template,
        )

    def _listen(self, lines: list[Progress]) -> None:
        if lines:
            self._said = lines[-1].message

    def _remove_files(self, import_id: str) -> None:
        shutil.rmtree(self._store.imports_directory / import_id, ignore_errors=True)


async def _until_done(task: asyncio.Task[None]) -> None:
    """Wait for its end, however often that is cancelled; then be cancelled."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
