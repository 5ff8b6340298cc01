"""What was decoded once is not decoded again, and goes when its place is needed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from appliance.engine.runtime import Runtime
    from appliance.engine.sequences import Sequences

pytestmark = pytest.mark.llama

# Tokens of any meaning: what counts is where they differ.
SYSTEM = list(range(100, 140))


@pytest.fixture
def sequences(runtime: Runtime) -> Sequences:
    from appliance.engine.sequences import Sequences

    return Sequences(runtime)


def fill(sequences: Sequences, runtime: Runtime, prompt: list[int]) -> tuple[int, int]:
    """Decode what of a prompt is new; gives its sequence and the number of tokens that were not."""
    from appliance.engine.runtime import Part

    sequence = sequences.begin(prompt)
    held = sequences.held(sequence)
    runtime.decode([Part(prompt[held:], held, sequence, True)])
    sequences.extend(sequence, prompt[held:])
    return sequence, held


def test_beginning_is_copied_from_a_sequence_in_use(sequences: Sequences, runtime: Runtime) -> None:
    first, held = fill(sequences, runtime, [*SYSTEM, 1, 2])
    assert held == 0
    second, held = fill(sequences, runtime, [*SYSTEM, 3, 4])
    assert held == len(SYSTEM)
    assert first != second
    _, held = fill(sequences, runtime, [*SYSTEM, 3, 5])
    assert held == len(SYSTEM) + 1


def test_last_token_is_always_left_to_decode(sequences: Sequences, runtime: Runtime) -> None:
    fill(sequences, runtime, SYSTEM)
    _, held = fill(sequences, runtime, SYSTEM)
    assert held == len(SYSTEM) - 1
    assert sequences.reusable(SYSTEM) == len(SYSTEM) - 1


def test_next_turn_goes_on_in_the_same_place_and_another_question_does_not(
    sequences: Sequences, runtime: Runtime
) -> None:
    first, _ = fill(sequences, runtime, SYSTEM)
    sequences.release(first)
    other, held = fill(sequences, runtime, [*SYSTEM[:-5], 1, 2])
    assert (other != first, held) == (True, len(SYSTEM) - 5)
    again, held = fill(sequences, runtime, [*SYSTEM, 1, 2])
    assert (again, held) == (first, len(SYSTEM))


def test_idle_sequence_unused_for_longest_goes_first(
    sequences: Sequences, runtime: Runtime
) -> None:
    prompts = [[number] * 3 for number in range(runtime.n_sequences)]
    taken = [fill(sequences, runtime, prompt)[0] for prompt in prompts]
    for sequence in [*taken[1:], taken[0]]:
        sequences.release(sequence)
    fill(sequences, runtime, [500, 501])
    assert [sequences.reusable(prompt) for prompt in prompts[:3]] == [2, 0, 2]
    assert sequences.make_room()
    assert [sequences.reusable(prompt) for prompt in prompts[:4]] == [2, 0, 0, 2]


def test_beginning_is_kept_though_its_sequence_is_the_next_to_go(
    sequences: Sequences, runtime: Runtime
) -> None:
    taken = [fill(sequences, runtime, [number] * 3)[0] for number in range(runtime.n_sequences)]
    for sequence in taken[:2]:
        sequences.release(sequence)
    _, held = fill(sequences, runtime, [0, 0, 7])
    assert held == 2
    assert sequences.reusable([0, 0, 0]) == 2
    assert sequences.reusable([1, 1, 1]) == 0


def test_idle_sequences_hold_no_more_than_is_good_for_the_others(
    sequences: Sequences, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import sequences as module

    monkeypatch.setattr(module, "IDLE_CELLS", 60)
    running, _ = fill(sequences, runtime, SYSTEM)
    prompts = [[*SYSTEM, *[number] * 15] for number in range(5)]
    for prompt in prompts:
        sequences.release(fill(sequences, runtime, prompt)[0])
    # Two of 15 cells each, while the last ran beside the first, and then itself. The beginning is the first
    # one's, and counts for none of them.
    assert [sequences.reusable([*each, 0]) for each in prompts] == [40, 40, 55, 55, 55]
    others = [fill(sequences, runtime, [900 + number])[0] for number in range(3)]
    # Four that run look at a quarter: one, since two would be too many.
    assert [sequences.reusable([*each, 0]) for each in prompts] == [40, 40, 40, 40, 55]
    sequences.release(running)
    # Of the beginning, now idle itself, as much is left as the last of the idle holds.
    assert [sequences.reusable([*each, 0]) for each in prompts] == [40] * 5
    for other in others:
        sequences.release(other)
    assert [sequences.reusable([900 + number, 0]) for number in range(3)] == [1, 1, 1]


def test_last_of_the_idle_stays_however_long_it_is(
    sequences: Sequences, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import sequences as module

    monkeypatch.setattr(module, "IDLE_CELLS", 10)
    for prompt in ([1] * 30, [2] * 30):
        sequences.release(fill(sequences, runtime, prompt)[0])
    assert [sequences.reusable([number] * 31) for number in (1, 2)] == [0, 30]


def test_copy_lives_on_when_its_source_is_forgotten(sequences: Sequences, runtime: Runtime) -> None:
    from appliance.engine.runtime import Part

    def next_token(sequence: int) -> int:
        held = sequences.held(sequence)
        (row,) = runtime.decode([Part([5], held, sequence, True)])
        assert row is not None
        return int(runtime.scores(row).argmax())

    prompt = runtime.vocabulary.tokenize("one two three four five six seven eight nine ten eleven")
    source, _ = fill(sequences, runtime, prompt)
    copy, _ = fill(sequences, runtime, prompt)
    expected = next_token(source)
    sequences.forget(source)
    fill(sequences, runtime, list(range(1000, 1150)))
    assert next_token(copy) == expected


def test_memory_that_holds_no_parts_is_used_only_where_it_goes_on(
    sequences: Sequences, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recurrent models have it."""
    monkeypatch.setattr(runtime, "copies_parts", False)
    first, _ = fill(sequences, runtime, SYSTEM)
    _, held = fill(sequences, runtime, [*SYSTEM, 1])
    assert held == 0
    sequences.release(first)
    again, held = fill(sequences, runtime, [*SYSTEM, 2])
    assert (again, held) == (first, len(SYSTEM))


def test_common_prefix_is_that_of_a_plain_count() -> None:
    from appliance.engine.sequences import common_prefix

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
