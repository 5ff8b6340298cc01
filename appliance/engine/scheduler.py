"""Which tokens the next decode call takes: continuous batching over one pool of cells.

Every step decodes the newest token of each running answer and, beside them, pieces of prompts. Clients
take turns in starting an answer, so that one who asks for many holds nobody up; the answers of each start in
the order in which they were asked for. One whose prompt begins like a prompt that is being decoded waits for
that and then copies it. The cells are shared: where they run out, idle sequences go
first, and then the youngest answer, which goes on later and says nothing twice.

Only answers with the same adapter can share a call. Where they have several, those of each take turns.

Knows nothing of the connection.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from appliance.engine.generation import Generation
from appliance.engine.prefix import common_prefix
from appliance.engine.protocol import Delta, Finished, Generate, Load
from appliance.engine.runtime import N_BATCH, NoCells, Part, Runtime
from appliance.engine.sequences import Sequences
from appliance.engine.turns import AdapterTurns, ClientTurns
from appliance.errors import ApplianceError, ChildFailed

# Most prompt tokens of a step that answers wait for.
TOKENS_BESIDE_ANSWERS = N_BATCH // 2
# A prompt waits for another only if that spares it so many tokens: about a decode call of many answers.
WORTH_WAITING_TOKENS = 32
# An answer starts where it and those that run have cells for so many more tokens each, or to their ends.
TOKENS_AHEAD = 64


class Failure(NamedTuple):
    """An answer that came to nothing."""

    id: int
    error: ApplianceError


Event = Delta | Finished | Failure


class Scheduler:
    """Answers that wait, and at most `slots` that run."""

    def __init__(self, runtime: Runtime, slots: int) -> None:
        self._runtime = runtime
        self._slots = slots
        self._sequences = Sequences(runtime)
        # In the order of their requests, but for those that were preempted; and in that of their starts.
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []
        # The cells were not enough for those that ran: nobody else starts until one of them has ended.
        self._crowded = False
        self._clients = ClientTurns()
        self._adapters = AdapterTurns()

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._running)

    @property
    def counts(self) -> tuple[int, int]:
        """How many answers run, and how many wait."""
        return len(self._running), len(self._waiting)

    def load(self) -> Load:
        """What it is doing now."""
        running, waiting = self.counts
        cells, adapters = self._sequences.cells(), len(self._runtime.adapters)
        return Load(running=running, waiting=waiting, cells=cells, adapters=adapters)

    def add(self, request: Generate, prompt: list[int]) -> None:
        """Take a request and the tokens of its prompt; raises InvalidInput if it cannot be answered."""
        self._waiting.append(Generation(request, prompt, self._runtime))

    def cancel(self, request_id: int) -> None:
        """Nobody wants this answer any more; not an error if there is none."""
        for generation in [*self._running, *self._waiting]:
            if generation.id == request_id:
                self._end(generation)

    def step(self) -> list[Event]:
        """Make one decode call; returns what became of it."""
        if refused := self._admit():
            return refused
        if not self._running:
            return []
        adapter = self._adapters.choose([each.adapter for each in self._running])
        work = list(self._share_out(adapter))
        parts = [
            Part(
                tokens=generation.tokens[generation.decoded : generation.decoded + count],
                position=generation.decoded,
                sequence=generation.sequence,
                wants_scores=generation.decoded + count == len(generation.tokens),
            )
            for generation, count in work
        ]
        try:
            self._runtime.adapters.attach(adapter)
            rows = self._runtime.decode(parts)
        except NoCells as exc:
            return self._make_room(exc)
        except ChildFailed as exc:
            return self._fail_all(exc)
        events: list[Event] = []
        for (generation, _), part, row in zip(work, parts, rows, strict=True):
            self._sequences.extend(part.sequence, part.tokens)
            generation.decoded += len(part.tokens)
            if row is not None:
                events += self._accept(generation, row)
        return events

    # --- what runs ---

    def _admit(self) -> list[Event]:
        """Let the waiting run, as far as there are slots; gives those that cannot."""
        if self._crowded or len(self._running) == self._slots:
            return []
        for generation in self._clients.in_turn(self._waiting):
            if len(self._running) == self._slots:
                break
            if self._waits_for_a_like_prompt(generation):
                continue
            if not self._has_room(generation):
                # Nobody overtakes it, or it might wait for ever.
                break
            try:
                has_adapter = self._load_adapter(generation)
            except ApplianceError as exc:
                self._end(generation)
                return [Failure(generation.id, exc)]
            if not has_adapter:
                break
            self._start(generation)
        return []

    def _start(self, generation: Generation) -> None:
        self._waiting.remove(generation)
        self._running.append(generation)
        self._clients.count(generation)
        sequence = self._sequences.begin(generation.tokens, generation.adapter)
        generation.begin(sequence, self._sequences.held(sequence))

    def _has_room(self, generation: Generation) -> bool:
        """Whether it can start without another having to go soon. Alone it always can."""
        if not self._running:
            return True
        cells = self._sequences.cells_with(generation.tokens, generation.adapter)
        undecoded = sum(len(each.tokens) - each.decoded for each in self._running)
        ahead = sum(min(each.tokens_left, TOKENS_AHEAD) for each in [*self._running, generation])
        return cells + undecoded + ahead <= self._runtime.n_ctx

    def _load_adapter(self, generation: Generation) -> bool:
        """False if adapters of running answers leave no room for it."""
        if generation.adapter is None:
            return True
        in_use = {each.adapter for each in self._running}
        return self._runtime.adapters.load(generation.adapter, in_use)

    def _waits_for_a_like_prompt(self, generation: Generation) -> bool:
        """Whether a prompt that runs is about to decode what this one can then copy."""
        prompts = [each for each in self._running if not each.answers]
        if generation.awaited is not None:
            # Found out before: many may wait like this, at every step.
            other, shared = generation.awaited
            if other in prompts and shared - other.decoded >= WORTH_WAITING_TOKENS:
                return True
        generation.awaited = self._like_prompt(generation, prompts)
        return generation.awaited is not None

    def _like_prompt(
        self, generation: Generation, prompts: list[Generation]
    ) -> tuple[Generation, int] | None:
        """The one that shares most tokens with it, and how many, if it is worth waiting for."""
        alike = [
            (common_prefix(each.tokens, generation.tokens), each)
            for each in prompts
            if each.adapter == generation.adapter
        ]
        shared, other = max(alike, key=lambda pair: pair[0], default=(0, None))
        if other is None or shared < WORTH_WAITING_TOKENS or not self._runtime.copies_parts:
            return None
        reusable = self._sequences.reusable(generation.tokens, generation.adapter)
        return (other, shared) if shared - reusable >= WORTH_WAITING_TOKENS else None

    def _share_out(self, adapter: str | None) -> Iterator[tuple[Generation, int]]:
        """Who takes part in the next call, with how many tokens.

        Half of what prompts may have is the oldest prompt's; the rest goes to the shortest first, so that
        a long prompt holds up neither answers nor short prompts, and is not held up by them either.
        """
        in_turn = [each for each in self._running if each.adapter == adapter]
        yield from ((each, 1) for each in in_turn if each.answers)
        prompts = [each for each in in_turn if not each.answers]
        # Answers with another adapter wait for the step, too.
        room = TOKENS_BESIDE_ANSWERS if any(each.answers for each in self._running) else N_BATCH
        if not prompts:
            return
        left = {each.id: len(each.tokens) - each.decoded for each in prompts}
        oldest, *others = prompts
        share = min(left[oldest.id], max(room // 2, room - sum(left[each.id] for each in others)))
        yield oldest, share
        room -= share
        for each in sorted(others, key=lambda each: left[each.id]):
            if room:
                share = min(left[each.id], room)
                yield each, share
                room -= share

    # --- what becomes of it ---

    def _accept(self, generation: Generation, row: int) -> Iterator[Event]:
        try:
            text = generation.accept(row)
        except ApplianceError as exc:
            self._end(generation)
            yield Failure(generation.id, exc)
            return
        calls = generation.take_calls()
        tells = text or calls or generation.finished
        likelihoods = generation.take_likelihoods() if tells else []
        if text or calls or likelihoods:
            yield Delta(id=generation.id, text=text, calls=calls, likelihoods=likelihoods)
        if generation.finished is not None:
            yield generation.finished
            self._end(generation)

    def _end(self, generation: Generation) -> None:
        if generation in self._running:
            self._running.remove(generation)
            self._sequences.release(generation.sequence)
            self._crowded = False
        else:
            self._waiting.remove(generation)
        generation.close()

    def _make_room(self, error: NoCells) -> list[Event]:
        """Forget something; the same step is tried again."""
        if self._sequences.make_room():
            return []
        youngest = self._running.pop()
        self._sequences.put_away(youngest.sequence)
        if self._running:
            self._waiting.insert(0, youngest)
            self._crowded = True
            return []
        self._crowded = False
        # Alone it has the whole pool, which is as large as its context.
        youngest.close()
        return [Failure(youngest.id, error)]

    def _fail_all(self, error: ChildFailed) -> list[Event]:
        """Nobody knows what llama.cpp holds now: whatever was running has failed."""
        failed: list[Event] = [Failure(each.id, error) for each in self._running]
        for each in self._running:
            each.close()
        self._running, self._crowded = [], False
        self._sequences.clear()
        return failed
