"""The chain of llama.cpp samplers for one request. Knows nothing of text."""

from __future__ import annotations

import secrets
from typing import Any

import llama_cpp

from appliance.engine.protocol import Sampling

# Below this, dividing logits by the temperature overflows a float before it changes the choice.
GREEDY_BELOW_TEMPERATURE = 1e-5
# llama.cpp takes 32 bits, and the highest value as "choose one yourself".
SEEDS = 0xFFFFFFFF


class SamplerChain:
    """Chooses tokens; holds memory of llama.cpp until it is closed."""

    def __init__(self, sampling: Sampling, *, n_vocab: int, n_ctx: int) -> None:
        params = llama_cpp.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain: Any = llama_cpp.llama_sampler_chain_init(params)
        for sampler in _samplers(sampling, n_vocab, n_ctx):
            # The chain owns its samplers and frees them.
            llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: Any) -> int:
        """Choose a token from the last logits of a context, and remember it for the penalties."""
        return llama_cpp.llama_sampler_sample(self._chain, context, -1)

    def close(self) -> None:
        """Free the chain; it must not be used afterwards."""
        llama_cpp.llama_sampler_free(self._chain)
        self._chain = None


def _samplers(sampling: Sampling, n_vocab: int, n_ctx: int) -> list[Any]:
    """The penalties look back over the whole answer, and over nothing of the prompt, as OpenAI's do."""
    penalties = llama_cpp.llama_sampler_init_penalties(
        n_vocab, n_ctx, 1.0, sampling.frequency_penalty, sampling.presence_penalty
    )
    if sampling.temperature < GREEDY_BELOW_TEMPERATURE:
        return [penalties, llama_cpp.llama_sampler_init_greedy()]
    seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed % SEEDS
    return [
        penalties,
        llama_cpp.llama_sampler_init_top_k(sampling.top_k),
        llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
        llama_cpp.llama_sampler_init_min_p(sampling.min_p, 1),
        llama_cpp.llama_sampler_init_temp(sampling.temperature),
        llama_cpp.llama_sampler_init_dist(seed),
    ]
