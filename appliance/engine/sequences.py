"""Which tokens each of llama.cpp's sequences holds, so that no prompt decodes twice what was decoded once.

A sequence whose answer has ended stays, idle, until its place or its cells are needed, or the idle ones
hold too much: the one unused for longest goes first, and what it held is put on a shelf. A new prompt begins
with a copy of the longest beginning that any sequence holds, be it idle or in use, which shares the cells
and costs nothing, or with what is on the shelf, if that is enough longer and there is room. What was decoded
with one adapter is nothing to a prompt with another.

A reused beginning was computed in other batches than a fresh pass would use: logits can differ in the last
digits, and with them an answer where two tokens are almost equally likely.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from appliance.engine.prefix import common_prefix, trie_size
from appliance.engine.runtime import Runtime
from appliance.engine.shelf import Shelf, Shelved

# Every answer looks at all cells in use, idle ones too, if only to pass them over: on a CPU, with 135 million
# parameters, 1,000 idle cells cost an answer 0.5 ms a step, be it alone or one of 16. So many idle cells may
# there be for one running answer, half of them for two, and so on: where what goes can be put on the shelf,
# and where it is lost.
IDLE_CELLS = 256
IDLE_CELLS_WITHOUT_SHELF = 2048
# What is put back shares no cells. To have so many tokens a second time costs, for as long as an answer
# takes, about what it costs to decode one.
TOKENS_AGAIN_FOR_ONE = 64


class Sequences:
    """At most `slots` sequences in use, and the idle ones beside them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tokens: dict[int, list[int]] = {}
        self._adapters: dict[int, str | None] = {}
        # Only copies of each other, and copies of copies, share cells.
        self._families: dict[int, int] = {}
        self._new_family = itertools.count()
        # In the order of their last use.
        self._idle: dict[int, None] = {}
        self._free = list(range(runtime.n_sequences))
        # As much again as there are cells.
        self._shelf = Shelf(runtime.n_ctx)

    def begin(self, prompt: Sequence[int], adapter: str | None = None) -> int:
        """Take a sequence for `prompt`; what it holds already is `held(sequence)`.

        At least the prompt's last token is left to decode: its logits are what the answer starts from.
        """
        sequence = self._begin(prompt, adapter)
        self._forget_what_costs_more_than_it_is_worth()
        return sequence

    def _begin(self, prompt: Sequence[int], adapter: str | None) -> int:
        source, kept = self._longest(prompt, adapter, self._tokens)
        shelved, length = self._worth_restoring(prompt, adapter, kept)
        if shelved is None and source in self._idle and kept == len(self._tokens[source]):
            # The prompt goes on where an answer ended, as the next turn of a conversation does.
            del self._idle[source]
            return source
        if shelved is not None:
            # Now: what is put away to make room may push it from the shelf.
            self._shelf.use(shelved)
        sequence = self._take_empty(keep=source)
        self._adapters[sequence] = adapter
        if shelved is not None and self._restore(shelved, sequence):
            if length == len(shelved.tokens):
                # It would only take the room of others there.
                self._shelf.take(shelved)
            self._runtime.cut(sequence, length)
            self._tokens[sequence] = list(prompt[:length])
        elif source in self._tokens and self._runtime.copies_parts:
            self._runtime.copy(source, sequence, kept)
            self._tokens[sequence] = list(prompt[:kept])
            self._families[sequence] = self._families[source]
        return sequence

    def reusable(self, prompt: Sequence[int], adapter: str | None = None) -> int:
        """The number of tokens of a prompt that need not be decoded."""
        kept = self._longest(prompt, adapter, self._tokens)[1]
        return max(kept, self._worth_restoring(prompt, adapter, kept)[1])

    def cells_with(self, prompt: Sequence[int], adapter: str | None) -> int:
        """How many cells those in use take, once a prompt is decoded beside them."""
        running = self._running()
        shared = self._longest(prompt, adapter, running)[1]
        return self._cells(running) + len(prompt) - shared

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

    def put_away(self, sequence: int) -> None:
        """It is free; what it held is on the shelf, where that is possible."""
        tokens, adapter = self._tokens[sequence], self._adapters[sequence]
        if tokens and self._runtime.saves and not self._shelf.covers(tokens, adapter):
            self._shelf.make_room(tokens, adapter)
            self._shelf.put(Shelved(tokens, adapter, self._runtime.save(sequence)))
        self._forget(sequence)

    def clear(self) -> None:
        """Forget all of them: nobody knows whether they still are what they should be."""
        for sequence in list(self._tokens):
            self._forget(sequence)

    def cells(self) -> int:
        """How many cells all of them take."""
        return self._cells(self._tokens)

    def make_room(self) -> bool:
        """Put away the idle sequence that was unused for longest; False if there is none."""
        for sequence in self._idle:
            self.put_away(sequence)
            return True
        return False

    def _forget_what_costs_more_than_it_is_worth(self) -> None:
        running = self._running()
        # Cells that a running answer shares count as its own.
        in_use = self._cells(running)
        most = IDLE_CELLS if self._runtime.saves else IDLE_CELLS_WITHOUT_SHELF
        while len(self._idle) > 1 and (self.cells() - in_use) * max(1, len(running)) > most:
            self.make_room()

    def _forget(self, sequence: int) -> None:
        self._idle.pop(sequence, None)
        self._runtime.forget(sequence)
        del self._tokens[sequence], self._adapters[sequence], self._families[sequence]
        self._free.append(sequence)

    def _running(self) -> list[int]:
        return [each for each in self._tokens if each not in self._idle]

    def _worth_restoring(
        self, prompt: Sequence[int], adapter: str | None, kept: int
    ) -> tuple[Shelved | None, int]:
        """What on the shelf holds enough more of a prompt than `kept`, and how much of it; or None and 0."""
        shelved, length = self._shelf.longest(prompt[:-1], adapter)
        if shelved is None or (length - kept) * TOKENS_AGAIN_FOR_ONE <= len(shelved.tokens):
            return None, 0
        has_room = self._cells(self._running()) + len(shelved.tokens) <= self._runtime.n_ctx
        return (shelved, length) if has_room else (None, 0)

    def _restore(self, shelved: Shelved, sequence: int) -> bool:
        """Put it back into an empty sequence, in the place of idle ones if need be; False if that fails."""
        while self.cells() + len(shelved.tokens) > self._runtime.n_ctx and self.make_room():
            pass
        return self._runtime.restore(sequence, shelved.state)

    def _longest(
        self, prompt: Sequence[int], adapter: str | None, among: Iterable[int]
    ) -> tuple[int, int]:
        """The sequence that holds the longest beginning of `prompt`, and its length; -1 and 0 for none."""
        best, longest = -1, 0
        for sequence in among:
            if self._adapters[sequence] == adapter:
                length = min(common_prefix(self._tokens[sequence], prompt), len(prompt) - 1)
                if length > longest:
                    best, longest = sequence, length
        return best, longest

    def _cells(self, sequences: Iterable[int]) -> int:
        """What they take together, or a little less than that: where copies went on alike, it counts once."""
        families: dict[int, list[list[int]]] = {}
        for sequence in sequences:
            families.setdefault(self._families[sequence], []).append(self._tokens[sequence])
        return sum(map(trie_size, families.values()))

    def _take_empty(self, keep: int) -> int:
        """A sequence that holds nothing; for it an idle one may have to go, and `keep` last of all."""
        if not self._free:
            self.put_away(next((each for each in self._idle if each != keep), keep))
        sequence = self._free.pop()
        self._tokens[sequence], self._families[sequence] = [], next(self._new_family)
        return sequence
