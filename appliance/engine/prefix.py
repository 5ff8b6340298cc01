"""How much two sequences of tokens share. Knows nothing of what holds them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        # Slices are compared in C.
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def trie_size(sequences: list[list[int]]) -> int:
    """The number of their tokens, where a common beginning counts once."""
    ordered = sorted(sequences)
    shared = (common_prefix(a, b) for a, b in itertools.pairwise(ordered))
    return sum(map(len, ordered)) - sum(shared)
