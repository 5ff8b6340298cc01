"""Which tokens llama.cpp remembers, so that the next prompt decodes only what is new in it.

A reused prefix was computed in other batches than a fresh pass would use: logits can differ in the last
digits, and with them an answer where two tokens are almost equally likely.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from appliance.engine.runtime import Runtime
from appliance.errors import ChildFailed


class CachedSequence:
    """The tokens in a runtime's memory, in their order."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tokens: list[int] = []

    def begin(self, prompt: Sequence[int]) -> int:
        """Keep what `prompt` begins with and forget the rest; returns the number of tokens kept.

        At least the prompt's last token is left to decode: its logits are what the answer starts from.
        """
        kept = min(_common_prefix(self._tokens, prompt), len(prompt) - 1)
        if kept < len(self._tokens):
            if kept and self._runtime.forget_from(kept):
                del self._tokens[kept:]
            else:
                self._forget_all()
        return len(self._tokens)

    def decode(self, tokens: Sequence[int]) -> None:
        """Decode the tokens that follow; after ChildFailed nothing is remembered."""
        try:
            self._runtime.decode(tokens, len(self._tokens))
        except ChildFailed:
            self._forget_all()
            raise
        self._tokens += tokens

    def _forget_all(self) -> None:
        self._runtime.forget_all()
        self._tokens.clear()


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    pairs = zip(a, b, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
