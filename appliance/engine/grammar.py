"""Which tokens may follow, so that an answer keeps to a grammar. Knows nothing of JSON or of requests."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from appliance.engine.candidates import Candidates
from appliance.engine.runtime import Runtime
from appliance.errors import InvalidInput

# Asking for all tokens costs more than a decode call; one of the best few is nearly always allowed.
BEST_TOKENS = 512


class Grammar:
    """Where an answer is in its grammar; holds memory of llama.cpp until it is closed."""

    def __init__(
        self,
        gbnf: str,
        runtime: Runtime,
        *,
        start: str = "root",
        spoken: Sequence[int] = (),
        param: str = "response_format",
    ) -> None:
        """Raises InvalidInput, naming `param`, for a grammar that llama.cpp does not take.

        `start` is the rule of the whole, and `spoken` are control tokens whose names the grammar means.
        """
        vocabulary = runtime.vocabulary
        self._silent = np.setdiff1d(vocabulary.silent_tokens, np.array(spoken, dtype=np.intp))
        self._sampler = llama_cpp.llama_sampler_init_grammar(
            vocabulary.handle, gbnf.encode(), start.encode()
        )
        if not self._sampler:
            raise InvalidInput(
                "invalid_schema",
                "the schema should make a grammar that llama.cpp takes; it does not: perhaps something in "
                "it is nothing but a reference to itself",
                param=param,
            )

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        if token in self._silent:
            # To llama.cpp it is the text of its name; to whoever reads the answer it is none.
            return False
        return self._apply(Candidates([token], [0.0])).any_allowed()

    def allowed(self, scores: npt.NDArray[np.float32], biased: Sequence[int]) -> Candidates:
        """What may come next among the tokens with the best scores and the biased ones, or else among all."""
        scores = scores.copy()
        scores[self._silent] = -np.inf
        best = np.argpartition(scores, -min(BEST_TOKENS, len(scores)))[-BEST_TOKENS:]
        some = np.union1d(best, np.array(biased, dtype=np.intp))
        for tokens in (some, np.arange(len(scores))):
            candidates = self._apply(Candidates(tokens, scores[tokens]))
            if candidates.any_allowed():
                return candidates
        raise stuck()

    def accept(self, token: int) -> None:
        """Go on; llama.cpp ends the process if the token is not allowed."""
        llama_cpp.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free it; it must not be used afterwards."""
        llama_cpp.llama_sampler_free(self._sampler)

    def _apply(self, candidates: Candidates) -> Candidates:
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(candidates.array))
        return candidates


def stuck() -> InvalidInput:
    """The end of an answer that cannot go on, as where a text has a character that the model cannot write."""
    return InvalidInput(
        "grammar_stuck",
        "the model should have a token that continues the answer as the schema asks; it has none",
        next_step="change the schema",
    )
