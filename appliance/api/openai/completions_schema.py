"""The wire structs of `/v1/completions`. Every key that OpenAI sends is sent, null or not."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.api.openai.answer_schema import AnswerRequest, Usage
from appliance.engine.protocol import Likelihood, Raw, Sampling
from appliance.errors import InvalidInput

# What would change the answer's meaning if it were ignored, and the values that mean "not used".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
}
# OpenAI's, for a request that does not say.
DEFAULT_MAX_TOKENS = 16
# Some clients send 20 prompts at a time; more would keep everybody else waiting.
MAX_CHOICES = 32

Token = Annotated[int, Meta(ge=0, lt=1 << 31)]


class CompletionRequest(AnswerRequest, kw_only=True):
    """Body of a text completion."""

    prompt: str | list[str | Token | list[Token]] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: Any = None
    suffix: Any = None
    response_format: Any = None

    def refuse_unsupported(self) -> None:
        """Raise InvalidInput for a field that is given and cannot be honoured."""
        self.refuse({**UNSUPPORTED, "best_of": (None, self.answers)})
        if not self.echo:
            return
        if self.logprobs is not None:
            raise InvalidInput(
                "unsupported_parameter",
                "echo should come without logprobs: the likelihoods of a prompt's tokens are not computed",
                param="echo",
                next_step="leave one of them out",
            )
        if not all(isinstance(each.content, str) for each in self.prompts()):
            raise InvalidInput(
                "unsupported_parameter",
                "echo should come with a prompt of text; this one is of token ids",
                param="echo",
                next_step="send the text, or leave echo out",
            )

    def prompts(self) -> list[Raw]:
        """Each prompt; raises InvalidInput for none or too many, and for what is neither text nor tokens."""
        given = "" if self.prompt is None else self.prompt
        if isinstance(given, str):
            return [Raw(given)]
        tokens = [each for each in given if isinstance(each, int)]
        several = [Raw(each) for each in given if not isinstance(each, int)]
        if tokens and several:
            raise InvalidInput(
                "invalid_value",
                "prompt should be a text, token ids, or a list of such; it is a mixture",
                param="prompt",
            )
        prompts = [Raw(tokens)] if tokens else several
        if not 1 <= len(prompts) * self.answers <= MAX_CHOICES:
            raise InvalidInput(
                "invalid_value",
                f"prompts times n should be between 1 and {MAX_CHOICES}; "
                f"there are {len(prompts)} prompts, and n is {self.answers}",
                param="prompt",
            )
        return prompts

    def sampling(self) -> Sampling:
        """How the engine is to choose tokens."""
        return self.chosen(
            max_tokens=self.max_tokens or DEFAULT_MAX_TOKENS, top_logprobs=self.logprobs
        )


class CompletionLogprobs(msgspec.Struct):
    """`choices[].logprobs`: a list for each fact, with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class LogprobsWriter:
    """Puts the tokens of one answer into OpenAI's form, piece by piece."""

    def __init__(self) -> None:
        # Counts characters as the engine does, which keeps unfinished ones back and replaces bad bytes.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def write(self, likelihoods: Sequence[Likelihood]) -> CompletionLogprobs:
        """The next tokens.

        An offset counts characters in the text of the answer; the pieces of one character share its own.
        """
        offsets = []
        for each in likelihoods:
            offsets.append(self._characters)
            self._characters += len(self._decoder.decode(each.piece))
        return CompletionLogprobs(
            tokens=[_text(each.piece) for each in likelihoods],
            token_logprobs=[each.logprob for each in likelihoods],
            top_logprobs=[_top(each) for each in likelihoods],
            text_offset=offsets,
        )


def _top(likelihood: Likelihood) -> dict[str, float]:
    """The likeliest, and the chosen one, which need not be among them; of equal texts the likelier."""
    top: dict[str, float] = {}
    for piece, logprob in [*likelihood.top, (likelihood.piece, likelihood.logprob)]:
        top.setdefault(_text(piece), logprob)
    return top


def _text(piece: bytes) -> str:
    """A token as text, or what OpenAI writes for one that is not whole characters: `bytes:\\xe2\\x80`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class CompletionChoice(msgspec.Struct):
    """`choices[]`, of a whole answer or of a piece of a stream."""

    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class Completion(msgspec.Struct):
    """A whole answer, or a piece of a stream; `usage` is null in all pieces but the last."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    object: str = "text_completion"
    system_fingerprint: str | None = None
