"""How likely the model held a chosen token to be, and which others it held to be likely."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from appliance.engine.protocol import Likelihood

# What OpenAI gives for a token that is too unlikely to be put in numbers.
LEAST_LOGPROB = -9999.0


def likelihood(
    scores: npt.NDArray[np.float32], token: int, top: int, piece: Callable[[int], bytes]
) -> Likelihood:
    """By the model's own distribution, before temperature, penalties and the rest: log softmax of the row."""
    logits = scores.astype(np.float64)
    highest = logits.max()
    logprobs = np.maximum(
        logits - (highest + np.log(np.exp(logits - highest).sum())), LEAST_LOGPROB
    )
    best = np.argpartition(logprobs, -top)[-top:] if top else np.array([], dtype=np.intp)
    return Likelihood(
        piece=piece(token),
        logprob=float(logprobs[token]),
        top=[
            (piece(int(each)), float(logprobs[each])) for each in best[np.argsort(-logprobs[best])]
        ],
    )
