"""`/v1/chat/completions`: whole or streamed answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from litestar import Controller, Request, Response, post
from litestar.status_codes import HTTP_200_OK

from appliance.api.metrics import Metrics
from appliance.api.openai.answer_schema import Usage
from appliance.api.openai.answering import Asked, Written, respond
from appliance.api.openai.chat_schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Logprobs,
)
from appliance.api.openai.messages import conversation
from appliance.api.openai.tools import AnsweredCalls
from appliance.engine.protocol import Delta, Finished
from appliance.serving.aliases import Aliases
from appliance.serving.router import Router
from appliance.store.rows import new_id


class ChatController(Controller):
    """OpenAI's chat completions resource."""

    path = "/v1/chat/completions"
    tags = ("chat",)

    @post("/", operation_id="createChatCompletion", status_code=HTTP_200_OK)
    async def create(
        self,
        data: ChatRequest,
        request: Request[Any, Any, Any],
        aliases: Aliases,
        router: Router,
        metrics: Metrics,
    ) -> Response[Any]:
        """Answer a conversation; the answer's `model` is what an alias meant."""
        data.refuse_unsupported()
        # What cannot be answered must not cost a load.
        messages, sampling, tools = conversation(data.messages), data.sampling(), data.offered()
        asked = Asked(data.model, request.auth.id, [messages], sampling, data.answers, tools)

        def answers(model: str) -> _Answers:
            return _Answers(msgspec.structs.replace(data, model=model))

        return await respond(
            request, aliases, router, metrics, asked, answers, stream=bool(data.stream)
        )


def _message(written: Written) -> AnswerMessage:
    text, calls = written.text, AnsweredCalls()
    for delta in written.deltas:
        for piece in delta.calls:
            calls.add(piece)
    whole = calls.whole()
    return AnswerMessage(text or None if whole else text, whole)


class _Answers:
    """All answers to a conversation, as they go out."""

    def __init__(self, data: ChatRequest) -> None:
        self._data = data
        self._id, self._created = new_id("chatcmpl-"), int(time.time())
        self._calls = [AnsweredCalls() for _ in range(data.answers)]

    def whole(self, written: Sequence[Written]) -> ChatCompletion:
        """All in one."""
        choices = [
            Choice(
                _message(each),
                each.finished.finish_reason,
                index,
                Logprobs.of(each.likelihoods, self._data.logprobs),
            )
            for index, each in enumerate(written)
        ]
        usage = Usage.of([each.finished for each in written], self._data.answers)
        return ChatCompletion(self._id, self._created, self._data.model, choices, usage)

    def opening(self) -> Iterator[ChatChunk]:
        # With tools it is not known yet whether there will be any text.
        content = None if self._data.tools else ""
        for index in range(self._data.answers):
            yield self._chunk(ChunkChoice({"role": "assistant", "content": content}, index))

    def of(self, index: int, event: Delta | Finished) -> Iterator[ChatChunk]:
        if isinstance(event, Finished):
            yield self._chunk(ChunkChoice({}, index, event.finish_reason))
        else:
            logprobs = Logprobs.of(event.likelihoods, self._data.logprobs)
            for delta in _deltas(event, self._calls[index]):
                yield self._chunk(ChunkChoice(delta, index, logprobs=logprobs))
                logprobs = None

    def closing(self, finished: Sequence[Finished]) -> Iterator[ChatChunk]:
        if self._data.wants_usage:
            yield self._chunk(None, Usage.of(finished, self._data.answers))

    def _chunk(self, choice: ChunkChoice | None, usage: Usage | None = None) -> ChatChunk:
        choices = [] if choice is None else [choice]
        return ChatChunk(self._id, self._created, self._data.model, choices, usage)


def _deltas(event: Delta, calls: AnsweredCalls) -> Iterator[dict[str, Any]]:
    """What a stream says of a piece of an answer: its text, then each piece of a call by itself."""
    if event.text or not event.calls:
        yield {"content": event.text}
    for piece in event.calls:
        yield {"tool_calls": [calls.add(piece)]}
