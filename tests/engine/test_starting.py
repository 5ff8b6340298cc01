"""Whoever gives up while an engine starts leaves no process behind."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from appliance import process
from appliance.engine import client

SLEEPING = (sys.executable, "-c", "import time; time.sleep(600)")


def test_giving_up_before_the_connection_stands_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[process.Child] = []
    start_child, connecting = process.start, asyncio.Event()

    async def start(*given: object, **options: object) -> process.Child:
        children.append(await start_child(*given, **options))
        return children[-1]

    async def never_connects(*, sock: socket.socket) -> None:
        with sock:
            connecting.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(process, "start", start)
    monkeypatch.setattr(asyncio, "open_unix_connection", never_connects)

    async def give_up() -> int | None:
        starting = asyncio.create_task(
            client.start(
                "engine", tmp_path / "a.gguf", n_ctx=128, threads=1, slots=1, program=SLEEPING
            )
        )
        await connecting.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        (child,) = children
        ended = child.returncode
        await child.stop()
        return ended

    assert asyncio.run(asyncio.wait_for(give_up(), 30)) is not None
