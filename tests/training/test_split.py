"""Which rows are held out."""

from __future__ import annotations

from appliance.training.split import hold_out, sample


def test_no_row_is_lost_or_used_twice() -> None:
    train, held_out = hold_out(range(100), 0.1, seed=1)
    assert len(held_out) == 10
    assert sorted([*train, *held_out]) == list(range(100))


def test_the_seed_decides_which() -> None:
    assert hold_out(range(100), 0.1, seed=1) == hold_out(range(100), 0.1, seed=1)
    assert hold_out(range(100), 0.1, seed=1) != hold_out(range(100), 0.1, seed=2)


def test_small_files_keep_every_row_and_twenty_rows_give_one() -> None:
    assert hold_out(range(19), 0.5, seed=1) == (list(range(19)), [])
    assert len(hold_out(range(20), 0.001, seed=1)[1]) == 1
    assert hold_out(range(100), 0.0, seed=1)[1] == []


def test_validation_is_capped() -> None:
    assert len(hold_out(range(10_000), 0.1, seed=1)[1]) == 64
    assert len(sample(range(10_000), seed=1)) == 64
    assert sample(range(5), seed=1) == list(range(5))
