"""What requests for chat and for text completions have in common on the wire, and what their answers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.engine.protocol import Finished, Sampling
from appliance.errors import InvalidInput


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool = False


class AnswerRequest(msgspec.Struct, kw_only=True):
    """How answers are asked for; unknown optional fields are ignored, as OpenAI does."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10)] | None = None
    logit_bias: (
        dict[Annotated[int, Meta(ge=0, lt=1 << 31)], Annotated[float, Meta(ge=-100, le=100)]] | None
    ) = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None

    @property
    def answers(self) -> int:
        """How many answers are asked for to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with what it took."""
        return self.stream_options is not None and self.stream_options.include_usage

    def refuse(self, unsupported: Mapping[str, tuple[Any, ...]]) -> None:
        """Raise InvalidInput for a field that has a value other than those that mean "not used"."""
        for name, unused in unsupported.items():
            if getattr(self, name) not in unused:
                raise InvalidInput(
                    "unsupported_parameter",
                    f"{name} is not supported by this version",
                    param=name,
                    next_step="leave it out",
                )

    def chosen(
        self, *, max_tokens: int | None, top_logprobs: int | None, grammar: str | None = None
    ) -> Sampling:
        """How the engine is to choose tokens; OpenAI's defaults where nothing is given."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repeat_penalty=1.0 if self.repeat_penalty is None else self.repeat_penalty,
            logit_bias=self.logit_bias or {},
            top_logprobs=top_logprobs,
            grammar=grammar,
            seed=self.seed,
            stop=[text for text in stop if text],
        )


class Usage(msgspec.Struct):
    """`usage`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]

    @classmethod
    def of(cls, finished: Sequence[Finished], answers: int) -> Usage:
        """The counts of all answers, in the order of their numbers.

        `answers` of them answer one prompt, which counts once.
        """
        prompts = [finished[first : first + answers] for first in range(0, len(finished), answers)]
        prompt_tokens = sum(same[0].prompt_tokens for same in prompts)
        cached_tokens = sum(min(each.cached_tokens for each in same) for same in prompts)
        completion_tokens = sum(each.completion_tokens for each in finished)
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details={"cached_tokens": cached_tokens},
            completion_tokens_details={"reasoning_tokens": 0},
        )
