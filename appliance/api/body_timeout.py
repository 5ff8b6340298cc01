"""Cuts a client that stops sending or reading in the middle of a body; the server itself only cuts slow
headers.

Also says so when an answer comes before the whole body: the server then closes the connection, and a client
that does not know may send its next request into the closing one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import cast

from litestar.types import ASGIApp, HTTPReceiveMessage, Message, Receive, Scope, Send

from appliance.errors import SlowClient

logger = logging.getLogger(__name__)


class BodyTimeout:
    """ASGI middleware that watches over a request's body as it comes, and over its answer's as it goes."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` and a `send` that give up."""
        complete = not _has_body(scope)
        sending = _Sending(self._seconds)

        async def receive_in_time() -> HTTPReceiveMessage:
            nonlocal complete
            if complete:
                # What may still come is the news that the client is gone; that may take for ever.
                return cast(HTTPReceiveMessage, await receive())
            try:
                async with asyncio.timeout(self._seconds):
                    message = cast(HTTPReceiveMessage, await receive())
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
            sending.begin()
            try:
                await send(message)
            finally:
                sending.end()

        try:
            async with asyncio.timeout(None) as cut:
                with sending.watched(cut):
                    await self._app(scope, receive_in_time, send_honestly)
        except TimeoutError:
            if not cut.expired():
                raise
            # Nobody is there to be told.
            logger.info("client stopped reading", extra={"path": scope["path"]})


class _Sending:
    """Cuts who sends one message for too long. With one timer: a stream has a message for each token."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None

    def begin(self) -> None:
        self._since = self._loop.time()

    def end(self) -> None:
        self._since = None

    @contextlib.contextmanager
    def watched(self, cut: asyncio.Timeout) -> Iterator[None]:
        """Let `cut` expire as soon as one message takes longer, while the block runs."""
        self._look(cut)
        try:
            yield
        finally:
            self._timer.cancel()

    def _look(self, cut: asyncio.Timeout) -> None:
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._seconds
        if due <= now:
            cut.reschedule(now)
        else:
            self._timer = self._loop.call_at(due, self._look, cut)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
