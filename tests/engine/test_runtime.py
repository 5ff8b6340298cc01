"""A model's memory of many sequences, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from appliance.errors import ChildFailed

if TYPE_CHECKING:
    from appliance.engine.runtime import Runtime

pytestmark = pytest.mark.llama


def test_a_hole_in_the_positions_is_refused(runtime: Runtime) -> None:
    from appliance.engine.runtime import Part

    tokens = runtime.vocabulary.tokenize("one two three four")
    runtime.decode([Part(tokens, 0, 0, False)])
    with pytest.raises(ChildFailed) as caught:
        runtime.decode([Part(tokens, len(tokens) + 1, 0, True)])
    assert caught.value.code == "decode_failed"


def test_more_tokens_than_cells_are_refused_and_nothing_is_lost(runtime: Runtime) -> None:
    from appliance.engine.runtime import NoCells, Part

    tokens = runtime.vocabulary.tokenize("one two three four five six seven eight")
    (row,) = runtime.decode([Part(tokens, 0, 0, True)])
    assert row is not None
    before = runtime.scores(row).copy()
    fill = (tokens * 100)[:200]
    with pytest.raises(NoCells):
        for sequence in (1, 2):
            runtime.decode([Part(fill, 0, sequence, False)])
    runtime.forget(1)
    runtime.copy(0, 2, len(tokens) - 1)
    (row,) = runtime.decode([Part(tokens[-1:], len(tokens) - 1, 2, True)])
    assert row is not None
    assert int(runtime.scores(row).argmax()) == int(before.argmax())


def test_other_sequences_of_a_call_change_not_a_bit(runtime: Runtime) -> None:
    """In a batch of the same shape, what a neighbour says cannot be told from the scores."""
    from appliance.engine.runtime import Part

    mine = runtime.vocabulary.tokenize("one two three four five six seven eight")
    others = [
        runtime.vocabulary.tokenize(text)
        for text in (" nine ten eleven twelve", " is a number of it")
    ]
    shortest = min(map(len, others))
    seen = []
    for other in others:
        runtime.forget(0)
        runtime.forget(1)
        rows = runtime.decode([Part(other[:shortest], 0, 1, True), Part(mine, 0, 0, True)])
        assert rows[1] is not None
        seen.append(runtime.scores(rows[1]).tobytes())
    assert seen[0] == seen[1]
