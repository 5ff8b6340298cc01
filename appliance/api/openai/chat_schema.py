"""The wire structs of `/v1/chat/completions`. Every key that OpenAI sends is sent, null or not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.api.openai.answer_schema import AnswerRequest, Usage
from appliance.api.openai.messages import ChatMessage
from appliance.api.openai.tools import MAX_TOOLS, MessageToolCall, Tool, ToolChoice, offered
from appliance.engine.json_schema import to_gbnf
from appliance.engine.protocol import Likelihood, Sampling
from appliance.engine.tools import Tools
from appliance.errors import InvalidInput

# What would change the answer's meaning if it were ignored, and the values that mean "not used".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "web_search_options": (None,),
}


class JsonSchema(msgspec.Struct, kw_only=True):
    """`response_format.json_schema`. It is always kept strictly."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,64}\\Z")]
    schema: Any = True
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """`response_format`: which texts an answer may be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def grammar(self) -> str | None:
        """What keeps the answer to it; raises InvalidInput for a schema that cannot be kept."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return to_gbnf({"type": "object"}, "response_format")
        if self.json_schema is None:
            raise InvalidInput(
                "missing_required_parameter",
                "response_format.json_schema should say which schema; it is missing",
                param="response_format.json_schema",
            )
        return to_gbnf(self.json_schema.schema, "response_format.json_schema.schema")


class ChatRequest(AnswerRequest, kw_only=True):
    """Body of a chat completion."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    prediction: Any = None
    web_search_options: Any = None

    def refuse_unsupported(self) -> None:
        """Raise InvalidInput for a field that is given and cannot be honoured."""
        self.refuse(UNSUPPORTED)

    def offered(self) -> Tools | None:
        """What may or must be called; raises InvalidInput for tools that cannot be."""
        return offered(self.tools, self.tool_choice, self.parallel_tool_calls)

    def sampling(self) -> Sampling:
        """How the engine is to choose tokens; raises InvalidInput for what it cannot keep to."""
        return self.chosen(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            top_logprobs=self._top_logprobs(),
            grammar=None if self.response_format is None else self.response_format.grammar(),
        )

    def _top_logprobs(self) -> int | None:
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise InvalidInput(
                "invalid_value",
                "top_logprobs should come with logprobs: true; it does not",
                param="top_logprobs",
            )
        return None


class TokenLogprob(msgspec.Struct):
    """`top_logprobs[]`."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TokenLogprob):
    """`logprobs.content[]`."""

    top_logprobs: list[TokenLogprob] = []


class Logprobs(msgspec.Struct):
    """`choices[].logprobs`."""

    content: list[ContentLogprob]
    refusal: None = None

    @classmethod
    def of(cls, likelihoods: list[Likelihood], asked: bool | None) -> Logprobs | None:
        """What the engine tells, in OpenAI's form; None where nothing was asked for."""
        content = [
            ContentLogprob(
                *_token(each.piece, each.logprob),
                [TokenLogprob(*_token(*other)) for other in each.top],
            )
            for each in likelihoods
        ]
        return cls(content) if asked else None


def _token(piece: bytes, logprob: float) -> tuple[str, float, list[int]]:
    """As text, too, though a token need not be whole characters."""
    return piece.decode("utf-8", "replace"), logprob, list(piece)


class AnswerMessage(msgspec.Struct):
    """`choices[].message`."""

    content: str | None
    tool_calls: list[MessageToolCall] | msgspec.UnsetType = msgspec.UNSET
    role: str = "assistant"
    refusal: str | None = None
    annotations: list[Any] = []


class Choice(msgspec.Struct):
    """`choices[]` of a whole answer."""

    message: AnswerMessage
    finish_reason: str
    index: int
    logprobs: Logprobs | None


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
    index: int
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


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
