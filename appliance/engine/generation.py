"""One answer, from prompt to last token, advanced by one decode call at a time.

Knows nothing of threads or of the connection.
"""

from __future__ import annotations

import time
from typing import Literal

from appliance.engine.protocol import Finished, Generate
from appliance.engine.runtime import N_BATCH, Runtime
from appliance.engine.sampling import SamplerChain
from appliance.engine.sequence import CachedSequence
from appliance.engine.text import TextStream
from appliance.errors import InvalidInput


class Generation:
    """The state of one answer. `finished` is set by the step that ends it."""

    def __init__(self, request: Generate, runtime: Runtime, sequence: CachedSequence) -> None:
        """Render and tokenise; raises InvalidInput if the prompt cannot be answered."""
        self._started_at = self._first_token_at = time.monotonic()
        self._id = request.id
        self._runtime = runtime
        self._sequence = sequence
        prompt = runtime.prompt(request.messages)
        self._max_tokens = _room_for_answer(len(prompt), request.sampling.max_tokens, runtime.n_ctx)
        self._prompt_tokens = len(prompt)
        self._cached_tokens = sequence.begin(prompt)
        self._undecoded = prompt[self._cached_tokens :]
        self._completion_tokens = 0
        self._text = TextStream(request.sampling.stop)
        self._sampler = SamplerChain(request.sampling, n_vocab=runtime.n_vocab, n_ctx=runtime.n_ctx)
        self.finished: Finished | None = None

    def step(self) -> str:
        """Make one decode call; returns the text that became certain by it, often none."""
        chunk, self._undecoded = self._undecoded[:N_BATCH], self._undecoded[N_BATCH:]
        self._sequence.decode(chunk)
        if self._undecoded:
            return ""
        return self._accept(self._sampler.sample(self._runtime.context))

    def close(self) -> None:
        """Free what llama.cpp holds for this answer."""
        self._sampler.close()

    def _accept(self, token: int) -> str:
        if self._completion_tokens == 0:
            self._first_token_at = time.monotonic()
        self._completion_tokens += 1
        if self._runtime.ends_answer(token):
            self._finish("stop")
            return self._text.finish()
        text = self._text.feed(self._runtime.piece(token))
        if self._text.stopped:
            self._finish("stop")
        elif self._completion_tokens == self._max_tokens:
            self._finish("length")
            text += self._text.finish()
        self._undecoded = [token]
        return text

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        self.finished = Finished(
            id=self._id,
            finish_reason=reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            prompt_seconds=self._first_token_at - self._started_at,
            generation_seconds=time.monotonic() - self._first_token_at,
        )


def _room_for_answer(prompt_tokens: int, max_tokens: int | None, n_ctx: int) -> int:
    """Tokens that the answer may have: what was asked for, as far as the context reaches."""
    if prompt_tokens == 0:
        raise InvalidInput(
            "empty_prompt", "messages should give at least 1 token; they give 0", param="messages"
        )
    room = n_ctx - prompt_tokens
    if room < 1:
        raise InvalidInput(
            "context_length_exceeded",
            f"the context has {n_ctx} tokens for prompt and answer; "
            f"this prompt alone has {prompt_tokens}",
            param="messages",
            next_step="send a shorter conversation",
        )
    return room if max_tokens is None else min(room, max_tokens)
