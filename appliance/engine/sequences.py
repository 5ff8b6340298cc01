"""Which tokens each of llama.cpp's sequences holds, so that no prompt decodes twice what was decoded once.

A sequence whose answer has ended stays, idle, until its place or its cells are needed, or the idle ones
hold too much: the one unused for longest goes first. A new prompt begins with a copy of the longest
beginning that any sequence holds, be it idle or in use; a copy shares the cells and costs nothing. What was
decoded with one adapter is nothing to a prompt with another.

A reused beginning was computed in other batches than a fresh pass would use: logits can differ in the last
digits, and with them an answer where two tokens are almost equally likely.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from appliance.engine.runtime import Runtime

# Every answer looks at all cells in use, idle ones too, if only to pass them over: on a CPU, with 135 million
# parameters, 5,120 idle cells cost an answer 2.4 ms a step, be it alone or one of 16. So many idle cells may
# there be for one running answer, half of them for two, and so on: 1 ms a step.
IDLE_CELLS = 2048


class Sequences:
    """At most `slots` sequences in use, and the idle ones beside them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tokens: dict[int, list[int]] = {}
        self._adapters: dict[int, str | None] = {}
        # In the order of their last use.
        self._idle: dict[int, None] = {}
        self._free = list(range(runtime.n_sequences))

    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> int:
        """Take a sequence for `prompt`; what it holds already is `held(sequence)`.

        At least the prompt's last token is left to decode: its logits are what the answer starts from.
        """
        sequence = self._begin(prompt, adapter)
        self._forget_what_costs_more_than_it_is_worth()
        return sequence

    def _begin(self, prompt: Sequence[int], adapter: str | None) -> int:
        source, kept = self._longest(prompt, adapter)
        if source in self._idle and kept == len(self._tokens[source]):
            # The prompt goes on where an answer ended, as the next turn of a conversation does.
            del self._idle[source]
            return source
        sequence = self._take_empty(keep=source)
        self._adapters[sequence] = adapter
        if source in self._tokens and self._runtime.copies_parts:
            self._runtime.copy(source, sequence, kept)
            self._tokens[sequence] = list(prompt[:kept])
        return sequence

    def reusable(self, prompt: Sequence[int], adapter: str | None = None) -> int:
        """The number of tokens of a prompt that need not be decoded."""
        return self._longest(prompt, adapter)[1]

    def held(self, sequence: int) -> int:
        """The number of tokens that a sequence holds."""
        return len(self._tokens[sequence])

    def extend(self, sequence: int, tokens: Sequence[int]) -> None:
        """These have been decoded after those that it holds."""
        self._tokens[sequence] += tokens

    def release(self, sequence: int) -> None:
        """Its answer has ended; it stays as long as there is room, and the last one even if it is long."""
        self._idle[sequence] = None
        self._forget_what_costs_more_than_it_is_worth()

    def forget(self, sequence: int) -> None:
        """It holds nothing any more, and is free."""
        self._idle.pop(sequence, None)
        self._runtime.forget(sequence)
        del self._tokens[sequence], self._adapters[sequence]
        self._free.append(sequence)

    def cells(self) -> int:
        """How many cells all of them take."""
        return self._cells(self._tokens)

    def make_room(self) -> bool:
        """Forget the idle sequence that was unused for longest; False if there is none."""
        for sequence in self._idle:
            self.forget(sequence)
            return True
        return False

    def _forget_what_costs_more_than_it_is_worth(self) -> None:
        running = [each for each in self._tokens if each not in self._idle]
        # Cells that a running answer shares count as its own.
        in_use = self._cells(running)
        while len(self._idle) > 1 and (self.cells() - in_use) * max(1, len(running)) > IDLE_CELLS:
            self.make_room()

    def _longest(self, prompt: Sequence[int], adapter: str | None) -> tuple[int, int]:
        """The sequence that holds the longest beginning of `prompt`, and its length; -1 and 0 for none."""
        best, longest = -1, 0
        for sequence, tokens in self._tokens.items():
            if self._adapters[sequence] == adapter:
                length = min(common_prefix(tokens, prompt), len(prompt) - 1)
                if length > longest:
                    best, longest = sequence, length
        return best, longest

    def _cells(self, sequences: Iterable[int]) -> int:
        """What they take together; only those of one adapter can share any."""
        by_adapter: dict[str | None, list[list[int]]] = {}
        for sequence in sequences:
            by_adapter.setdefault(self._adapters[sequence], []).append(self._tokens[sequence])
        return sum(map(_trie_size, by_adapter.values()))

    def _take_empty(self, keep: int) -> int:
        """A sequence that holds nothing; for it an idle one may have to go, and `keep` last of all."""
        if not self._free:
            self.forget(next((each for each in self._idle if each != keep), keep))
        sequence = self._free.pop()
        self._tokens[sequence] = []
        return sequence


def _trie_size(sequences: list[list[int]]) -> int:
    """The number of their tokens, where a common beginning counts once."""
    ordered = sorted(sequences)
    shared = (common_prefix(a, b) for a, b in itertools.pairwise(ordered))
    return sum(map(len, ordered)) - sum(shared)


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
