"""How the tokens of one answer are chosen, with llama.cpp's own samplers. Knows nothing of text."""

from __future__ import annotations

import ctypes
import secrets
from typing import Any

import llama_cpp
import numpy as np

from appliance.engine.call_stream import CallStream
from appliance.engine.candidates import Candidates
from appliance.engine.constraint import constraint
from appliance.engine.grammar import stuck
from appliance.engine.protocol import Sampling
from appliance.engine.runtime import Runtime
from appliance.errors import InvalidInput

# Below this, dividing logits by the temperature overflows a float before it changes the choice.
GREEDY_BELOW_TEMPERATURE = 1e-5
# llama.cpp takes 32 bits, and the highest value as "choose one yourself".
SEEDS = 0xFFFFFFFF


class Sampler:
    """Chooses tokens; may hold memory of llama.cpp until it is closed."""

    def __init__(
        self, sampling: Sampling, runtime: Runtime, calls: CallStream | None = None
    ) -> None:
        """Raises InvalidInput for a token that the vocabulary does not have, or an impossible grammar."""
        _check_bias(sampling.logit_bias, runtime.n_vocab)
        self._runtime = runtime
        self._biased = list(sampling.logit_bias)
        self._grammar = constraint(sampling, calls, runtime)
        self._chain = None if _is_plain(sampling) else _chain(sampling, runtime)

    def sample(self, row: int) -> int:
        """Choose a token by a row of scores, and remember it for the penalties.

        Raises ChildFailed if the vocabulary has no token that the grammar allows.
        """
        if self._grammar is None and self._chain is not None:
            return llama_cpp.llama_sampler_sample(self._chain, self._runtime.context, row)
        scores = self._runtime.scores(row)
        if self._grammar is None:
            # As llama.cpp's greedy sampler does, without its list of all candidates: the first of the best.
            return int(np.argmax(scores))
        # Mostly the grammar allows what the model wants to say, and to ask for one token is cheap.
        if self._chain is None:
            token = int(np.argmax(scores))
        else:
            token = self._choose(Candidates(np.arange(len(scores)), scores))
        if not self._grammar.allows(token):
            token = self._choose(self._grammar.allowed(scores, self._biased))
            if not self._grammar.allows(token):
                # llama.cpp would end the process.
                raise stuck()
        self._grammar.accept(token)
        if self._chain is not None:
            llama_cpp.llama_sampler_accept(self._chain, token)
        return token

    def _choose(self, candidates: Candidates) -> int:
        if self._chain is None:
            return candidates.best()
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(candidates.array))
        return candidates.selected()

    def close(self) -> None:
        """Free what llama.cpp holds; the sampler must not be used afterwards."""
        if self._chain is not None:
            llama_cpp.llama_sampler_free(self._chain)
        if self._grammar is not None:
            self._grammar.close()


def _is_plain(sampling: Sampling) -> bool:
    """Whether the best score decides, and nothing changes the scores."""
    return (
        sampling.temperature < GREEDY_BELOW_TEMPERATURE
        and not sampling.frequency_penalty
        and not sampling.presence_penalty
        and sampling.repeat_penalty == 1.0
        and not sampling.logit_bias
    )


def _chain(sampling: Sampling, runtime: Runtime) -> Any:
    params = llama_cpp.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = llama_cpp.llama_sampler_chain_init(params)
    if sampling.logit_bias:
        llama_cpp.llama_sampler_chain_add(chain, _bias(sampling.logit_bias, runtime.n_vocab))
    # They look back over the whole answer, and over nothing of the prompt, as OpenAI's do.
    penalties = llama_cpp.llama_sampler_init_penalties(
        runtime.n_vocab,
        runtime.n_ctx,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    for sampler in [penalties, *_choice(sampling)]:
        # The chain owns its samplers and frees them.
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain


def _check_bias(logit_bias: dict[int, float], n_vocab: int) -> None:
    for token in logit_bias:
        if not 0 <= token < n_vocab:
            raise InvalidInput(
                "invalid_value",
                f"logit_bias should name tokens from 0 to {n_vocab - 1}; found {token}",
                param="logit_bias",
            )


def _bias(logit_bias: dict[int, float], n_vocab: int) -> Any:
    entries = (llama_cpp.llama_logit_bias * len(logit_bias))(
        *(llama_cpp.llama_logit_bias(token, bias) for token, bias in logit_bias.items())
    )
    return llama_cpp.llama_sampler_init_logit_bias(
        n_vocab, len(entries), ctypes.cast(entries, ctypes.POINTER(llama_cpp.llama_logit_bias))
    )


def _choice(sampling: Sampling) -> list[Any]:
    if sampling.temperature < GREEDY_BELOW_TEMPERATURE:
        return [llama_cpp.llama_sampler_init_greedy()]
    seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed % SEEDS
    return [
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
        llama_cpp.llama_sampler_init_dist(seed),
    ]
