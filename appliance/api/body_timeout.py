"""Cuts a client that stops sending in the middle of a body; the server itself only cuts slow headers.

Also says so when an answer comes before the whole body: the server then closes the connection, and a client
that does not know may send its next request into the closing one.
"""

from __future__ import annotations

import asyncio
from typing import cast

from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from appliance.errors import SlowClient


class BodyTimeout:
    """ASGI middleware that watches over a request's body as it comes."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that gives up."""
        complete = not _has_body(scope)

        async def receive_in_time() -> HTTPReceiveMessage:
            nonlocal complete
            if complete:
                # What may still come is the news that the client is gone; that may take for ever.
                return cast(HTTPReceiveMessage, await receive())
            try:
                message = cast(HTTPReceiveMessage, await asyncio.wait_for(receive(), self._seconds))
            except TimeoutError:
                raise SlowClient(
                    "request_timeout",
                    f"the body should keep coming; nothing came for {self._seconds:g} s",
                ) from None
            if message["type"] == "http.disconnect":
                raise SlowClient(
                    "client_disconnected", "the body should be complete; its client went away"
                )
            complete = not message["more_body"]
            return message

        async def send_honestly(message: Message) -> None:
            if message["type"] == "http.response.start" and not complete:
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive_in_time, send_honestly)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
