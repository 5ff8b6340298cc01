"""Runs one stage of a job or import as a batch child, and passes on what it reports.

A stage whose result exists is not run again: this is how a job goes on after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance import batch, durable, process
from appliance.child_records import Progress
from appliance.errors import UNDECODABLE, ApplianceError, OutOfDisk

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0

Result = TypeVar("Result", bound=msgspec.Struct)


async def run(
    label: str,
    program: Sequence[str],
    directory: Path,
    spec: msgspec.Struct,
    result: type[Result],
    *,
    on_progress: Callable[[list[Progress]], None],
    stall_timeout_seconds: float,
    pass_fds: Sequence[int] = (),
    on_poll: Callable[[process.Child], Awaitable[None]] | None = None,
) -> Result:
    """Run the stage to its result; raises ChildFailed with what the child said.

    The child inherits `pass_fds` and keeps them to its end. `on_progress` may block: it is called in a
    thread. `on_poll` is called with the child about once a second while it lives. Cancelling stops the child
    and its whole group before this returns.
    """
    metrics = MetricsTail(directory / batch.METRICS)

    async def ingest() -> None:
        lines, offset = await asyncio.to_thread(metrics.read)
        if lines:
            await asyncio.to_thread(on_progress, lines)
        metrics.offset = offset

    async def try_to_ingest() -> None:
        try:
            await ingest()
        except ApplianceError as exc:
            # Hours of training are not given up for it: the lines stay there for the next time.
            logger.warning("progress not stored yet", extra={"reason": str(exc)})

    async def ingest_in_the_end() -> None:
        """Whatever the child has made is kept until there is room again to say so."""
        while True:
            try:
                await ingest()
                break
            except OutOfDisk as exc:
                logger.warning("progress not stored yet", extra={"reason": str(exc)})
                await asyncio.sleep(RETRY_SECONDS)

    if (directory / batch.RESULT).exists():
        # What it reported last may not have been read before the daemon ended.
        await ingest_in_the_end()
    else:
        await asyncio.to_thread(_prepare, directory, spec)
        child = await process.start(label, [*program, str(directory)], pass_fds=pass_fds)

        async def poll() -> None:
            await try_to_ingest()
            if on_poll is not None:
                await on_poll(child)

        await process.wait_or_stall(
            child,
            progress=batch.file_progress(directory / batch.METRICS, directory / batch.HEARTBEAT),
            stall_timeout_seconds=stall_timeout_seconds,
            on_poll=poll,
        )
        if not (directory / batch.RESULT).exists():
            await try_to_ingest()
            raise batch.failure_of(directory, child)
        await ingest_in_the_end()
    return await asyncio.to_thread(durable.read_json, directory / batch.RESULT, result)


def _prepare(directory: Path, spec: msgspec.Struct) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # A predecessor's: this child has yet to show that it lives.
    (directory / batch.HEARTBEAT).unlink(missing_ok=True)
    durable.write_json(directory / batch.SPEC, spec)


class MetricsTail:
    """Reads the lines that were added to a child's `metrics.jsonl` behind `offset`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0

    def read(self) -> tuple[list[Progress], int]:
        """New complete lines, and where they end; one that is not valid (torn by a power cut) is logged and
        passed over."""
        try:
            with self._path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return [], self.offset
        complete = data[: data.rfind(b"\n") + 1]
        lines = [line for raw in complete.splitlines() if (line := _decode(raw)) is not None]
        return lines, self.offset + len(complete)


def _decode(raw: bytes) -> Progress | None:
    try:
        return msgspec.json.decode(raw, type=Progress)
    except UNDECODABLE:
        logger.warning("a line of progress is torn", extra={"bytes": len(raw)})
        return None
