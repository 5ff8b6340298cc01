"""Which rows are held out for validation loss; pure arithmetic over a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

# Below this many rows a held-out one is worth more in training than as a measurement.
LEAST_ROWS_TO_SPLIT = 20
# Enough for the loss's second digit; more would only make each validation pass slower.
MOST_VALIDATION_ROWS = 64


def hold_out(rows: Sequence[T], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """Split into (train, validation), both in the order of `rows`."""
    if fraction <= 0 or len(rows) < LEAST_ROWS_TO_SPLIT:
        return list(rows), []
    count = min(max(1, round(len(rows) * fraction)), MOST_VALIDATION_ROWS)
    chosen = set(random.Random(seed).sample(range(len(rows)), count))  # noqa: S311  no secret
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [rows[index] for index in sorted(chosen)]


def sample(rows: Sequence[T], seed: int) -> list[T]:
    """At most `MOST_VALIDATION_ROWS` of `rows`, in their order."""
    if len(rows) <= MOST_VALIDATION_ROWS:
        return list(rows)
    chosen = random.Random(seed).sample(range(len(rows)), MOST_VALIDATION_ROWS)  # noqa: S311
    return [rows[index] for index in sorted(chosen)]
