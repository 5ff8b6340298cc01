"""`/v1/chat/completions`: whole or streamed answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from litestar import Controller, MediaType, Request, Response, post
from litestar.response import Stream
from litestar.status_codes import HTTP_200_OK

from appliance.api import errors
from appliance.api.metrics import Metrics
from appliance.api.openai.chat_schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Usage,
)
from appliance.engine.protocol import Delta, Finished
from appliance.errors import ApplianceError
from appliance.serving.router import Router
from appliance.store.rows import new_id

T = TypeVar("T")
Events = AsyncGenerator[Delta | Finished, None]
# nginx's word for a client that closed the connection before the answer; nobody is there to read it.
CLIENT_CLOSED_REQUEST = 499


class ChatController(Controller):
    """OpenAI's chat completions resource."""

    path = "/v1/chat/completions"
    tags = ("chat",)

    @post("/", operation_id="createChatCompletion", status_code=HTTP_200_OK)
    async def create(
        self, data: ChatRequest, request: Request[Any, Any, Any], router: Router, metrics: Metrics
    ) -> Response[Any]:
        """Answer a conversation."""
        data.refuse_unsupported()
        events = _generate(data, router, metrics)
        if data.stream:
            # The first event is awaited before the headers go out: what fails until then has a status.
            first = await _unless_disconnected(request, anext(events))
            if first is None:
                return _nobody_there()
            return Stream(_stream(data, first, events), media_type="text/event-stream")
        async with aclosing(events):
            answer = await _unless_disconnected(request, _collect(data, events))
        if answer is None:
            return _nobody_there()
        return Response(answer, media_type=MediaType.JSON)


async def _generate(data: ChatRequest, router: Router, metrics: Metrics) -> Events:
    # What cannot be answered must not cost a load.
    messages, sampling = [message.plain() for message in data.messages], data.sampling()
    async with (
        router.engine(data.model) as engine,
        aclosing(engine.generate(messages, sampling)) as events,
    ):
        async for event in events:
            if isinstance(event, Finished):
                metrics.count_answer(event)
            yield event


async def _collect(data: ChatRequest, events: Events) -> ChatCompletion:
    pieces: list[str] = []
    async for event in events:
        if isinstance(event, Finished):
            return ChatCompletion(
                id=new_id("chatcmpl-"),
                created=int(time.time()),
                model=data.model,
                choices=[Choice(AnswerMessage("".join(pieces)), event.finish_reason)],
                usage=Usage.of(event),
            )
        pieces.append(event.text)
    raise AssertionError("an engine's events end with Finished or with an error")


async def _stream(
    data: ChatRequest, first: Delta | Finished, events: Events
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: `data:` lines only, since OpenAI's decoder trips over others."""
    answer_id, created = new_id("chatcmpl-"), int(time.time())

    def chunk(choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        return _sse(ChatChunk(answer_id, created, data.model, choices, usage))

    async with aclosing(events):
        yield chunk([ChunkChoice({"role": "assistant", "content": ""})])
        try:
            event = first
            while isinstance(event, Delta):
                yield chunk([ChunkChoice({"content": event.text})])
                event = await anext(events)
        except ApplianceError as exc:
            yield _sse(errors.envelope(exc))
            return
        yield chunk([ChunkChoice({}, event.finish_reason)])
        if data.stream_options is not None and data.stream_options.include_usage:
            yield chunk([], Usage.of(event))
        yield b"data: [DONE]\n\n"


def _sse(value: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _nobody_there() -> Response[bytes]:
    return Response(b"", status_code=CLIENT_CLOSED_REQUEST, media_type=MediaType.TEXT)


async def _unless_disconnected(request: Request[Any, Any, Any], work: Awaitable[T]) -> T | None:
    """The result of `work`, or None, and `work` cancelled, if the client goes away first."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
