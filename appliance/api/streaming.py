"""A streamed response that lets go of what it reads from, whenever its client goes.

Litestar leaves that to the garbage collector where a client goes while a piece is being sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from litestar.response.base import ASGIResponse
from litestar.response.streaming import ASGIStreamingResponse, Stream
from litestar.types import Receive, Send


class _Closing(ASGIStreamingResponse):
    __slots__ = ()

    async def send_body(self, send: Send, receive: Receive) -> None:
        try:
            await super().send_body(send, receive)
        finally:
            assert isinstance(self.iterator, AsyncGenerator)
            await self.iterator.aclose()


class ClosingStream(Stream):
    """A stream of an asynchronous generator, which is closed at the stream's end, however that came."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], **options: Any) -> None:
        super().__init__(pieces, **options)

    def to_asgi_response(self, *args: Any, **options: Any) -> ASGIResponse:
        """As Litestar calls it."""
        response = super().to_asgi_response(*args, **options)
        # Litestar asks nobody what to make; the two have the same fields.
        response.__class__ = _Closing
        return response
