"""One message that is sent for too long ends its request; time between two messages does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.api.body_timeout import BodyTimeout

SECONDS = 0.2
SCOPE: Any = {"type": "http", "path": "/", "headers": []}


def run(app: Any, send: Any) -> None:
    async def receive() -> Any:
        raise AssertionError("nobody should ask for a body here")

    asyncio.run(asyncio.wait_for(BodyTimeout(app, SECONDS)(SCOPE, receive, send), 30))


def test_app_may_take_its_time_between_two_messages() -> None:
    sent = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for number in range(3):
            await asyncio.sleep(1.5 * SECONDS)
            await send({"type": "http.response.body", "number": number})

    async def send(message: Any) -> None:
        sent.append(message["number"])

    run(app, send)
    assert sent == [0, 1, 2]


@pytest.mark.parametrize("quick", [0, 3])
def test_message_that_nobody_takes_ends_the_app(quick: int) -> None:
    ended: list[type[BaseException]] = []
    left = quick

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            while True:
                await send({"type": "http.response.body"})
                await asyncio.sleep(SECONDS / 2)
        except BaseException as exc:
            ended.append(type(exc))
            raise

    async def send(_message: Any) -> None:
        nonlocal left
        if left == 0:
            await asyncio.Event().wait()
        left -= 1

    run(app, send)
    assert ended == [asyncio.CancelledError]


def test_app_whose_message_failed_may_go_on() -> None:
    done = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        with pytest.raises(OSError):
            await send({"type": "http.response.body"})
        await asyncio.sleep(2.5 * SECONDS)
        done.append(True)

    async def send(_message: Any) -> None:
        raise OSError

    run(app, send)
    assert done == [True]


def test_timeout_of_the_app_itself_is_told() -> None:
    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        run(app, None)
