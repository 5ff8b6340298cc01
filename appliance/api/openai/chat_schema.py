"""The wire structs of `/v1/chat/completions`. Every key that OpenAI sends is sent, null or not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.engine.protocol import Finished, Message, Sampling
from appliance.errors import InvalidInput

# What would change the answer's meaning if it were ignored, and the values that mean "not used".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
}


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, kw_only=True):
    """One message of a request."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def plain(self) -> Message:
        """Role and text, as the model's chat template takes them."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        # OpenAI's newer name for the system role; templates know the older one.
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, kw_only=True):
    """Body of a chat completion; unknown optional fields are ignored, as OpenAI does."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    prediction: Any = None
    web_search_options: Any = None

    def refuse_unsupported(self) -> None:
        """Raise InvalidInput for a field that is given and cannot be honoured."""
        for name, unused in UNSUPPORTED.items():
            if getattr(self, name) not in unused:
                raise InvalidInput(
                    "unsupported_parameter",
                    f"{name} is not supported by this version",
                    param=name,
                    next_step="leave it out",
                )

    def sampling(self) -> Sampling:
        """How the engine is to choose tokens; OpenAI's defaults where nothing is given."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
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
    def of(cls, finished: Finished) -> Usage:
        """The counts of a finished answer."""
        return cls(
            prompt_tokens=finished.prompt_tokens,
            completion_tokens=finished.completion_tokens,
            total_tokens=finished.prompt_tokens + finished.completion_tokens,
            prompt_tokens_details={"cached_tokens": finished.cached_tokens},
            completion_tokens_details={"reasoning_tokens": 0},
        )


class AnswerMessage(msgspec.Struct):
    """`choices[].message`."""

    content: str
    role: str = "assistant"
    refusal: str | None = None
    annotations: list[Any] = []


class Choice(msgspec.Struct):
    """`choices[]` of a whole answer."""

    message: AnswerMessage
    finish_reason: str
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct):
    """A whole answer."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    object: str = "chat.completion"
    system_fingerprint: str | None = None
    service_tier: str | None = None


class ChunkChoice(msgspec.Struct):
    """`choices[]` of a piece of a stream."""

    delta: dict[str, Any]
    finish_reason: str | None = None
    index: int = 0
    logprobs: None = None


class ChatChunk(msgspec.Struct):
    """A piece of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    object: str = "chat.completion.chunk"
    system_fingerprint: str | None = None
    service_tier: str | None = None
