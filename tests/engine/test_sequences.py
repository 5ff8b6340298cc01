"""What was decoded once is not decoded again, and goes when its place is needed."""

from __future__ import annotations

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


@pytest.fixture
def no_shelf(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for models whose sequences cannot be saved."""
    monkeypatch.setattr(runtime, "saves", False)


def fill(sequences: Sequences, runtime: Runtime, prompt: list[int]) -> tuple[int, int]:
    """Decode what of a prompt is new; gives its sequence and the number of tokens that were not."""
    from appliance.engine.runtime import Part

    sequence = sequences.begin(prompt)
    held = sequences.held(sequence)
    runtime.decode([Part(prompt[held:], held, sequence, True)])
    sequences.extend(sequence, prompt[held:])
    return sequence, held


def decode_one(sequences: Sequences, runtime: Runtime, sequence: int, token: int) -> None:
    from appliance.engine.runtime import Part

    runtime.decode([Part([token], sequences.held(sequence), sequence, True)])
    sequences.extend(sequence, [token])


def fill_long(sequences: Sequences, runtime: Runtime, prompt: list[int]) -> int:
    from appliance.engine.runtime import N_BATCH, Part

    sequence = sequences.begin(prompt)
    for start in range(0, len(prompt), N_BATCH):
        piece = prompt[start : start + N_BATCH]
        runtime.decode([Part(piece, start, sequence, False)])
        sequences.extend(sequence, piece)
    return sequence


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
    sequences: Sequences, runtime: Runtime, no_shelf: None
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
    sequences: Sequences, runtime: Runtime, no_shelf: None
) -> None:
    taken = [fill(sequences, runtime, [number] * 3)[0] for number in range(runtime.n_sequences)]
    for sequence in taken[:2]:
        sequences.release(sequence)
    _, held = fill(sequences, runtime, [0, 0, 7])
    assert held == 2
    assert sequences.reusable([0, 0, 0]) == 2
    assert sequences.reusable([1, 1, 1]) == 0


def test_idle_sequences_hold_no_more_than_is_good_for_the_others(
    sequences: Sequences, runtime: Runtime, no_shelf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import sequences as module

    monkeypatch.setattr(module, "IDLE_CELLS_WITHOUT_SHELF", 60)
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
    sequences: Sequences, runtime: Runtime, no_shelf: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import sequences as module

    monkeypatch.setattr(module, "IDLE_CELLS_WITHOUT_SHELF", 10)
    for prompt in ([1] * 30, [2] * 30):
        sequences.release(fill(sequences, runtime, prompt)[0])
    assert [sequences.reusable([number] * 31) for number in (1, 2)] == [0, 30]


def test_copy_lives_on_when_its_source_is_put_away(sequences: Sequences, runtime: Runtime) -> None:
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
    sequences.put_away(source)
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


def test_what_was_put_away_comes_back_as_it_was(sequences: Sequences, runtime: Runtime) -> None:
    import numpy as np

    def scores(sequence: int) -> object:
        (row,) = runtime.decode([Part([5], sequences.held(sequence), sequence, True)])
        assert row is not None
        return runtime.scores(row).copy()

    from appliance.engine.runtime import Part

    source, _ = fill(sequences, runtime, SYSTEM)
    expected = scores(source)
    sequences.put_away(source)
    assert sequences.cells() == 0
    # Others take its cells, and it finds its own wherever there are some.
    fill(sequences, runtime, list(range(1000, 1013)))
    sequences.put_away(fill(sequences, runtime, list(range(2000, 2040)))[0])
    again = sequences.begin([*SYSTEM, 5])
    assert sequences.held(again) == len(SYSTEM)
    assert np.allclose(scores(again), expected, atol=1e-3)
    part = sequences.begin([*SYSTEM[:25], 7])
    assert sequences.held(part) == 25


def test_more_idle_than_is_good_for_the_others_is_put_on_the_shelf(
    sequences: Sequences, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine import sequences as module

    monkeypatch.setattr(module, "IDLE_CELLS", 60)
    prompts = [[number] * 40 for number in range(5)]
    for prompt in prompts:
        sequences.release(fill(sequences, runtime, prompt)[0])
    assert sequences.cells() == 40
    assert [sequences.reusable([*each, 0]) for each in prompts] == [40, 40, 40, 40, 40]
    assert [sequences.held(sequences.begin([*each, 99])) for each in prompts] == [40] * 5


def test_talks_in_turn_keep_their_places_in_pool_and_on_shelf(
    sequences: Sequences, runtime: Runtime
) -> None:
    """Six talks of 60 tokens, of which the pool holds three and the shelf four: the next is the oldest."""
    held = []
    for turn in range(3):
        for talk in range(6):
            while sequences.cells() > runtime.n_ctx - 70:
                sequences.make_room()
            prompt = [talk + 10] * 60 + [1] * turn
            sequence, kept = fill(sequences, runtime, prompt)
            sequences.release(sequence)
            held.append(kept)
    assert held == [0] * 6 + [60] * 6 + [61] * 6


def test_cells_are_counted_as_llama_takes_them(sequences: Sequences, runtime: Runtime) -> None:
    """Equal tokens that were decoded twice have two cells, and those of a copied beginning one."""
    first, _ = fill(sequences, runtime, [*SYSTEM, 1])
    second, _ = fill(sequences, runtime, [*SYSTEM, 2])
    assert sequences.cells() == 42
    for each in (first, second):
        for token in range(50, 60):
            decode_one(sequences, runtime, each, token)
    assert sequences.cells() == 42 + 20
    prompt = [*SYSTEM, 2, 50, 51, 99]
    # What it would copy is in use, and then is idle but for what it shares.
    assert sequences.cells_with(prompt, None) == 42 + 20 + 1
    sequences.release(second)
    assert sequences.cells_with(prompt, None) == 41 + 10 + 4
    assert sequences.cells_with([7, 7, 7], None) == 41 + 10 + 3
    assert sequences.cells_with(prompt, "another adapter") == 41 + 10 + 44
    # What is put back shares nothing.
    sequences.put_away(second)
    again = [*SYSTEM, 2, *range(50, 60), 3]
    assert sequences.cells_with(again, None) == 41 + 10 + len(again)
    sequences.begin(again)
    assert sequences.cells() == 41 + 10 + 51


def test_nothing_is_shared_where_no_parts_can_be_copied(
    sequences: Sequences, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "copies_parts", False)
    monkeypatch.setattr(runtime, "saves", False)
    first, _ = fill(sequences, runtime, SYSTEM)
    assert sequences.reusable([*SYSTEM, 1]) == 0
    assert sequences.cells_with([*SYSTEM, 1], None) == 81
    sequences.release(first)
    assert sequences.reusable([*SYSTEM, 1]) == 40
    assert sequences.cells_with([*SYSTEM, 1], None) == 41
    assert sequences.cells_with([*SYSTEM[:30], 1], None) == 31


def test_what_is_put_back_leaves_the_shelf_unless_only_a_part_of_it_was_wanted(
    sequences: Sequences, runtime: Runtime
) -> None:
    sequences.put_away(fill(sequences, runtime, SYSTEM)[0])
    part = sequences.begin([*SYSTEM[:30], 7])
    assert (sequences.held(part), sequences._shelf.tokens) == (30, len(SYSTEM))
    whole = sequences.begin([*SYSTEM, 8])
    assert (sequences.held(whole), sequences._shelf.tokens) == (len(SYSTEM), 0)
    sequences.put_away(whole)
    assert sequences._shelf.tokens == len(SYSTEM)


def test_shelf_is_left_alone_for_a_few_tokens_more(sequences: Sequences, runtime: Runtime) -> None:
    """What a copy shares is worth more."""
    long = list(range(100, 200))
    fill(sequences, runtime, [*long, 1])
    sequences.put_away(fill(sequences, runtime, [*long, 2, 3, 4])[0])
    assert sequences.cells() == 101
    assert sequences.held(sequences.begin([*long, 2, 9])) == 100
    assert sequences.cells() == 101
    assert sequences.held(sequences.begin([*long, 2, 3, 9])) == 102
    assert sequences.cells() == 101 + 102


def test_nothing_is_put_back_where_there_is_no_room(sequences: Sequences, runtime: Runtime) -> None:
    most = runtime.n_ctx
    old = [7] * (most // 2)
    sequences.put_away(fill_long(sequences, runtime, old))
    fill_long(sequences, runtime, [8] * (most // 2 + 1))
    assert sequences.reusable([*old, 1]) == 0
    assert sequences.held(sequences.begin([*old, 1])) == 0


def test_idle_ones_make_room_for_what_is_put_back(sequences: Sequences, runtime: Runtime) -> None:
    old, idle = [7] * (runtime.n_ctx // 2), [8] * (runtime.n_ctx // 2 + 1)
    sequences.put_away(fill_long(sequences, runtime, old))
    sequences.release(fill_long(sequences, runtime, idle))
    assert sequences.held(sequences.begin([*old, 1])) == len(old)
    assert sequences.cells() == len(old)
    # What made room pushed it from the shelf, which holds no more than it may.
    assert sequences._shelf.tokens == len(idle)


def test_what_is_idle_stays_where_its_room_would_not_be_enough(
    sequences: Sequences, runtime: Runtime
) -> None:
    half = runtime.n_ctx // 2
    sequences.put_away(fill_long(sequences, runtime, [*SYSTEM, *[7] * (half - 40)]))
    sequences.release(fill(sequences, runtime, [*SYSTEM[:20], 9])[0])
    fill_long(sequences, runtime, [8] * (half + 1))
    assert sequences.held(sequences.begin([*SYSTEM, 5])) == 20


def test_much_is_not_put_back_for_a_few_tokens(sequences: Sequences, runtime: Runtime) -> None:
    sequences.put_away(fill(sequences, runtime, list(range(100, 230)))[0])
    assert sequences.held(sequences.begin([100, 101, 5])) == 0
    assert sequences.held(sequences.begin([100, 101, 102, 5])) == 3


def test_nothing_is_put_on_the_shelf_of_what_was_not_decoded(
    sequences: Sequences, runtime: Runtime
) -> None:
    sequences.put_away(sequences.begin(SYSTEM))
    assert sequences._shelf.longest(SYSTEM, None) == (None, 0)
    assert sequences._shelf._shelved == []


def test_what_may_be_wrong_is_forgotten_and_not_kept(
    sequences: Sequences, runtime: Runtime
) -> None:
    sequences.put_away(fill(sequences, runtime, SYSTEM)[0])
    sequences.release(fill(sequences, runtime, [5] * 30)[0])
    fill(sequences, runtime, [6] * 30)
    sequences.clear()
    assert [sequences.reusable([each] * 30) for each in (5, 6)] == [0, 0]
    assert (sequences.cells(), sequences._shelf.tokens) == (0, len(SYSTEM))
    assert sequences.reusable([*SYSTEM, 1]) == len(SYSTEM)
