"""The one way for the daemon to ask for telemetry: off its event loop, and one question at a time.

A driver that hangs keeps a thread for ever: everybody who asks waits for the same reading, so it keeps one.
Knows nothing of what the readings are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from appliance.hardware import telemetry
from appliance.hardware.telemetry import Reading

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0


class Sensors:
    """Readings now. Belongs to the daemon's event loop."""

    def __init__(self, read: Callable[[], list[Reading]] = telemetry.read) -> None:
        self._read = read
        self._reading: asyncio.Future[list[Reading]] | None = None
        self._told = True

    async def now(self) -> list[Reading]:
        """All readings; none where they cannot be had in time, which is logged once until they can."""
        try:
            if self._reading is None or self._reading.done():
                self._reading = self._begin()
            # Not wait_for(), which in Python 3.11 loses a cancellation that meets the answer.
            async with asyncio.timeout(ANSWER_SECONDS):
                readings = await asyncio.shield(self._reading)
        except Exception as exc:
            # Neither a job nor a page of metrics is given up because a sensor fails.
            if self._told:
                logger.exception("telemetry cannot be read", exc_info=exc)
            self._told = False
            return []
        self._told = True
        return readings

    def _begin(self) -> asyncio.Future[list[Reading]]:
        """Read in a daemon thread: Python waits at its exit for the threads of a pool, not for this one."""
        loop = asyncio.get_running_loop()
        reading = loop.create_future()

        def settle(readings: list[Reading], failure: Exception | None) -> None:
            if failure is None:
                reading.set_result(readings)
            else:
                reading.set_exception(failure)

        def read() -> None:
            readings, failure = [], None
            try:
                readings = self._read()
            except Exception as exc:
                failure = exc
            # An answer that comes after the end of the loop interests nobody.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, readings, failure)

        threading.Thread(target=read, name="telemetry", daemon=True).start()
        return reading
