"""Which tokens the next decode call takes: continuous batching over one pool of cells.

Every step decodes the newest token of each running answer and, beside them, pieces of prompts. Answers
start in the order in which they were asked for, but one whose prompt begins like a prompt that is being
decoded waits for that and then copies it. The cells are shared: where they run out, idle sequences go
first, and then the youngest answer, which begins anew later and says nothing twice.

Knows nothing of the connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from appliance.engine.generation import Generation
from appliance.engine.protocol import Delta, Finished, Generate, Load
from appliance.engine.runtime import N_BATCH, NoCells, Part, Runtime
from appliance.engine.sequences import Sequences, common_prefix
from appliance.errors import ApplianceError, ChildFailed

# Most prompt tokens of a step that answers wait for.
TOKENS_BESIDE_ANSWERS = N_BATCH // 2
# A prompt waits for another only if that spares it so many tokens: about a decode call of many answers.
WORTH_WAITING_TOKENS = 32


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
        # Both in the order of their requests.
        self._waiting: list[Generation] = []
        self._running: list[Generation] = []
        # The cells were not enough for those that ran: nobody else starts until one of them has ended.
        self._crowded = False

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
        return Load(running=running, waiting=waiting, cells=self._sequences.cells())

    def add(self, request: Generate) -> None:
        """Take a request; raises InvalidInput for one that cannot be answered."""
        self._waiting.append(Generation(request, self._runtime))

    def cancel(self, request_id: int) -> None:
        """Nobody wants this answer any more; not an error if there is none."""
        for generation in [*self._running, *self._waiting]:
            if generation.id == request_id:
                self._end(generation)

    def step(self) -> list[Event]:
        """Make one decode call; returns what became of it."""
        self._admit()
        work = list(self._share_out())
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

    def _admit(self) -> None:
        """Let the waiting run, as far as there are slots."""
        if self._crowded:
            return
        for generation in list(self._waiting):
            if len(self._running) == self._slots:
                return
            if not self._begins_like_a_running_prompt(generation.tokens):
                self._waiting.remove(generation)
                self._running.append(generation)
                sequence = self._sequences.begin(generation.tokens)
                generation.begin(sequence, self._sequences.held(sequence))

    def _begins_like_a_running_prompt(self, prompt: Sequence[int]) -> bool:
        prompts = [each for each in self._running if not each.answers]
        if not prompts or not self._runtime.copies_parts:
            return False
        shared = max(common_prefix(each.tokens, prompt) for each in prompts)
        return shared - self._sequences.reusable(prompt) >= WORTH_WAITING_TOKENS

    def _share_out(self) -> Iterator[tuple[Generation, int]]:
        """Who takes part in the next call, with how many tokens.

        Half of what prompts may have is the oldest prompt's; the rest goes to the shortest first, so that
        a long prompt holds up neither answers nor short prompts, and is not held up by them either.
        """
        answers = [each for each in self._running if each.answers]
        yield from ((each, 1) for each in answers)
        prompts = [each for each in self._running if not each.answers]
        room = TOKENS_BESIDE_ANSWERS if answers else N_BATCH
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
        except ChildFailed as exc:
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
        self._sequences.forget(youngest.sequence)
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
        for generation in list(self._running):
            self._end(generation)
        while self._sequences.make_room():
            pass
        return failed
