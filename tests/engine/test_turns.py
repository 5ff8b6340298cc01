"""Nobody waits for ever: the adapter that stepped longest ago comes first."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from appliance.engine.turns import AdapterTurns

pytestmark = pytest.mark.llama


@pytest.fixture
def turns() -> AdapterTurns:
    from appliance.engine.turns import AdapterTurns

    return AdapterTurns()


def test_alone_it_has_every_step(turns: AdapterTurns) -> None:
    assert [turns.choose(["a"]) for _ in range(10)] == ["a"] * 10


def test_turns_of_some_steps_go_round(turns: AdapterTurns) -> None:
    steps = [turns.choose(["a", None, "b"]) for _ in range(16)]
    assert steps == ["a"] * 4 + [None] * 4 + ["b"] * 4 + ["a"] * 4


def test_turn_ends_with_the_last_answer_of_its_adapter(turns: AdapterTurns) -> None:
    assert [turns.choose(["a", "b"]) for _ in range(2)] == ["a", "a"]
    assert turns.choose(["b"]) == "b"
    assert turns.choose(["a", "b"]) == "b"


def test_those_that_come_and_go_keep_no_long_answer_from_its_turn(turns: AdapterTurns) -> None:
    """Two of long answers, and two of one step each that are asked for again at once."""
    seen: Counter[str | None] = Counter()
    served: str | None = None
    for _ in range(1000):
        # Who has had its one step is not there at the next.
        served = turns.choose([each for each in "abcd" if each in "ab" or each != served])
        seen[served] += 1
    assert min(seen["a"], seen["b"]) > 150
