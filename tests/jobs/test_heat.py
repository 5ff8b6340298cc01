"""When work rests and when it goes on, with a clock of the test's own."""

from __future__ import annotations

import pytest

from appliance.hardware.telemetry import Reading
from appliance.jobs.heat import LAST_WORD_SECONDS, Heat


def readings(*celsius):
    return [
        Reading(device=f"gpu{index}", name=f"GPU {index}", temperature_celsius=each)
        for index, each in enumerate(celsius)
    ]


def course(*moments, limit=83):
    """Whether work rests after each of these (seconds, temperatures…), and the events."""
    heat, rests, events = Heat(limit), [], []
    for at_seconds, *celsius in moments:
        events.append(heat.judge(at_seconds, readings(*celsius)))
        rests.append(heat.resting)
    return rests, [event for event in events if event is not None]


@pytest.mark.parametrize(
    ("temperatures", "rests"),
    [
        ([82.9, 83], [False, True]),
        ([90, 83, 82, 79, 78.1], [True] * 5),
        ([83, 78, 82, 82.5, 83, 78], [True, False, False, False, True, False]),
        ([None, None], [False, False]),
    ],
)
def test_work_rests_at_the_limit_and_goes_on_well_below_it(temperatures, rests):
    found, events = course(*enumerate(temperatures))
    assert found == rests
    changes = [a != b for a, b in zip([False, *rests], rests, strict=False)]
    assert len(events) == sum(changes)


def test_every_device_must_be_cool():
    moments = [(0, 50, 84), (1, 79, 60), (2, 78, 79), (3, 78, 78)]
    rests, events = course(*moments)
    assert rests == [True, True, True, False]
    assert "GPU 1 is at 84 °C" in events[0].message


def test_device_that_falls_silent_is_as_hot_as_it_was_for_a_minute():
    moments = [
        (0, 84, 50),
        (1, None, 50),
        (LAST_WORD_SECONDS, None, 50),
        (LAST_WORD_SECONDS + 1, None, 50),
    ]
    rests, events = course(*moments)
    assert rests == [True, True, True, False]
    assert events[-1].message == "Continued after 61 s: GPU 1 is at 50 °C"


def test_when_nothing_is_told_for_a_minute_work_goes_on_and_says_why():
    rests, (_, event) = course((0, 84), (LAST_WORD_SECONDS,), (LAST_WORD_SECONDS + 1,))
    assert rests == [True, True, False]
    assert event.message == "Continued after 61 s: no temperature has been told for 60 s"
    assert event.level == "warn"


def test_each_pause_is_an_event_of_its_own():
    _, events = course((0, 84), (25, 78), (30, 83.5), (60, 70))
    assert [(event.level, event.message) for event in events] == [
        ("warn", "Paused: GPU 0 is at 84 °C, the limit is 83 °C"),
        ("info", "Continued after 25 s: GPU 0 is at 78 °C"),
        ("warn", "Paused: GPU 0 is at 83.5 °C, the limit is 83 °C"),
        ("info", "Continued after 30 s: GPU 0 is at 70 °C"),
    ]
    assert events[0].data == {"temperature_celsius": 84, "thermal_limit_celsius": 83}
    assert events[1].data == {"paused_seconds": 25.0}
    assert len({event.key for event in events}) == 4
