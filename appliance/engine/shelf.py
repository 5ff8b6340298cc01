"""What sequences held before their cells were needed, in the process's own memory, to be put back.

Cells cost every answer time, used or not; a copy of them costs nothing until a prompt begins like it, and
putting it back then takes a few thousandths of the time that decoding it again would. The copies are as
llama.cpp made them in this process: none ever comes from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.engine.prefix import common_prefix


class Shelved(NamedTuple):
    """The tokens of a sequence, and what llama.cpp made of them."""

    tokens: list[int]
    adapter: str | None
    state: npt.NDArray[np.uint8]


class Shelf:
    """At most `most_tokens` tokens together; what was unused for longest goes first."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        # In the order of their last use.
        self._shelved: list[Shelved] = []

    @property
    def tokens(self) -> int:
        """How many it holds."""
        return sum(len(each.tokens) for each in self._shelved)

    def covers(self, tokens: Sequence[int], adapter: str | None) -> bool:
        """Whether nothing would be gained by putting these here, too; if so, they count as used now."""
        found, length = self.longest(tokens, adapter)
        if found is None or length < len(tokens):
            return False
        self.use(found)
        return True

    def make_room(self, tokens: list[int], adapter: str | None) -> None:
        """Let go of what these go on from, and of what else must go before they can be put here."""
        self._shelved = [each for each in self._shelved if not _goes_on(tokens, adapter, each)]
        while self._shelved and self.tokens + len(tokens) > self._most_tokens:
            del self._shelved[0]

    def put(self, shelved: Shelved) -> None:
        """Keep it; there must be room."""
        self._shelved.append(shelved)

    def longest(self, prompt: Sequence[int], adapter: str | None) -> tuple[Shelved | None, int]:
        """What holds the longest beginning of a prompt, and how long that is."""
        best, longest = None, 0
        for each in self._shelved:
            if each.adapter == adapter:
                length = common_prefix(each.tokens, prompt)
                if length > longest:
                    best, longest = each, length
        return best, longest

    def use(self, shelved: Shelved) -> None:
        """It is the last one that was used."""
        self.take(shelved)
        self._shelved.append(shelved)

    def take(self, shelved: Shelved) -> None:
        """It is not here any more."""
        self._shelved = [each for each in self._shelved if each is not shelved]


def _goes_on(tokens: list[int], adapter: str | None, other: Shelved) -> bool:
    return adapter == other.adapter and tokens[: len(other.tokens)] == other.tokens
