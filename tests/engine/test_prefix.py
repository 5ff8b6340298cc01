"""What two sequences of tokens share is counted right."""

from __future__ import annotations

import random

from appliance.engine.prefix import common_prefix, trie_size


def test_common_prefix_is_that_of_a_plain_count() -> None:
    choose = random.Random(1)
    cases = 0
    for _ in range(2000):
        first = [choose.randrange(2) for _ in range(choose.randrange(30))]
        cut = choose.randrange(len(first) + 1)
        second = [*first[:cut], *(choose.randrange(2) for _ in range(choose.randrange(9)))]
        pairs = zip(first, second, strict=False)
        expected = next(
            (index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
        )
        assert common_prefix(first, second) == expected
        cases += 1
    assert cases == 2000


def test_trie_counts_a_common_beginning_once() -> None:
    choose = random.Random(2)
    cases = 0
    for _ in range(300):
        sequences = [
            [choose.randrange(2) for _ in range(choose.randrange(8))]
            for _ in range(choose.randrange(6))
        ]
        beginnings = {tuple(each[:end]) for each in sequences for end in range(1, len(each) + 1)}
        assert trie_size(sequences) == len(beginnings)
        cases += 1
    assert cases == 300
