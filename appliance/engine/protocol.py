"""What the daemon and the engine say to each other, and how it is framed.

A frame is the length of its body (4 bytes, big-endian) and a msgpack body: one tagged struct. Requests
have ids, so that many share the one connection; id 0 stands for the loading of the model.

Knows nothing of processes, of sockets or of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from appliance.engine.tools import CallPiece, ToolCall, Tools
from appliance.errors import InvalidInput, TooLarge

MAX_FRAME_BYTES = 16 << 20
HEADER_BYTES = 4
LOADING_ID = 0

# OpenAI's limits where OpenAI has the parameter, else what llama.cpp's samplers can take.
SAMPLING_LIMITS: Mapping[str, tuple[float, float]] = {
    "max_tokens": (1, 2**31 - 1),
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repeat_penalty": (0.1, 10),
    "top_logprobs": (0, 20),
    "seed": (-(2**63), 2**63 - 1),
}
MAX_LOGIT_BIAS = 100
MAX_BIASED_TOKENS = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation.

    An assistant's may have called functions. A "tool" one is what the call `tool_call_id` of the function
    `name` gave.
    """

    role: str
    content: str
    tool_calls: list[ToolCall] = []
    tool_call_id: str | None = None
    name: str | None = None


class Raw(msgspec.Struct, frozen=True):
    """A beginning to go on from as it stands, outside any chat template: a text, or the ids of tokens."""

    content: str | list[int]


Prompt = Sequence[Message] | Raw


def field_of(prompt: Prompt) -> str:
    """The field of OpenAI's requests that such a prompt comes in."""
    return "prompt" if isinstance(prompt, Raw) else "messages"


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer is chosen; the defaults leave the model's distribution as it is.

    `temperature` 0 is greedy, `top_k` 0 is off, `seed` None is a fresh one each time, `max_tokens` None
    lets an answer fill the context, `grammar`, in llama.cpp's GBNF, says which texts are allowed, and
    `top_logprobs` asks for the likelihood of each token and so many others. Making one that breaks a limit
    raises InvalidInput.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: list[str] = []
    grammar: str | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in SAMPLING_LIMITS.items():
            value = getattr(self, name)
            # The comparison is written so that NaN fails it.
            if value is not None and not low <= value <= high:
                raise InvalidInput(
                    "invalid_value",
                    f"{name} should be between {low} and {high}; it is {value}",
                    param=name,
                )
        if len(self.logit_bias) > MAX_BIASED_TOKENS or not all(
            -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS for bias in self.logit_bias.values()
        ):
            raise InvalidInput(
                "invalid_value",
                f"logit_bias should give at most {MAX_BIASED_TOKENS} tokens a number between "
                f"-{MAX_LOGIT_BIAS} and {MAX_LOGIT_BIAS}; it does not",
                param="logit_bias",
            )
        if len(self.stop) > MAX_STOP_STRINGS or not all(
            1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in self.stop
        ):
            raise InvalidInput(
                "invalid_value",
                f"stop should be at most {MAX_STOP_STRINGS} strings of 1 to {MAX_STOP_CHARACTERS} "
                "characters; it is not",
                param="stop",
            )


# --- daemon to engine ---


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer a conversation, perhaps by calling functions, or go on from a raw prompt, which has no tools.

    `adapter` is the GGUF file of a LoRA adapter to answer with. Clients take turns: `client` is who asks.
    """

    id: int
    prompt: Prompt
    sampling: Sampling
    tools: Tools | None = None
    adapter: str | None = None
    client: str = ""


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Nobody wants this answer any more. It gets no reply, and an unknown id is no error."""

    id: int


# --- engine to daemon ---


class Loading(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is being loaded; `progress` runs from 0 to 1."""

    progress: float


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model answers from now on.

    `n_ctx` is the number of tokens that prompt and answer share here, `context_length` the number that
    the model was trained with.
    """

    n_ctx: int
    context_length: int


class Working(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A sign of life while prompts are decoded, which gives no text."""


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What the engine is doing, whenever more or fewer answers run or wait.

    `cells` of the context are in use, by running answers and by what is kept for later prompts; `adapters`
    are in memory.
    """

    running: int
    waiting: int
    cells: int
    adapters: int = 0


class Likelihood(msgspec.Struct, frozen=True, kw_only=True):
    """A token's bytes, the logarithm of its likelihood, and the likeliest tokens in its place."""

    piece: bytes
    logprob: float
    top: list[tuple[bytes, float]]


class Delta(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The next piece of an answer.

    `likelihoods`, if asked for, are those of the tokens since the piece before; at the end of an answer
    they may come without a text. Text comes before all calls.
    """

    id: int
    text: str
    calls: list[CallPiece] = []
    likelihoods: list[Likelihood] = []


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The end of an answer, and what it took.

    `cached_tokens` of the `prompt_tokens` were in memory already, from other requests.
    `completion_tokens` includes the end-of-turn token. `prompt_seconds` runs from the start of the work
    to the first sampled token, `generation_seconds` from there to the last.
    """

    id: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prompt_seconds: float
    generation_seconds: float


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request (or, with id 0, the loading) came to nothing; an `ApplianceError` put on the wire.

    `caller_at_fault` tells a request that cannot be answered from an engine that could not.
    """

    id: int
    code: str
    message: str
    param: str | None = None
    next_step: str | None = None
    caller_at_fault: bool


Request = Generate | Cancel
Reply = Loading | Loaded | Working | Load | Delta | Finished | Failed

_encoder = msgspec.msgpack.Encoder()
_request_decoder = msgspec.msgpack.Decoder(Request)
_reply_decoder = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """The frame of a message; raises TooLarge over the cap, InvalidInput for text that is not Unicode."""
    try:
        body = _encoder.encode(message)
    except UnicodeEncodeError as exc:
        raise InvalidInput(
            "invalid_text",
            f"text should be valid Unicode, but: {exc.reason}",
            param=_field_in(message),
        ) from exc
    _check_length(len(body), _field_in(message))
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def body_length(header: bytes) -> int:
    """The number of bytes that follow a header; raises TooLarge over the cap."""
    length = int.from_bytes(header, "big")
    _check_length(length)
    return length


def decode_request(body: bytes) -> Request:
    """A request from its body; raises one of UNDECODABLE if it is none."""
    return _request_decoder.decode(body)


def decode_reply(body: bytes) -> Reply:
    """A reply from its body; raises one of UNDECODABLE if it is none."""
    return _reply_decoder.decode(body)


def _field_in(message: Request | Reply) -> str | None:
    return field_of(message.prompt) if isinstance(message, Generate) else None


def _check_length(length: int, param: str | None = None) -> None:
    if length > MAX_FRAME_BYTES:
        raise TooLarge(
            "frame_too_large",
            f"a frame may have {MAX_FRAME_BYTES} bytes; this one has {length}",
            param=param,
            next_step="send a shorter prompt",
        )
