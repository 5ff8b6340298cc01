"""`/v1/chat/completions`: whole or streamed answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
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
    Logprobs,
    Usage,
)
from appliance.api.openai.choices import choices
from appliance.api.openai.messages import conversation
from appliance.api.openai.tools import AnsweredCalls
from appliance.engine.protocol import Delta, Finished
from appliance.errors import ApplianceError
from appliance.serving.router import Router
from appliance.store.rows import new_id

T = TypeVar("T")
Events = AsyncGenerator[tuple[int, Delta | Finished], None]
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
    messages, sampling, tools = conversation(data.messages), data.sampling(), data.offered()
    async with (
        router.engine(data.model) as engine,
        aclosing(choices(engine, messages, sampling, data.answers, tools)) as events,
    ):
        async for index, event in events:
            if isinstance(event, Finished):
                metrics.count_answer(event)
            yield index, event


async def _collect(data: ChatRequest, events: Events) -> ChatCompletion:
    deltas: dict[int, list[Delta]] = {index: [] for index in range(data.answers)}
    finished: dict[int, Finished] = {}
    async for index, event in events:
        if isinstance(event, Finished):
            finished[index] = event
        else:
            deltas[index].append(event)
    return ChatCompletion(
        id=new_id("chatcmpl-"),
        created=int(time.time()),
        model=data.model,
        choices=[
            Choice(
                _message(pieces),
                finished[index].finish_reason,
                index,
                Logprobs.of(
                    [each for delta in pieces for each in delta.likelihoods], data.logprobs
                ),
            )
            for index, pieces in deltas.items()
        ],
        usage=Usage.of(list(finished.values())),
    )


def _message(pieces: list[Delta]) -> AnswerMessage:
    text, calls = "".join(delta.text for delta in pieces), AnsweredCalls()
    for delta in pieces:
        for piece in delta.calls:
            calls.add(piece)
    whole = calls.whole()
    return AnswerMessage(text or None if whole else text, whole)


async def _stream(
    data: ChatRequest, first: tuple[int, Delta | Finished], events: Events
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: `data:` lines only, since OpenAI's decoder trips over others."""
    answer_id, created = new_id("chatcmpl-"), int(time.time())

    def chunk(choice: ChunkChoice | None, usage: Usage | None = None) -> bytes:
        choices = [] if choice is None else [choice]
        return _sse(ChatChunk(answer_id, created, data.model, choices, usage))

    finished: list[Finished] = []
    async with aclosing(events):
        # With tools it is not known yet whether there will be any text.
        content = None if data.tools else ""
        for index in range(data.answers):
            yield chunk(ChunkChoice({"role": "assistant", "content": content}, index))
        calls = [AnsweredCalls() for _ in range(data.answers)]
        try:
            index, event = first
            while True:
                if isinstance(event, Delta):
                    logprobs = Logprobs.of(event.likelihoods, data.logprobs)
                    for delta in _deltas(event, calls[index]):
                        yield chunk(ChunkChoice(delta, index, logprobs=logprobs))
                        logprobs = None
                else:
                    yield chunk(ChunkChoice({}, index, event.finish_reason))
                    finished.append(event)
                    if len(finished) == data.answers:
                        break
                index, event = await anext(events)
        except ApplianceError as exc:
            yield _sse(errors.envelope(exc))
            return
        if data.stream_options is not None and data.stream_options.include_usage:
            yield chunk(None, Usage.of(finished))
        yield b"data: [DONE]\n\n"


def _deltas(event: Delta, calls: AnsweredCalls) -> Iterator[dict[str, Any]]:
    """What a stream says of a piece of an answer: its text, then each piece of a call by itself."""
    if event.text or not event.calls:
        yield {"content": event.text}
    for piece in event.calls:
        yield {"tool_calls": [calls.add(piece)]}


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
