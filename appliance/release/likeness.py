"""How alike two models' next tokens are, place by place and over many of them.

Divergence is taken over the first model's most likely tokens, and all others as one: never more than that
over the whole vocabulary (data processing inequality), and hardly less. Judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from appliance.child_records import Likely
from appliance.records import Likeness

# Where the first model's first token is not e times as likely as its second, which of them comes first says
# nothing; nor do the other places of a model that is seldom decided: one of random weights keeps a fifth of
# them in Q4_K_M.
_DECIDED_NATS = 1.0
_LEAST_DECIDED = 0.5


class Compared(NamedTuple):
    """By place: the divergence, whether the first model is decided there, and whether both have the same most
    likely token."""

    kl: np.ndarray
    decided: np.ndarray
    agrees: np.ndarray

    def part(self, places: slice) -> Compared:
        """Of some of the places."""
        return Compared(self.kl[places], self.decided[places], self.agrees[places])


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Natural logarithms of probabilities, over the last axis."""
    shifted = scores.astype(np.float64) - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def most_likely(logarithms: np.ndarray, count: int) -> Likely:
    """Of one place's [n_vocab]."""
    largest = np.argpartition(logarithms, -count)[-count:]
    order = largest[np.argsort(-logarithms[largest])]
    return tuple(zip(order.tolist(), logarithms[order].tolist(), strict=True))


def compare(first: Sequence[Likely], logarithms: np.ndarray) -> Compared:
    """Hold the second model's `logarithms` [places, n_vocab] against the first's most likely tokens."""
    top1 = np.array([likely[0][0] for likely in first])
    lead = np.array([likely[0][1] - likely[1][1] for likely in first])
    kl = [divergence(likely, row) for likely, row in zip(first, logarithms, strict=True)]
    return Compared(
        kl=np.array(kl), decided=lead >= _DECIDED_NATS, agrees=logarithms.argmax(-1) == top1
    )


def over(parts: Sequence[Compared]) -> Likeness:
    """Over all places of all parts."""
    kl, decided, agrees = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Likeness(
        positions=len(kl),
        mean_kl=float(kl.mean()),
        top1_agreement=float(agrees[decided].mean()) if decided.mean() >= _LEAST_DECIDED else 1.0,
    )


def divergence(likely: Likely, logarithms: np.ndarray) -> float:
    """KL of the first's distribution from the second's, all but `likely` tokens counted as one."""
    p = np.array([logarithm for _, logarithm in likely])
    q = logarithms[[token_id for token_id, _ in likely]]
    p_rest, q_rest = _rest(p), _rest(q)
    return float((np.exp(p) * (p - q)).sum()) + p_rest * math.log(p_rest / q_rest)


def _rest(logarithms: np.ndarray) -> float:
    """What is left of one; never nothing, so that no rounding makes a difference infinite."""
    return max(1e-9, 1.0 - float(np.exp(logarithms).sum()))
