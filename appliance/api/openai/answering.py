"""From a request for answers to its HTTP response: whole or as server-sent events, while its client is there.

What the answers look like on the wire is the business of who asks.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

import msgspec
from litestar import MediaType, Request, Response

from appliance.api import errors
from appliance.api.metrics import Metrics
from appliance.api.openai.choices import Event, choices
from appliance.api.streaming import ClosingStream
from appliance.engine.protocol import Delta, Finished, Likelihood, Prompt, Sampling
from appliance.engine.tools import Tools
from appliance.errors import ApplianceError
from appliance.serving.aliases import Aliases
from appliance.serving.router import Router

Events = AsyncGenerator[tuple[int, Event], None]
# nginx's word for a client that closed the connection before the answer; nobody is there to read it.
CLIENT_CLOSED_REQUEST = 499


class Written(NamedTuple):
    """A whole answer, and the pieces it came in."""

    deltas: list[Delta]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def likelihoods(self) -> list[Likelihood]:
        return [each for delta in self.deltas for each in delta.likelihoods]


class Answers(Protocol):
    """What is sent of all answers to one request: in one body, or each struct as an event of a stream."""

    def whole(self, written: Sequence[Written]) -> msgspec.Struct:
        """All in one, in the order of their numbers."""

    def opening(self) -> Iterable[msgspec.Struct]:
        """What comes before all answers."""

    def of(self, index: int, event: Event) -> Iterable[msgspec.Struct]:
        """What an event of the answer with this number becomes."""

    def closing(self, finished: Sequence[Finished]) -> Iterable[msgspec.Struct]:
        """What comes after all answers, whose ends are in the order of their numbers."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a request wants of a model: so many answers to each prompt. `client` is who asks."""

    model: str
    client: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    answers: int
    tools: Tools | None = None

    @property
    def total(self) -> int:
        return len(self.prompts) * self.answers


async def respond(
    request: Request[Any, Any, Any],
    aliases: Aliases,
    router: Router,
    metrics: Metrics,
    asked: Asked,
    answers: Callable[[str], Answers],
    *,
    stream: bool,
) -> Response[Any]:
    """Ask, and answer in one body or as a stream; `answers` is given the name of the model that answers."""
    response = _begin(aliases, router, metrics, asked, answers, stream)
    return await _unless_disconnected(request, response)


async def _begin(
    aliases: Aliases,
    router: Router,
    metrics: Metrics,
    asked: Asked,
    answers: Callable[[str], Answers],
    stream: bool,
) -> Response[Any]:
    """The whole body, or a stream that has its first event."""
    async with aliases.meaning(asked.model, client=asked.client, answers=asked.total) as model:
        events = _generate(router, metrics, dataclasses.replace(asked, model=model))
        if stream:
            # The first event is awaited before the headers go out: what fails until then has a status.
            first = await anext(events)
            sent = _stream(first, events, answers(model), asked.total)
            return ClosingStream(sent, media_type="text/event-stream")
        async with aclosing(events):
            body = answers(model).whole(await _collect(events))
        return Response(body, media_type=MediaType.JSON)


async def _generate(router: Router, metrics: Metrics, asked: Asked) -> Events:
    """The events of all answers, each with its answer's number.

    The answers to the first prompt have the first numbers.
    """
    async with (
        router.model(asked.model, client=asked.client, answers=asked.total) as model,
        aclosing(
            choices(model, asked.prompts, asked.sampling, asked.answers, asked.tools)
        ) as events,
    ):
        async for index, event in events:
            if isinstance(event, Finished):
                metrics.count_answer(event)
            yield index, event


async def _unless_disconnected(
    request: Request[Any, Any, Any], response: Awaitable[Response[Any]]
) -> Response[Any]:
    """The response, unless its client goes away before it begins: then nothing, and work on it ends."""
    task = asyncio.ensure_future(response)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return await task
        return Response(b"", status_code=CLIENT_CLOSED_REQUEST, media_type=MediaType.TEXT)
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.wait({task, gone})


async def _disconnected(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collect(events: Events) -> list[Written]:
    deltas: dict[int, list[Delta]] = {}
    finished: dict[int, Finished] = {}
    async for index, event in events:
        if isinstance(event, Finished):
            finished[index] = event
        else:
            deltas.setdefault(index, []).append(event)
    return [Written(deltas.get(index, []), finished[index]) for index in sorted(finished)]


async def _stream(
    first: tuple[int, Event], events: Events, answers: Answers, total: int
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: `data:` lines only, since OpenAI's decoder trips over others."""
    finished: dict[int, Finished] = {}
    async with aclosing(events):
        for chunk in answers.opening():
            yield _sse(chunk)
        try:
            index, event = first
            while True:
                for chunk in answers.of(index, event):
                    yield _sse(chunk)
                if isinstance(event, Finished):
                    finished[index] = event
                    if len(finished) == total:
                        break
                index, event = await anext(events)
        except ApplianceError as exc:
            yield _sse(errors.envelope(exc))
            return
        for chunk in answers.closing([finished[index] for index in sorted(finished)]):
            yield _sse(chunk)
        yield b"data: [DONE]\n\n"


def _sse(value: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
