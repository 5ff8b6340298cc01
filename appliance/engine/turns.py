"""Who comes next where not all can: clients in starting answers, adapters in stepping.

Knows nothing of slots or cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from appliance.engine.generation import Generation

# Another adapter costs a decode call a third of its time (measured, 135 million parameters, 2 cores).
STEPS_OF_A_TURN = 4


class ClientTurns:
    """The client that started an answer longest ago comes first."""

    def __init__(self) -> None:
        # When each started one last, as a number that grows; clients are as many as API keys.
        self._started: dict[str, int] = {}
        self._starts = 0

    def in_turn(self, waiting: Iterable[Generation]) -> list[Generation]:
        """The waiting as they are to start: the preempted, then one of each client, then the next of each."""
        asked: Counter[str] = Counter()

        def turn(generation: Generation) -> tuple[int, int]:
            if generation.begun:
                return 0, 0
            asked[generation.client] += 1
            return asked[generation.client], self._started.get(generation.client, 0)

        # Equals keep the order of their requests.
        return sorted(waiting, key=turn)

    def count(self, generation: Generation) -> None:
        """It starts now. One that was preempted has had its turn."""
        if not generation.begun:
            self._starts += 1
            self._started[generation.client] = self._starts


class AdapterTurns:
    """The adapter that stepped longest ago comes first, and keeps its turn for some steps."""

    def __init__(self) -> None:
        self._current: str | None = None
        # Nobody's turn yet.
        self._steps = STEPS_OF_A_TURN
        # When each had its last turn, as a number that grows; adapters are as many as releases.
        self._turns: dict[str | None, int] = {}
        self._count = 0

    def choose(self, adapters: Collection[str | None]) -> str | None:
        """Whose step this is: one of the running answers' adapters, None among them."""
        if self._steps < STEPS_OF_A_TURN and self._current in adapters:
            self._steps += 1
            return self._current
        # The first of equals: of those that had no turn yet.
        self._current = min(adapters, key=lambda each: self._turns.get(each, 0))
        self._count += 1
        self._turns[self._current] = self._count
        self._steps = 1
        return self._current
