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
from typing import NamedTuple

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


class Beginning(NamedTuple):
    """What a prompt can go on from: a sequence, or what is on the shelf, or nothing."""

    length: int
    """How many of its tokens need not be decoded."""
    source: int | None = None
    shelved: Shelved | None = None


class Sequences:
    """At most `slots` sequences in use, and the idle ones beside them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tokens: dict[int, list[int]] = {}
        self._adapters: dict[int, str | None] = {}
        # For each token the number of its cell, which no other ever has: copies share those they begin with.
        self._cells: dict[int, list[int]] = {}
        self._new_cells = itertools.count()
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
        best = self._best_beginning(prompt, adapter)
        if best.source is not None and self._is_idle_and_goes_on(best.source, best.length):
            del self._idle[best.source]
            return best.source
        if best.shelved is not None:
            # Now: what is put away to make room may push it from the shelf.
            self._shelf.use(best.shelved)
        sequence = self._take_empty(adapter, keep=best.source)
        if best.shelved is not None:
            self._restore(best.shelved, sequence, best.length)
        elif best.source in self._tokens:
            self._runtime.copy(best.source, sequence, best.length)
            self._tokens[sequence] = list(prompt[: best.length])
            self._cells[sequence] = self._cells[best.source][: best.length]
        return sequence

    def reusable(self, prompt: Sequence[int], adapter: str | None = None) -> int:
        """The number of tokens of a prompt that need not be decoded."""
        return self._best_beginning(prompt, adapter).length

    def cells_with(self, prompt: Sequence[int], adapter: str | None) -> int:
        """How many cells those in use take, once a prompt is decoded beside them."""
        best = self._best_beginning(prompt, adapter)
        in_use = [self._cells[each] for each in self._running()]
        shared = [] if best.source is None else self._cells[best.source][: best.length]
        return trie_size([*in_use, shared]) + len(prompt) - len(shared)

    def held(self, sequence: int) -> int:
        """The number of tokens that a sequence holds."""
        return len(self._tokens[sequence])

    def extend(self, sequence: int, tokens: Sequence[int]) -> None:
        """These have been decoded after those that it holds."""
        self._tokens[sequence] += tokens
        self._cells[sequence] += itertools.islice(self._new_cells, len(tokens))

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
        return self._count(self._tokens)

    def make_room(self) -> bool:
        """Put away the idle sequence that was unused for longest; False if there is none."""
        for sequence in self._idle:
            self.put_away(sequence)
            return True
        return False

    def _forget_what_costs_more_than_it_is_worth(self) -> None:
        running = self._running()
        # Cells that a running answer shares count as its own.
        in_use = self._count(running)
        most = IDLE_CELLS if self._runtime.saves else IDLE_CELLS_WITHOUT_SHELF
        while len(self._idle) > 1 and (self.cells() - in_use) * max(1, len(running)) > most:
            self.make_room()

    def _forget(self, sequence: int) -> None:
        self._idle.pop(sequence, None)
        self._runtime.forget(sequence)
        del self._tokens[sequence], self._adapters[sequence], self._cells[sequence]
        self._free.append(sequence)

    def _running(self) -> list[int]:
        return [each for each in self._tokens if each not in self._idle]

    def _is_idle_and_goes_on(self, sequence: int, length: int) -> bool:
        """Whether a prompt goes on where an answer ended, as the next turn of a conversation does."""
        return sequence in self._idle and length == len(self._tokens[sequence])

    def _best_beginning(self, prompt: Sequence[int], adapter: str | None) -> Beginning:
        beginning = self._longest(prompt, adapter)
        shelved, length = self._shelf.longest(prompt[:-1], adapter)
        if shelved is None or (length - beginning.length) * TOKENS_AGAIN_FOR_ONE <= len(
            shelved.tokens
        ):
            return beginning
        has_room = self._count(self._running()) + len(shelved.tokens) <= self._runtime.n_ctx
        return Beginning(length, shelved=shelved) if has_room else beginning

    def _longest(self, prompt: Sequence[int], adapter: str | None) -> Beginning:
        """What any sequence holds of a prompt."""
        best = Beginning(0)
        for sequence, tokens in self._tokens.items():
            if self._adapters[sequence] == adapter:
                length = min(common_prefix(tokens, prompt), len(prompt) - 1)
                usable = self._runtime.copies_parts or self._is_idle_and_goes_on(sequence, length)
                if length > best.length and usable:
                    best = Beginning(length, source=sequence)
        return best

    def _restore(self, shelved: Shelved, sequence: int, length: int) -> None:
        """Let an empty sequence begin with some of it; idle ones make room. It stays empty if that fails."""
        while self.cells() + len(shelved.tokens) > self._runtime.n_ctx and self.make_room():
            pass
        if not self._runtime.restore(sequence, shelved.state):
            return
        self._runtime.cut(sequence, length)
        self.extend(sequence, shelved.tokens[:length])
        if length == len(shelved.tokens):
            # It would only take the room of others there.
            self._shelf.take(shelved)

    def _count(self, sequences: Iterable[int]) -> int:
        """How many cells they take together."""
        return trie_size([self._cells[each] for each in sequences])

    def _take_empty(self, adapter: str | None, keep: int | None) -> int:
        """A sequence that holds nothing; for it an idle one may have to go, and `keep` last of all."""
        if not self._free:
            others = (each for each in self._idle if each != keep)
            self.put_away(next(others, next(iter(self._idle))))
        sequence = self._free.pop()
        self._tokens[sequence], self._cells[sequence], self._adapters[sequence] = [], [], adapter
        return sequence
