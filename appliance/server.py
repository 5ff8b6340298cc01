"""Serves the application over HTTP until a signal, and then ends everything in its order.

At the first signal new requests are refused and jobs are stopped, while answers under way may be finished
within `drain_seconds`. Then, or at the next signal, what is left of them is ended, and last come the
connections that clients keep open all the same.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
from collections.abc import Awaitable
from typing import IO

from granian.constants import HTTPModes, Interfaces
from granian.server.embed import Server
from litestar import Litestar

from appliance import systemd
from appliance.jobs.import_queue import ImportQueue
from appliance.jobs.runner import JobRunner
from appliance.serving.aliases import Aliases
from appliance.serving.router import Router
from appliance.settings import Settings

logger = logging.getLogger(__name__)

# Held requests and silent connections count; the server's own 128 are soon taken.
MAX_CONNECTIONS = 1024
# From the end of all answers to the end of connections that a client keeps open all the same.
CONNECTIONS_SECONDS = 5
# Until a stop that hangs is cut, beyond the times above: the log then shows where every thread was.
HANG_SECONDS = 10


class Work:
    """What the daemon does for its clients: answers, changes of aliases, jobs, imports.

    Belongs to the event loop.
    """

    def __init__(
        self, runner: JobRunner, imports: ImportQueue, router: Router, aliases: Aliases
    ) -> None:
        self._runner = runner
        self._imports = imports
        self._router = router
        self._aliases = aliases
        self.stopping = False
        """Whether new requests are to be refused."""

    async def drain(self) -> None:
        """Refuse what is new, stop the rest, and return when no answer is under way any more."""
        self.stopping = True
        self._router.refuse()
        await asyncio.gather(
            self._runner.stop(),
            self._imports.stop(),
            self._aliases.stop(),
            self._router.wait_unused(),
        )

    async def stop(self) -> None:
        """End answers, changes of aliases and jobs, and refuse what is new. May be called again."""
        self.stopping = True
        await self._runner.stop()
        await self._imports.stop()
        await self._aliases.stop()
        await self._router.close()


async def run(app: Litestar, settings: Settings, lock: IO[str]) -> None:
    """Serve until SIGTERM or SIGINT. `lock` names this process, until it has ended."""
    server = Server(
        app,
        address=settings.host,
        port=settings.port,
        interface=Interfaces.ASGI,
        # Its "auto" waits without limit for a client to show which version it speaks.
        http=HTTPModes.http1,
        backlog=MAX_CONNECTIONS,
        backpressure=MAX_CONNECTIONS,
        websockets=False,
        log_access=False,
        # Its own logging set-up would write plain text beside our JSON lines.
        log_enabled=False,
    )
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    serving = asyncio.create_task(server.serve())
    if await _ends(serving, told):
        # It could not even start.
        return
    await _end_work(app.state.work, settings.drain_seconds, told)
    # After the engines: the server waits for open answers.
    server.stop()
    if await _ends(_connections_end(serving), told, CONNECTIONS_SECONDS):
        return
    logger.warning("what clients keep open is cut: connections, checks of uploads")
    app.state.store.close()
    logging.shutdown()
    # Threads would wait for those clients and checks.
    lock.truncate(0)
    os._exit(0)


async def _end_work(work: Work, drain_seconds: float, told: asyncio.Event) -> None:
    systemd.notify("STOPPING=1")
    logger.info("stopping", extra={"drain_seconds": drain_seconds})
    faulthandler.dump_traceback_later(drain_seconds + CONNECTIONS_SECONDS + HANG_SECONDS, exit=True)
    if not await _ends(work.drain(), told, drain_seconds):
        logger.warning("answers under way are ended")
    await work.stop()


async def _ends(work: Awaitable[None], told: asyncio.Event, seconds: float | None = None) -> bool:
    """Whether something ends in time, and before the next signal; raises what it raises. Else it goes on."""
    task, signalled = asyncio.ensure_future(work), asyncio.create_task(told.wait())
    await asyncio.wait({task, signalled}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    # The next one means what comes next.
    told.clear()
    if task.done():
        task.result()
    return task.done()


async def _connections_end(serving: asyncio.Task[None]) -> None:
    await serving
    # The check of a large upload goes on although its client has gone.
    await asyncio.get_running_loop().shutdown_default_executor()
