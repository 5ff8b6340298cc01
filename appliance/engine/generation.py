"""One answer, from prompt to last token. Knows nothing of threads, of the connection or of other answers."""

from __future__ import annotations

import time
from typing import Literal

from appliance.engine.call_stream import CallStream
from appliance.engine.likelihood import likelihood
from appliance.engine.protocol import Finished, Generate, Likelihood, field_of
from appliance.engine.runtime import Runtime
from appliance.engine.sampling import Sampler
from appliance.engine.text import TextStream
from appliance.engine.tools import CallPiece
from appliance.errors import InvalidInput


class Generation:
    """The state of one answer. `finished` is set by the token that ends it."""

    def __init__(self, request: Generate, prompt: list[int], runtime: Runtime) -> None:
        """`prompt` are the request's tokens; raises InvalidInput if they cannot be answered."""
        self.id = request.id
        self.adapter = request.adapter
        self.client = request.client
        self.tokens = prompt
        """The prompt and the answer so far."""
        self.decoded = 0
        """How many of them llama.cpp holds."""
        self.sequence = -1
        """Where it holds them; only while the answer runs."""
        self.awaited: tuple[Generation, int] | None = None
        """Whose prompt it waits for, since they share so many tokens."""
        self.finished: Finished | None = None
        self._runtime = runtime
        self._prompt_tokens = len(self.tokens)
        _check_length(self._prompt_tokens, runtime.n_ctx, field_of(request.prompt))
        room = runtime.n_ctx - self._prompt_tokens
        self._max_tokens = min(room, request.sampling.max_tokens or room)
        self._cached_tokens: int | None = None
        self._text = TextStream(request.sampling.stop)
        self._top_logprobs = request.sampling.top_logprobs
        self._likelihoods: list[Likelihood] = []
        self._calls: CallStream | None = None
        if request.tools is not None:
            # Only a text that is free can have anything before its calls.
            only_at_start = request.sampling.grammar is not None
            form = runtime.vocabulary.call_format
            self._calls = CallStream(form, request.tools, only_at_start=only_at_start)
        self._sampler = Sampler(request.sampling, runtime, self._calls)
        self._started_at = self._first_token_at = time.monotonic()

    def begin(self, sequence: int, held: int) -> None:
        """The answer runs from now on, in a sequence that holds the first `held` tokens."""
        self.sequence, self.decoded = sequence, held
        if self._cached_tokens is None:
            self._cached_tokens = held
            self._started_at = time.monotonic()

    @property
    def begun(self) -> bool:
        """Whether it has run; if it waits, it was preempted."""
        return self._cached_tokens is not None

    @property
    def tokens_left(self) -> int:
        """How many more it may say."""
        return self._max_tokens - (len(self.tokens) - self._prompt_tokens)

    @property
    def answers(self) -> bool:
        """Whether only its newest token is left to decode; else it is a prompt, or was preempted."""
        return len(self.tokens) - self.decoded == 1 and len(self.tokens) > self._prompt_tokens

    def accept(self, row: int) -> str:
        """Choose the next token by a row of scores; returns the text that became certain, often none."""
        token = self._sampler.sample(row)
        if len(self.tokens) == self._prompt_tokens:
            self._first_token_at = time.monotonic()
        self.tokens.append(token)
        if self._runtime.vocabulary.ends_answer(token):
            return self._end("stop")
        if self._top_logprobs is not None:
            scores, piece = self._runtime.scores(row), self._runtime.vocabulary.piece
            self._likelihoods.append(likelihood(scores, token, self._top_logprobs, piece))
        text = self._read(token)
        if self._text.stopped or (self._calls is not None and self._calls.complete):
            return text + self._end("stop")
        if not self.tokens_left:
            return text + self._end("length")
        return text

    def take_calls(self) -> list[CallPiece]:
        """Pieces of calls since the last time."""
        return [] if self._calls is None else self._calls.take_pieces()

    def take_likelihoods(self) -> list[Likelihood]:
        """Those of the tokens since the last time."""
        taken, self._likelihoods = self._likelihoods, []
        return taken

    def close(self) -> None:
        """Free what llama.cpp holds for this answer."""
        self._sampler.close()

    def _read(self, token: int) -> str:
        """The text that a token makes certain."""
        if self._calls is None:
            return self._text.feed(self._runtime.vocabulary.piece(token))
        text = self._text.feed(self._calls.feed(self._runtime.vocabulary.call_piece(token)))
        # Nothing is held back for a stop string that cannot come any more.
        return text + self._text.finish() if self._calls.begun else text

    def _end(self, reason: Literal["stop", "length"]) -> str:
        """Nothing follows; returns the rest of the text."""
        if self._calls is None:
            self._finish(reason)
            return self._text.finish()
        called = reason == "stop" and self._calls.count > 0
        self._finish("tool_calls" if called else reason)
        return self._text.feed(self._calls.finish(cut=reason == "length")) + self._text.finish()

    def _finish(self, reason: Literal["stop", "length", "tool_calls"]) -> None:
        self.finished = Finished(
            id=self.id,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self.tokens) - self._prompt_tokens,
            cached_tokens=self._cached_tokens or 0,
            prompt_seconds=self._first_token_at - self._started_at,
            generation_seconds=time.monotonic() - self._first_token_at,
        )


def _check_length(prompt_tokens: int, n_ctx: int, param: str) -> None:
    """Raise InvalidInput for a prompt of nothing, or one that leaves no room for an answer."""
    if prompt_tokens == 0:
        raise InvalidInput(
            "empty_prompt", f"{param} should give at least 1 token; it gives 0", param=param
        )
    if prompt_tokens >= n_ctx:
        raise InvalidInput(
            "context_length_exceeded",
            f"the context has {n_ctx} tokens for prompt and answer; "
            f"this prompt alone has {prompt_tokens}",
            param=param,
            next_step="send a shorter prompt",
        )
