"""How much of what an adapter changes is found in a release, over many places of prompts.

An adapter that changes little has a divergence within every bound, at half of its scale and at twice, too;
the slope of one change over the other tells. Judges nothing but whether it can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from appliance.child_records import Likely
from appliance.records import Strength

# Where noise prevails (a weak adapter and Q2_K) nothing can be told.
_LEAST_CORRELATION = 0.6
# Nor from a few places: where all prompts were the same 30 tokens, and one place had 43 % of the change (4.3
# places, in effect), 0.69 was found where all was right. Prompts of data that varies have 30 and more.
_LEAST_PLACES = 16


def change(first: Sequence[Likely], before: np.ndarray, logarithms: np.ndarray) -> np.ndarray:
    """By place, how what the second model changes goes along with what the first one does, against `before`.

    `before` has the likelihoods [places, tokens] of the first's most likely tokens; differences are taken
    from their mean, since one number added to all logarithms means nothing. Returns [places, 3], weighted by
    how likely the tokens are: the product, and the squares of the first's and of the second's changes.
    """
    ids = np.array([[token_id for token_id, _ in place] for place in first])
    told = np.array([[logarithm for _, logarithm in place] for place in first])
    weights = np.exp(told)
    weights /= weights.sum(-1, keepdims=True)

    def centered(changes: np.ndarray) -> np.ndarray:
        return changes - (weights * changes).sum(-1, keepdims=True)

    wanted = centered(told - before)
    made = centered(np.take_along_axis(logarithms, ids, axis=-1) - before)
    products = (wanted * made, wanted * wanted, made * made)
    return np.stack([(weights * each).sum(-1) for each in products], axis=-1)


def measure(prompts: Sequence[Sequence[int]], changes: Sequence[np.ndarray]) -> Strength:
    """Over the last places of each prompt; the same tokens before two places make them one.

    The standard error is a ratio estimator's (Cochran, Sampling Techniques, 3rd ed., 6.4).
    """
    places = np.array(list(_distinct(prompts, changes).values()))
    product, wanted, made = places.sum(0)
    if wanted <= 0 or made <= 0:
        return Strength(slope=1.0, error=0.0, correlation=0.0, places=0.0)
    slope = product / wanted
    left = places[:, 0] - slope * places[:, 1]
    freedom = len(places) / max(1, len(places) - 1)
    return Strength(
        slope=float(slope),
        error=math.sqrt(freedom * float((left**2).sum())) / float(wanted),
        correlation=float(product / math.sqrt(wanted * made)),
        places=float(wanted**2 / (places[:, 1] ** 2).sum()),
    )


def tells(strength: Strength) -> bool:
    """Whether anything follows from it."""
    return strength.correlation >= _LEAST_CORRELATION and strength.places >= _LEAST_PLACES


def _distinct(
    prompts: Sequence[Sequence[int]], changes: Sequence[np.ndarray]
) -> dict[tuple[int, ...], np.ndarray]:
    found = {}
    for prompt, places in zip(prompts, changes, strict=True):
        first = len(prompt) - len(places) + 1
        for i, place in enumerate(places):
            found[tuple(prompt[: first + i])] = place
    return found
