"""The order of rows and the times of validation."""

from __future__ import annotations

import random

import pytest

pytestmark = pytest.mark.torch

LENGTHS = random.Random(1).choices(range(10, 100), k=50)


def test_an_epoch_holds_every_row_once_and_differs_from_the_next() -> None:
    from appliance.training.trainer import StepSortedSampler

    sampler = StepSortedSampler(LENGTHS, rows_per_step=8, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(50))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_rows_are_sorted_by_length_within_a_step_only() -> None:
    from appliance.training.trainer import StepSortedSampler

    lengths = [LENGTHS[i] for i in StepSortedSampler(LENGTHS, rows_per_step=8, seed=1)]
    steps = [lengths[start : start + 8] for start in range(0, 50, 8)]
    assert len(steps) == 7
    assert all(step == sorted(step) for step in steps)
    assert lengths != sorted(lengths)


def test_validation_comes_with_each_epoch_and_at_least_four_times() -> None:
    from appliance.training.callbacks import validation_steps

    assert validation_steps(88, epochs=1) == {22, 44, 66, 88}
    assert validation_steps(30, epochs=3) == {5, 10, 15, 20, 25, 30}
    assert validation_steps(50, epochs=5) == {10, 20, 30, 40, 50}
    assert validation_steps(2, epochs=1) == {1, 2}
