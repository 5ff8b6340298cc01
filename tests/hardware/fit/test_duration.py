"""A whole training's time from a few steps of it."""

from __future__ import annotations

import msgspec
import pytest

from appliance.hardware.fit.duration import Step, pace, training_seconds

# A cold step of 20 s, then 100 tokens/s.
STEPS = [Step(20.0, 1000), Step(25.0, 1500), Step(40.0, 3000)]
PACE = pace(STEPS, validation_seconds=3.0, all_seconds=50.0)


def test_cold_step_does_not_count_for_the_speed():
    assert PACE.tokens_per_second == 100
    assert (PACE.warm_steps, PACE.cold_seconds, PACE.cold_tokens) == (2, 20.0, 1000)


def test_what_lies_before_and_after_the_steps_is_kept_apart():
    assert PACE.beside_seconds == 7.0
    assert pace(STEPS, validation_seconds=0.0, all_seconds=39.0).beside_seconds == 0


def test_measured_training_is_given_back():
    assert training_seconds(PACE, 3000, 1) == 50.0


@pytest.mark.parametrize(
    ("tokens", "validations", "seconds"),
    [(101_000, 0, 7 + 20 + 1000), (101_000, 4, 7 + 20 + 1000 + 12), (500, 0, 27)],
)
def test_every_part_counts(tokens, validations, seconds):
    assert training_seconds(PACE, tokens, validations) == pytest.approx(seconds)


def test_twice_the_speed_is_half_the_warm_time():
    fast = msgspec.structs.replace(PACE, tokens_per_second=200.0)
    assert training_seconds(fast, 101_000, 0) == pytest.approx(7 + 20 + 500)
