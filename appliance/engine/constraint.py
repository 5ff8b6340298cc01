"""Which grammar an answer keeps to, and from when: from its first token, or from where it begins to call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from appliance.engine.call_grammar import CALLS, CALLS_OR_ANSWER, calls_grammar
from appliance.engine.call_stream import CallStream
from appliance.engine.candidates import Candidates
from appliance.engine.grammar import Grammar
from appliance.engine.protocol import Sampling
from appliance.engine.runtime import Runtime


class GrammarOfCalls:
    """Allows any token until one begins a call; that one, and what follows, has to keep to the grammar."""

    def __init__(self, calls: CallStream, runtime: Runtime) -> None:
        self._calls, self._runtime = calls, runtime
        self._grammar: Grammar | None = None

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        if self._grammar is None:
            begun = self._calls.begins_with(self._runtime.vocabulary.call_piece(token))
            if begun is None:
                return True
            # It was about to call: from here on it does, with this token or with another.
            rules = calls_grammar(self._calls.form, self._calls.tools, *begun)
            self._grammar = _grammar(rules, self._runtime, CALLS)
        return self._grammar.allows(token)

    def allowed(self, scores: npt.NDArray[np.float32], biased: Sequence[int]) -> Candidates:
        """What may come next instead of a token that `allows` has refused."""
        assert self._grammar is not None
        return self._grammar.allowed(scores, biased)

    def accept(self, token: int) -> None:
        """Go on."""
        if self._grammar is not None:
            self._grammar.accept(token)

    def close(self) -> None:
        """Free what llama.cpp holds; it must not be used afterwards."""
        if self._grammar is not None:
            self._grammar.close()


def constraint(
    sampling: Sampling, calls: CallStream | None, runtime: Runtime
) -> Grammar | GrammarOfCalls | None:
    """What the answer has to keep to, if anything; raises InvalidInput for an impossible grammar."""
    if calls is None:
        return None if sampling.grammar is None else Grammar(sampling.grammar, runtime)
    rules = calls_grammar(calls.form, calls.tools, calls.said)
    if calls.tools.must_call:
        return _grammar(rules, runtime, CALLS)
    if sampling.grammar is not None:
        either = f"{sampling.grammar}\n{rules}\n{CALLS_OR_ANSWER} ::= {CALLS} | root"
        return _grammar(either, runtime, CALLS_OR_ANSWER)
    # It is made when a call begins; what is wrong with it has to be told now.
    _grammar(rules, runtime, CALLS).close()
    return GrammarOfCalls(calls, runtime)


def _grammar(rules: str, runtime: Runtime, start: str) -> Grammar:
    return Grammar(
        rules, runtime, start=start, spoken=list(runtime.vocabulary.call_tokens), param="tools"
    )
