"""`/v1/completions`: raw prompts, without a chat template, and what a model writes after them."""

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
from appliance.api.openai.completions_schema import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    LogprobsWriter,
)
from appliance.engine.protocol import Delta, Finished, Likelihood, Raw
from appliance.serving.aliases import Aliases
from appliance.serving.router import Router
from appliance.store.rows import new_id


class CompletionsController(Controller):
    """OpenAI's (legacy) completions resource."""

    path = "/v1/completions"
    tags = ("completions",)

    @post("/", operation_id="createCompletion", status_code=HTTP_200_OK)
    async def create(
        self,
        data: CompletionRequest,
        request: Request[Any, Any, Any],
        aliases: Aliases,
        router: Router,
        metrics: Metrics,
    ) -> Response[Any]:
        """Go on from one or several texts; the answer's `model` is what an alias meant."""
        data.refuse_unsupported()
        # What cannot be answered must not cost a load.
        prompts, sampling = data.prompts(), data.sampling()
        asked = Asked(data.model, request.auth.id, prompts, sampling, data.answers)

        def answers(model: str) -> _Answers:
            return _Answers(msgspec.structs.replace(data, model=model), prompts)

        return await respond(
            request, aliases, router, metrics, asked, answers, stream=bool(data.stream)
        )


class _Answers:
    """All answers to one request, as they go out."""

    def __init__(self, data: CompletionRequest, prompts: Sequence[Raw]) -> None:
        self._data = data
        self._id, self._created = new_id("cmpl-"), int(time.time())
        self._echoed = [
            prompt.content if data.echo and isinstance(prompt.content, str) else ""
            for prompt in prompts
            for _ in range(data.answers)
        ]
        """What each answer begins with."""
        self._logprobs = [LogprobsWriter() for _ in self._echoed]

    def whole(self, written: Sequence[Written]) -> Completion:
        """All in one."""
        choices = [
            CompletionChoice(
                self._echoed[index] + each.text,
                index,
                self._logprobs_of(index, each.likelihoods),
                each.finished.finish_reason,
            )
            for index, each in enumerate(written)
        ]
        return self._completion(choices, self._usage([each.finished for each in written]))

    def opening(self) -> Iterator[Completion]:
        for index, text in enumerate(self._echoed):
            if text:
                yield self._completion([CompletionChoice(text, index)])

    def of(self, index: int, event: Delta | Finished) -> Iterator[Completion]:
        if isinstance(event, Finished):
            choice = CompletionChoice("", index, finish_reason=event.finish_reason)
        else:
            choice = CompletionChoice(
                event.text, index, self._logprobs_of(index, event.likelihoods)
            )
        yield self._completion([choice])

    def closing(self, finished: Sequence[Finished]) -> Iterator[Completion]:
        if self._data.wants_usage:
            yield self._completion([], self._usage(finished))

    def _logprobs_of(
        self, index: int, likelihoods: Sequence[Likelihood]
    ) -> CompletionLogprobs | None:
        return None if self._data.logprobs is None else self._logprobs[index].write(likelihoods)

    def _usage(self, finished: Sequence[Finished]) -> Usage:
        return Usage.of(finished, self._data.answers)

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | None = None
    ) -> Completion:
        return Completion(self._id, self._created, self._data.model, choices, usage)
