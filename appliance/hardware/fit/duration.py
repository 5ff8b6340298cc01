"""How long a training will take, from a few steps of it that were measured. Pure arithmetic.

The whole is taken for: what comes before and after the steps, the cold first step, all other tokens at the
speed of the warm ones, and the validations. Checkpoints in between, pauses by heat, and whatever else may run
on the device are not in it; nor is the release.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

# The first is cold, and a speed needs one more.
LEAST_STEPS = 2


class Step(msgspec.Struct, frozen=True):
    """Seconds and tokens (padding not counted) since the training began, at the end of a step."""

    seconds: float
    tokens: int


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured. `beside_seconds` are those before the first step and after the last."""

    warm_steps: int
    tokens_per_second: float
    cold_seconds: float
    cold_tokens: int
    validation_seconds: float
    beside_seconds: float


def pace(steps: Sequence[Step], *, validation_seconds: float, all_seconds: float) -> Pace:
    """The pace of a measured training of at least LEAST_STEPS steps that took `all_seconds`.

    The first step does not count for the speed: caches are empty, memory is not yet the process's.
    """
    cold, last = steps[0], steps[-1]
    return Pace(
        warm_steps=len(steps) - 1,
        tokens_per_second=(last.tokens - cold.tokens) / (last.seconds - cold.seconds),
        cold_seconds=cold.seconds,
        cold_tokens=cold.tokens,
        validation_seconds=validation_seconds,
        beside_seconds=max(0.0, all_seconds - last.seconds - validation_seconds),
    )


def training_seconds(measured: Pace, tokens: int, validations: int) -> float:
    """Of a whole training over so many tokens, all epochs together."""
    warm_tokens = max(0, tokens - measured.cold_tokens)
    return (
        measured.beside_seconds
        + measured.cold_seconds
        + warm_tokens / measured.tokens_per_second
        + validations * measured.validation_seconds
    )
